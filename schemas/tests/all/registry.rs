//! The embedded registry: the rules of all registries, and its own.

use std::sync::Arc;

use eshaar_schemas::registry::embedded::EmbeddedRegistry;
use eshaar_schemas::{Compatibility, Registry, RegistryError};

use crate::conformance::{self, USER};

#[tokio::test]
async fn the_embedded_registry_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let registry = EmbeddedRegistry::open(&dir.path().join("registry.db")).unwrap();
    conformance::conforms(Arc::new(registry), |name| format!("{name}-value")).await;
}

#[tokio::test]
async fn the_embedded_registry_remembers_when_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let first = EmbeddedRegistry::open(&path).unwrap();
    let id = first.register("a", USER).await.unwrap();
    first.set_compatibility("a", Compatibility::None).await.unwrap();
    // still open: a second process sees the same
    let second = EmbeddedRegistry::open(&path).unwrap();
    assert_eq!(second.register("a", USER).await.unwrap(), id);
    drop(first);
    let later = second.register("a", r#""string""#).await.unwrap();
    assert_ne!(later, id, "the level was remembered, and ids are not given twice");
}

#[tokio::test]
async fn subjects_and_schemas_have_a_largest_size() {
    let dir = tempfile::tempdir().unwrap();
    let registry = EmbeddedRegistry::open(&dir.path().join("registry.db")).unwrap();
    let refused = registry.register(&"s".repeat(261), USER).await;
    assert!(matches!(refused, Err(RegistryError::Invalid { .. })), "{refused:?}");
    let huge = format!(r#"{{"type": "enum", "name": "E", "doc": "{}", "symbols": ["a"]}}"#, "x".repeat(256 * 1024));
    let refused = registry.register("s", &huge).await;
    assert!(matches!(refused, Err(RegistryError::Invalid { .. })), "{refused:?}");
}

//! What every registry must do: written against the port alone, run against each implementation.

use std::sync::Arc;

use eshaar_schemas::{Compatibility, Missing, Registry, RegistryError};

pub const USER: &str = r#"{"type": "record", "name": "User", "fields": [{"name": "name", "type": "string"}]}"#;
const USER_SPREAD: &str =
    "{\"fields\": [{\"type\": \"string\", \"name\": \"name\"}],\n  \"type\": \"record\",\n  \"name\": \"User\"}";
pub const USER_WITH_AGE: &str = r#"{"type": "record", "name": "User", "fields": [{"name": "name", "type": "string"}, {"name": "age", "type": ["null", "int"], "default": null}]}"#;
pub const USER_MUST_AGE: &str = r#"{"type": "record", "name": "User", "fields": [{"name": "name", "type": "string"}, {"name": "age", "type": "int"}]}"#;

/// `subject` gives names that no earlier run has used: a shared registry remembers.
pub async fn conforms(registry: Arc<dyn Registry>, subject: impl Fn(&str) -> String) {
    the_same_schema_has_one_id(&*registry, &subject).await;
    an_id_leads_to_its_schema(&*registry, &subject).await;
    looking_up_registers_nothing(&*registry, &subject).await;
    a_subject_is_held_to_its_level(&*registry, &subject).await;
    what_is_no_schema_is_refused(&*registry, &subject).await;
    racing_registrations_agree(registry, &subject).await;
}

async fn the_same_schema_has_one_id(registry: &dyn Registry, subject: &impl Fn(&str) -> String) {
    let id = registry.register(&subject("a"), USER).await.unwrap();
    assert_eq!(registry.register(&subject("a"), USER).await.unwrap(), id, "registered twice");
    assert_eq!(registry.register(&subject("a"), USER_SPREAD).await.unwrap(), id, "other layout");
    assert_eq!(registry.register(&subject("b"), USER).await.unwrap(), id, "other subject");
    assert_ne!(registry.register(&subject("a"), USER_WITH_AGE).await.unwrap(), id, "other schema");
}

async fn an_id_leads_to_its_schema(registry: &dyn Registry, subject: &impl Fn(&str) -> String) {
    let id = registry.register(&subject("ids"), USER).await.unwrap();
    let found: serde_json::Value = serde_json::from_str(&registry.schema(id).await.unwrap()).unwrap();
    assert_eq!(found, serde_json::from_str::<serde_json::Value>(USER).unwrap());
    let missing = registry.schema(0x7fff_fffe).await;
    assert!(matches!(missing, Err(RegistryError::NotFound { .. })), "{missing:?}");
}

async fn looking_up_registers_nothing(registry: &dyn Registry, subject: &impl Fn(&str) -> String) {
    let name = subject("look-up");
    let missing = registry.lookup(&name, USER).await;
    let is_subject = |what: &Missing| *what == Missing::Subject(name.clone());
    assert!(matches!(&missing, Err(RegistryError::NotFound { what }) if is_subject(what)), "{missing:?}");
    let id = registry.register(&name, USER).await.unwrap();
    for layout in [USER, USER_SPREAD] {
        assert_eq!(registry.lookup(&name, layout).await.unwrap(), id);
    }
    for _ in 0..2 {
        let missing = registry.lookup(&name, USER_WITH_AGE).await;
        assert!(matches!(missing, Err(RegistryError::NotFound { what: Missing::Schema })), "{missing:?}");
    }
}

async fn a_subject_is_held_to_its_level(registry: &dyn Registry, subject: &impl Fn(&str) -> String) {
    let name = subject("levels");
    registry.set_compatibility(&name, Compatibility::FullTransitive).await.unwrap();
    registry.register(&name, USER).await.unwrap();
    registry.register(&name, USER_WITH_AGE).await.unwrap();
    let refused = registry.register(&name, USER_MUST_AGE).await;
    let named = |subject: &str, reason: &str| subject == name && !reason.is_empty();
    assert!(
        matches!(&refused, Err(RegistryError::Incompatible { subject, reason }) if named(subject, reason)),
        "{refused:?}"
    );

    registry.set_compatibility(&name, Compatibility::Forward).await.unwrap();
    registry.register(&name, USER_MUST_AGE).await.unwrap();
    let refused = registry.register(&name, r#""string""#).await;
    assert!(matches!(refused, Err(RegistryError::Incompatible { .. })), "{refused:?}");
    registry.set_compatibility(&name, Compatibility::None).await.unwrap();
    registry.register(&name, r#""string""#).await.unwrap();
}

async fn what_is_no_schema_is_refused(registry: &dyn Registry, subject: &impl Fn(&str) -> String) {
    for junk in ["", "{", r#"{"type": "record"}"#, r#"{"type": "no such type"}"#] {
        let refused = registry.register(&subject("junk"), junk).await;
        assert!(matches!(refused, Err(RegistryError::Invalid { .. })), "{junk}: {refused:?}");
    }
}

async fn racing_registrations_agree(registry: Arc<dyn Registry>, subject: &impl Fn(&str) -> String) {
    let name = subject("race");
    let racers: Vec<_> = (0..8)
        .map(|_| {
            let (registry, name) = (Arc::clone(&registry), name.clone());
            tokio::spawn(async move { registry.register(&name, USER).await.unwrap() })
        })
        .collect();
    let mut ids = Vec::new();
    for racer in racers {
        ids.push(racer.await.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
}

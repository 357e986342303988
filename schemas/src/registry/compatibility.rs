//! Whether a schema may follow those before it: pure, by the Avro project's own rules.

use apache_avro::Schema;
use apache_avro::schema_compatibility::{Compatibility as Match, SchemaCompatibility};

use super::{Compatibility, RegistryError};

/// Parses Avro JSON.
pub fn parse(json: &str) -> Result<Schema, RegistryError> {
    Schema::parse_str(json).map_err(|error| RegistryError::Invalid { reason: error.to_string() })
}

/// What makes two schemas the same one: their JSON, whatever its whitespace and the order of its keys.
///
/// Not Avro's canonical form, which leaves out defaults and logical types: a change of those is a new version, since
/// readers depend on them.
pub fn identity(json: &str) -> Result<String, RegistryError> {
    fn sorted(value: serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Object(fields) => {
                let mut fields: Vec<_> = fields.into_iter().map(|(name, value)| (name, sorted(value))).collect();
                fields.sort_by(|(a, _), (b, _)| a.cmp(b));
                fields.into_iter().collect()
            }
            serde_json::Value::Array(items) => items.into_iter().map(sorted).collect(),
            scalar => scalar,
        }
    }
    // A bare name (`string`) is a schema too, and not JSON.
    let value = serde_json::from_str(json).unwrap_or_else(|_| serde_json::Value::from(json));
    serde_json::to_string(&sorted(value)).map_err(|error| RegistryError::Invalid { reason: error.to_string() })
}

/// Every way in which `candidate` breaks `level` against `earlier` versions (newest first); none if it may follow them.
pub fn violations(level: Compatibility, candidate: &Schema, earlier: &[(u32, Schema)]) -> Vec<String> {
    use Compatibility as C;
    let backward = matches!(level, C::Backward | C::BackwardTransitive | C::Full | C::FullTransitive);
    let forward = matches!(level, C::Forward | C::ForwardTransitive | C::Full | C::FullTransitive);
    let transitive = matches!(level, C::BackwardTransitive | C::ForwardTransitive | C::FullTransitive);
    let compared = if transitive { earlier.len() } else { earlier.len().min(1) };
    let mut found = Vec::new();
    for (version, earlier) in &earlier[..compared] {
        if backward && let Some(reason) = refusal(earlier, candidate) {
            found.push(format!("the new schema cannot read records of version {version}: {reason}"));
        }
        if forward && let Some(reason) = refusal(candidate, earlier) {
            found.push(format!("readers of version {version} cannot read records of the new schema: {reason}"));
        }
    }
    found
}

/// Why `reader` cannot read all that `writer` may write.
fn refusal(writer: &Schema, reader: &Schema) -> Option<String> {
    match SchemaCompatibility::can_read(writer, reader) {
        Ok(Match::Full) => None,
        Ok(Match::Partial) => {
            Some("some values have no counterpart (an enum symbol or a member of a union is missing)".to_owned())
        }
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record(fields: &str) -> Schema {
        parse(&format!(r#"{{"type": "record", "name": "R", "fields": [{fields}]}}"#)).unwrap()
    }

    const A: &str = r#"{"name": "a", "type": "string"}"#;
    const A_OR_B: &str = r#"{"name": "a", "type": "string"}, {"name": "b", "type": ["null", "int"], "default": null}"#;

    fn allowed(level: Compatibility, candidate: &Schema, earlier: &[&Schema]) -> bool {
        let earlier: Vec<_> = (1..).zip(earlier.iter().map(|schema| (*schema).clone())).collect();
        violations(level, candidate, &earlier).is_empty()
    }

    #[test]
    fn a_field_with_a_default_may_come_and_go_at_every_level() {
        for level in Compatibility::ALL {
            assert!(allowed(level, &record(A_OR_B), &[&record(A)]), "{level}: added");
            assert!(allowed(level, &record(A), &[&record(A_OR_B)]), "{level}: removed");
        }
    }

    #[test]
    fn a_field_without_a_default_may_only_be_removed_backward_and_added_forward() {
        let (one, two) = (record(A), record(r#"{"name": "a", "type": "string"}, {"name": "b", "type": "int"}"#));
        assert!(allowed(Compatibility::Backward, &one, &[&two]));
        assert!(!allowed(Compatibility::Backward, &two, &[&one]));
        assert!(allowed(Compatibility::Forward, &two, &[&one]));
        assert!(!allowed(Compatibility::Forward, &one, &[&two]));
        assert!(!allowed(Compatibility::Full, &one, &[&two]));
        assert!(!allowed(Compatibility::Full, &two, &[&one]));
        assert!(allowed(Compatibility::None, &two, &[&one]));
    }

    #[test]
    fn only_transitive_levels_look_past_the_latest_version() {
        let int = record(r#"{"name": "n", "type": "int", "default": 0}"#);
        let none = record(A_OR_B);
        let text = record(r#"{"name": "n", "type": "string", "default": ""}"#);
        // newest first: the field was an int, then left, and comes back as text
        let none_then_int = [&record(r#"{"name": "m", "type": "int", "default": 0}"#), &int];
        assert!(allowed(Compatibility::Full, &text, &none_then_int));
        assert!(!allowed(Compatibility::FullTransitive, &text, &none_then_int));
        assert!(allowed(Compatibility::FullTransitive, &int, &[&int]) && !allowed(Compatibility::Full, &none, &[&int]));
    }

    #[test]
    fn identity_overlooks_layout_but_not_defaults() {
        let spread = "{ \"type\": \"fixed\",\n \"size\": 2, \"name\": \"F\" }";
        assert_eq!(identity(spread).unwrap(), identity(r#"{"name":"F","type":"fixed","size":2}"#).unwrap());
        assert_ne!(
            identity(r#"{"name": "a", "type": "int", "default": 1}"#).unwrap(),
            identity(r#"{"name": "a", "type": "int", "default": 2}"#).unwrap()
        );
    }
}

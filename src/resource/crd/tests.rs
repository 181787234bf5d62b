//! What the schema promises to those who write and those who read.

use std::{collections::BTreeSet, sync::LazyLock};

use super::*;
use crate::resource::{PhaseManifestStatus, status_patch};

static SCHEMA: LazyLock<JSONSchemaProps> = LazyLock::new(|| {
    let version = crd().spec.versions.remove(0);
    version.schema.and_then(|schema| schema.open_api_v3_schema).expect("the CRD has a schema")
});

fn field<'a>(schema: &'a JSONSchemaProps, path: &str) -> &'a JSONSchemaProps {
    path.split('.').fold(schema, |schema, name| match (&schema.properties, &schema.items) {
        (Some(fields), _) => &fields[name],
        (None, Some(JSONSchemaPropsOrArray::Schema(items))) => &items.properties.as_ref().expect("an object")[name],
        _ => panic!("{name} is in nothing"),
    })
}

/// Every schema below this one with its path.
fn walk<'a>(schema: &'a JSONSchemaProps, path: &str, found: &mut Vec<(String, &'a JSONSchemaProps)>) {
    found.push((path.to_owned(), schema));
    for (name, field) in schema.properties.iter().flatten() {
        walk(field, &format!("{path}.{name}"), found);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
        walk(items, &format!("{path}[]"), found);
    }
}

#[test]
fn patches_name_every_field_of_the_status() {
    let declared: BTreeSet<&String> =
        field(&SCHEMA, "status").properties.iter().flat_map(|fields| fields.keys()).collect();
    let patch = status_patch(&PhaseManifestStatus::default());
    let named: BTreeSet<&String> = patch["status"].as_object().expect("an object").keys().collect();
    assert_eq!(named, declared);
}

#[test]
fn phases_forgive_at_every_level() {
    let mut found = Vec::new();
    let Some(JSONSchemaPropsOrArray::Schema(phase)) = &field(&SCHEMA, "spec.phases").items else {
        panic!("phases are a list")
    };
    walk(phase, "phases[]", &mut found);
    assert!(found.len() > 40);
    for (path, schema) in found {
        assert!(schema.required.is_none() && schema.default.is_none() && schema.enum_.is_none(), "{path} demands");
        assert!(schema.pattern.is_none() && schema.maximum.is_none(), "{path} judges");
        assert_eq!(schema.nullable, Some(true), "{path} refuses null");
        assert!(schema.description.is_some(), "{path} teaches nothing");
        if schema.type_.as_deref() != Some("string") && schema.x_kubernetes_int_or_string != Some(true) {
            assert_eq!(schema.x_kubernetes_preserve_unknown_fields, Some(true), "{path} prunes");
        }
        assert!(
            !matches!(schema.type_.as_deref(), Some("integer" | "number" | "boolean" | "array")),
            "{path} refuses text"
        );
    }
}

#[test]
fn everything_outside_phases_is_bounded_described_and_strict() {
    let mut found = Vec::new();
    walk(field(&SCHEMA, "spec"), "spec", &mut found);
    for (path, schema) in found.iter().filter(|(path, _)| !path.starts_with("spec.phases[]")) {
        assert!(schema.description.is_some(), "{path} teaches nothing");
        assert!(schema.default.is_none(), "{path} would be written into everybody's resources");
        assert!(schema.x_kubernetes_preserve_unknown_fields.is_none(), "{path} takes anything");
        match schema.type_.as_deref() {
            Some("string") => assert!(schema.enum_.is_some() || schema.max_length.is_some(), "{path} has no end"),
            Some("integer") => assert!(schema.minimum.is_some() && schema.maximum.is_some(), "{path} has no bounds"),
            Some("array") => assert!(schema.max_items.is_some(), "{path} has no end"),
            None => {
                assert!(schema.pattern.is_some() && schema.max_length.is_some() && schema.maximum.is_some(), "{path}");
            }
            _ => {}
        }
    }
}

#[test]
fn the_status_is_one_atomic_map_that_starts_unobserved() {
    let status = field(&SCHEMA, "status");
    assert_eq!(status.x_kubernetes_map_type.as_deref(), Some("atomic"));
    assert_eq!(status.default.as_ref().map(|default| &default.0), Some(&json!({"observedGeneration": -1})));
    assert!(!status.properties.as_ref().expect("fields").contains_key("phase"));
}

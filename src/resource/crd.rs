//! The one generator of `crds/phasemanifests.yaml`.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::core::CustomResourceExt as _;
use serde_json::json;

use super::spec::PhaseManifest;

/// The CustomResourceDefinition as it is to be applied.
pub fn crd() -> CustomResourceDefinition {
    let mut crd = PhaseManifest::crd();
    for version in &mut crd.spec.versions {
        let root = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let root = root.expect("the derive gives every version a schema");
        settle(root);
        let status = root.properties.as_mut().and_then(|fields| fields.get_mut("status"));
        let status = status.expect("the derive declares the status");
        // An object without a status reads as done to kstatus; this one reads as not yet observed.
        status.default = Some(JSON(json!({"observedGeneration": -1})));
        status.nullable = None;
    }
    crd
}

/// The CRD as YAML, with a line that says where it comes from. Ends in a line break.
pub fn crd_yaml() -> String {
    let yaml = serde_saphyr::to_string(&crd()).expect("a CRD is maps, lists, texts and numbers");
    format!("# Made by `pmp crd`; edit src/resource/ and run `make generate` instead.\n{}\n", yaml.trim_end())
}

/// What the derive cannot be told. Serde's defaults are for reading old objects; in a schema they would be written into
/// everybody's resources. A doc comment is wrapped for an editor, not for `kubectl explain`, which prints the null of a
/// nullable enum as `<no value>` (the server needs it not, measured).
fn settle(schema: &mut JSONSchemaProps) {
    schema.default = None;
    if let Some(text) = &mut schema.description {
        *text = text.replace('\n', " ");
    }
    if let Some(words) = &mut schema.enum_ {
        words.retain(|word| !word.0.is_null());
    }
    for field in schema.properties.iter_mut().flat_map(|fields| fields.values_mut()) {
        settle(field);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        settle(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        settle(values);
    }
}

#[cfg(test)]
mod tests;

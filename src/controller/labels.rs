//! Labels that a handler puts onto its resource (`onFailure.spec.labels`, `onSuccess.spec.labels`).
//!
//! Labels steer other programs, so a manifest may add its own and take nobody's: keys without a prefix, or with one that
//! the operator's configuration allows, never one that is there with another value.

use std::collections::BTreeMap;

use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::call::{self, call, name, namespace};
use crate::resource::PhaseManifest;

/// Writers that may come in between, one after the other.
const CONFLICTS_MAX: u32 = 5;

/// Which keys a handler may use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelRules {
    /// Prefixes (`example.com`) that are allowed besides none.
    pub prefixes: Vec<String>,
    /// Keys by which operators are told apart: a handler could otherwise hand its resource to another one.
    pub reserved: Vec<String>,
}

/// A label that was not put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedLabel {
    pub key: String,
    pub value: String,
    /// For people.
    pub why: String,
}

/// The labels could not be put now.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Call(#[from] call::Error),
    #[error("could not label the resource: it is written to all the time")]
    Contended,
}

impl Error {
    /// Trying again is of no use.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Call(error) if error.is_final())
    }

    /// One PascalCase word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Call(error) => error.reason(),
            Self::Contended => "Conflict",
        }
    }
}

/// Puts the labels onto the object as it is now, in one patch; answers with those that may not be put.
///
/// Doing it twice is doing it once. An object that is gone, or another one by now, has no use for labels: nothing is
/// refused then.
pub async fn put_labels(
    client: &Client,
    object: &PhaseManifest,
    labels: &BTreeMap<String, String>,
    rules: &LabelRules,
) -> Result<Vec<RefusedLabel>, Error> {
    if labels.is_empty() {
        return Ok(Vec::new());
    }
    let api: Api<PhaseManifest> = Api::namespaced(client.clone(), namespace(object));
    for _ in 0..CONFLICTS_MAX {
        let found = match call("read the labels of the resource", api.get_metadata(name(object))).await {
            Ok(found) => found.metadata,
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        if found.uid != object.metadata.uid {
            return Ok(Vec::new());
        }
        let (put, refused) = judged(labels, &found.labels.unwrap_or_default(), rules);
        if put.is_empty() {
            return Ok(refused);
        }
        let patch = json!({"metadata": {"labels": put, "resourceVersion": found.resource_version, "uid": found.uid}});
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        match call("label the resource", api.patch_metadata(name(object), &params, &patch)).await {
            Ok(_) => return Ok(refused),
            Err(error) if error.is_conflict() => {}
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Contended)
}

/// What is to be put, and what is refused. Labels that are there already are neither.
fn judged<'a>(
    labels: &'a BTreeMap<String, String>,
    there: &BTreeMap<String, String>,
    rules: &LabelRules,
) -> (BTreeMap<&'a str, &'a str>, Vec<RefusedLabel>) {
    let mut put = BTreeMap::new();
    let mut refused = Vec::new();
    for (key, value) in labels {
        let why = match (key.split_once('/'), there.get(key)) {
            _ if rules.reserved.contains(key) => "operators are told apart by this key".to_owned(),
            (Some((prefix, _)), _) if !rules.prefixes.iter().any(|allowed| allowed == prefix) => {
                format!("the prefix {prefix} is not among the operator's --label-prefix")
            }
            (_, Some(other)) if other == value => continue,
            (_, Some(other)) => format!("it is there as {other}"),
            (_, None) => {
                put.insert(key.as_str(), value.as_str());
                continue;
            }
        };
        refused.push(RefusedLabel { key: key.clone(), value: value.clone(), why });
    }
    (put, refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn keys(refused: &[RefusedLabel]) -> Vec<&str> {
        refused.iter().map(|label| label.key.as_str()).collect()
    }

    #[test]
    fn a_key_without_a_prefix_is_put_and_one_with_a_foreign_prefix_is_not() {
        let wanted = labels(&[("stage", "done"), ("kubernetes.io/name", "x"), ("team.example/owner", "a")]);
        let rules = LabelRules { prefixes: vec!["team.example".to_owned()], reserved: Vec::new() };
        let (put, refused) = judged(&wanted, &labels(&[]), &rules);
        assert_eq!(put.into_keys().collect::<Vec<_>>(), ["stage", "team.example/owner"]);
        assert_eq!(keys(&refused), ["kubernetes.io/name"]);
    }

    #[test]
    fn a_label_that_is_there_is_left_alone_whatever_its_value() {
        let wanted = labels(&[("same", "x"), ("other", "x")]);
        let (put, refused) = judged(&wanted, &labels(&[("same", "x"), ("other", "y")]), &LabelRules::default());
        assert!(put.is_empty());
        assert_eq!(keys(&refused), ["other"]);
    }

    #[test]
    fn a_key_of_our_own_selector_is_refused() {
        let wanted = labels(&[("shard", "2")]);
        let rules = LabelRules { prefixes: Vec::new(), reserved: vec!["shard".to_owned()] };
        assert_eq!(keys(&judged(&wanted, &labels(&[]), &rules).1), ["shard"]);
    }
}

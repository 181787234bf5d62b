//! What is written: the resource of a new session, or a merge patch of one that is there. PURE.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    answer::{Facts, Outcome},
    document::Submission,
    once::{self, KEYS_ANNOTATION, Key, Use},
    target::{Naming, Target},
    wish::Mode,
};
use crate::resource::{PhaseManifest, PhaseManifestSpec};

/// For objects that nobody will look for by name.
const TTL: &str = "24h";

/// What is told of a new session.
pub fn created(mode: Mode) -> Facts {
    let (outcome, revision) = match mode {
        Mode::Run => (Outcome::Created, Some(1)),
        Mode::Stage => (Outcome::Staged, None),
        Mode::DryRun => (Outcome::Planned, None),
    };
    Facts { outcome, revision, base: 0 }
}

/// With the labels without which the operator would not see it, whatever the document says of them.
pub fn new_object(
    target: &Target,
    key: Option<&Key>,
    submission: &Submission,
    labels: &BTreeMap<String, String>,
) -> PhaseManifest {
    let mut spec: Map<String, Value> = submission.patch();
    spec.retain(|_, value| !value.is_null());
    spec.insert("sessionId".to_owned(), target.session.as_str().into());
    if target.naming == Naming::Gateway {
        spec.entry("ttlAfterFinished").or_insert_with(|| TTL.into());
    }
    let spec: PhaseManifestSpec =
        serde_json::from_value(Value::Object(spec)).expect("the settings were read as a spec before");
    let mut object = PhaseManifest::new(&target.name, spec);
    object.metadata.namespace = Some(target.namespace.clone());
    let mut annotations = submission.annotations.clone();
    if let Some(key) = key {
        annotations
            .insert(KEYS_ANNOTATION.to_owned(), remembered(Vec::new(), key, submission, &created(submission.mode)));
    }
    object.metadata.labels = Some(together(submission, labels)).filter(|labels| !labels.is_empty());
    object.metadata.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
    object
}

/// A merge patch under the resourceVersion that was judged, with the key in it.
pub fn patch(
    object: &PhaseManifest,
    spec: &Map<String, Value>,
    key: Option<&Key>,
    submission: &Submission,
    labels: &BTreeMap<String, String>,
    facts: &Facts,
) -> Value {
    let mut metadata = json!({
        "resourceVersion": object.metadata.resource_version,
        "uid": object.metadata.uid,
    });
    let mut annotations: Map<String, Value> =
        submission.annotations.iter().map(|(name, text)| (name.clone(), text.as_str().into())).collect();
    if let Some(key) = key {
        annotations.insert(KEYS_ANNOTATION.to_owned(), remembered(once::uses(object), key, submission, facts).into());
    }
    if !annotations.is_empty() {
        metadata["annotations"] = annotations.into();
    }
    if !submission.labels.is_empty() {
        metadata["labels"] = json!(together(submission, labels));
    }
    json!({"metadata": metadata, "spec": spec})
}

fn together(submission: &Submission, labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all = submission.labels.clone();
    all.extend(labels.clone());
    all
}

fn remembered(uses: Vec<Use>, key: &Key, submission: &Submission, facts: &Facts) -> String {
    let body = submission.fingerprint.clone();
    once::remembered(
        uses,
        Use { key: key.clone(), body, outcome: facts.outcome, revision: facts.revision, base: facts.base },
    )
}

//! From the bytes of a body to what is stored: a plan, and the rest of the spec where a whole resource was sent.

use std::{collections::BTreeMap, sync::Arc};

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::{
    once::short,
    target::Written,
    wish::{Mode, Wish},
};
use crate::{
    gateway::fault::Fault,
    manifest::{Format, Ignored, Plan, Problem, Reason, Resource, parse_judging},
    protocol::SessionId,
    resource::{Orders, PhaseManifestSpec, read_settings},
};

/// A manifest as it is stored, in bytes: etcd takes 1.5 MiB a request, and a status needs room beside it.
const STORED_BYTES_MAX: usize = 1_400_000;

/// What this product remembers on a resource.
const OWN_ANNOTATIONS: &str = "pmp.dev/";

/// Every field of `spec` but requests and those that a submission writes itself; a test holds it against the type.
const SETTINGS: [&str; 12] = [
    "strategy",
    "suspend",
    "shutdown",
    "targetPhase",
    "parallelism",
    "failurePolicy",
    "updatePolicy",
    "backoff",
    "timeouts",
    "connection",
    "ttlAfterFinished",
    "revisionHistoryLimit",
];

/// A manifest that can be stored.
#[derive(Debug)]
pub struct Submission {
    pub plan: Arc<Plan>,
    /// The phases in canonical form.
    pub phases: Value,
    pub ignored: Vec<Ignored>,
    pub written: Written,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// The spec of a whole resource without its phases; absent for a bare manifest.
    pub settings: Option<Map<String, Value>>,
    /// As asked for, or as the resource says.
    pub mode: Mode,
    /// Of the body and of what was asked for beside it.
    pub fingerprint: String,
}

/// Reads it; everything that is wrong is told at once. Takes up to a second and 100 MiB for a body of 1 MiB.
pub fn understand(text: &[u8], format: Format, wish: &Wish) -> Result<Submission, Fault> {
    let document = parse_judging(text, format, wish.others, mistakes).map_err(|problems| refused(&problems))?;
    let plan = Arc::new(document.plan);
    let phases = plan.canonical();
    let size_bytes = phases.to_string().len();
    if size_bytes > STORED_BYTES_MAX {
        let detail = format!(
            "the manifest has {size_bytes} bytes in its stored form, more than {STORED_BYTES_MAX}: put it into a ConfigMap, \
             or split it"
        );
        return Err(Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", detail));
    }
    let mut submission = Submission {
        plan,
        phases,
        ignored: document.ignored,
        written: Written::default(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        settings: None,
        mode: wish.mode,
        fingerprint: fingerprint(text, wish),
    };
    if let Some(resource) = document.resource {
        submission.take_over(resource).map_err(|problems| Fault::invalid(&problems))?;
    }
    Ok(submission)
}

/// 413 where the text as a whole is past a bound, else 400.
fn refused(problems: &[Problem]) -> Fault {
    match problems {
        [problem] if problem.reason == Reason::TooLarge && problem.pointer.is_empty() => {
            Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", problem.message.clone())
        }
        _ => Fault::invalid(problems),
    }
}

/// Of everything that decides what a request means, but not of its key.
fn fingerprint(text: &[u8], wish: &Wish) -> String {
    let asked =
        format!("{:?} {:?} {:?} {:?} {:?} ", wish.session, wish.namespace, wish.mode, wish.others, wish.on_conflict);
    short(&format!("{asked}{}", crate::manifest::Digest::of(text)))
}

impl Submission {
    /// What surrounds the phases of a whole resource, which has no mistakes of its own.
    fn take_over(&mut self, resource: Resource) -> Result<(), Vec<Problem>> {
        let mut settings = resource.spec;
        settings.remove("manifestFrom");
        let spec = spec_of(&settings);
        let orders = Orders::new(&spec)?;
        let problems = orders.problems_with(&self.plan);
        if !problems.is_empty() {
            return Err(problems);
        }
        self.mode = match (self.mode, spec.staged, spec.dry_run) {
            (Mode::Run, Some(true), _) => Mode::Stage,
            (Mode::Run, _, Some(true)) => Mode::DryRun,
            (mode, ..) => mode,
        };
        let session = spec.session_id.as_deref().filter(|id| !id.is_empty());
        self.written = Written {
            name: resource.name,
            namespace: resource.namespace,
            session: session.and_then(|id| SessionId::new(id).ok()),
        };
        // Requests of a document that was exported were carried out long ago; POST /phases is for new ones.
        for name in ["sessionId", "staged", "dryRun", "requests"] {
            settings.remove(name);
        }
        self.labels = resource.labels;
        self.annotations = resource.annotations;
        // What we remember there is true of the stored resource as it is, and of no copy.
        self.annotations.retain(|name, _| !name.starts_with(OWN_ANNOTATIONS));
        self.settings = Some(settings);
        Ok(())
    }

    /// `spec` of a merge patch that brings a stored resource to this: what a whole resource leaves out is taken back.
    pub fn patch(&self) -> Map<String, Value> {
        let mut patch = Map::new();
        if let Some(settings) = &self.settings {
            let left_out = SETTINGS.iter().filter(|&&name| !settings.contains_key(name));
            patch.extend(left_out.map(|&name| (name.to_owned(), Value::Null)));
            patch.extend(settings.clone());
        }
        patch.insert("phases".to_owned(), self.phases.clone());
        patch.insert("manifestFrom".to_owned(), Value::Null);
        patch.insert("staged".to_owned(), (self.mode == Mode::Stage).then_some(true).into());
        patch.insert("dryRun".to_owned(), (self.mode == Mode::DryRun).then_some(true).into());
        patch
    }

    /// Whether a whole resource brings settings that the stored one does not have, in whatever form they are written.
    pub fn has_other_settings(&self, stored: &PhaseManifestSpec) -> bool {
        let Some(settings) = &self.settings else { return false };
        let brought = spec_of(settings);
        match (Orders::new(&brought), Orders::new(stored)) {
            (Ok(brought), Ok(stored)) => !has_same_settings(&brought, &stored),
            _ => true,
        }
    }
}

/// Of settings in which [`mistakes`] found nothing.
fn spec_of(settings: &Map<String, Value>) -> PhaseManifestSpec {
    serde_json::from_value(Value::Object(settings.clone())).expect("the settings were read as a spec before")
}

/// Everything that is wrong with what surrounds the phases, each with its pointer.
fn mistakes(resource: &Resource) -> Vec<Problem> {
    let mut settings = resource.spec.clone();
    let from = settings.remove("manifestFrom").filter(|from| !from.is_null());
    let (spec, mut problems) = read_settings(&settings);
    problems.extend(from.map(|_| Problem {
        reason: Reason::BadValue,
        pointer: "/spec/manifestFrom".to_owned(),
        message: "a submission brings its phases itself".to_owned(),
        hint: Some("write them into spec.phases, or apply the resource with kubectl".to_owned()),
        place: None,
    }));
    problems.extend(Orders::new(&spec).err().unwrap_or_default());
    problems
}

/// Compares [`SETTINGS`] as the operator reads them.
fn has_same_settings(one: &Orders<'_>, other: &Orders<'_>) -> bool {
    one.settings == other.settings
        && one.strategy == other.strategy
        && one.update_policy == other.update_policy
        && one.connection == other.connection
        && one.ttl_after_finished == other.ttl_after_finished
        && one.revision_history_limit == other.revision_history_limit
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::{gateway::submit::wish::OnConflict, manifest::OtherKinds, resource::crd};

    fn wish() -> Wish {
        Wish {
            session: None,
            namespace: None,
            mode: Mode::Run,
            others: OtherKinds::Refuse,
            on_conflict: OnConflict::Refuse,
            key: None,
        }
    }

    fn read(document: &Value) -> Result<Submission, Fault> {
        understand(document.to_string().as_bytes(), Format::Json, &wish())
    }

    fn whole(spec: &Value) -> Value {
        json!({"apiVersion": "pmp.dev/v1alpha1", "kind": "PhaseManifest", "metadata": {"name": "boot"}, "spec": spec})
    }

    #[test]
    fn every_field_of_the_spec_is_taken_back_where_a_whole_resource_leaves_it_out() {
        let crd = serde_json::to_value(crd()).unwrap();
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
        let fields: BTreeSet<&str> = spec.as_object().unwrap().keys().map(String::as_str).collect();
        let mut ours: BTreeSet<&str> = SETTINGS.into_iter().collect();
        ours.extend(["phases", "manifestFrom", "staged", "dryRun", "sessionId", "requests"]);
        assert_eq!(fields, ours);
        let submission = read(&whole(&json!({"phases": [], "parallelism": 3}))).unwrap();
        let patch = submission.patch();
        assert_eq!(patch["parallelism"], 3);
        assert_eq!(patch["suspend"], Value::Null);
        assert!(!patch.contains_key("sessionId") && !patch.contains_key("requests"));
    }

    #[test]
    fn a_bare_manifest_changes_the_phases_and_leaves_the_settings() {
        let patch = read(&json!([{"kind": "Phase", "id": "a"}])).unwrap().patch();
        let names: Vec<&str> = patch.keys().map(String::as_str).collect();
        assert_eq!(names, ["dryRun", "manifestFrom", "phases", "staged"]);
    }

    #[test]
    fn what_a_whole_resource_misspells_is_told_and_not_dropped() {
        let spec = json!({"phases": [], "paralellism": 3, "timeouts": {"ofer": "5s"}});
        let fault = read(&whole(&spec)).unwrap_err();
        assert_eq!(fault.status(), StatusCode::BAD_REQUEST);
        let text = format!("{fault:?}");
        assert!(text.contains("/spec/paralellism") && text.contains("/spec/timeouts/ofer"), "{text}");
    }

    #[test]
    fn an_exported_resource_brings_neither_its_memory_nor_its_requests_back() {
        let requests = json!([{"token": "t", "action": "Restart"}]);
        let mut document = whole(&json!({"phases": [], "parallelism": 2, "requests": requests}));
        document["metadata"]["annotations"] =
            json!({"pmp.dev/idempotency-keys": "[]", "pmp.dev/last-command-place": "1/2/s", "team": "lab"});
        let submission = read(&document).unwrap();
        assert_eq!(submission.annotations.keys().collect::<Vec<_>>(), ["team"]);
        assert!(!submission.patch().contains_key("requests"));
    }

    #[test]
    fn settings_are_compared_by_what_they_say() {
        let stored = |spec: Value| serde_json::from_value::<PhaseManifestSpec>(spec).unwrap();
        let bare = read(&json!([])).unwrap();
        assert!(!bare.has_other_settings(&stored(json!({"parallelism": 3}))));
        let brought = read(&whole(&json!({"phases": [], "parallelism": 3, "suspend": false}))).unwrap();
        assert!(!brought.has_other_settings(&stored(json!({"parallelism": 3, "staged": true}))));
        assert!(brought.has_other_settings(&stored(json!({}))));
        assert!(brought.has_other_settings(&stored(json!({"parallelism": 3, "suspend": true}))));
    }

    #[test]
    fn mistakes_of_phases_and_settings_are_told_in_one_answer() {
        let spec = json!({
            "phases": [{"kind": "Phase", "id": "a", "spec": {"waitFor": "nobody"}}],
            "parallelism": "three", "strategy": "Chaotic", "ttlAfterFinished": "soon", "unknown": 1,
        });
        let text = format!("{:?}", read(&whole(&spec)).unwrap_err());
        for place in [
            "/spec/phases/0/spec/waitFor",
            "/spec/parallelism",
            "/spec/strategy",
            "/spec/ttlAfterFinished",
            "/spec/unknown",
        ] {
            assert!(text.contains(place), "{place}: {text}");
        }
    }

    #[test]
    fn spec_and_query_say_together_how_it_is_taken() {
        let staged = read(&whole(&json!({"phases": [], "staged": true}))).unwrap();
        assert_eq!(staged.mode, Mode::Stage);
        assert_eq!(staged.patch()["staged"], true);
        assert!(read(&whole(&json!({"manifestFrom": {"configMap": {"name": "a", "key": "b"}}}))).is_err());
    }
}

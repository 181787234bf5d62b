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
    manifest::{Format, Ignored, Plan, Problem, Reason, Resource, parse},
    protocol::SessionId,
    resource::{Orders, PhaseManifestSpec},
};

/// A manifest as it is stored, in bytes: etcd takes 1.5 MiB a request, and a status needs room beside it.
const STORED_BYTES_MAX: usize = 1_400_000;

/// Every field of `spec` but those that a submission writes itself; a test holds it against the type.
const SETTINGS: [&str; 13] = [
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
    "requests",
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
    let document = parse(text, format, wish.others).map_err(|problems| refused(&problems))?;
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
    /// What surrounds the phases of a whole resource.
    fn take_over(&mut self, resource: Resource) -> Result<(), Vec<Problem>> {
        let mut settings = resource.spec;
        let mut problems = Vec::new();
        if settings.get("manifestFrom").is_some_and(|from| !from.is_null()) {
            let mut problem = problem("/spec/manifestFrom", "a submission brings its phases itself".to_owned());
            problem.hint = Some("write them into spec.phases, or apply the resource with kubectl".to_owned());
            problems.push(problem);
        }
        settings.remove("manifestFrom");
        let spec = match serde_json::from_value::<PhaseManifestSpec>(Value::Object(settings.clone())) {
            Ok(spec) => spec,
            Err(error) => {
                problems.push(problem("/spec", format!("the spec cannot be read: {error}")));
                return Err(problems);
            }
        };
        let known = serde_json::to_value(&spec).expect("a spec of texts, numbers and lists is JSON");
        lost(&Value::Object(settings.clone()), &known, "/spec", &mut problems);
        match Orders::new(&spec) {
            Ok(orders) => problems.extend(orders.problems_with(&self.plan)),
            Err(found) => problems.extend(found),
        }
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
        for name in ["sessionId", "staged", "dryRun"] {
            settings.remove(name);
        }
        self.labels = resource.labels;
        self.annotations = resource.annotations;
        self.settings = Some(settings);
        Ok(())
    }

    /// `spec` of a merge patch that brings a stored resource to this: what a whole resource leaves out is taken back.
    pub fn patch(&self) -> Map<String, Value> {
        let mut patch = Map::new();
        if let Some(settings) = &self.settings {
            // Requests were asked of the resource since; those that are new come on top of them by themselves.
            let left_out = SETTINGS.iter().filter(|&&name| !settings.contains_key(name) && name != "requests");
            patch.extend(left_out.map(|&name| (name.to_owned(), Value::Null)));
            patch.extend(settings.clone());
        }
        patch.insert("phases".to_owned(), self.phases.clone());
        patch.insert("manifestFrom".to_owned(), Value::Null);
        patch.insert("staged".to_owned(), (self.mode == Mode::Stage).then_some(true).into());
        patch.insert("dryRun".to_owned(), (self.mode == Mode::DryRun).then_some(true).into());
        patch
    }
}

fn problem(pointer: &str, message: String) -> Problem {
    Problem { reason: Reason::BadValue, pointer: pointer.to_owned(), message, hint: None, place: None }
}

/// Fields of `written` that reading it has passed over: a spelling mistake, or a newer version's.
fn lost(written: &Value, read: &Value, pointer: &str, problems: &mut Vec<Problem>) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (name, value) in written {
                let inside = format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
                match read.get(name) {
                    Some(read) => lost(value, read, &inside, problems),
                    None if value.is_null() => {}
                    None => {
                        let message = format!("there is no field {name:?} here");
                        problems.push(Problem { reason: Reason::UnknownField, ..problem(&inside, message) });
                    }
                }
            }
        }
        (Value::Array(written), Value::Array(read)) => {
            for (i, (written, read)) in written.iter().zip(read).enumerate() {
                lost(written, read, &format!("{pointer}/{i}"), problems);
            }
        }
        _ => {}
    }
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
        ours.extend(["phases", "manifestFrom", "staged", "dryRun", "sessionId"]);
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
    fn spec_and_query_say_together_how_it_is_taken() {
        let staged = read(&whole(&json!({"phases": [], "staged": true}))).unwrap();
        assert_eq!(staged.mode, Mode::Stage);
        assert_eq!(staged.patch()["staged"], true);
        assert!(read(&whole(&json!({"manifestFrom": {"configMap": {"name": "a", "key": "b"}}}))).is_err());
    }
}

//! POST /plan and POST /apply: a plan becomes a resource, or an edit of one.
//!
//! `wish` and `document` read the request, `target` says where it goes, `judge` what it means for a session that is
//! there, `once` whether it was here before, `answer` what is told. This file does the writing: create first, since most
//! sessions are new; else an update under the resourceVersion that was judged. Whatever is answered with 200 is stored.

mod answer;
mod apply;
mod document;
mod judge;
mod once;
mod target;
mod wish;

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Map, Value, json};

use self::{
    answer::Facts,
    document::Submission,
    judge::{Action, Likeness, Standing, judge},
    once::{KEYS_ANNOTATION, Key, Use},
    target::{Naming, Target},
    wish::Mode,
};
pub use self::{
    answer::Outcome,
    apply::post_apply,
    wish::{Wish, idempotency_key},
};
use super::{
    Gateway, body,
    fault::Fault,
    media,
    sessions::{session_of, version_of},
};
use crate::{
    controller::{
        answers,
        call::{call, name, namespace},
        commands::{CommandId, with_request},
    },
    manifest::{Format, Plan},
    resource::{PhaseManifest, PhaseManifestSpec, Request as Asked, RequestAction},
};

/// Writers that may come in between, one after the other.
const CONFLICTS_MAX: u32 = 8;

/// How long a body may wait for others to be parsed.
const PARSER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// For objects that nobody will look for by name.
const TTL: &str = "24h";

/// On every answer about a session: the version of its resource that was written or read.
pub const VERSION_HEADER: HeaderName = HeaderName::from_static("pmp-resource-version");

/// On an answer that was given before.
const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotency-replayed");

/// POST /plan.
pub async fn post_plan(State(gateway): State<Gateway>, request: Request) -> Result<Response, Fault> {
    let (parts, stream) = request.into_parts();
    media::preferred(&parts.headers, &[media::JSON])?;
    let wish = Wish::read(&parts)?;
    let format = media::manifest_format(&parts.headers)?;
    gateway.sessions.ready()?;
    let text = body::read(&parts.headers, stream, gateway.bounds.body_bytes_max).await?;
    let submission = gateway.understand(text, format, &wish).await?;
    let target = target::target(&gateway.sessions, &wish, &submission.written)?;
    Box::pin(gateway.in_time(gateway.submit(&wish, &submission, target))).await
}

/// What was done to the object, as far as the answer needs it.
struct Done {
    object: PhaseManifest,
    facts: Facts,
    is_replay: bool,
}

impl Gateway {
    /// Parses the body, one or two at a time, off the threads that answer others.
    async fn understand(&self, text: Vec<u8>, format: Format, wish: &Wish) -> Result<Submission, Fault> {
        let permit = tokio::time::timeout(PARSER_TIMEOUT, self.parsers.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            return Err(Fault::unavailable("Busy", "too many manifests are being read: ask again"));
        };
        let wish = wish.clone();
        let read = tokio::task::spawn_blocking(move || {
            let read = document::understand(&text, format, &wish);
            drop(permit);
            read
        });
        read.await.unwrap_or_else(|error| {
            tracing::error!(%error, "reading a manifest panicked");
            Err(Fault::bad_request("InvalidManifest", "the manifest cannot be read; this is a defect of the gateway"))
        })
    }

    async fn submit(&self, wish: &Wish, submission: &Submission, target: Target) -> Result<Response, Fault> {
        let done = self.write(wish, submission, target).await?;
        let base = match done.facts.base {
            0 => Some(std::sync::Arc::new(Plan::default())),
            _ if matches!(done.facts.outcome, Outcome::Restarted | Outcome::Attached) => {
                Some(std::sync::Arc::clone(&submission.plan))
            }
            number => self.sessions.revision_plan(&done.object, number).await,
        };
        let session = session_of(&done.object).map(|id| id.to_string()).unwrap_or_default();
        let answer = answer::answer(&done.object, &session, &submission.plan, &done.facts, base.as_deref());
        let mut response = respond(&done.object, answer::with_ignored(answer, submission));
        if done.is_replay {
            response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
        }
        Ok(response)
    }

    /// Creates the resource, or updates the one that is there, until one of them is stored or refused.
    async fn write(&self, wish: &Wish, submission: &Submission, mut target: Target) -> Result<Done, Fault> {
        let api: Api<PhaseManifest> = Api::namespaced(self.client.clone(), &target.namespace);
        if let Some(cached) = self.sessions.view.find(&target.session, Some(&target.namespace)) {
            name(&cached).clone_into(&mut target.name);
            target.second_name.clone_from(&target.name);
        }
        let is_cached = self.sessions.view.get(&target.namespace, &target.name).is_some();
        let mut known = if is_cached { call("read the resource", api.get_opt(&target.name)).await? } else { None };
        for _ in 0..CONFLICTS_MAX {
            let Some(object) = known.take() else {
                let fresh = new_object(&target, wish.key.as_ref(), submission, self.sessions.labels());
                match call("create the resource", api.create(&PostParams::default(), &fresh)).await {
                    Ok(object) => return Ok(self.wrote(object, created(submission.mode))),
                    Err(error) if error.is_already_exists() => {
                        known = call("read the resource", api.get_opt(&target.name)).await?;
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
            };
            if session_of(&object).as_ref() != Some(&target.session) {
                if target.name == target.second_name {
                    let detail = format!("the resource {} is another session's", target.name);
                    return Err(Fault::conflict("NameTaken", detail));
                }
                target.name.clone_from(&target.second_name);
                known = call("read the resource", api.get_opt(&target.name)).await?;
                continue;
            }
            let (patch, facts) = match self.decide(wish, submission, &object).await? {
                Decision::Answer { facts, is_replay } => return Ok(Done { object, facts, is_replay }),
                Decision::Write { patch, facts } => (patch, facts),
            };
            let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
            match call("update the resource", api.patch(&target.name, &params, &patch)).await {
                Ok(object) => return Ok(self.wrote(object, facts)),
                Err(error) if error.is_conflict() => {
                    known = call("read the resource", api.get_opt(&target.name)).await?;
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Fault::unavailable("Contended", "the resource is written to all the time: ask again"))
    }

    fn wrote(&self, object: PhaseManifest, facts: Facts) -> Done {
        self.sessions.wrote(&object);
        Done { object, facts, is_replay: false }
    }

    /// What is to be done to the object, which is the session's as the API server has it now.
    async fn decide(&self, wish: &Wish, submission: &Submission, object: &PhaseManifest) -> Result<Decision, Fault> {
        if object.metadata.deletion_timestamp.is_some() {
            return Err(Fault::conflict("Terminating", "the session's resource is being deleted: ask again")
                .retry_after(1)
                .with("sessionId", session_text(object).into()));
        }
        if let Some(used) = wish.key.as_ref().and_then(|key| once::used(object, key)) {
            return replay(&used, submission, object);
        }
        let standing = Standing::of(object);
        let started = started(object);
        let mut facts = Facts { outcome: Outcome::Updated, revision: Some(started + 1), base: started };
        let action = judge(standing, self.likeness(submission, object).await, submission.mode, wish.on_conflict);
        let mut spec = submission.patch();
        match action {
            Action::Attach => {
                (facts.outcome, facts.revision) = (Outcome::Attached, Some(started.max(1)));
                if wish.key.is_none() {
                    return Ok(Decision::Answer { facts, is_replay: false });
                }
                // Only the key is written: repeated after the verdict, it must not start the plan again.
                spec.clear();
            }
            Action::RefuseExecuting | Action::RefuseConflicting => {
                return Err(self.clash(action, submission, object).await);
            }
            Action::Edit => match submission.mode {
                // Cleared, or what was cancelled once would be cancelled at once again.
                Mode::Run if !spec.contains_key("shutdown") && !standing.is_executing => {
                    spec.insert("shutdown".to_owned(), Value::Null);
                }
                Mode::Run => {}
                Mode::Stage => (facts.outcome, facts.revision) = (Outcome::Staged, None),
                Mode::DryRun => (facts.outcome, facts.revision) = (Outcome::Planned, None),
            },
            Action::Restart => {
                let id = CommandId::over_http(wish.key.as_ref().map(Key::as_str));
                let request = Asked { token: id.token().to_owned(), action: RequestAction::Restart, phase: None };
                let requests = with_request(object, &request).map_err(|why| Fault::conflict("TooManyRequests", why))?;
                if let Some(Value::Object(requests)) = requests {
                    spec.extend(requests);
                }
                spec.entry("shutdown").or_insert(Value::Null);
                (facts.outcome, facts.revision) = (Outcome::Restarted, Some(started));
            }
        }
        Ok(Decision::Write { patch: patch(object, &spec, wish.key.as_ref(), submission, &facts), facts })
    }

    async fn likeness(&self, submission: &Submission, object: &PhaseManifest) -> Likeness {
        let digest = submission.plan.digest();
        let is_in_spec = self.sessions.spec_plan(object).await.is_some_and(|plan| plan.digest() == digest);
        let status = object.status.as_ref();
        let started = status.filter(|status| status.revision.is_some()).and_then(|status| status.digest.as_deref());
        let has_started = started == Some(&digest.to_string());
        let is_held_back = object.spec.staged == Some(true) || object.spec.dry_run == Some(true);
        match (is_in_spec && !is_held_back, has_started) {
            (true, true) => Likeness::Same,
            (true, false) => Likeness::SameInPart,
            (false, true) if is_held_back && Standing::of(object).is_executing => Likeness::SameInPart,
            _ => Likeness::Different,
        }
    }

    /// 409, with what executes and how the plan differs from it.
    async fn clash(&self, action: Action, submission: &Submission, object: &PhaseManifest) -> Fault {
        let session = session_text(object);
        let fault = if action == Action::RefuseExecuting {
            let detail =
                format!("session {session} executes this plan already; onConflict=attach makes that no mistake");
            Fault::conflict("Executing", detail)
        } else {
            let detail =
                format!("session {session} executes another plan; onConflict=replace makes this its next revision");
            Fault::conflict("Conflicting", detail)
        };
        let running = match self.sessions.started_plan(object).await {
            Some(plan) => Some(plan),
            None => self.sessions.spec_plan(object).await,
        };
        let diff = running.as_ref().map(|running| answers::diff(object, running, &submission.plan));
        let digest = running.map(|plan| plan.digest().to_string());
        fault
            .with("sessionId", session.into())
            .with("namespace", namespace(object).into())
            .with("digest", digest.into())
            .with("diff", diff.unwrap_or_default())
    }
}

enum Decision {
    Write { patch: Value, facts: Facts },
    Answer { facts: Facts, is_replay: bool },
}

/// The answer that was given under this key, if it was to the same.
fn replay(used: &Use, submission: &Submission, object: &PhaseManifest) -> Result<Decision, Fault> {
    if used.body != submission.fingerprint {
        let detail = "this Idempotency-Key was used for another body, or with other parameters: use a new one";
        return Err(Fault::conflict("IdempotencyKeyReused", detail).with("sessionId", session_text(object).into()));
    }
    let facts = Facts { outcome: used.outcome, revision: used.revision, base: used.base };
    Ok(Decision::Answer { facts, is_replay: true })
}

fn created(mode: Mode) -> Facts {
    let (outcome, revision) = match mode {
        Mode::Run => (Outcome::Created, Some(1)),
        Mode::Stage => (Outcome::Staged, None),
        Mode::DryRun => (Outcome::Planned, None),
    };
    Facts { outcome, revision, base: 0 }
}

fn new_object(
    target: &Target,
    key: Option<&Key>,
    submission: &Submission,
    labels: &std::collections::BTreeMap<String, String>,
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
    let mut all = labels.clone();
    all.extend(submission.labels.clone());
    object.metadata.labels = Some(all).filter(|labels| !labels.is_empty());
    object.metadata.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
    object
}

/// A merge patch under the resourceVersion that was judged, with the key in it.
fn patch(
    object: &PhaseManifest,
    spec: &Map<String, Value>,
    key: Option<&Key>,
    submission: &Submission,
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
        metadata["labels"] = json!(submission.labels);
    }
    json!({"metadata": metadata, "spec": spec})
}

fn remembered(uses: Vec<Use>, key: &Key, submission: &Submission, facts: &Facts) -> String {
    let body = submission.fingerprint.clone();
    once::remembered(
        uses,
        Use { key: key.clone(), body, outcome: facts.outcome, revision: facts.revision, base: facts.base },
    )
}

/// The last revision that started; 0 before the first.
fn started(object: &PhaseManifest) -> u64 {
    object.status.as_ref().and_then(|status| u64::try_from(status.revision?).ok()).unwrap_or(0)
}

fn session_text(object: &PhaseManifest) -> String {
    session_of(object).map(|id| id.to_string()).unwrap_or_default()
}

/// 200, with the version that was written and where to look next.
fn respond(object: &PhaseManifest, answer: Value) -> Response {
    let location = format!("/status?session={}&namespace={}", session_text(object), namespace(object));
    let mut response = Json(answer).into_response();
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::from_str(&location) {
        headers.insert(header::CONTENT_LOCATION, location);
    }
    name_version(headers, object);
    response
}

/// Names the version of the resource in the answer's headers.
pub fn name_version(headers: &mut axum::http::HeaderMap, object: &PhaseManifest) {
    if let Some(version) = version_of(object) {
        headers.insert(VERSION_HEADER, version.into());
    }
}

/// For handlers whose request has no body to speak of: small ones are read and passed over.
pub async fn ignore_body(headers: &axum::http::HeaderMap, stream: Body) -> Result<(), Fault> {
    const SMALL: usize = 1024;
    body::read(headers, stream, SMALL).await.map(drop)
}

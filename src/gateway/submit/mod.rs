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
mod write;

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::Value;

use self::{
    answer::Facts,
    document::Submission,
    judge::{Action, Comparison, Likeness, Standing, judge},
    target::Target,
    wish::Mode,
    write::{created, new_object, patch},
};
pub use self::{
    answer::Outcome,
    apply::post_apply,
    once::{KEYS_ANNOTATION, Key, REPLAYED_HEADER, Use, remembered, short, used, uses},
    wish::{Wish, idempotency_key},
};
use super::{
    Gateway,
    body::Taken,
    fault::Fault,
    media,
    sessions::{session_of, version_of},
};
use crate::{
    controller::{
        answers,
        call::{call, namespace},
        commands::{CommandId, Identity, with_request},
    },
    manifest::{Digest, Format, Plan},
    resource::{PhaseManifest, Request as Asked, RequestAction},
};

/// Writers that may come in between, one after the other.
const CONFLICTS_MAX: u32 = 8;

/// On every answer about a session: the version of its resource that was written or read.
pub const VERSION_HEADER: HeaderName = HeaderName::from_static("pmp-resource-version");

/// POST /plan.
pub async fn post_plan(State(gateway): State<Gateway>, request: Request) -> Result<Response, Fault> {
    let (parts, stream) = request.into_parts();
    media::preferred(&parts.headers, &[media::JSON])?;
    let wish = Wish::read(&parts)?;
    let format = media::manifest_format(&parts.headers)?;
    gateway.sessions.ready()?;
    let text = gateway.bodies.read(&parts.headers, stream, gateway.bounds.body_bytes_max).await?;
    let submission = gateway.understand(text, format, &wish).await??;
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
    async fn understand(&self, text: Taken, format: Format, wish: &Wish) -> Result<Result<Submission, Fault>, Fault> {
        let (place, wish) = (self.plans.parsers.place().await?, wish.clone());
        place.run(move || document::understand(text.bytes(), format, &wish)).await
    }

    async fn submit(&self, wish: &Wish, submission: &Submission, target: Target) -> Result<Response, Fault> {
        let done = self.write(wish, submission, target).await?;
        let base = match done.facts.base {
            0 => Some(std::sync::Arc::new(Plan::default())),
            _ if matches!(done.facts.outcome, Outcome::Restarted | Outcome::Attached) => {
                Some(std::sync::Arc::clone(&submission.plan))
            }
            number => self.plans.revision(&done.object, number).await,
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
        if let Some(name) = self.sessions.name_of(&target.session, &target.namespace) {
            target.name.clone_from(&name);
            target.second_name = name;
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
        let is_next = !is_started(object, submission.plan.digest());
        let mut facts =
            Facts { outcome: Outcome::Updated, revision: Some(started + u64::from(is_next)), base: started };
        let likeness = self.likeness(submission, object, standing).await?;
        let action = judge(standing, likeness, submission.mode, wish.on_conflict);
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
            Action::RefuseExecuting | Action::RefuseSettings | Action::RefuseConflicting => {
                return Err(self.clash(action, submission, object, standing).await?);
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
                spec.extend(with_request(object, &request)?.unwrap_or_default());
                spec.entry("shutdown").or_insert(Value::Null);
                (facts.outcome, facts.revision) = (Outcome::Restarted, Some(started));
            }
        }
        let patch = patch(object, &spec, wish.key.as_ref(), submission, self.sessions.labels(), &facts);
        Ok(Decision::Write { patch, facts })
    }

    async fn likeness(
        &self,
        submission: &Submission,
        object: &PhaseManifest,
        standing: Standing,
    ) -> Result<Likeness, Fault> {
        let digest = submission.plan.digest();
        let is_there = self.plans.spec(object).await?.is_some_and(|plan| plan.digest() == digest);
        let comparison = Comparison {
            is_in_spec: is_there && !judge::is_held_back(object),
            has_started: is_started(object, digest),
            has_other_settings: submission.has_other_settings(&object.spec),
        };
        Ok(Likeness::of(object, standing, comparison))
    }

    /// 409, with what executes and how the plan differs from it.
    async fn clash(
        &self,
        action: Action,
        submission: &Submission,
        object: &PhaseManifest,
        standing: Standing,
    ) -> Result<Fault, Fault> {
        let session = session_text(object);
        let fault = match action {
            Action::RefuseExecuting => Fault::conflict(
                "Executing",
                format!("session {session} executes this plan already; onConflict=attach makes that no mistake"),
            ),
            Action::RefuseSettings => Fault::conflict(
                "Conflicting",
                format!("session {session} executes this plan under other settings; onConflict=replace writes these"),
            ),
            _ => Fault::conflict(
                "Conflicting",
                format!("session {session} executes another plan; onConflict=replace makes this its next revision"),
            ),
        };
        // An edit that nobody has looked at is what executes next; else the last revision, as long as it can be read.
        let (digest, running) = if standing.is_pending || started(object) == 0 {
            let plan = self.plans.spec(object).await?;
            (plan.as_ref().map(|plan| plan.digest().to_string()), plan)
        } else {
            let digest = object.status.as_ref().and_then(|status| status.digest.clone());
            (digest, self.plans.started(object).await.base())
        };
        let diff = running.map(|running| answers::diff(object, &running, &submission.plan));
        Ok(fault
            .with("sessionId", session.into())
            .with("namespace", namespace(object).into())
            .with("digest", digest.into())
            .with("diff", diff.unwrap_or_default()))
    }
}

enum Decision {
    Write { patch: Value, facts: Facts },
    Answer { facts: Facts, is_replay: bool },
}

/// The answer that was given under this key, if it was to the same.
fn replay(used: &Use, submission: &Submission, object: &PhaseManifest) -> Result<Decision, Fault> {
    used.check(&submission.fingerprint, object)?;
    let facts = Facts { outcome: used.outcome, revision: used.revision, base: used.base };
    Ok(Decision::Answer { facts, is_replay: true })
}

/// The last revision that started; 0 before the first.
fn started(object: &PhaseManifest) -> u64 {
    object.status.as_ref().and_then(|status| u64::try_from(status.revision?).ok()).unwrap_or(0)
}

/// Whether this is the plan of the last revision.
fn is_started(object: &PhaseManifest, digest: &Digest) -> bool {
    let status = object.status.as_ref().filter(|status| status.revision.is_some());
    status.and_then(|status| status.digest.as_deref()) == Some(&digest.to_string())
}

pub fn session_text(object: &PhaseManifest) -> String {
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

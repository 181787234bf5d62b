//! POST /control, and requests about single phases: the same commands as on the bus, written into the spec.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{
    Gateway,
    fault::Fault,
    media,
    path::Named,
    plans::Started,
    query::Query,
    submit::{
        KEYS_ANNOTATION, Key, Outcome, REPLAYED_HEADER, Use, idempotency_key, name_version, remembered, session_text,
        short, used, uses,
    },
};
use crate::{
    controller::{
        call::{name, namespace},
        commands::{CommandId, Effect, Identity, Obeyed, obey},
    },
    manifest::{PhaseId, Plan},
    protocol::{Command, ControlMessage},
    resource::PhaseManifest,
};

/// Of `{command}`, with room to spare.
const BODY_BYTES_MAX: usize = 4096;

/// Who said it, in the resource's annotation.
const ACTOR: &str = "http";

/// POST /control: `{command: pause | resume | cancel | x-retry | ..., x-phaseId?}`, as `.control` on the bus.
pub async fn post_control(State(gateway): State<Gateway>, request: Request) -> Result<Response, Fault> {
    let (parts, stream) = request.into_parts();
    media::preferred(&parts.headers, &[media::JSON])?;
    let query = Query::of(parts.uri.query(), &["session", "namespace"])?;
    media::require_json(&parts.headers)?;
    let text = gateway.bodies.read(&parts.headers, stream, BODY_BYTES_MAX).await?;
    let control =
        ControlMessage::parse(text.bytes()).map_err(|error| Fault::bad_request("BadCommand", error.to_string()))?;
    gateway.in_time(gateway.obey(&query, &parts.headers, control)).await
}

/// POST /phases/{id}/retry.
pub async fn post_retry(State(gateway): State<Gateway>, phase: Named, request: Request) -> Result<Response, Fault> {
    gateway.ask(phase, Command::Retry, request).await
}

/// POST /phases/{id}/skip.
pub async fn post_skip(State(gateway): State<Gateway>, phase: Named, request: Request) -> Result<Response, Fault> {
    gateway.ask(phase, Command::Skip, request).await
}

/// POST /phases/{id}/use.
pub async fn post_use(State(gateway): State<Gateway>, phase: Named, request: Request) -> Result<Response, Fault> {
    gateway.ask(phase, Command::Use, request).await
}

/// POST /phases/{id}/complete.
pub async fn post_complete(State(gateway): State<Gateway>, phase: Named, request: Request) -> Result<Response, Fault> {
    gateway.ask(phase, Command::Complete, request).await
}

impl Gateway {
    async fn ask(&self, Named(phase): Named, command: Command, request: Request) -> Result<Response, Fault> {
        let (parts, stream): (Parts, _) = request.into_parts();
        media::preferred(&parts.headers, &[media::JSON])?;
        let query = Query::of(parts.uri.query(), &["session", "namespace"])?;
        self.bodies.ignore(&parts.headers, stream).await?;
        let control = ControlMessage { command, phase: Some(phase), attempt: None, runtime: None };
        self.in_time(self.obey(&query, &parts.headers, control)).await
    }

    /// 202: it stands in the spec, and the operator carries it out.
    async fn obey(&self, query: &Query, headers: &HeaderMap, control: ControlMessage) -> Result<Response, Fault> {
        if matches!(control.command, Command::Report | Command::CancelAttempt) {
            let detail = format!("{} is between operator and runtimes", control.command.as_str());
            return Err(Fault::bad_request("BadCommand", detail));
        }
        let key = idempotency_key(headers)?;
        let mut object = self.sessions.of(query).await?;
        // The cache may have an object that is no more; then the one that has its name since is asked, once.
        for _ in 0..2 {
            if let Some(phase) = &control.phase {
                self.check_phase(&object, phase).await?;
            }
            let given = Given::of(&object, &control, key.as_deref());
            let (fresh, outcome, is_replay) = match obey(&self.client, &object, &control, &given, ACTOR).await? {
                Obeyed::Written(fresh) => (fresh, Outcome::Accepted, false),
                Obeyed::Unchanged(fresh) => (fresh, Outcome::Unchanged, false),
                Obeyed::Past(fresh) => {
                    let outcome = given.replayed(&fresh)?;
                    (fresh, outcome, true)
                }
                Obeyed::Gone => {
                    object = Arc::new(self.sessions.fresh(query).await?);
                    continue;
                }
                Obeyed::Terminating => {
                    let detail = "the session's resource is being deleted";
                    return Err(Fault::conflict("Terminating", detail).with("sessionId", session_text(&object).into()));
                }
                Obeyed::Refused(why) => return Err(why.into()),
            };
            // So that this is what is read next.
            self.sessions.wrote(&fresh);
            let mut response = accepted(&fresh, &control, outcome, given.token());
            if is_replay {
                response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
            }
            return Ok(response);
        }
        Err(Fault::not_found("NoSuchSession", "the session is gone"))
    }

    /// 404 where neither what runs nor what the spec holds has the phase.
    async fn check_phase(&self, object: &PhaseManifest, phase: &PhaseId) -> Result<(), Fault> {
        let started = self.plans.started(object).await;
        let has = |plan: &Plan| plan.index_of(phase.as_str()).is_some();
        if started.plan().is_some_and(|plan| has(plan)) {
            return Ok(());
        }
        match (started, self.plans.spec(object).await?) {
            // Nobody can say what the last revision has.
            (Started::Lost | Started::Unreadable, _) | (_, None) => Ok(()),
            (_, Some(plan)) if has(&plan) => Ok(()),
            _ => Err(no_such_phase(phase)),
        }
    }
}

fn accepted(object: &PhaseManifest, control: &ControlMessage, outcome: Outcome, token: &str) -> Response {
    let message = match outcome {
        Outcome::Unchanged => "it stood in the resource already",
        outcome => outcome.message(),
    };
    let mut answer = json!({
        "status": outcome.as_str(),
        "message": message,
        "sessionId": session_text(object),
        "namespace": namespace(object),
        "name": name(object),
        "command": control.command.as_str(),
    });
    if let Some(phase) = &control.phase {
        answer["phaseId"] = phase.as_str().into();
    }
    if !matches!(control.command, Command::Pause | Command::Resume | Command::Cancel) {
        answer["token"] = token.into();
    }
    let mut response = (StatusCode::ACCEPTED, Json(answer)).into_response();
    name_version(response.headers_mut(), object);
    response
}

/// A command over HTTP: with an Idempotency-Key the object remembers it, as it does plans.
struct Given {
    id: CommandId,
    key: Option<Key>,
    fingerprint: String,
}

impl Given {
    fn of(object: &PhaseManifest, control: &ControlMessage, key: Option<&str>) -> Self {
        let asked = json!([control.command.as_str(), control.phase.as_ref().map(PhaseId::as_str)]);
        let unique = key.map(|key| json!([key, object.metadata.uid, asked]).to_string());
        Self {
            id: CommandId::over_http(unique.as_deref()),
            key: key.map(Key::of),
            fingerprint: short(&json!(["command", asked]).to_string()),
        }
    }

    /// What was answered before, if it was to the same.
    fn replayed(&self, object: &PhaseManifest) -> Result<Outcome, Fault> {
        let used = self.key.as_ref().and_then(|key| used(object, key));
        let used =
            used.ok_or_else(|| Fault::conflict("Conflict", "the resource was written to meanwhile: ask again"))?;
        used.check(&self.fingerprint, object)?;
        Ok(used.outcome)
    }
}

impl Identity for Given {
    fn token(&self) -> &str {
        self.id.token()
    }

    fn is_past(&self, object: &PhaseManifest) -> bool {
        self.key.as_ref().is_some_and(|key| used(object, key).is_some())
    }

    fn note(&self, object: &PhaseManifest, effect: Effect) -> Option<(&'static str, String)> {
        let outcome = match effect {
            Effect::Change => Outcome::Accepted,
            Effect::Nothing => Outcome::Unchanged,
            // Asked again, it may be another answer.
            Effect::Refused => return None,
        };
        let (key, body) = (self.key.clone()?, self.fingerprint.clone());
        let new = Use { key, body, outcome, revision: None, base: 0 };
        Some((KEYS_ANNOTATION, remembered(uses(object), new)))
    }
}

/// 404, naming the phase.
pub fn no_such_phase(phase: &PhaseId) -> Fault {
    Fault::not_found("NoSuchPhase", format!("the manifest has no phase {:?}", phase.as_str()))
        .with("phaseId", phase.as_str().into())
}

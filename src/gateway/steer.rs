//! POST /control, and requests about single phases: the same commands as on the bus, written into the spec.

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{
    Gateway, body,
    fault::Fault,
    media,
    path::Named,
    query::Query,
    sessions::session_of,
    submit::{idempotency_key, ignore_body, name_version},
};
use crate::{
    controller::{
        call::{name, namespace},
        commands::{self, CommandId, Obeyed, obey},
    },
    manifest::PhaseId,
    protocol::{Command, ControlMessage},
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
    let text = body::read(&parts.headers, stream, BODY_BYTES_MAX).await?;
    let control = ControlMessage::parse(&text).map_err(|error| Fault::bad_request("BadCommand", error.to_string()))?;
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
        ignore_body(&parts.headers, stream).await?;
        let control = ControlMessage { command, phase: Some(phase), attempt: None, runtime: None };
        self.in_time(self.obey(&query, &parts.headers, control)).await
    }

    /// 202: it stands in the spec, and the operator carries it out.
    async fn obey(&self, query: &Query, headers: &HeaderMap, control: ControlMessage) -> Result<Response, Fault> {
        if matches!(control.command, Command::Report | Command::CancelAttempt) {
            let detail = format!("{} is between operator and runtimes", control.command.as_str());
            return Err(Fault::bad_request("BadCommand", detail));
        }
        let object = self.sessions.of(query).await?;
        if let Some(phase) = &control.phase
            && let Some(plan) = self.sessions.spec_plan(&object).await
            && plan.index_of(phase.as_str()).is_none()
        {
            return Err(no_such_phase(phase));
        }
        // One key may be used for requests to several phases; each is one request.
        let unique = idempotency_key(headers)?.map(|key| {
            let phase = control.phase.as_ref().map(PhaseId::as_str);
            json!([key, object.metadata.uid, control.command.as_str(), phase]).to_string()
        });
        let id = CommandId::over_http(unique.as_deref());
        let obeyed = obey(&self.client, &object, &control, &id, ACTOR).await.map_err(|error| match error {
            commands::Error::Call(error) => error.into(),
            commands::Error::Contended => {
                Fault::unavailable("Contended", "the resource is written to all the time: ask again")
            }
        })?;
        let (status, message) = match obeyed {
            Obeyed::Written => ("accepted", "it stands in the resource, and the operator carries it out"),
            Obeyed::NothingToDo => ("unchanged", "it stood in the resource already"),
            Obeyed::Refused(why) => return Err(Fault::bad_request("BadCommand", why)),
        };
        // What stands there now, so that this is what is read next.
        let fresh = self.sessions.fresh(query).await?;
        self.sessions.wrote(&fresh);
        let mut answer = json!({
            "status": status,
            "message": message,
            "sessionId": session_of(&fresh).map(|id| id.to_string()),
            "namespace": namespace(&fresh),
            "name": name(&fresh),
            "command": control.command.as_str(),
        });
        if let Some(phase) = &control.phase {
            answer["phaseId"] = phase.as_str().into();
        }
        if !matches!(control.command, Command::Pause | Command::Resume | Command::Cancel) {
            answer["token"] = id.token().into();
        }
        let mut response = (StatusCode::ACCEPTED, Json(answer)).into_response();
        name_version(response.headers_mut(), &fresh);
        Ok(response)
    }
}

/// 404, naming the phase.
pub fn no_such_phase(phase: &PhaseId) -> Fault {
    Fault::not_found("NoSuchPhase", format!("the manifest has no phase {:?}", phase.as_str()))
        .with("phaseId", phase.as_str().into())
}

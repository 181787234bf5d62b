//! Commands of clients, written into the spec: `.control` on the bus, POST /control and its like over HTTP.
//!
//! A command changes what a person could have changed with `kubectl edit`, and nothing else: suspend, shutdown and
//! requests. The spec stays the one place where it stands what is wanted, so a command that was obeyed survives a crash
//! as every edit does. It never speaks to a session task, which obeys a cancel by itself, because runtimes do so too.

use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Map, Value, json};

use super::call::{self, call, name, namespace};
pub use super::identity::{CommandId, Effect, Identity};
use crate::{
    bus::{InboundBody, InboundMessage, Origin},
    manifest::PhaseId,
    protocol::{Command, ControlMessage},
    resource::{PhaseManifest, Request, RequestAction, Shutdown},
};

/// On the resource: who said the last command that was obeyed, and its words.
pub const LAST_COMMAND_ANNOTATION: &str = "pmp.dev/last-command";

/// Most entries of `spec.requests` (the schema's own bound).
const REQUESTS_MAX: usize = 64;

/// Writers that may come in between, one after the other.
const CONFLICTS_MAX: u32 = 8;

/// What became of a command.
#[derive(Debug, Clone, PartialEq)]
pub enum Obeyed {
    /// It stands in the spec of this object.
    Written(Box<PhaseManifest>),
    /// It stood there already.
    Unchanged(Box<PhaseManifest>),
    /// It was given before, by what this object remembers.
    Past(Box<PhaseManifest>),
    /// The object is no more, or another one has its name.
    Gone,
    /// The object is being deleted.
    Terminating,
    Refused(Refused),
}

/// Why a command is not written; the text is for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{0}")]
    BadCommand(String),
    #[error("{REQUESTS_MAX} requests wait for their turn: ask again later")]
    TooManyRequests,
    #[error(
        "the session is shut down: x-retry and x-restart begin it anew after its verdict; else clear spec.shutdown"
    )]
    ShutDown,
}

impl Refused {
    /// One PascalCase word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadCommand(_) => "BadCommand",
            Self::TooManyRequests => "TooManyRequests",
            Self::ShutDown => "ShutDown",
        }
    }
}

/// The command could not be written now.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Call(#[from] call::Error),
    #[error("could not write the command: the resource is written to all the time")]
    Contended,
}

impl Error {
    /// Trying again is of no use.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Call(error) if error.is_final())
    }

    /// The server does not know us, or not our rights: it says so, too, while it starts and while rights are given.
    pub fn is_denied(&self) -> bool {
        let status = if let Self::Call(error) = self { error.status() } else { None };
        status.is_some_and(|status| matches!(status.code, 401 | 403))
    }

    /// One PascalCase word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Call(error) => error.reason(),
            Self::Contended => "Conflict",
        }
    }
}

/// The command in a message, if it is one to us: what any operator said, our own or another cluster's, never is.
pub fn command(message: &InboundMessage) -> Option<&ControlMessage> {
    match (&message.origin, &message.body) {
        (Origin::None, InboundBody::Control(control)) if is_to_us(control.command) => Some(control),
        _ => None,
    }
}

/// What runtimes are told is nothing to us.
fn is_to_us(command: Command) -> bool {
    !matches!(command, Command::Report | Command::CancelAttempt)
}

/// Writes the command into the spec of the object as it is now. `actor` is who said it: a connection's name, or `http`.
///
/// One patch under resourceVersion, tried again when somebody writes in between.
pub async fn obey(
    client: &Client,
    object: &PhaseManifest,
    control: &ControlMessage,
    id: &impl Identity,
    actor: &str,
) -> Result<Obeyed, Error> {
    let api: Api<PhaseManifest> = Api::namespaced(client.clone(), namespace(object));
    for _ in 0..CONFLICTS_MAX {
        let fresh = match call("read the resource", api.get(name(object))).await {
            Ok(fresh) => fresh,
            Err(error) if error.is_not_found() => return Ok(Obeyed::Gone),
            Err(error) => return Err(error.into()),
        };
        if fresh.metadata.uid != object.metadata.uid {
            return Ok(Obeyed::Gone);
        }
        if fresh.metadata.deletion_timestamp.is_some() {
            return Ok(Obeyed::Terminating);
        }
        if id.is_past(&fresh) {
            return Ok(Obeyed::Past(Box::new(fresh)));
        }
        let (spec, refused) = match change(&fresh, control, id.token()) {
            _ if id.is_repeat() => (None, None),
            Ok(spec) => (spec, None),
            Err(why) => (None, Some(why)),
        };
        let effect = match (&spec, &refused) {
            (Some(_), _) => Effect::Change,
            (None, None) => Effect::Nothing,
            (None, Some(_)) => Effect::Refused,
        };
        let what_came_of_it = |object| match (effect, refused) {
            (_, Some(why)) => Obeyed::Refused(why),
            (Effect::Change, None) => Obeyed::Written(Box::new(object)),
            (_, None) => Obeyed::Unchanged(Box::new(object)),
        };
        let Some(patch) = patch(&fresh, spec, written(control, actor), id.note(&fresh, effect)) else {
            return Ok(what_came_of_it(fresh));
        };
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        match call("write the command into the resource", api.patch(name(object), &params, &patch)).await {
            Ok(stored) => return Ok(what_came_of_it(stored)),
            Err(error) if error.is_conflict() => {}
            Err(error) if error.is_not_found() => return Ok(Obeyed::Gone),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Contended)
}

/// Nothing where there is neither a change nor anything to remember.
fn patch(
    fresh: &PhaseManifest,
    spec: Option<Value>,
    said: String,
    note: Option<(&'static str, String)>,
) -> Option<Value> {
    let mut annotations: Map<String, Value> =
        note.map(|(name, text)| (name.to_owned(), text.into())).into_iter().collect();
    if spec.is_some() {
        annotations.insert(LAST_COMMAND_ANNOTATION.to_owned(), said.into());
    } else if annotations.is_empty() {
        return None;
    }
    let mut patch = json!({"metadata": {
        "resourceVersion": fresh.metadata.resource_version,
        "uid": fresh.metadata.uid,
        "annotations": annotations,
    }});
    if let Some(spec) = spec {
        patch["spec"] = spec;
    }
    Some(patch)
}

/// Who said what, on one line.
fn written(control: &ControlMessage, actor: &str) -> String {
    let phase = control.phase.as_ref().map(PhaseId::as_str);
    json!({"connection": actor, "command": control.command.as_str(), "phase": phase}).to_string()
}

/// What the command changes in the spec; nothing where it stands there already.
fn change(object: &PhaseManifest, control: &ControlMessage, token: &str) -> Result<Option<Value>, Refused> {
    let spec = &object.spec;
    let whole = |set: Value, is_so: bool| match &control.phase {
        None => Ok((!is_so).then_some(set)),
        // Of one attempt: that is the operator's word to runtimes, and must not end the whole session.
        Some(_) => Err(bad(format!("{} is of the whole session: remove x-phaseId", control.command.as_str()))),
    };
    let action = match control.command {
        Command::Pause => return whole(json!({"suspend": true}), spec.suspend == Some(true)),
        Command::Resume => return whole(json!({"suspend": false}), spec.suspend != Some(true)),
        Command::Cancel => return whole(json!({"shutdown": "Cancel"}), spec.shutdown == Some(Shutdown::Cancel)),
        Command::Report | Command::CancelAttempt => {
            return Err(bad(format!("{} is to runtimes", control.command.as_str())));
        }
        Command::Retry => RequestAction::Retry,
        Command::Skip => RequestAction::Skip,
        Command::Use => RequestAction::Use,
        Command::Complete => RequestAction::Complete,
        Command::Restart => RequestAction::Restart,
    };
    let phase = match (&control.phase, action) {
        (None, RequestAction::Restart) => None,
        (Some(_), RequestAction::Restart) => {
            return Err(bad("x-restart is of the whole session: remove x-phaseId".to_owned()));
        }
        (None, _) => return Err(bad(format!("{} names no phase: add x-phaseId", control.command.as_str()))),
        (Some(phase), _) => Some(phase.as_str().to_owned()),
    };
    let request = Request { token: token.to_owned(), action, phase };
    Ok(with_request(object, &request)?.map(Value::Object))
}

fn bad(why: String) -> Refused {
    Refused::BadCommand(why)
}

/// What a request changes of the spec: `requests` with one more, without those that are handled; nothing where it is
/// there already.
///
/// A session that is shut down refuses every request. Once it has its verdict a Retry or Restart is to begin anew, and
/// lifts the shutdown by the same write.
pub fn with_request(object: &PhaseManifest, request: &Request) -> Result<Option<Map<String, Value>>, Refused> {
    let there = object.spec.requests.as_deref().unwrap_or_default();
    if there.iter().any(|other| other.token == request.token) {
        return Ok(None);
    }
    let mut spec = Map::new();
    if matches!(object.spec.shutdown, Some(Shutdown::Drain | Shutdown::Cancel)) {
        let has_verdict = object.status.as_ref().is_some_and(|status| status.verdict.is_some());
        if !has_verdict || !matches!(request.action, RequestAction::Retry | RequestAction::Restart) {
            return Err(Refused::ShutDown);
        }
        spec.insert("shutdown".to_owned(), Value::Null);
    }
    let results = object.status.as_ref().map(|status| status.requests.as_slice()).unwrap_or_default();
    let is_open = |other: &&Request| !results.iter().any(|result| result.token == other.token);
    let mut requests: Vec<&Request> = there.iter().filter(is_open).collect();
    if requests.len() >= REQUESTS_MAX {
        return Err(Refused::TooManyRequests);
    }
    requests.push(request);
    let list = serde_json::to_value(requests).expect("texts are JSON");
    spec.insert("requests".to_owned(), list);
    Ok(Some(spec))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        protocol::SessionId,
        resource::{PhaseManifestSpec, PhaseManifestStatus, RequestStatus},
    };

    fn control(command: Command, phase: Option<&str>) -> ControlMessage {
        let phase = phase.map(|id| PhaseId::new(id).unwrap());
        ControlMessage { command, phase, attempt: None, runtime: None }
    }

    fn object(spec: Value, handled: &[&str]) -> PhaseManifest {
        let spec: PhaseManifestSpec = serde_json::from_value(spec).unwrap();
        let requests = handled
            .iter()
            .map(|token| RequestStatus { token: (*token).to_owned(), result: "Done".to_owned(), message: None })
            .collect();
        let mut object = PhaseManifest::new("boot", spec);
        object.status = Some(PhaseManifestStatus { requests, ..PhaseManifestStatus::default() });
        object
    }

    fn changed(spec: Value, command: Command, phase: Option<&str>) -> Result<Option<Value>, Refused> {
        change(&object(spec, &[]), &control(command, phase), "1")
    }

    #[test]
    fn the_protocol_s_three_commands_change_one_field_each() {
        assert_eq!(changed(json!({}), Command::Pause, None), Ok(Some(json!({"suspend": true}))));
        assert_eq!(changed(json!({"suspend": true}), Command::Resume, None), Ok(Some(json!({"suspend": false}))));
        assert_eq!(changed(json!({}), Command::Cancel, None), Ok(Some(json!({"shutdown": "Cancel"}))));
        assert_eq!(
            changed(json!({"shutdown": "Drain"}), Command::Cancel, None),
            Ok(Some(json!({"shutdown": "Cancel"})))
        );
    }

    #[test]
    fn what_stands_there_already_is_not_written_again() {
        assert_eq!(changed(json!({"suspend": true}), Command::Pause, None), Ok(None));
        assert_eq!(changed(json!({}), Command::Resume, None), Ok(None));
        assert_eq!(changed(json!({"shutdown": "Cancel"}), Command::Cancel, None), Ok(None));
    }

    #[test]
    fn cancel_of_one_attempt_never_ends_the_session() {
        assert!(changed(json!({}), Command::Cancel, Some("a")).is_err());
    }

    #[test]
    fn a_request_needs_a_phase_and_a_restart_has_none() {
        assert!(changed(json!({}), Command::Retry, None).is_err());
        assert!(changed(json!({}), Command::Restart, Some("a")).is_err());
        let restart = changed(json!({}), Command::Restart, None).unwrap().unwrap();
        assert_eq!(restart["requests"][0]["action"], "Restart");
    }

    #[test]
    fn handled_requests_make_room_and_open_ones_stay() {
        let spec = json!({"requests": [
            {"token": "old", "action": "Retry", "phase": "a"},
            {"token": "open", "action": "Skip", "phase": "b"},
        ]});
        let patch = change(&object(spec, &["old"]), &control(Command::Retry, Some("a")), "1").unwrap();
        let patch = patch.unwrap();
        let tokens: Vec<&str> =
            patch["requests"].as_array().unwrap().iter().filter_map(|r| r["token"].as_str()).collect();
        assert_eq!(tokens.len(), 2);
        assert_eq!(tokens[0], "open");
        assert_eq!(tokens[1], "1");
    }

    #[test]
    fn the_same_message_is_one_request_and_another_is_another() {
        let first = changed(json!({}), Command::Retry, Some("a")).unwrap().unwrap();
        assert_eq!(change(&object(first.clone(), &[]), &control(Command::Retry, Some("a")), "1"), Ok(None));
        let second = change(&object(first, &[]), &control(Command::Retry, Some("a")), "2").unwrap();
        assert_eq!(second.unwrap()["requests"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn more_requests_than_the_schema_takes_are_refused() {
        let request = |n: usize| json!({"token": format!("t{n}"), "action": "Retry", "phase": "a"});
        let spec = json!({"requests": (0..REQUESTS_MAX).map(request).collect::<Vec<_>>()});
        assert_eq!(changed(spec, Command::Retry, Some("a")), Err(Refused::TooManyRequests));
    }

    #[test]
    fn what_begins_anew_lifts_the_shutdown_of_a_session_that_has_its_verdict() {
        let mut cancelled = object(json!({"shutdown": "Cancel"}), &[]);
        let ask = |object: &PhaseManifest, command, phase| change(object, &control(command, phase), "1");
        for (command, phase) in [(Command::Retry, Some("a")), (Command::Restart, None), (Command::Skip, Some("a"))] {
            assert_eq!(ask(&cancelled, command, phase), Err(Refused::ShutDown), "{command:?}: it still runs");
        }
        cancelled.status.as_mut().unwrap().verdict = Some("Cancelled".to_owned());
        for (command, phase) in [(Command::Retry, Some("a")), (Command::Restart, None)] {
            let spec = ask(&cancelled, command, phase).unwrap().unwrap();
            assert_eq!((&spec["shutdown"], spec["requests"].as_array().unwrap().len()), (&Value::Null, 1));
            assert!(spec.as_object().unwrap().contains_key("shutdown"));
        }
        assert_eq!(ask(&cancelled, Command::Complete, Some("a")), Err(Refused::ShutDown));
        let open = ask(&object(json!({}), &[]), Command::Retry, Some("a")).unwrap().unwrap();
        assert!(!open.as_object().unwrap().contains_key("shutdown"));
    }

    #[test]
    fn what_an_operator_said_is_no_command() {
        let said = |origin| {
            let body = InboundBody::Control(control(Command::Pause, None));
            InboundMessage::new(SessionId::new("s").unwrap(), origin, body)
        };
        assert!(command(&said(Origin::None)).is_some());
        assert!(command(&said(Origin::Own)).is_none());
        assert!(command(&said(Origin::Foreign("elsewhere".to_owned()))).is_none());
    }
}

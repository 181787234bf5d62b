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
use sha2::{Digest as _, Sha256};

use super::call::{self, call, name, namespace};
use crate::{
    bus::{Hearing, InboundBody, InboundMessage, Origin, Place, Position},
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

/// On the resource: where in the stream of reports the last command from there stood that was dealt with, whatever came of
/// it: `<created>/<sequence>/<kept at>/<stream>`. Those up to it are done; those behind it are still to be obeyed.
pub const LAST_PLACE_ANNOTATION: &str = "pmp.dev/last-command-place";

/// One command as it came: names it for good, so that carrying it out twice is carrying it out once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandId {
    name: String,
    place: Option<Place>,
}

impl CommandId {
    /// Of a message as it came: a place in a stream is a name for good.
    pub fn of_message(message: &InboundMessage) -> Self {
        match &message.place {
            Some(place) => Self { place: Some(place.clone()), ..Self::of(&written_place(place)) },
            None => Self::fresh(),
        }
    }

    /// Of a request over HTTP: with a name of its own the same whenever it is repeated.
    pub fn over_http(name: Option<&str>) -> Self {
        let bits = name.map_or_else(rand::random, hash);
        Self { name: format!("http-{bits:032x}"), place: None }
    }

    /// The token of a request that asks for the same.
    pub fn token(&self) -> &str {
        &self.name
    }

    /// A new one: for each arrival, since NATS without JetStream delivers at most once and gives messages no names.
    pub fn fresh() -> Self {
        Self { name: format!("bus-{:032x}", rand::random::<u128>()), place: None }
    }

    /// Of a request that has a name of its own.
    pub fn of(message_name: &str) -> Self {
        Self { name: format!("bus-{:032x}", hash(message_name)), place: None }
    }

    /// Whether the command at this place, or one behind it, was dealt with.
    fn is_past(&self, object: &PhaseManifest) -> bool {
        self.place.as_ref().is_some_and(|place| is_dealt_with(place, object))
    }

    /// Whether it was obeyed before its place was known: only that is to be noted.
    fn was_obeyed(&self) -> bool {
        self.place.as_ref().is_some_and(|place| place.hearing == Hearing::Before)
    }
}

/// Whether the resource says that the command at this place, or one behind it, was dealt with.
pub fn is_dealt_with(place: &Place, object: &PhaseManifest) -> bool {
    let last = object.metadata.annotations.as_ref().and_then(|all| all.get(LAST_PLACE_ANNOTATION));
    last.is_some_and(|last| is_behind(place, last))
}

/// Whether a command that was heard late was said before what runs now was asked for: whoever said it could not know.
///
/// Two clocks are compared, NATS's and ours, so this is asked of nothing that was heard as it was said.
pub fn is_outdated(place: &Place, object: &PhaseManifest) -> bool {
    let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let started = object.status.as_ref().and_then(|status| status.started_at.as_ref()).map(|at| at.get());
    place.hearing == Hearing::Late && created.into_iter().chain(started).max().is_some_and(|began| place.at < began)
}

fn written_place(place: &Place) -> String {
    let Position { stream, created, sequence } = &place.position;
    format!("{}/{sequence}/{}/{stream}", created.as_millisecond(), place.at.as_millisecond())
}

/// Whether the place is at or before one that was written. By time, too: a server that came back with an older store gives
/// its places out once more.
fn is_behind(place: &Place, written: &str) -> bool {
    let mut parts = written.splitn(4, '/');
    let mut number = || parts.next().and_then(|part| part.parse::<i64>().ok());
    let (Some(created), Some(sequence), Some(at)) = (number(), number(), number()) else { return false };
    created == place.position.created.as_millisecond()
        && parts.next() == Some(place.position.stream.as_str())
        && i64::try_from(place.position.sequence).is_ok_and(|own| own <= sequence)
        && place.at.as_millisecond() <= at
}

fn hash(name: &str) -> u128 {
    Sha256::digest(name)[..16].iter().fold(0, |bits, &byte| bits << 8 | u128::from(byte))
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obeyed {
    /// It stands in the spec.
    Written,
    /// It stood there already, or there is no such session any more.
    NothingToDo,
    /// It asks for what no command may; for people.
    Refused(String),
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
/// One patch under resourceVersion, tried again when somebody writes in between. An object that is gone, or another one
/// by now, is [`Obeyed::NothingToDo`].
pub async fn obey(
    client: &Client,
    object: &PhaseManifest,
    control: &ControlMessage,
    id: &CommandId,
    actor: &str,
) -> Result<Obeyed, Error> {
    let api: Api<PhaseManifest> = Api::namespaced(client.clone(), namespace(object));
    for _ in 0..CONFLICTS_MAX {
        let fresh = match call("read the resource", api.get(name(object))).await {
            Ok(fresh) => fresh,
            Err(error) if error.is_not_found() => return Ok(Obeyed::NothingToDo),
            Err(error) => return Err(error.into()),
        };
        if fresh.metadata.uid != object.metadata.uid || fresh.metadata.deletion_timestamp.is_some() {
            return Ok(Obeyed::NothingToDo);
        }
        if id.is_past(&fresh) {
            return Ok(Obeyed::NothingToDo);
        }
        let (spec, obeyed) = match change(&fresh, control, id) {
            _ if id.was_obeyed() => (None, Obeyed::NothingToDo),
            Ok(Some(spec)) => (Some(spec), Obeyed::Written),
            Ok(None) => (None, Obeyed::NothingToDo),
            Err(why) => (None, Obeyed::Refused(why)),
        };
        let mut patch = json!({
            "metadata": {"resourceVersion": fresh.metadata.resource_version, "uid": fresh.metadata.uid},
        });
        match (spec, &id.place) {
            // A `resume` of what does not pause is dealt with, too: read once more, it would undo a pause of tomorrow.
            (None, Some(_)) => {}
            (None, None) => return Ok(obeyed),
            (Some(spec), _) => {
                patch["spec"] = spec;
                patch["metadata"]["annotations"][LAST_COMMAND_ANNOTATION] = written(control, actor).into();
            }
        }
        if let Some(place) = &id.place {
            patch["metadata"]["annotations"][LAST_PLACE_ANNOTATION] = written_place(place).into();
        }
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        match call("write the command into the resource", api.patch(name(object), &params, &patch)).await {
            Ok(_) => return Ok(obeyed),
            Err(error) if error.is_conflict() => {}
            Err(error) if error.is_not_found() => return Ok(Obeyed::NothingToDo),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Contended)
}

/// Who said what, on one line.
fn written(control: &ControlMessage, actor: &str) -> String {
    let phase = control.phase.as_ref().map(PhaseId::as_str);
    json!({"connection": actor, "command": control.command.as_str(), "phase": phase}).to_string()
}

/// What the command changes in the spec; nothing where it stands there already. Errors are for people.
fn change(object: &PhaseManifest, control: &ControlMessage, id: &CommandId) -> Result<Option<Value>, String> {
    let spec = &object.spec;
    let whole = |set: Value, is_so: bool| match &control.phase {
        None => Ok((!is_so).then_some(set)),
        // Of one attempt: that is the operator's word to runtimes, and must not end the whole session.
        Some(_) => Err(format!("{} is of the whole session: remove x-phaseId", control.command.as_str())),
    };
    let action = match control.command {
        Command::Pause => return whole(json!({"suspend": true}), spec.suspend == Some(true)),
        Command::Resume => return whole(json!({"suspend": false}), spec.suspend != Some(true)),
        Command::Cancel => return whole(json!({"shutdown": "Cancel"}), spec.shutdown == Some(Shutdown::Cancel)),
        Command::Report | Command::CancelAttempt => return Err(format!("{} is to runtimes", control.command.as_str())),
        Command::Retry => RequestAction::Retry,
        Command::Skip => RequestAction::Skip,
        Command::Use => RequestAction::Use,
        Command::Complete => RequestAction::Complete,
        Command::Restart => RequestAction::Restart,
    };
    let phase = match (&control.phase, action) {
        (None, RequestAction::Restart) => None,
        (Some(_), RequestAction::Restart) => {
            return Err("x-restart is of the whole session: remove x-phaseId".to_owned());
        }
        (None, _) => return Err(format!("{} names no phase: add x-phaseId", control.command.as_str())),
        (Some(phase), _) => Some(phase.as_str().to_owned()),
    };
    let request = Request { token: id.name.clone(), action, phase };
    with_request(object, &request)
}

/// `{requests}` for a patch of the spec: with one more, without those that are handled; nothing where it is there already.
/// Errors are for people.
pub fn with_request(object: &PhaseManifest, request: &Request) -> Result<Option<Value>, String> {
    let there = object.spec.requests.as_deref().unwrap_or_default();
    if there.iter().any(|other| other.token == request.token) {
        return Ok(None);
    }
    let results = object.status.as_ref().map(|status| status.requests.as_slice()).unwrap_or_default();
    let is_open = |other: &&Request| !results.iter().any(|result| result.token == other.token);
    let mut requests: Vec<&Request> = there.iter().filter(is_open).collect();
    if requests.len() >= REQUESTS_MAX {
        return Err(format!("{REQUESTS_MAX} requests wait for their turn: ask again later"));
    }
    requests.push(request);
    let list = serde_json::to_value(requests).expect("texts are JSON");
    Ok(Some(Value::Object(Map::from_iter([("requests".to_owned(), list)]))))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

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

    fn changed(spec: Value, command: Command, phase: Option<&str>) -> Result<Option<Value>, String> {
        change(&object(spec, &[]), &control(command, phase), &CommandId::of("1"))
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
        let patch = change(&object(spec, &["old"]), &control(Command::Retry, Some("a")), &CommandId::of("1")).unwrap();
        let patch = patch.unwrap();
        let tokens: Vec<&str> =
            patch["requests"].as_array().unwrap().iter().filter_map(|r| r["token"].as_str()).collect();
        assert_eq!(tokens.len(), 2);
        assert_eq!(tokens[0], "open");
        assert!(tokens[1].starts_with("bus-"));
    }

    #[test]
    fn the_same_message_is_one_request_and_another_is_another() {
        let first = changed(json!({}), Command::Retry, Some("a")).unwrap().unwrap();
        assert_eq!(
            change(&object(first.clone(), &[]), &control(Command::Retry, Some("a")), &CommandId::of("1")),
            Ok(None)
        );
        let second = change(&object(first, &[]), &control(Command::Retry, Some("a")), &CommandId::fresh()).unwrap();
        assert_eq!(second.unwrap()["requests"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn more_requests_than_the_schema_takes_are_refused() {
        let request = |n: usize| json!({"token": format!("t{n}"), "action": "Retry", "phase": "a"});
        let spec = json!({"requests": (0..REQUESTS_MAX).map(request).collect::<Vec<_>>()});
        assert!(changed(spec, Command::Retry, Some("a")).is_err());
    }

    #[test]
    fn a_command_from_the_stream_is_dealt_with_once() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let place = |created, sequence, second| {
            let position = Position { stream: "reports".to_owned(), created: at(created), sequence };
            Place { position, at: at(second), hearing: Hearing::Live }
        };
        let mut object = object(json!({}), &[]);
        assert!(!is_dealt_with(&place(1, 7, 20), &object));
        object.metadata.annotations =
            Some([(LAST_PLACE_ANNOTATION.to_owned(), written_place(&place(1, 7, 20)))].into());
        assert!(is_dealt_with(&place(1, 7, 20), &object) && is_dealt_with(&place(1, 6, 20), &object));
        assert!(!is_dealt_with(&place(1, 8, 21), &object));
        assert!(!is_dealt_with(&place(2, 3, 10), &object), "another stream of that name");
        assert!(!is_dealt_with(&place(1, 5, 30), &object), "the store came back as it was before");
        assert!(!CommandId::fresh().is_past(&object));
    }

    #[test]
    fn what_was_heard_late_and_is_older_than_what_runs_is_outdated() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut object = object(json!({}), &[]);
        object.status.as_mut().unwrap().started_at = Some(at(30).into());
        let place = |second, hearing| {
            let position = Position { stream: "reports".to_owned(), created: at(1), sequence: 1 };
            Place { position, at: at(second), hearing }
        };
        assert!(is_outdated(&place(20, Hearing::Late), &object));
        assert!(!is_outdated(&place(31, Hearing::Late), &object));
        assert!(!is_outdated(&place(20, Hearing::Live), &object), "the two clocks differ");
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

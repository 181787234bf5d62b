//! Which command it is: so that one that comes twice is carried out once.
//!
//! What was obeyed is remembered on the resource, in the patch that obeys: where in the stream it stood, or under which
//! key it came over HTTP.

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::{
    bus::{Hearing, InboundMessage, Place, Position},
    resource::PhaseManifest,
};

/// On the resource: where in the stream of reports the last command from there stood that was dealt with, whatever came of
/// it: `<created>/<sequence>/<kept at>/<stream>`. Those up to it are done; those behind it are still to be obeyed.
pub const LAST_PLACE_ANNOTATION: &str = "pmp.dev/last-command-place";

/// On the resource: when the last command was dealt with that has no place in a stream, by our clock, in milliseconds since
/// 1970. A stream that nobody could read may have it all the same, and gives it out some day.
pub const LAST_TIME_ANNOTATION: &str = "pmp.dev/last-command-time";

/// How far the clocks of a NATS server and of an operator may be apart for such a command to be known again.
const CLOCKS_APART_MS: i64 = 1_000;

/// Names a command for good, so that carrying it out twice is carrying it out once.
pub trait Identity: Sync {
    /// The token of a request that asks for it.
    fn token(&self) -> &str;

    /// Whether the object says that it was given before.
    fn is_past(&self, object: &PhaseManifest) -> bool;

    /// Whether it was obeyed already, before it could be noted: only the note is missing.
    fn is_repeat(&self) -> bool {
        false
    }

    /// The annotation by which the object will say so, stored together with the command's effect; also where it has
    /// none, if there is anything to remember then.
    fn note(&self, object: &PhaseManifest, effect: Effect) -> Option<(&'static str, String)>;
}

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Change,
    Nothing,
    /// Nothing, because no command may.
    Refused,
}

/// A message on the bus, or whatever else has a name of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandId {
    name: String,
    place: Option<Place>,
    /// When it was heard, of one from the bus.
    heard: Option<Timestamp>,
}

impl CommandId {
    /// Of a message as it came: a place in a stream is a name for good.
    pub fn of_message(message: &InboundMessage, now: Timestamp) -> Self {
        match &message.place {
            Some(place) => Self { place: Some(place.clone()), ..Self::of(&written_place(place)) },
            None => Self { heard: Some(now), ..Self::fresh() },
        }
    }

    /// Of a request over HTTP: with a name of its own the same whenever it is repeated.
    pub fn over_http(name: Option<&str>) -> Self {
        let bits = name.map_or_else(rand::random, hash);
        Self { name: format!("http-{bits:032x}"), place: None, heard: None }
    }

    /// A new one: for each arrival, since NATS without JetStream delivers at most once and gives messages no names.
    pub fn fresh() -> Self {
        Self { name: format!("bus-{:032x}", rand::random::<u128>()), place: None, heard: None }
    }

    /// Of a request that has a name of its own.
    pub fn of(message_name: &str) -> Self {
        Self { name: format!("bus-{:032x}", hash(message_name)), place: None, heard: None }
    }
}

impl Identity for CommandId {
    fn token(&self) -> &str {
        &self.name
    }

    fn is_past(&self, object: &PhaseManifest) -> bool {
        self.place.as_ref().is_some_and(|place| is_dealt_with(place, object))
    }

    fn is_repeat(&self) -> bool {
        self.place.as_ref().is_some_and(|place| place.hearing == Hearing::Before)
    }

    /// Whatever comes of it: a `resume` of what does not pause, read once more after a restart, would undo a pause of
    /// tomorrow.
    fn note(&self, _: &PhaseManifest, _: Effect) -> Option<(&'static str, String)> {
        let time = || self.heard.map(|at| (LAST_TIME_ANNOTATION, at.as_millisecond().to_string()));
        self.place.as_ref().map(|place| (LAST_PLACE_ANNOTATION, written_place(place))).or_else(time)
    }
}

/// Whether the resource says that the command at this place, or one behind it, was dealt with.
pub fn is_dealt_with(place: &Place, object: &PhaseManifest) -> bool {
    let noted = |name| object.metadata.annotations.as_ref().and_then(|all| all.get(name));
    let is_known = |text: &String| {
        text.parse().is_ok_and(|last: i64| place.at.as_millisecond() <= last.saturating_add(CLOCKS_APART_MS))
    };
    noted(LAST_PLACE_ANNOTATION).is_some_and(|last| is_behind(place, last))
        || (place.hearing == Hearing::Late && noted(LAST_TIME_ANNOTATION).is_some_and(is_known))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{PhaseManifestSpec, PhaseManifestStatus};

    fn object() -> PhaseManifest {
        let mut object = PhaseManifest::new("boot", PhaseManifestSpec::default());
        object.status = Some(PhaseManifestStatus::default());
        object
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn place(created: i64, sequence: u64, second: i64, hearing: Hearing) -> Place {
        let position = Position { stream: "reports".to_owned(), created: at(created), sequence };
        Place { position, at: at(second), hearing }
    }

    #[test]
    fn a_command_from_the_stream_is_dealt_with_once() {
        let mut object = object();
        let live = |created, sequence, second| place(created, sequence, second, Hearing::Live);
        assert!(!is_dealt_with(&live(1, 7, 20), &object));
        object.metadata.annotations = Some([(LAST_PLACE_ANNOTATION.to_owned(), written_place(&live(1, 7, 20)))].into());
        assert!(is_dealt_with(&live(1, 7, 20), &object) && is_dealt_with(&live(1, 6, 20), &object));
        assert!(!is_dealt_with(&live(1, 8, 21), &object));
        assert!(!is_dealt_with(&live(2, 3, 10), &object), "another stream of that name");
        assert!(!is_dealt_with(&live(1, 5, 30), &object), "the store came back as it was before");
        assert!(!CommandId::fresh().is_past(&object));
    }

    /// Rights on the stream were missing, and it kept what was heard plainly.
    #[test]
    fn what_was_obeyed_without_a_place_is_known_when_the_stream_is_read() {
        let mut object = object();
        object.metadata.annotations = Some([(LAST_TIME_ANNOTATION.to_owned(), "20000".to_owned())].into());
        assert!(is_dealt_with(&place(1, 7, 20, Hearing::Late), &object));
        assert!(!is_dealt_with(&place(1, 8, 22, Hearing::Late), &object));
        assert!(!is_dealt_with(&place(1, 7, 20, Hearing::Live), &object), "that is another");
    }

    #[test]
    fn what_was_heard_late_and_is_older_than_what_runs_is_outdated() {
        let mut object = object();
        object.status.as_mut().unwrap().started_at = Some(at(30).into());
        assert!(is_outdated(&place(1, 1, 20, Hearing::Late), &object));
        assert!(!is_outdated(&place(1, 1, 31, Hearing::Late), &object));
        assert!(!is_outdated(&place(1, 1, 20, Hearing::Live), &object), "the two clocks differ");
    }
}

//! Which command it is: so that one that comes twice is carried out once.
//!
//! What was obeyed is remembered on the resource, in the patch that obeys: where in the stream it stood, or under which
//! key it came over HTTP.

use sha2::{Digest as _, Sha256};

use crate::{
    bus::{InboundMessage, Place, Position},
    resource::PhaseManifest,
};

/// On the resource: where in the stream of reports the last command from there stood, `<created>/<sequence>/<stream>`.
pub const LAST_PLACE_ANNOTATION: &str = "pmp.dev/last-command-place";

/// Names a command for good, so that carrying it out twice is carrying it out once.
pub trait Identity: Sync {
    /// The token of a request that asks for it.
    fn token(&self) -> &str;

    /// Whether the object says that it was given before, or that it is older than what runs.
    fn is_past(&self, object: &PhaseManifest) -> bool;

    /// The annotation by which the object will say so, stored together with the command's effect; also where it has
    /// none, if there is anything to remember then.
    fn note(&self, object: &PhaseManifest, effect: Effect) -> Option<(&'static str, String)>;
}

/// Whether a command changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Change,
    Nothing,
}

/// A message on the bus, or whatever else has a name of its own.
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

    /// A new one: for each arrival, since NATS without JetStream delivers at most once and gives messages no names.
    pub fn fresh() -> Self {
        Self { name: format!("bus-{:032x}", rand::random::<u128>()), place: None }
    }

    /// Of a request that has a name of its own.
    pub fn of(message_name: &str) -> Self {
        Self { name: format!("bus-{:032x}", hash(message_name)), place: None }
    }
}

impl Identity for CommandId {
    fn token(&self) -> &str {
        &self.name
    }

    fn is_past(&self, object: &PhaseManifest) -> bool {
        let Some(place) = &self.place else { return false };
        let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let started = object.status.as_ref().and_then(|status| status.started_at.as_ref()).map(|at| at.get());
        let began = created.into_iter().chain(started).max();
        let last = object.metadata.annotations.as_ref().and_then(|all| all.get(LAST_PLACE_ANNOTATION));
        began.is_some_and(|began| place.at < began) || last.is_some_and(|last| is_behind(&place.position, last))
    }

    fn note(&self, _: &PhaseManifest, effect: Effect) -> Option<(&'static str, String)> {
        let place = self.place.as_ref().filter(|_| effect == Effect::Change)?;
        Some((LAST_PLACE_ANNOTATION, written_place(place)))
    }
}

fn written_place(place: &Place) -> String {
    let Position { stream, created, sequence } = &place.position;
    format!("{}/{sequence}/{stream}", created.as_millisecond())
}

/// Whether the position is at or before one that was written.
fn is_behind(position: &Position, written: &str) -> bool {
    let mut parts = written.splitn(3, '/');
    let (created, sequence, stream) = (parts.next(), parts.next(), parts.next());
    created == Some(position.created.as_millisecond().to_string().as_str())
        && stream == Some(position.stream.as_str())
        && sequence.and_then(|sequence| sequence.parse().ok()).is_some_and(|last: u64| position.sequence <= last)
}

fn hash(name: &str) -> u128 {
    Sha256::digest(name)[..16].iter().fold(0, |bits, &byte| bits << 8 | u128::from(byte))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::resource::{PhaseManifestSpec, PhaseManifestStatus};

    #[test]
    fn a_command_from_the_stream_is_obeyed_once_and_never_after_an_edit_that_is_newer() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let place = |sequence, second| {
            let position = Position { stream: "reports".to_owned(), created: at(1), sequence };
            CommandId { place: Some(Place { position, at: at(second) }), ..CommandId::of("x") }
        };
        let mut object = PhaseManifest::new("boot", PhaseManifestSpec::default());
        object.status = Some(PhaseManifestStatus::default());
        object.metadata.annotations = Some([(LAST_PLACE_ANNOTATION.to_owned(), "1000/7/reports".to_owned())].into());
        assert!(place(7, 20).is_past(&object) && place(6, 20).is_past(&object));
        assert!(!place(8, 20).is_past(&object));
        object.status.as_mut().unwrap().started_at = Some(at(30).into());
        assert!(place(8, 20).is_past(&object), "the revision is newer");
        assert!(!place(8, 31).is_past(&object));
        let other = Position { stream: "reports".to_owned(), created: at(2), sequence: 3 };
        assert!(!is_behind(&other, "1000/7/reports"), "another stream of that name");
        assert!(!CommandId::fresh().is_past(&object));
    }
}

//! How a runtime presents itself, and how it stands.

use std::{num::NonZeroUsize, time::Duration};

use super::labels::Labels;
use crate::{
    bus,
    protocol::{Prefix, SessionId},
};

/// Longest part of a name that its author chooses, in bytes.
const WHO_BYTES_MAX: usize = 100;
/// Longest name: two that differ later would be one runtime to the operator.
const NAME_BYTES_MAX: usize = 128;
/// Shorter is a flood; longer is no sign of life, and past what a clock counts.
const HEARTBEAT_MIN: Duration = Duration::from_millis(10);
const HEARTBEAT_MAX: Duration = Duration::from_hours(24);

/// How a runtime presents itself. [`Options::new`] gives the defaults.
#[derive(Debug, Clone)]
pub struct Options {
    /// `x-runtime`: unique to this process, also among those that have ended. The holder of an attempt that asks for it
    /// again is granted again, so two processes under one name would both run it. 1 to 128 bytes, no control characters.
    pub name: String,
    /// Which phases are for this runtime.
    pub labels: Labels,
    /// What stands before the session id in every subject; `plan.session` unless the operator has another.
    pub prefix: Prefix,
    /// Serve this session only; else every session under the prefix.
    pub session: Option<SessionId>,
    /// Attempts at a time; absent is no bound (the laptop, where the operator's `parallelism` is the bound).
    pub concurrency: Option<NonZeroUsize>,
    /// How often `running` is repeated; announced as `x-heartbeat`. Silence for three of them ends an attempt. 10 ms to a
    /// day.
    pub heartbeat: Duration,
}

impl Options {
    /// Of our SDKs (design, section 5).
    pub const HEARTBEAT: Duration = Duration::from_secs(10);

    /// A runtime called `who`, with something random behind it; for phases without a selector, in every session, as
    /// many at a time as are offered.
    ///
    /// ```
    /// use pmp::runtime::Options;
    ///
    /// let options = Options::new("db1");
    /// assert!(options.name.starts_with("db1-"));
    /// assert_ne!(options.name, Options::new("db1").name);
    /// ```
    pub fn new(who: &str) -> Self {
        let who: String = who.chars().filter(|c| !c.is_control()).collect();
        let who = &who[..who.floor_char_boundary(WHO_BYTES_MAX)];
        Self {
            name: format!("{who}-{:08x}", rand::random::<u32>()),
            labels: Labels::Carried(std::collections::BTreeMap::new()),
            prefix: Prefix::default(),
            session: None,
            concurrency: None,
            heartbeat: Self::HEARTBEAT,
        }
    }

    /// Fails with [`bus::Error::Option`], which names the field, on what an operator would not understand.
    pub fn check(&self) -> Result<(), bus::Error> {
        let refuse = |what, detail: &str| Err(bus::Error::Option { what, detail: detail.to_owned() });
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX || self.name.chars().any(char::is_control) {
            return refuse("Options::name", "a name is 1 to 128 bytes without control characters");
        }
        if !(HEARTBEAT_MIN..=HEARTBEAT_MAX).contains(&self.heartbeat) {
            return refuse("Options::heartbeat", "it is between 10 ms and a day");
        }
        Ok(())
    }
}

/// How a runtime stands on its bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Not connected, or not yet known to be heard; what runs goes on. `reason` is for people.
    Away { reason: String },
    /// Connected, and the server will not let it hear these: nothing is offered to it before its user may.
    Denied { subjects: Vec<String> },
    /// Offers published from now on are heard.
    Listening,
}

/// What became of a runtime that was drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Attempts that did not end within the grace and were told to stop.
    pub stopped: usize,
    /// Attempts whose end nobody may have been told of: the bus took nothing, or was dead, or the work did not stop. The
    /// operator notices their silence.
    pub unsaid: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_any_length_keeps_what_makes_it_unique() {
        let name = Options::new(&"é".repeat(300)).name;
        assert!(name.len() <= 109, "{name}");
        assert_eq!(name.rsplit('-').next().unwrap().len(), 8);
        assert!(Options::new("a\nb").name.starts_with("ab-"));
    }

    #[test]
    fn what_an_operator_would_not_understand_is_refused_by_its_field() {
        let with = |name: &str, heartbeat| Options { name: name.to_owned(), heartbeat, ..Options::new("a") };
        let fine = Options::HEARTBEAT;
        for (options, field) in [
            (with("", fine), "Options::name"),
            (with("a\u{7}b", fine), "Options::name"),
            (with(&"a".repeat(129), fine), "Options::name"),
            (with("a", Duration::ZERO), "Options::heartbeat"),
            (with("a", Duration::MAX), "Options::heartbeat"),
        ] {
            match options.check() {
                Err(bus::Error::Option { what, .. }) => assert_eq!(what, field),
                other => panic!("{options:?}: {other:?}"),
            }
        }
        assert!(Options::new(&"é".repeat(300)).check().is_ok());
        assert!(with(&"a".repeat(128), HEARTBEAT_MAX).check().is_ok());
    }
}

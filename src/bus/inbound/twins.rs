//! Reports come twice where the bus keeps them: at once, and again as the stream gives them out. Each is heard once.
//!
//! The first copy counts, so that a hop costs no detour through the stream, and a stream that is full or gone takes
//! nothing away; the copy from the stream brings what was missed and says how far the stream was read. Commands are the
//! exception: they wait for the copy from the stream, since its place there is their name; if none comes soon, they go
//! on without. No IO; the time is an argument.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use tokio::time::Instant;

use crate::{bus::Message, protocol::headers};

/// Copies that wait for their twin; some 40 bytes each. More than a stream may be behind in any burst.
const HEARD_MAX: usize = 65_536;

/// As long as no stream is read, a copy from one can only be of what was heard a moment ago.
const HEARD_FOR: Duration = Duration::from_secs(10);

/// The plain copy of what the stream gave out first is under way; what has none, because we were away, comes never.
const STORED_FOR: Duration = Duration::from_secs(10);

/// How long a command waits for its place in the stream; that takes less than a millisecond when all is well.
const COMMAND_WAIT: Duration = Duration::from_millis(500);
/// Commands that wait. More come in a second only from somebody who does no good.
const COMMANDS_MAX: usize = 1_024;

/// A message by its content: subject, body and Msg-Id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Print(u64);

impl Print {
    pub(super) fn of(message: &Message) -> Self {
        let mut hasher = DefaultHasher::new();
        message.subject.hash(&mut hasher);
        message.body.hash(&mut hasher);
        message.headers.get(headers::MESSAGE_ID).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// Prints with their age, as often as they came.
#[derive(Debug, Default)]
struct Copies {
    serial: u64,
    waiting: HashMap<Print, VecDeque<u64>>,
    /// By age; what was taken meanwhile is passed over.
    order: VecDeque<(u64, Print, Instant)>,
}

impl Copies {
    fn put(&mut self, print: Print, now: Instant) {
        self.serial += 1;
        self.waiting.entry(print).or_default().push_back(self.serial);
        self.order.push_back((self.serial, print, now));
        while self.order.len() > HEARD_MAX {
            self.drop_oldest();
        }
    }

    fn take(&mut self, print: Print) -> bool {
        let Some(serials) = self.waiting.get_mut(&print) else { return false };
        serials.pop_front();
        if serials.is_empty() {
            self.waiting.remove(&print);
        }
        true
    }

    fn drop_before(&mut self, time: Instant) {
        while self.order.front().is_some_and(|(_, _, at)| *at < time) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some((serial, print, _)) = self.order.pop_front() else { return };
        if self.waiting.get(&print).is_some_and(|serials| serials.front() == Some(&serial)) {
            self.take(print);
        }
    }
}

/// What was heard once and not twice yet.
#[derive(Debug, Default)]
pub(super) struct Twins {
    heard: Copies,
    stored: Copies,
    commands: VecDeque<(Print, Message, Instant)>,
}

impl Twins {
    /// Whether this plain copy is the first; `is_kept` says that a stream is read.
    pub(super) fn hear(&mut self, message: &Message, is_kept: bool, now: Instant) -> bool {
        let print = Print::of(message);
        if !is_kept {
            self.heard.drop_before(now.checked_sub(HEARD_FOR).unwrap_or(now));
        }
        self.stored.drop_before(now.checked_sub(STORED_FOR).unwrap_or(now));
        let is_first = !self.stored.take(print);
        if is_first {
            self.heard.put(print, now);
        }
        is_first
    }

    /// Keeps a command until its copy from the stream comes; hands back the oldest if too many wait.
    pub(super) fn hold(&mut self, message: Message, now: Instant) -> Option<Message> {
        let print = Print::of(&message);
        if self.stored.take(print) {
            return None;
        }
        self.commands.push_back((print, message, now + COMMAND_WAIT));
        if self.commands.len() > COMMANDS_MAX { self.release(None) } else { None }
    }

    /// Whether this copy from the stream is news.
    pub(super) fn read(&mut self, message: &Message, now: Instant) -> bool {
        let print = Print::of(message);
        if let Some(held) = self.commands.iter().position(|(held, ..)| *held == print) {
            self.commands.remove(held);
            return true;
        }
        let is_first = !self.heard.take(print);
        if is_first {
            self.stored.put(print, now);
        }
        is_first
    }

    /// When the oldest command has waited long enough.
    pub(super) fn due(&self) -> Option<Instant> {
        self.commands.front().map(|(_, _, due)| *due)
    }

    /// A command that goes on without its place; with a time only one that is due by then.
    pub(super) fn release(&mut self, now: Option<Instant>) -> Option<Message> {
        if now.is_some_and(|now| self.due().is_none_or(|due| due > now)) {
            return None;
        }
        let (print, message, due) = self.commands.pop_front()?;
        self.heard.put(print, due);
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(body: &'static str) -> Message {
        Message::new("plan.session.s.state", body)
    }

    #[test]
    fn each_report_is_heard_once_whichever_copy_comes_first() {
        let (mut twins, now) = (Twins::default(), Instant::now());
        assert!(twins.hear(&report("a"), true, now));
        assert!(!twins.read(&report("a"), now));
        assert!(twins.read(&report("b"), now));
        assert!(!twins.hear(&report("b"), true, now));
        assert!(twins.heard.waiting.is_empty() && twins.stored.waiting.is_empty());
    }

    #[test]
    fn the_same_words_said_twice_are_two_reports() {
        let (mut twins, now) = (Twins::default(), Instant::now());
        assert!(twins.hear(&report("a"), true, now) && twins.hear(&report("a"), true, now));
        assert!(!twins.read(&report("a"), now) && !twins.read(&report("a"), now));
        assert!(twins.read(&report("a"), now), "the third was missed and is news");
    }

    #[test]
    fn what_was_read_of_the_past_swallows_no_report_of_today() {
        let (mut twins, now) = (Twins::default(), Instant::now());
        assert!(twins.read(&report("a"), now));
        assert!(twins.hear(&report("a"), true, now + STORED_FOR + Duration::from_secs(1)));
    }

    #[test]
    fn a_command_waits_for_its_place_and_goes_on_without_when_none_comes() {
        let (mut twins, now) = (Twins::default(), Instant::now());
        assert!(twins.hold(report("pause"), now).is_none());
        assert!(twins.read(&report("pause"), now), "with its place");
        assert!(twins.due().is_none());
        assert!(twins.hold(report("resume"), now).is_none());
        assert!(twins.release(Some(now)).is_none());
        assert_eq!(twins.release(Some(now + COMMAND_WAIT)), Some(report("resume")));
        assert!(!twins.read(&report("resume"), now), "its place comes too late");
        assert!(twins.read(&report("cancel"), now));
        assert!(twins.hold(report("cancel"), now).is_none() && twins.due().is_none());
    }

    #[test]
    fn copies_that_never_meet_their_twin_are_bounded() {
        let (mut twins, now) = (Twins::default(), Instant::now());
        for n in 0..HEARD_MAX + 100 {
            let message = Message::new("plan.session.s.state", n.to_string());
            assert!(twins.hear(&message, true, now));
        }
        assert_eq!(twins.heard.order.len(), HEARD_MAX);
        assert_eq!(twins.heard.waiting.len(), HEARD_MAX);
    }
}

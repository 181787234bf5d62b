//! Reports come twice where the bus keeps them: at once, and again as the stream gives them out. Each is heard once.
//!
//! The first copy counts, so that a hop costs no detour through the stream, and a stream that is full or gone takes
//! nothing away; the copy from the stream brings what was missed and says how far the stream was read. Commands are the
//! exception: they wait for the copy from the stream, since its place there is their name; if none comes soon, they go
//! on without, and their place follows. No IO; the time is an argument.
//!
//! Copies are the same words of about the same time. Words alone would take a `pause` of today for the twin of one that a
//! full stream refused yesterday, and would lose it; so the time at which the stream kept its copy counts, too, by the
//! difference of the two clocks as it was seen last.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

use crate::{bus::Message, protocol::headers};

/// Copies that wait for their twin; some 40 bytes each. More than a stream may be behind in any burst.
const HEARD_MAX: usize = 65_536;

/// The plain copy of what the stream gave out first is under way; what got lost comes never.
const STORED_FOR: Duration = Duration::from_secs(10);

/// Two copies of one message are heard and kept within this; a server that is slow to keep is slower than a plain message.
const APART_MS_MAX: i64 = 60_000;

/// A copy that comes so soon after the other tells how far the server's clock is from ours.
const SOON: Duration = Duration::from_secs(1);

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
    waiting: HashMap<Print, VecDeque<(u64, Instant)>>,
    /// By age; what was taken meanwhile is passed over.
    order: VecDeque<(u64, Print, Instant)>,
}

impl Copies {
    fn put(&mut self, print: Print, now: Instant) {
        self.serial += 1;
        self.waiting.entry(print).or_default().push_back((self.serial, now));
        self.order.push_back((self.serial, print, now));
        while self.order.len() > HEARD_MAX {
            self.drop_oldest();
        }
    }

    /// The oldest that `is_it` does not pass over: `None` drops it, since what comes later is no twin of it either.
    fn take(&mut self, print: Print, is_it: impl Fn(Instant) -> Option<bool>) -> Option<Instant> {
        let waiting = self.waiting.get_mut(&print)?;
        let mut taken = None;
        while let Some(&(_, at)) = waiting.front() {
            match is_it(at) {
                Some(false) => break,
                Some(true) => taken = Some(at),
                None => {}
            }
            waiting.pop_front();
            if taken.is_some() {
                break;
            }
        }
        if waiting.is_empty() {
            self.waiting.remove(&print);
        }
        taken
    }

    fn take_any(&mut self, print: Print) -> bool {
        self.take(print, |_| Some(true)).is_some()
    }

    fn drop_before(&mut self, time: Instant) {
        while self.order.front().is_some_and(|(_, _, at)| *at < time) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some((serial, print, _)) = self.order.pop_front() else { return };
        if self.waiting.get(&print).is_some_and(|waiting| waiting.front().is_some_and(|(first, _)| *first == serial)) {
            self.take_any(print);
        }
    }
}

/// What a copy from the stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copy {
    /// Nobody heard it when it was said.
    News,
    /// The command that was held for it.
    Held,
    /// It was passed on before.
    Repeat,
}

/// What was heard once and not twice yet.
#[derive(Debug)]
pub(super) struct Twins {
    heard: Copies,
    stored: Copies,
    commands: VecDeque<(Print, Message, Instant)>,
    began: Instant,
    /// The server's clock at `began`, in milliseconds since 1970, as the last pair of copies showed it.
    server_began_ms: Option<i64>,
}

impl Twins {
    pub(super) fn new(now: Instant) -> Self {
        let (heard, stored) = (Copies::default(), Copies::default());
        Self { heard, stored, commands: VecDeque::new(), began: now, server_began_ms: None }
    }

    /// Whether this plain copy is the first.
    pub(super) fn hear(&mut self, message: &Message, now: Instant) -> bool {
        let print = Print::of(message);
        let is_first = !self.was_stored(print, now);
        if is_first {
            self.heard.put(print, now);
        }
        is_first
    }

    /// Keeps a command until its copy from the stream comes; hands back the oldest if too many wait.
    pub(super) fn hold(&mut self, message: Message, now: Instant) -> Option<Message> {
        let print = Print::of(&message);
        if self.was_stored(print, now) {
            return None;
        }
        self.commands.push_back((print, message, now + COMMAND_WAIT));
        if self.commands.len() > COMMANDS_MAX { self.release(None) } else { None }
    }

    fn was_stored(&mut self, print: Print, now: Instant) -> bool {
        self.stored.drop_before(now.checked_sub(STORED_FOR).unwrap_or(now));
        self.stored.take_any(print)
    }

    /// What this copy from the stream is, which was kept at `at`.
    pub(super) fn read(&mut self, message: &Message, at: Timestamp, now: Instant) -> Copy {
        let print = Print::of(message);
        if let Some(held) = self.commands.iter().position(|(held, ..)| *held == print) {
            let due = self.commands.remove(held).map_or(now, |(_, _, due)| due);
            self.compare_clocks(due.checked_sub(COMMAND_WAIT).unwrap_or(now), at, now);
            return Copy::Held;
        }
        let (began, server_began_ms) = (self.began, self.server_began_ms);
        let is_it = |heard: Instant| {
            let Some(server_began_ms) = server_began_ms else { return Some(true) };
            let later_ms = at.as_millisecond() - server_began_ms - millis(heard.duration_since(began));
            // Heard long before: the stream gives out in order, so that copy is not kept, and never comes.
            if later_ms > APART_MS_MAX { None } else { Some(later_ms >= -APART_MS_MAX) }
        };
        if let Some(heard) = self.heard.take(print, is_it) {
            self.compare_clocks(heard, at, now);
            return Copy::Repeat;
        }
        Copy::News
    }

    /// The plain copy of what the stream gave out first may still come. Hardly so if it was said before the reading began:
    /// then it was heard, or we were away, and the same words said again are another message.
    pub(super) fn expect(&mut self, message: &Message, now: Instant) {
        self.stored.put(Print::of(message), now);
    }

    fn compare_clocks(&mut self, heard: Instant, at: Timestamp, now: Instant) {
        if now.duration_since(heard) < SOON {
            self.server_began_ms = Some(at.as_millisecond() - millis(heard.duration_since(self.began)));
        }
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
        self.heard.put(print, due.checked_sub(COMMAND_WAIT).unwrap_or(due));
        Some(message)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(body: &'static str) -> Message {
        Message::new("plan.session.s.state", body)
    }

    /// The server's clock, which is an hour ahead.
    fn server(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_003_600_000 + ms).unwrap()
    }

    fn after(now: Instant, ms: u64) -> Instant {
        now + Duration::from_millis(ms)
    }

    #[test]
    fn each_report_is_heard_once_whichever_copy_comes_first() {
        let now = Instant::now();
        let mut twins = Twins::new(now);
        assert!(twins.hear(&report("a"), now));
        assert_eq!(twins.read(&report("a"), server(0), now), Copy::Repeat);
        assert_eq!(twins.read(&report("b"), server(0), now), Copy::News);
        twins.expect(&report("b"), now);
        assert!(!twins.hear(&report("b"), now));
        assert!(twins.heard.waiting.is_empty() && twins.stored.waiting.is_empty());
    }

    #[test]
    fn the_same_words_said_twice_are_two_reports() {
        let now = Instant::now();
        let mut twins = Twins::new(now);
        assert!(twins.hear(&report("a"), now) && twins.hear(&report("a"), now));
        assert_eq!([0, 1].map(|ms| twins.read(&report("a"), server(ms), now)), [Copy::Repeat; 2]);
        assert_eq!(twins.read(&report("a"), server(2), now), Copy::News, "the third was missed");
    }

    #[test]
    fn what_was_read_of_the_past_swallows_nothing_of_today() {
        let now = Instant::now();
        let mut twins = Twins::new(now);
        assert_eq!(twins.read(&report("a"), server(0), now), Copy::News);
        twins.expect(&report("a"), now);
        assert_eq!(twins.read(&report("pause"), server(0), now), Copy::News);
        twins.expect(&report("pause"), now);
        let later = now + STORED_FOR + Duration::from_secs(1);
        assert!(twins.hear(&report("a"), later));
        assert!(twins.hold(report("pause"), later).is_none());
        assert!(twins.due().is_some(), "it is held, and not lost");
    }

    /// The answer to a question of today has the words of a report that was kept while we were away.
    #[test]
    fn what_no_plain_copy_is_expected_of_swallows_none() {
        let now = Instant::now();
        let mut twins = Twins::new(now);
        assert_eq!(twins.read(&report("complete"), server(0), now), Copy::News);
        assert!(twins.hear(&report("complete"), now));
    }

    #[test]
    fn a_command_waits_for_its_place_and_goes_on_without_when_none_comes() {
        let now = Instant::now();
        let mut twins = Twins::new(now);
        assert!(twins.hold(report("pause"), now).is_none());
        assert_eq!(twins.read(&report("pause"), server(0), now), Copy::Held);
        assert!(twins.due().is_none());
        assert!(twins.hold(report("resume"), now).is_none());
        assert!(twins.release(Some(now)).is_none());
        assert_eq!(twins.release(Some(now + COMMAND_WAIT)), Some(report("resume")));
        assert_eq!(twins.read(&report("resume"), server(0), now), Copy::Repeat, "its place comes late");
        assert_eq!(twins.read(&report("cancel"), server(0), now), Copy::News);
        twins.expect(&report("cancel"), now);
        assert!(twins.hold(report("cancel"), now).is_none() && twins.due().is_none());
    }

    /// The stream was full when it was said first.
    #[test]
    fn a_copy_that_was_never_kept_swallows_no_later_one() {
        let now = Instant::now();
        let mut twins = Twins::new(now);
        assert!(twins.hear(&report("clocks"), now));
        assert_eq!(twins.read(&report("clocks"), server(0), now), Copy::Repeat);
        assert!(twins.hear(&report("pause"), after(now, 1_000)));
        assert_eq!(twins.read(&report("pause"), server(600_000), after(now, 600_100)), Copy::News);
    }

    /// Nobody read the stream for ten minutes, while it kept what was heard plainly.
    #[test]
    fn what_was_heard_long_ago_is_known_when_the_stream_is_read_again() {
        let now = Instant::now();
        let mut twins = Twins::new(now);
        assert!(twins.hear(&report("clocks"), now));
        assert_eq!(twins.read(&report("clocks"), server(0), now), Copy::Repeat);
        assert!(twins.hear(&report("failed"), after(now, 1_000)));
        assert!(twins.hear(&report("failed"), after(now, 500_000)));
        let later = after(now, 600_000);
        assert_eq!(twins.read(&report("failed"), server(1_003), later), Copy::Repeat);
        assert_eq!(twins.read(&report("failed"), server(250_000), later), Copy::News, "said when we were cut off");
        assert_eq!(twins.read(&report("failed"), server(500_002), later), Copy::Repeat);
    }

    #[test]
    fn copies_that_never_meet_their_twin_are_bounded() {
        let now = Instant::now();
        let mut twins = Twins::new(now);
        for n in 0..HEARD_MAX + 100 {
            let message = Message::new("plan.session.s.state", n.to_string());
            assert!(twins.hear(&message, now));
        }
        assert_eq!(twins.heard.order.len(), HEARD_MAX);
        assert_eq!(twins.heard.waiting.len(), HEARD_MAX);
    }
}

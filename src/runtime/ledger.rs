//! What this runtime holds and what it remembers: the reason why no number of repeated offers runs a phase twice.
//!
//! Synchronous and without a clock: the time is an argument. The rest of the runtime does what the ledger answers.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::work::{Job, Outcome};
use crate::{engine::AttemptToken, manifest::PhaseId, protocol::SessionId};

/// How long the outcome of an attempt is known (design, section 7).
pub const OUTCOMES_KEPT_FOR: Duration = Duration::from_hours(1);
/// Most outcomes known at once, the oldest go first; some 400 bytes each, and 1 KiB more with the longest message: 150 MB
/// in the worst case.
pub const OUTCOMES_MAX: usize = 100_000;
/// Ends that nobody was told of, past which nothing new is taken: they are never dropped.
pub const UNSAID_MAX: usize = 10_000;

/// One attempt in one session. Tokens are unique by themselves; the session keeps a peer's made-up ones apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub session: SessionId,
    pub token: AttemptToken,
}

impl Key {
    pub fn of(job: &Job) -> Self {
        Self { session: job.session.clone(), token: job.token.clone() }
    }
}

/// What is known of an attempt, ready to be reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub key: Key,
    pub phase: PhaseId,
    pub what: KnownWhat,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownWhat {
    Running { progress: Option<String> },
    Ended(Outcome),
}

/// What to do with an offer.
#[derive(Debug, PartialEq, Eq)]
pub enum Offered {
    /// Never seen: ask for it.
    New,
    /// Being asked for, or waiting for a free slot: nothing to do.
    Pending,
    /// Held or ended: say so again.
    Known(Known),
}

/// Which attempts a `.control` message means; an absent field means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    pub phase: Option<PhaseId>,
    pub token: Option<AttemptToken>,
    pub runtime: Option<String>,
}

impl Scope {
    fn covers(&self, key: &Key, phase: &PhaseId, own_name: &str) -> bool {
        self.phase.as_ref().is_none_or(|id| id == phase)
            && self.token.as_ref().is_none_or(|token| *token == key.token)
            && self.runtime.as_deref().is_none_or(|name| name == own_name)
    }
}

#[derive(Debug)]
struct Entry {
    phase: PhaseId,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Asking { cancel: CancellationToken },
    Running { cancel: CancellationToken, progress: watch::Receiver<Option<String>> },
    Ended { outcome: Outcome, said: Said },
}

/// Whether the end of an attempt was told, and what is known of its arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    NotYet,
    /// Given to a connection that was up at this moment, which may have been dead already.
    Plain(Instant),
    /// A stream has it.
    Kept,
}

/// The book of one runtime.
#[derive(Debug)]
pub struct Ledger {
    own_name: String,
    entries: HashMap<Key, Entry>,
    /// Ends that were told, by the time of that.
    told: VecDeque<(Instant, Key)>,
    /// Ends that were not.
    unsaid: usize,
}

impl Ledger {
    pub fn new(own_name: &str) -> Self {
        Self { own_name: own_name.to_owned(), entries: HashMap::new(), told: VecDeque::new(), unsaid: 0 }
    }

    pub fn offered(&self, key: &Key) -> Offered {
        match self.entries.get(key) {
            None => Offered::New,
            Some(Entry { stage: Stage::Asking { .. }, .. }) => Offered::Pending,
            Some(entry) => known(key, entry).map_or(Offered::Pending, Offered::Known),
        }
    }

    /// Notes that the attempt is being asked for. The token fires when a `.control` takes it away meanwhile.
    pub fn ask(&mut self, key: Key, phase: &PhaseId) -> CancellationToken {
        let cancel = CancellationToken::new();
        self.entries.insert(key, Entry { phase: phase.clone(), stage: Stage::Asking { cancel: cancel.clone() } });
        cancel
    }

    /// It went to somebody else, or nobody answered: as if it had never been offered.
    pub fn forget(&mut self, key: &Key) {
        if let Some(Entry { stage: Stage::Asking { .. }, .. }) = self.entries.get(key) {
            self.entries.remove(key);
        }
    }

    /// It is ours.
    pub fn granted(&mut self, key: &Key, progress: watch::Receiver<Option<String>>) {
        if let Some(entry) = self.entries.get_mut(key)
            && let Stage::Asking { cancel } = &entry.stage
        {
            entry.stage = Stage::Running { cancel: cancel.clone(), progress };
        }
    }

    /// It ended. Until it is told it is not dropped: nobody else knows.
    pub fn ended(&mut self, key: &Key, outcome: Outcome) {
        if let Some(entry) = self.entries.get_mut(key)
            && !matches!(entry.stage, Stage::Ended { .. })
        {
            entry.stage = Stage::Ended { outcome, said: Said::NotYet };
            self.unsaid += 1;
        }
    }

    /// Its end was told. Those past their time or number are dropped here.
    pub fn said(&mut self, key: &Key, how: Said, now: Instant) {
        if let Some(Entry { stage: Stage::Ended { said, .. }, .. }) = self.entries.get_mut(key) {
            if *said == Said::NotYet {
                self.unsaid -= 1;
                self.told.push_back((now, key.clone()));
            }
            *said = how;
        }
        while let Some((at, oldest)) = self.told.front() {
            if self.told.len() <= OUTCOMES_MAX && now.saturating_duration_since(*at) <= OUTCOMES_KEPT_FOR {
                break;
            }
            self.entries.remove(oldest);
            self.told.pop_front();
        }
    }

    /// Ends that nobody has been told of yet.
    pub fn unsaid(&self) -> usize {
        self.unsaid
    }

    /// So many ends wait to be told that nothing more is begun.
    pub fn is_full(&self) -> bool {
        self.unsaid >= UNSAID_MAX
    }

    /// Ends of those that may have been said into a dead connection since this moment.
    pub fn ends_in_doubt(&self, since: Instant) -> usize {
        self.in_doubt(since).iter().filter(|known| matches!(known.what, KnownWhat::Ended(_))).count()
    }

    /// What may have been said into a dead connection since this moment: everything that runs, and every end that no
    /// stream has confirmed.
    pub fn in_doubt(&self, since: Instant) -> Vec<Known> {
        let is_in_doubt = |entry: &Entry| match entry.stage {
            Stage::Asking { .. } => false,
            Stage::Running { .. } => true,
            Stage::Ended { said, .. } => matches!(said, Said::Plain(at) if at >= since),
        };
        self.entries
            .iter()
            .filter(|(_, entry)| is_in_doubt(entry))
            .filter_map(|(key, entry)| known(key, entry))
            .collect()
    }

    /// Tells what the scope covers in this session to stop; answers how many that were.
    pub fn cancel(&self, session: &SessionId, scope: &Scope) -> usize {
        let mut count = 0;
        for (key, entry) in self.entries.iter().filter(|(key, _)| key.session == *session) {
            if !scope.covers(key, &entry.phase, &self.own_name) {
                continue;
            }
            if let Stage::Asking { cancel } | Stage::Running { cancel, .. } = &entry.stage {
                cancel.cancel();
                count += 1;
            }
        }
        count
    }

    /// Tells everything to stop, of every session.
    pub fn cancel_all(&self) {
        for entry in self.entries.values() {
            if let Stage::Asking { cancel } | Stage::Running { cancel, .. } = &entry.stage {
                cancel.cancel();
            }
        }
    }

    /// What is known of this session within the scope, outcomes included: the answer to `x-report`.
    pub fn report(&self, session: &SessionId, scope: &Scope) -> Vec<Known> {
        self.entries
            .iter()
            .filter(|(key, entry)| key.session == *session && scope.covers(key, &entry.phase, &self.own_name))
            .filter_map(|(key, entry)| known(key, entry))
            .collect()
    }

    /// Attempts that run now.
    pub fn running(&self) -> usize {
        self.entries.values().filter(|entry| matches!(entry.stage, Stage::Running { .. })).count()
    }
}

fn known(key: &Key, entry: &Entry) -> Option<Known> {
    let what = match &entry.stage {
        Stage::Asking { .. } => return None,
        Stage::Running { progress, .. } => KnownWhat::Running { progress: progress.borrow().clone() },
        Stage::Ended { outcome, .. } => KnownWhat::Ended(outcome.clone()),
    };
    Some(Known { key: key.clone(), phase: entry.phase.clone(), what })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(token: &str) -> Key {
        Key { session: SessionId::new("s").unwrap(), token: AttemptToken::received(token) }
    }

    fn id(text: &str) -> PhaseId {
        PhaseId::new(text).unwrap()
    }

    fn done() -> Outcome {
        Outcome::Complete { message: String::new() }
    }

    fn run(ledger: &mut Ledger, token: &str, phase: &str) -> CancellationToken {
        let cancel = ledger.ask(key(token), &id(phase));
        ledger.granted(&key(token), watch::channel(None).1);
        cancel
    }

    #[test]
    fn an_attempt_offered_again_is_reported_and_never_begun_twice() {
        let mut ledger = Ledger::new("me");
        assert_eq!(ledger.offered(&key("a")), Offered::New);
        ledger.ask(key("a"), &id("p"));
        assert_eq!(ledger.offered(&key("a")), Offered::Pending);
        ledger.granted(&key("a"), watch::channel(Some("1/2".to_owned())).1);
        match ledger.offered(&key("a")) {
            Offered::Known(known) => {
                assert_eq!(known.what, KnownWhat::Running { progress: Some("1/2".to_owned()) });
            }
            other => panic!("{other:?}"),
        }
        ledger.ended(&key("a"), done());
        assert!(matches!(ledger.offered(&key("a")), Offered::Known(Known { what: KnownWhat::Ended(_), .. })));
    }

    #[test]
    fn a_refused_attempt_may_be_asked_for_again() {
        let mut ledger = Ledger::new("me");
        ledger.ask(key("a"), &id("p"));
        ledger.forget(&key("a"));
        assert_eq!(ledger.offered(&key("a")), Offered::New);
    }

    #[test]
    fn outcomes_are_kept_for_an_hour() {
        let mut ledger = Ledger::new("me");
        let start = Instant::now();
        for (token, told) in [("a", start), ("b", start + OUTCOMES_KEPT_FOR + Duration::from_secs(1))] {
            run(&mut ledger, token, "p");
            ledger.ended(&key(token), done());
            ledger.said(&key(token), Said::Kept, told);
        }
        assert_eq!(ledger.offered(&key("a")), Offered::New);
        assert!(matches!(ledger.offered(&key("b")), Offered::Known(_)));
    }

    #[test]
    fn what_nobody_was_told_of_is_kept_until_somebody_is_and_an_hour_from_then() {
        let mut ledger = Ledger::new("me");
        let (start, hour) = (Instant::now(), OUTCOMES_KEPT_FOR + Duration::from_secs(1));
        for token in ["untold", "first", "second", "third"] {
            run(&mut ledger, token, "p");
            ledger.ended(&key(token), done());
        }
        ledger.said(&key("first"), Said::Kept, start);
        ledger.said(&key("second"), Said::Kept, start + hour);
        assert!(matches!(ledger.offered(&key("untold")), Offered::Known(_)), "nobody else knows how it ended");
        assert_eq!((ledger.offered(&key("first")), ledger.unsaid()), (Offered::New, 2));
        ledger.said(&key("untold"), Said::Kept, start + hour);
        ledger.said(&key("third"), Said::Kept, start + hour + OUTCOMES_KEPT_FOR / 2);
        assert!(matches!(ledger.offered(&key("untold")), Offered::Known(_)), "told a moment ago");
        assert_eq!(ledger.unsaid(), 0);
    }

    #[test]
    fn with_too_many_ends_untold_nothing_more_is_begun() {
        let mut ledger = Ledger::new("me");
        for n in 0..UNSAID_MAX {
            assert!(!ledger.is_full());
            run(&mut ledger, &n.to_string(), "p");
            ledger.ended(&key(&n.to_string()), done());
        }
        assert!(ledger.is_full());
        ledger.said(&key("0"), Said::Kept, Instant::now());
        assert!(!ledger.is_full());
    }

    #[test]
    fn what_a_dead_connection_may_have_swallowed_is_told_again_and_nothing_older() {
        let mut ledger = Ledger::new("me");
        let start = Instant::now();
        let late = start + Duration::from_mins(1);
        for (token, said) in [("old", Said::Plain(start)), ("new", Said::Plain(late)), ("kept", Said::Kept)] {
            run(&mut ledger, token, token);
            ledger.ended(&key(token), done());
            ledger.said(&key(token), said, start);
        }
        run(&mut ledger, "unsaid", "unsaid");
        ledger.ended(&key("unsaid"), done());
        run(&mut ledger, "running", "running");
        ledger.ask(key("asked"), &id("asked"));
        let mut doubtful: Vec<_> = ledger.in_doubt(late).into_iter().map(|known| known.phase.to_string()).collect();
        doubtful.sort();
        assert_eq!(doubtful, ["new", "running"]);
        assert_eq!((ledger.unsaid(), ledger.ends_in_doubt(late)), (1, 1));
    }

    #[test]
    fn a_cancel_reaches_what_it_names_and_nothing_else() {
        let mut ledger = Ledger::new("me");
        let (a, b) = (run(&mut ledger, "a", "p"), run(&mut ledger, "b", "q"));
        let session = SessionId::new("s").unwrap();
        let other_runtime = Scope { runtime: Some("you".to_owned()), ..Scope::default() };
        assert_eq!(ledger.cancel(&session, &other_runtime), 0);
        assert_eq!(ledger.cancel(&SessionId::new("other").unwrap(), &Scope::default()), 0);
        let one =
            Scope { token: Some(AttemptToken::received("a")), runtime: Some("me".to_owned()), ..Scope::default() };
        assert_eq!(ledger.cancel(&session, &one), 1);
        assert!(a.is_cancelled() && !b.is_cancelled());
        assert_eq!(ledger.cancel(&session, &Scope::default()), 2);
        assert!(b.is_cancelled());
    }

    #[test]
    fn a_report_names_what_is_held_and_what_ended() {
        let mut ledger = Ledger::new("me");
        run(&mut ledger, "a", "p");
        run(&mut ledger, "b", "q");
        ledger.ask(key("c"), &id("r"));
        ledger.ended(&key("b"), done());
        let session = SessionId::new("s").unwrap();
        assert_eq!(ledger.report(&session, &Scope::default()).len(), 2);
        let one = Scope { phase: Some(id("q")), ..Scope::default() };
        let reported = ledger.report(&session, &one);
        assert_eq!(reported.len(), 1);
        assert_eq!(reported[0].what, KnownWhat::Ended(done()));
        assert_eq!(ledger.running(), 1);
    }
}

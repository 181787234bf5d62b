//! What befalls a call: the one source of faults and of chance in a schedule.
//!
//! Every effect of an operator (a write to the API server, a message) comes by here and is numbered, so that a schedule
//! can say what happens at the seventeenth. A storm throws dice for each instead.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::time::Instant;

use super::{api::Failure, bus::Way, world::Door};

/// How long a session listens after it asked who holds what; the default of `timeouts.offer`.
pub const SILENCE: Duration = Duration::from_secs(5);

/// One thing that goes wrong, at one effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// The process dies when the effect is done and before it knows.
    Crash,
    /// The same, and the next process sees everything 20 s late.
    CrashStale,
    /// The effect is done and the process hears that it is not: a message is lost, a write answered by 500.
    DoneButFailed,
    /// The effect is done and nobody says so: a write is never answered, a message is lost.
    Unanswered,
    /// The effect is not done: a write is refused with 503, a message comes 4 s late.
    Late,
    /// From here on watches are 20 s late.
    Stale,
    /// All watches end, and what happened meanwhile is no longer told.
    Relist,
}

/// How often what goes wrong, in a storm.
#[derive(Debug, Clone, Copy)]
pub struct Climate {
    pub crash: f64,
    pub lost: f64,
    pub held: f64,
    pub hold_max: Duration,
    pub twice: f64,
    pub refused: f64,
    pub failed: f64,
    pub unanswered: f64,
    pub slow: f64,
    pub lag_max: Duration,
    /// A second operator is started by mistake, and killed, and started.
    pub rivals: bool,
    /// Streams are deleted, or cannot store for a while.
    pub wipes: bool,
    /// Runtimes die with all that they run, and others are started in their place.
    pub deaths: bool,
}

impl Climate {
    /// Each kind of fault is absent, rare or common.
    pub fn thrown(rng: &mut SmallRng) -> Self {
        let mut chance = |most: f64| [0.0, most / 8.0, most][rng.random_range(0..3)];
        let (crash, lost, held, twice) = (chance(0.04), chance(0.15), chance(0.3), chance(0.1));
        let (refused, failed, unanswered, slow) = (chance(0.3), chance(0.2), chance(0.1), chance(0.5));
        Self {
            crash,
            lost,
            held,
            hold_max: Duration::from_millis(rng.random_range(1..4500)),
            twice,
            refused,
            failed,
            unanswered,
            slow,
            lag_max: Duration::from_secs([0, 2, 30][rng.random_range(0..3)]),
            rivals: rng.random_bool(0.25),
            wipes: rng.random_bool(0.5),
            deaths: rng.random_bool(0.5),
        }
    }
}

/// What an operator did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// To a resource or its status, or to a revision.
    Write,
    /// Of a Kubernetes Event, which nobody reads back but its writer.
    Event,
    /// To the streams of the bus.
    Stream,
    Message(Weight),
}

impl Effect {
    /// The mishaps that can make a difference here.
    pub fn mishaps(self) -> &'static [Mishap] {
        use Mishap::{Crash, CrashStale, DoneButFailed, Late, Relist, Stale, Unanswered};
        match self {
            Self::Write => &[Crash, CrashStale, DoneButFailed, Unanswered, Late, Stale, Relist],
            Self::Event => &[Crash, DoneButFailed],
            Self::Stream => &[Crash, DoneButFailed, Unanswered, Late],
            Self::Message(Weight::Told | Weight::Asks | Weight::Report | Weight::Probe) => &[Crash],
            Self::Message(Weight::Plain | Weight::Precious) => &[Crash, DoneButFailed, Late],
        }
    }

    /// Whether the mishap can make another difference where streams are kept: what goes wrong with the API server alone is
    /// gone through without them.
    pub fn concerns_the_bus(self, mishap: Mishap) -> bool {
        matches!(self, Self::Stream | Self::Message(_)) || matches!(mishap, Mishap::Crash | Mishap::CrashStale)
    }
}

/// What is to befall a schedule.
#[derive(Debug, Clone, Copy)]
pub enum Sky {
    Calm,
    At { effect: u64, mishap: Mishap },
    Storm(Climate),
}

/// Of one write.
pub struct WriteFate {
    pub effect: u64,
    /// Until the server carries it out.
    pub delay: Duration,
    pub refused: Option<Failure>,
    pub after: After,
}

/// What the process hears of its write.
pub enum After {
    Answer,
    Error(Failure),
    Silence,
    Crash,
}

/// Of one question to the API server.
pub struct ReadFate {
    pub delay: Duration,
    pub refused: Option<Failure>,
}

/// Of one message.
#[derive(Default)]
pub struct PublishFate {
    pub effect: u64,
    pub lost: Lost,
    pub hold: Duration,
    pub twice: bool,
    pub crash: bool,
}

/// Where a message is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lost {
    #[default]
    Nowhere,
    /// On its way to the server.
    Before,
    /// On its way from the server to whoever is subscribed. Only what a stream has, which makes it good.
    Behind,
}

/// What kind of message it is, as far as fate cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    Plain,
    /// Asks who holds what. A link that is up delivers it, and the answers within the silence that follows: without that
    /// nobody could know that nobody holds an attempt.
    Asks,
    /// A runtime's report.
    Report,
    /// Lifecycle and log, which the session itself never hears.
    Told,
    /// From a peer that never says anything twice: what it says and what it is told is not lost, only late.
    Precious,
    /// A subscription's own proof.
    Probe,
}

pub struct Fates(Mutex<Inner>);

struct Inner {
    rng: SmallRng,
    sky: Sky,
    effects: u64,
    /// What each effect was, in order.
    kinds: Vec<Effect>,
    silence_until: Instant,
    stale_until: Instant,
    outage_until: Instant,
    crashes_left: u32,
    relist_due: bool,
}

impl Fates {
    pub fn new(seed: u64, sky: Sky) -> Self {
        let now = Instant::now();
        Self(Mutex::new(Inner {
            rng: SmallRng::seed_from_u64(seed),
            sky,
            effects: 0,
            kinds: Vec::new(),
            silence_until: now,
            stale_until: now,
            outage_until: now,
            crashes_left: 6,
            relist_due: false,
        }))
    }

    /// How many effects there were.
    pub fn effects(&self) -> u64 {
        self.inner().effects
    }

    pub fn kinds(&self) -> Vec<Effect> {
        self.inner().kinds.clone()
    }

    /// From now on nothing goes wrong.
    pub fn clear_up(&self) {
        let mut inner = self.inner();
        (inner.sky, inner.outage_until, inner.stale_until) = (Sky::Calm, Instant::now(), Instant::now());
    }

    /// From now on this goes wrong.
    pub fn brew(&self, sky: Sky) {
        self.inner().sky = sky;
    }

    /// For whatever else of a schedule is left to chance.
    pub fn throw<T>(&self, dice: impl FnOnce(&mut SmallRng) -> T) -> T {
        dice(&mut self.inner().rng)
    }

    /// The API server takes no calls for so long.
    pub fn outage(&self, length: Duration) {
        self.inner().outage_until = Instant::now() + length;
    }

    /// Whether runtimes are just asked what they hold: nobody's link goes then.
    pub fn is_silence(&self) -> bool {
        Instant::now() < self.inner().silence_until
    }

    /// Once, after a mishap that cuts the history of the API server.
    pub fn take_relist(&self) -> bool {
        std::mem::take(&mut self.inner().relist_due)
    }

    pub fn watch_lag(&self, door: &Door) -> Duration {
        let mut inner = self.inner();
        if !door.is_operator() {
            return Duration::ZERO;
        }
        match inner.sky {
            Sky::Storm(climate) => inner.upto(climate.lag_max),
            _ if Instant::now() < inner.stale_until => Duration::from_secs(20),
            _ => Duration::ZERO,
        }
    }

    pub fn read(&self, door: &Door) -> ReadFate {
        let mut inner = self.inner();
        if !door.is_operator() {
            return ReadFate { delay: Duration::ZERO, refused: None };
        }
        let refused = inner.is_refused(Effect::Write).then(unavailable);
        ReadFate { delay: inner.pause(), refused }
    }

    /// Of a question to the streams: as of a change there, but that nobody counts it.
    pub fn look(&self, door: &Door) -> WriteFate {
        let mut inner = self.inner();
        let mut fate = WriteFate { effect: 0, delay: Duration::ZERO, refused: None, after: After::Answer };
        if door.is_operator()
            && let Sky::Storm(climate) = inner.sky
        {
            fate.delay = inner.pause();
            fate.refused = inner.is_refused(Effect::Stream).then(unavailable);
            if inner.chance(climate.unanswered) {
                fate.after = After::Silence;
            }
        }
        fate
    }

    /// Of a message on its way from a stream to a reader.
    pub fn reading(&self, door: &Door) -> Way {
        let mut inner = self.inner();
        let mut way = Way::default();
        if door.is_operator()
            && let Sky::Storm(climate) = inner.sky
        {
            if inner.chance(climate.lost) {
                way.lost = Some(inner.upto(Duration::from_secs(6)));
            } else if inner.chance(climate.held) {
                way.hold = inner.upto(climate.hold_max);
            }
        }
        way
    }

    pub fn write(&self, door: &Door, kind: Effect) -> WriteFate {
        let mut inner = self.inner();
        if !door.is_operator() {
            return WriteFate { effect: 0, delay: Duration::ZERO, refused: None, after: After::Answer };
        }
        inner.effects += 1;
        inner.kinds.push(kind);
        let effect = inner.effects;
        let mut fate = WriteFate { effect, delay: inner.pause(), refused: None, after: After::Answer };
        match inner.sky {
            Sky::Calm => {}
            Sky::At { effect: at, .. } if at != effect => {}
            Sky::At { mishap, .. } => match mishap {
                Mishap::Crash => fate.after = After::Crash,
                Mishap::CrashStale => {
                    inner.stale();
                    fate.after = After::Crash;
                }
                Mishap::DoneButFailed => fate.after = After::Error(broken()),
                Mishap::Unanswered => fate.after = After::Silence,
                Mishap::Late => fate.refused = Some(unavailable()),
                Mishap::Stale => inner.stale(),
                Mishap::Relist => inner.relist_due = true,
            },
            Sky::Storm(climate) => {
                if inner.is_refused(kind) {
                    fate.refused = Some(if inner.chance(0.5) { unavailable() } else { too_many() });
                } else if inner.crashes(climate) {
                    fate.after = After::Crash;
                } else if inner.chance(climate.failed) {
                    fate.after = After::Error(broken());
                } else if inner.chance(climate.unanswered) {
                    fate.after = After::Silence;
                }
            }
        }
        fate
    }

    pub fn publish(&self, door: &Door, weight: Weight) -> PublishFate {
        let mut inner = self.inner();
        let now = Instant::now();
        if weight == Weight::Probe {
            return PublishFate::default();
        }
        if weight == Weight::Asks {
            inner.silence_until = now + SILENCE;
        }
        let mut fate = PublishFate::default();
        if door.is_operator() {
            inner.effects += 1;
            inner.kinds.push(Effect::Message(weight));
            fate.effect = inner.effects;
        }
        let is_protected = weight == Weight::Asks || (weight == Weight::Report && now < inner.silence_until);
        match inner.sky {
            Sky::Calm => {}
            Sky::At { effect, .. } if effect != fate.effect => {}
            Sky::At { mishap, .. } => match mishap {
                Mishap::Crash => fate.crash = true,
                Mishap::CrashStale => {
                    inner.stale();
                    fate.crash = true;
                }
                Mishap::DoneButFailed | Mishap::Unanswered => {
                    if !is_protected && weight != Weight::Precious {
                        fate.lost = Lost::Before;
                    }
                }
                Mishap::Late if !is_protected => fate.hold = Duration::from_secs(4),
                Mishap::Late => {}
                Mishap::Stale => inner.stale(),
                Mishap::Relist => inner.relist_due = true,
            },
            Sky::Storm(climate) => {
                fate.crash = door.is_operator() && inner.crashes(climate);
                if is_protected {
                    fate.hold = inner.upto(climate.hold_max.min(Duration::from_millis(300)));
                } else {
                    if inner.chance(climate.lost) && weight != Weight::Precious {
                        fate.lost = Lost::Before;
                    } else if !door.is_operator() && inner.chance(climate.lost) {
                        fate.lost = Lost::Behind;
                    }
                    fate.twice = inner.chance(climate.twice);
                    if inner.chance(climate.held) {
                        fate.hold = inner.upto(climate.hold_max);
                    }
                }
            }
        }
        fate
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nobody panics while holding it")
    }
}

impl Inner {
    fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && self.rng.random_bool(p)
    }

    fn upto(&mut self, most: Duration) -> Duration {
        let millis = u64::try_from(most.as_millis()).expect("minutes at most");
        Duration::from_millis(self.rng.random_range(0..=millis))
    }

    fn stale(&mut self) {
        self.stale_until = Instant::now() + Duration::from_mins(1);
    }

    /// A few a schedule: a process that dies at every step proves nothing.
    fn crashes(&mut self, climate: Climate) -> bool {
        let is_it = self.crashes_left > 0 && self.chance(climate.crash);
        self.crashes_left -= u32::from(is_it);
        is_it
    }

    fn is_refused(&mut self, kind: Effect) -> bool {
        let Sky::Storm(climate) = self.sky else { return false };
        let is_away = kind != Effect::Stream && Instant::now() < self.outage_until;
        is_away || self.chance(climate.refused)
    }

    /// How long a call is on its way.
    fn pause(&mut self) -> Duration {
        let Sky::Storm(climate) = self.sky else { return Duration::ZERO };
        if self.chance(climate.slow) { self.upto(Duration::from_millis(2500)) } else { Duration::ZERO }
    }
}

fn unavailable() -> Failure {
    Failure::new(503, "ServiceUnavailable", "the server is currently unable to handle the request")
}

fn too_many() -> Failure {
    Failure::new(429, "TooManyRequests", "too many requests")
}

fn broken() -> Failure {
    Failure::new(500, "InternalError", "etcdserver: request timed out")
}

//! The clock of sessions. One for the status, the engine and the timers, so that they never disagree.

use std::time::Duration;

use jiff::{Timestamp, TimestampRound, Unit};
use tokio::time::Instant;

/// Tells the time, in whole milliseconds, as the status keeps them, and never ahead.
#[derive(Debug, Clone, Copy, Default)]
pub enum Clock {
    /// The machine's.
    #[default]
    System,
    /// `epoch` and what tokio's clock has counted since `began`: a simulation pauses that one and moves it at will.
    Since { epoch: Timestamp, began: Instant },
}

impl Clock {
    pub fn now(&self) -> Timestamp {
        let now = match self {
            Self::System => Timestamp::now(),
            Self::Since { epoch, began } => epoch.checked_add(began.elapsed()).unwrap_or(Timestamp::MAX),
        };
        now.round(TimestampRound::new().smallest(Unit::Millisecond).mode(jiff::RoundMode::Floor)).unwrap_or(now)
    }

    /// On the clock that sleeps are measured by. A millisecond late, since what has not quite come is not due.
    pub(super) fn instant_of(&self, due: Timestamp) -> Instant {
        let millis = due.as_millisecond().saturating_sub(self.now().as_millisecond());
        Instant::now() + Duration::from_millis(u64::try_from(millis).map_or(0, |millis| millis + 1))
    }
}

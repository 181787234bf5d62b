//! Arithmetic of time: backoff, jitter, and sums that cannot overflow. The clock itself is an argument everywhere.

use std::{hash::Hasher, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::settings::Backoff;
use crate::manifest::{Jitter, PhaseBackoff};

/// First wait before an unanswered offer is repeated.
const REPEAT_INITIAL: Duration = Duration::from_secs(1);
/// Longest wait before an unanswered offer is repeated: what a runtime that joins late may have to sit out.
const REPEAT_MAX: Duration = Duration::from_secs(15);

/// First and longest wait before a runtime that is offered nothing is asked: it may have been cut off, or work for long.
const ASK_INITIAL: Duration = Duration::from_mins(1);
const ASK_MAX: Duration = Duration::from_mins(15);

/// `at + by`, or the end of time.
pub(super) fn after(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| at.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

/// How much later `to` is than `from`; zero if it is not.
pub(super) fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}

/// The phase's backoff over the session's.
pub(super) fn effective_backoff(session: &Backoff, phase: &PhaseBackoff) -> Backoff {
    Backoff {
        initial: phase.initial.unwrap_or(session.initial),
        factor: phase.factor.unwrap_or(session.factor),
        max: phase.max.unwrap_or(session.max),
        jitter: phase.jitter.unwrap_or(session.jitter),
    }
}

/// Wait before the retry that follows the `n`-th failure (from 1): `min(initial * factor^(n-1), max)`, then jitter.
pub(super) fn backoff_delay(backoff: &Backoff, n: u32, dice: Dice) -> Duration {
    let exponent = i32::try_from(n.saturating_sub(1)).unwrap_or(i32::MAX);
    let seconds = backoff.initial.as_secs_f64() * backoff.factor.powi(exponent);
    let capped = if seconds.is_finite() { seconds.min(backoff.max.as_secs_f64()) } else { backoff.max.as_secs_f64() };
    let spread = match backoff.jitter {
        Jitter::Full => capped * dice.fraction(),
        Jitter::None => capped,
    };
    whole_millis(Duration::try_from_secs_f64(spread).unwrap_or(backoff.max))
}

/// What the status can keep: a restored session must wait as long.
fn whole_millis(delay: Duration) -> Duration {
    Duration::from_millis(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX))
}

/// Wait before an offer that went unanswered `n` times (from 1) is repeated: doubling, capped, half of it jitter so that
/// many sessions do not ask in step and yet nobody is asked at once again.
pub(super) fn repeat_delay(n: u32, dice: Dice) -> Duration {
    doubled(REPEAT_INITIAL, n.saturating_sub(1), REPEAT_MAX, dice)
}

/// Wait before a runtime that walks the phases by itself is asked what it has done, after `n` questions that led to nothing.
pub(super) fn ask_delay(n: u32, dice: Dice) -> Duration {
    doubled(ASK_INITIAL, n, ASK_MAX, dice)
}

fn doubled(initial: Duration, times: u32, max: Duration, dice: Dice) -> Duration {
    let full = initial.saturating_mul(1 << times.min(8)).min(max);
    whole_millis(full.mul_f64(f64::midpoint(1.0, dice.fraction())))
}

/// Randomness that is the same for the same attempt, so that equal inputs give equal outputs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dice(pub u64);

impl Dice {
    /// Of everything that makes this throw its own.
    pub(super) fn throw(seed: u64, parts: [u64; 4]) -> Self {
        // FNV-1a (Fowler, Noll, Vo) to gather, SplitMix64 (Steele 2014) to spread: stable across releases, unlike std's hasher.
        let mut gather = Fnv(0xcbf2_9ce4_8422_2325 ^ seed);
        for part in parts {
            gather.write(&part.to_le_bytes());
        }
        let mut z = gather.finish().wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self(z ^ (z >> 31))
    }

    /// In `[0, 1)`.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
    fn fraction(self) -> f64 {
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(initial: u64, factor: f64, max: u64) -> Backoff {
        Backoff { initial: Duration::from_secs(initial), factor, max: Duration::from_secs(max), jitter: Jitter::None }
    }

    #[test]
    fn backoff_grows_by_its_factor_from_the_first_retry_and_stops_at_its_cap() {
        let delays: Vec<u64> = (1..=5).map(|n| backoff_delay(&plain(1, 2.0, 6), n, Dice(0)).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 6, 6]);
    }

    #[test]
    fn backoff_survives_absurd_numbers() {
        assert_eq!(backoff_delay(&plain(u64::MAX / 4, 100.0, 5), u32::MAX, Dice(0)), Duration::from_secs(5));
        assert_eq!(after(Timestamp::MAX, Duration::MAX), Timestamp::MAX);
        assert_eq!(between(Timestamp::MAX, Timestamp::MIN), Duration::ZERO);
    }

    #[test]
    fn full_jitter_stays_below_the_delay_and_spreads() {
        let backoff = Backoff { jitter: Jitter::Full, ..plain(8, 1.0, 8) };
        let delays: Vec<Duration> =
            (0..100).map(|seed| backoff_delay(&backoff, 1, Dice::throw(seed, [1, 2, 3, 4]))).collect();
        assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(8)));
        assert!(delays.iter().any(|delay| *delay < Duration::from_secs(2)));
        assert!(delays.iter().any(|delay| *delay > Duration::from_secs(6)));
    }
}

//! Whether a stream keeps what we report, asked of the bus no more often than it can change.
//!
//! The answer is an economy: a wrong yes is mended by the publish that fails, a wrong no costs the confirmation of a
//! report that is said all the same.

use std::time::{Duration, Instant};

use tokio::{sync::Mutex, time::timeout};

use crate::bus::{self, Bus, Storage};

/// How long a no is believed: an operator that starts after its runtimes makes the streams then.
const NO_LASTS: Duration = Duration::from_mins(1);
/// Longest wait for the answer, which holds up the first final report of a connection.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// The last answer. One question at a time: the others wait for its answer.
#[derive(Debug, Default)]
pub struct Keeping(Mutex<Option<Answer>>);

#[derive(Debug, Clone, Copy)]
struct Answer {
    /// Of the link, when it was asked: another connection may be to another server.
    epoch: u64,
    keeps: bool,
    at: Instant,
}

impl Answer {
    fn holds(&self, epoch: u64, now: Instant) -> bool {
        self.epoch == epoch && (self.keeps || now.saturating_duration_since(self.at) < NO_LASTS)
    }
}

impl Keeping {
    /// Whether some stream keeps this subject; no when that cannot be known (no streams, denied, no answer in time).
    pub async fn keeps(&self, bus: &Bus, storage: &dyn Storage, subject: &str) -> bool {
        let epoch = bus.link().borrow().epoch;
        let mut known = self.0.lock().await;
        if let Some(answer) = known.as_ref().filter(|answer| answer.holds(epoch, Instant::now())) {
            return answer.keeps;
        }
        let keeps = match timeout(LOOK_MAX, storage.keeps(subject)).await {
            Ok(Ok(keeps)) => keeps,
            // Asked again when the link is back.
            Ok(Err(bus::Error::Disconnected { .. })) => return false,
            Ok(Err(error)) => {
                tracing::debug!(subject, %error, "whether a stream keeps reports cannot be known");
                false
            }
            Err(_) => false,
        };
        *known = Some(Answer { epoch, keeps, at: Instant::now() });
        keeps
    }

    /// A stream that was there did not take a message.
    pub async fn lost(&self, bus: &Bus) {
        let epoch = bus.link().borrow().epoch;
        *self.0.lock().await = Some(Answer { epoch, keeps: false, at: Instant::now() });
    }
}

/// Errors that say that no stream took it, and not that nothing was heard.
pub fn is_lack_of_storage(error: &bus::Error) -> bool {
    matches!(
        error,
        bus::Error::NoStorage { .. }
            | bus::Error::NoStream { .. }
            | bus::Error::Stream { .. }
            | bus::Error::ForeignStream { .. }
            | bus::Error::NoResponders { .. }
            | bus::Error::Denied { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_yes_lasts_as_long_as_the_connection_and_a_no_for_a_minute() {
        let at = Instant::now();
        let (yes, no) = (Answer { epoch: 1, keeps: true, at }, Answer { epoch: 1, keeps: false, at });
        assert!(yes.holds(1, at + Duration::from_hours(9)) && !yes.holds(2, at));
        assert!(no.holds(1, at + NO_LASTS / 2) && !no.holds(1, at + NO_LASTS) && !no.holds(2, at));
    }
}

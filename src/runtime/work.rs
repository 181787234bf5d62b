//! The face of the SDK: what a runtime's author writes ([`Work`]) and what is given to it ([`Job`], [`Handle`]).
//!
//! Nothing here knows targets, acks or grants: when [`Work::run`] is called, the attempt is bound to this runtime.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::wire::Wire;
use crate::{
    engine::{AttemptToken, RetryAdvice},
    manifest::PhaseId,
    protocol::{LogLevel, SessionId},
};

/// What a runtime does with phases. One method to write; the rest of the protocol is [`super::start`]'s.
pub trait Work: Send + Sync + 'static {
    /// One word for this kind of work (`exec`, `jobs`): part of the queue group, so that of runtimes with the same
    /// labels only those that can do the same share offers. Asked once, at the start. Give it where [`Work::judge`] is
    /// more than yes.
    fn kind(&self) -> Cow<'static, str> {
        "work".into()
    }

    /// Whether this phase can be done here at all. Asked once per offer, before the ack; answer at once. Yes, unless
    /// written otherwise; a panic is a no, `Panicked`.
    fn judge(&self, job: &Job) -> Result<(), Decline> {
        let _ = job;
        Ok(())
    }

    /// Does the work and says how it ended. Watch [`Handle::cancelled`]: when it fires, stop, and answer
    /// [`Outcome::Cancelled`]. Heartbeats are sent meanwhile without any help.
    fn run(&self, job: &Job, handle: &Handle) -> impl Future<Output = Outcome> + Send;
}

/// One attempt of one phase, as offered.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Whose phase it is.
    pub session: SessionId,
    /// Unique in its session; anything printable, so no path and no command.
    pub phase: PhaseId,
    /// `x-attempt`: the same for every repeat of this offer, never the same for another attempt.
    pub token: AttemptToken,
    /// `selector.matchLabels`.
    pub selector: BTreeMap<String, String>,
    /// The canonical `spec` of the phase, its `x-*` fields among it.
    pub spec: Map<String, Value>,
}

/// Why a phase is not done here: one PascalCase word, sent as `x-reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decline(pub &'static str);

/// Longest message or progress that is kept and sent, in bytes; what is over is cut. The operator keeps less.
pub const TEXT_BYTES_MAX: usize = 1024;

/// How an attempt ended. Of its message [`TEXT_BYTES_MAX`] are kept and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With a word for people, or none.
    Complete { message: String },
    /// With the reason for people, and whether and when another attempt is of use.
    Failed { message: String, retry: RetryAdvice },
    /// Told to stop, and stopped: reported as `failed`, "cancelled".
    Cancelled,
}

impl Outcome {
    /// Done, with nothing to add.
    pub fn complete() -> Self {
        Self::Complete { message: String::new() }
    }

    /// Failed; whether it is tried again is the phase's `retry`.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), retry: RetryAdvice::AsConfigured }
    }

    /// Trying again cannot help: the phase itself is wrong.
    pub fn failed_for_good(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), retry: RetryAdvice::Never }
    }

    /// Trying again before so long has passed cannot help. If it is tried again at all is the phase's `retry`.
    pub fn failed_for_now(message: impl Into<String>, retry_after: Duration) -> Self {
        Self::Failed { message: message.into(), retry: RetryAdvice::After(retry_after) }
    }

    /// With no more text than is kept.
    pub(super) fn bounded(self) -> Self {
        match self {
            Self::Complete { message } => Self::Complete { message: bounded(message) },
            Self::Failed { message, retry } => Self::Failed { message: bounded(message), retry },
            Self::Cancelled => Self::Cancelled,
        }
    }
}

/// The first [`TEXT_BYTES_MAX`] of a text, and no room for more.
fn bounded(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.shrink_to_fit();
    }
    text
}

/// What work may say while it runs, and how it learns that it is to stop. Cloning is a reference count, so that threads of
/// the work may have one too; a clone that outlives the attempt says nothing that counts.
#[derive(Clone)]
pub struct Handle(Arc<Ties>);

/// What ties an attempt to its runtime.
struct Ties {
    wire: Wire,
    session: SessionId,
    phase: PhaseId,
    cancel: CancellationToken,
    progress: watch::Sender<Option<String>>,
    budget: Mutex<LogBudget>,
}

impl Handle {
    pub(super) fn new(
        wire: Wire,
        job: &Job,
        cancel: CancellationToken,
        progress: watch::Sender<Option<String>>,
        now: Instant,
    ) -> Self {
        Self(Arc::new(Ties {
            wire,
            session: job.session.clone(),
            phase: job.phase.clone(),
            cancel,
            progress,
            budget: Mutex::new(LogBudget::new(now)),
        }))
    }

    /// Resolves when the attempt is to stop.
    pub async fn cancelled(&self) {
        self.0.cancel.cancelled().await;
    }

    /// Whether the attempt is to stop: for a thread that blocks, to ask now and then.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancel.is_cancelled()
    }

    /// A short word such as `3/7` or `40%`, shown beside the phase (`x-progress`). The latest one wins; goes out with
    /// the next `running`, at the latest half a second from now.
    pub fn progress(&self, text: impl Into<String>) {
        self.0.progress.send_replace(Some(bounded(text.into())));
    }

    /// One line for `.log`. Past [`LINES_BURST`] at once and [`LINES_PER_SECOND`] after that, lines are dropped and
    /// their number is told in their place, so that one loud child cannot starve the bus. A line that the bus does not
    /// take is lost: logs are not worth an attempt. Of a line [`LINE_BYTES_MAX`] are sent.
    pub async fn log(&self, level: LogLevel, line: &str) {
        let verdict = self.0.budget.lock().unwrap_or_else(PoisonError::into_inner).spend(Instant::now());
        match verdict {
            Spent::Dropped => {}
            Spent::Sent { dropped_before: 0 } => self.send(level, line).await,
            Spent::Sent { dropped_before } => {
                self.send(LogLevel::Warning, &dropped_line(dropped_before)).await;
                self.send(level, line).await;
            }
        }
    }

    /// Tells how many lines were dropped since the last one that went out. Called once, when the work has ended.
    pub(super) async fn close_log(&self) {
        let dropped = std::mem::take(&mut self.0.budget.lock().unwrap_or_else(PoisonError::into_inner).dropped);
        if dropped > 0 {
            self.send(LogLevel::Warning, &dropped_line(dropped)).await;
        }
    }

    async fn send(&self, level: LogLevel, line: &str) {
        let Ties { wire, session, phase, .. } = &*self.0;
        let line = &line[..line.floor_char_boundary(LINE_BYTES_MAX)];
        if let Err(error) = wire.log(session, phase, level, line).await {
            tracing::debug!(%phase, %error, "a log line was lost");
        }
    }
}

fn dropped_line(count: u64) -> String {
    format!("{count} lines dropped: the phase writes more than {LINES_PER_SECOND} lines a second")
}

/// Lines an attempt may send at once: a stack trace or a help text.
pub const LINES_BURST: u32 = 1_000;
/// Lines a second after that; at 100 bytes a line some 20 kB/s for each of hundreds of runtimes.
pub const LINES_PER_SECOND: u32 = 200;
/// Longest line of a log that is sent, in bytes; what is over is cut. Half of what the operator's stream takes.
pub const LINE_BYTES_MAX: usize = 8 * 1024;

/// A token bucket that counts what it refused.
#[derive(Debug)]
struct LogBudget {
    tokens: f64,
    at: Instant,
    dropped: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Spent {
    Sent { dropped_before: u64 },
    Dropped,
}

impl LogBudget {
    fn new(now: Instant) -> Self {
        Self { tokens: f64::from(LINES_BURST), at: now, dropped: 0 }
    }

    fn spend(&mut self, now: Instant) -> Spent {
        let passed: Duration = now.saturating_duration_since(self.at);
        self.at = now;
        self.tokens = (self.tokens + passed.as_secs_f64() * f64::from(LINES_PER_SECOND)).min(f64::from(LINES_BURST));
        if self.tokens < 1.0 {
            self.dropped += 1;
            return Spent::Dropped;
        }
        self.tokens -= 1.0;
        Spent::Sent { dropped_before: std::mem::take(&mut self.dropped) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_cut_and_its_size_told() {
        let start = Instant::now();
        let mut budget = LogBudget::new(start);
        let sent = (0..5_000).filter(|_| budget.spend(start) != Spent::Dropped).count();
        assert_eq!(sent, LINES_BURST as usize);
        assert_eq!(budget.spend(start + Duration::from_secs(1)), Spent::Sent { dropped_before: 4_000 });
        assert_eq!(budget.spend(start + Duration::from_secs(1)), Spent::Sent { dropped_before: 0 });
    }
}

//! Whether the process is well: its loops tick, its caches are filled.
//!
//! Liveness says that restarting helps: a loop hangs. Readiness says that the process does its work. Neither depends on
//! NATS, because a broker that is down is no reason to restart or to take away anybody. Only kept here: whoever asks over
//! HTTP is answered by [`crate::gateway::health`].

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// A loop that has not ticked for so long hangs.
pub const SILENCE_MAX: Duration = Duration::from_mins(1);

/// What the process believes of itself. Cloning is a reference count.
#[derive(Debug, Clone)]
pub struct Heart(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    began: Instant,
    loops: Mutex<Vec<Loop>>,
    gates: Mutex<Vec<(String, Arc<AtomicBool>)>>,
    is_stopping: AtomicBool,
}

#[derive(Debug)]
struct Loop {
    name: String,
    /// Milliseconds from `began` to the last tick.
    ticked: Arc<AtomicU64>,
}

/// One loop's sign of life. Dropped without [`Beat::retire`], as by a panic, it is a loop that hangs.
#[derive(Debug)]
pub struct Beat {
    heart: Heart,
    ticked: Arc<AtomicU64>,
}

/// One thing that readiness waits for; closed at first. Cloning is a reference count.
#[derive(Debug, Clone)]
pub struct Gate(Arc<AtomicBool>);

impl Default for Heart {
    fn default() -> Self {
        Self::new()
    }
}

impl Heart {
    /// Alive, and not ready before a gate was made and all are open.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            began: Instant::now(),
            loops: Mutex::default(),
            gates: Mutex::default(),
            is_stopping: AtomicBool::new(false),
        }))
    }

    /// A loop that from now on ticks at least every [`SILENCE_MAX`], also when it has nothing to do.
    pub fn register(&self, name: &str) -> Beat {
        let ticked = Arc::new(AtomicU64::new(self.millis(Instant::now())));
        let mut loops = self.0.loops.lock().unwrap_or_else(PoisonError::into_inner);
        loops.push(Loop { name: name.to_owned(), ticked: Arc::clone(&ticked) });
        Beat { heart: self.clone(), ticked }
    }

    /// Something that must have happened before the process is ready, such as a cache that was filled.
    pub fn gate(&self, name: &str) -> Gate {
        let open = Arc::new(AtomicBool::new(false));
        let mut gates = self.0.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.push((name.to_owned(), Arc::clone(&open)));
        Gate(open)
    }

    /// No longer ready, for good: the process is about to end.
    pub fn stop(&self) {
        self.0.is_stopping.store(true, Ordering::Relaxed);
    }

    /// The loops that hang, and for how long they have been silent.
    pub fn hanging(&self, now: Instant) -> Vec<(String, Duration)> {
        let loops = self.0.loops.lock().unwrap_or_else(PoisonError::into_inner);
        let silence = |one: &Loop| {
            let millis = self.millis(now).saturating_sub(one.ticked.load(Ordering::Relaxed));
            (one.name.clone(), Duration::from_millis(millis))
        };
        loops.iter().map(silence).filter(|(_, silence)| *silence > SILENCE_MAX).collect()
    }

    /// What readiness waits for; empty when ready.
    pub fn awaited(&self) -> Vec<String> {
        if self.0.is_stopping.load(Ordering::Relaxed) {
            return vec!["nothing more: the process is stopping".to_owned()];
        }
        let gates = self.0.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if gates.is_empty() {
            return vec!["the start of the process".to_owned()];
        }
        gates.iter().filter(|(_, open)| !open.load(Ordering::Relaxed)).map(|(name, _)| name.clone()).collect()
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.0.began).as_millis()).unwrap_or(u64::MAX)
    }
}

impl Beat {
    /// Still here.
    pub fn tick(&self) {
        self.ticked.store(self.heart.millis(Instant::now()), Ordering::Relaxed);
    }

    /// The loop ends as it should.
    pub fn retire(self) {
        let mut loops = self.heart.0.loops.lock().unwrap_or_else(PoisonError::into_inner);
        loops.retain(|one| !Arc::ptr_eq(&one.ticked, &self.ticked));
    }
}

impl Gate {
    pub fn open(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn close(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(heart: &Heart, after: Duration) -> Vec<String> {
        heart.hanging(Instant::now() + after).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_loop_that_is_silent_for_too_long_hangs_and_is_named() {
        let heart = Heart::new();
        let _reconcile = heart.register("reconcile");
        assert!(names(&heart, Duration::from_secs(59)).is_empty());
        assert_eq!(names(&heart, Duration::from_secs(62)), ["reconcile"]);
    }

    #[test]
    fn a_loop_that_retired_is_not_missed_and_one_that_was_dropped_is() {
        let heart = Heart::new();
        heart.register("ended").retire();
        drop(heart.register("panicked"));
        assert_eq!(names(&heart, Duration::from_mins(2)), ["panicked"]);
    }

    #[test]
    fn ready_is_when_every_gate_is_open_and_never_again_once_stopping() {
        let heart = Heart::new();
        assert_eq!(heart.awaited().len(), 1, "a process that has not begun is not ready");
        let (resources, others) = (heart.gate("resources"), heart.gate("others"));
        resources.open();
        assert_eq!(heart.awaited(), ["others"]);
        others.open();
        assert!(heart.awaited().is_empty());
        resources.close();
        assert_eq!(heart.awaited(), ["resources"]);
        resources.open();
        heart.stop();
        assert_eq!(heart.awaited().len(), 1);
    }
}

//! A token bucket: a burst, then one after the other.

use std::time::Duration;

use tokio::time::Instant;

/// Full at first.
#[derive(Debug)]
pub(super) struct Bucket {
    left: u32,
    burst: u32,
    every: Duration,
    /// When the last token came in.
    filled_at: Instant,
}

impl Bucket {
    /// `burst` at once, then one `every` so long.
    pub(super) fn new(burst: u32, every: Duration, now: Instant) -> Self {
        Self { left: burst, burst, every, filled_at: now }
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let waited = now.saturating_duration_since(self.filled_at);
        let came = waited.as_nanos() / self.every.as_nanos().max(1);
        let came = u32::try_from(came).unwrap_or(u32::MAX);
        if came >= self.burst - self.left {
            self.left = self.burst;
            self.filled_at = now;
        } else {
            self.left += came;
            self.filled_at += self.every * came;
        }
        let is_there = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(10);

    fn taken(bucket: &mut Bucket, tries: u32, now: Instant) -> usize {
        (0..tries).filter(|_| bucket.take(now)).count()
    }

    #[test]
    fn after_the_burst_one_comes_every_interval_however_it_is_asked() {
        let start = Instant::now();
        let mut bucket = Bucket::new(25, EVERY, start);
        assert_eq!(taken(&mut bucket, 100, start), 25);
        let asked_each_second: usize = (1..=100).map(|s| taken(&mut bucket, 3, start + Duration::from_secs(s))).sum();
        assert_eq!(asked_each_second, 10);
    }

    #[test]
    fn a_long_silence_fills_it_to_the_burst_and_no_further() {
        let start = Instant::now();
        let mut bucket = Bucket::new(25, EVERY, start);
        assert_eq!(taken(&mut bucket, 100, start), 25);
        assert_eq!(taken(&mut bucket, 100, start + Duration::from_hours(24)), 25);
    }
}

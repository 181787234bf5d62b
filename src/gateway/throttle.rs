//! How many requests a second: a bucket for each peer address, and one for all of them together.
//!
//! It protects the API server behind the gateway. The clock is an argument; the table of peers has an end, at which those
//! who were silent longest are forgotten, because a full bucket is what they would get anyway.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use tokio::time::Instant;

/// Addresses that are told apart at a time; 60 bytes each.
const PEERS_MAX: usize = 4096;

/// Requests a second on the long run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Of one address.
    pub peer: u32,
    /// Of all together.
    pub all: u32,
}

/// The buckets. A burst may take what two seconds give.
#[derive(Debug)]
pub struct Throttle {
    rates: Rates,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    all: Bucket,
    peers: HashMap<IpAddr, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Throttle {
    pub fn new(rates: Rates, now: Instant) -> Self {
        let all = Bucket::full(rates.all, now);
        Self { rates, state: Mutex::new(State { all, peers: HashMap::new() }) }
    }

    /// Whether one more request of this peer may be answered now.
    pub fn admits(&self, peer: IpAddr, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.peers.len() >= PEERS_MAX && !state.peers.contains_key(&peer) {
            state.forget_half();
        }
        let rates = self.rates;
        let bucket = state.peers.entry(peer).or_insert_with(|| Bucket::full(rates.peer, now));
        // A peer that is refused takes nothing from the others.
        bucket.take(rates.peer, now) && state.all.take(rates.all, now)
    }
}

impl State {
    fn forget_half(&mut self) {
        let mut times: Vec<Instant> = self.peers.values().map(|bucket| bucket.at).collect();
        let middle = times.len() / 2;
        let (_, median, _) = times.select_nth_unstable(middle);
        let median = *median;
        self.peers.retain(|_, bucket| bucket.at > median);
    }
}

impl Bucket {
    fn full(rate: u32, now: Instant) -> Self {
        Self { tokens: f64::from(rate) * 2.0, at: now }
    }

    fn take(&mut self, rate: u32, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + since * f64::from(rate)).min(f64::from(rate) * 2.0);
        self.at = now;
        let may = self.tokens >= 1.0;
        if may {
            self.tokens -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use super::*;

    fn peer(n: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(n))
    }

    #[tokio::test]
    async fn a_burst_is_answered_and_then_the_rate_holds() {
        let now = Instant::now();
        let throttle = Throttle::new(Rates { peer: 10, all: 1000 }, now);
        let admitted = (0..50).filter(|_| throttle.admits(peer(1), now)).count();
        assert_eq!(admitted, 20);
        let later = now + Duration::from_millis(500);
        assert_eq!((0..50).filter(|_| throttle.admits(peer(1), later)).count(), 5);
        assert!(throttle.admits(peer(2), later), "another peer has its own");
    }

    #[tokio::test]
    async fn all_together_have_one_rate() {
        let now = Instant::now();
        let throttle = Throttle::new(Rates { peer: 10, all: 50 }, now);
        assert_eq!((0..1000).filter(|&n| throttle.admits(peer(n), now)).count(), 100);
    }

    #[tokio::test]
    async fn the_table_of_peers_has_an_end() {
        let now = Instant::now();
        let throttle = Throttle::new(Rates { peer: 10, all: 1_000_000 }, now);
        for n in 0..20_000 {
            throttle.admits(peer(n), now + Duration::from_micros(n.into()));
        }
        assert!(throttle.state.lock().unwrap().peers.len() <= PEERS_MAX);
    }
}

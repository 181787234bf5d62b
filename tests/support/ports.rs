//! Free loopback ports for servers that cannot choose one themselves.
//!
//! A port is free when it is looked at, not when it is used, so whoever starts a server with one tries again with
//! another when the server says that it is taken.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

/// Below the range from which systems take the ports of outgoing connections: nobody's client sits there by chance.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// A port that nobody listens on and that this run has not handed out before.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut guard = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = guard.get_or_insert_with(HashSet::new);
    // Test binaries that start together begin their search at different places.
    let first = u16::try_from(std::process::id() * 137 % u32::from(COUNT)).expect("a remainder of 10,000 fits");
    (0..COUNT)
        .map(|step| FIRST + (first + step) % COUNT)
        .find(|port| !given.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .inspect(|port| {
            given.insert(*port);
        })
        .expect("ten thousand ports are not all taken")
}

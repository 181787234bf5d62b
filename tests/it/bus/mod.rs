//! The bus: both kinds of it against one suite, then what only a real server can do to a connection.

mod connection;
mod inbound;
mod kept;
mod streams;
mod suite;

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use pmp::bus::{Bus, ConnectOptions, Link, Message, Subscription, Tls};

use crate::support::Nats;

/// How long anything on loopback may take before a test gives up.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Options that notice a dead link within a second or two.
pub fn options(server: &Nats) -> ConnectOptions {
    let (cert, key) = server.identity.clone().map(|identity| (identity.certificate, identity.key)).unzip();
    ConnectOptions {
        ping_interval: Duration::from_millis(300),
        connect_timeout: Duration::from_millis(900),
        tls: Tls { ca: server.authority.clone(), cert, key, ..Tls::default() },
        ..ConnectOptions::new([server.url.clone()])
    }
}

/// A bus that is connected.
pub async fn connected(options: ConnectOptions) -> Bus {
    let bus = Bus::connect(options).await.unwrap();
    link_where(&bus, "the bus is connected", Link::is_connected).await;
    bus
}

/// The link as soon as it is as wanted.
pub async fn link_where(bus: &Bus, what: &str, wanted: impl FnMut(&Link) -> bool) -> Link {
    let mut link = bus.link();
    let Ok(found) = tokio::time::timeout(DEADLINE, link.wait_for(wanted)).await else {
        panic!("not within {DEADLINE:?}: {what}; the link is {:?}", bus.link().borrow())
    };
    found.unwrap().clone()
}

/// The next message's body.
pub async fn next_body(subscription: &mut Subscription) -> Bytes {
    next(subscription).await.body
}

pub async fn next(subscription: &mut Subscription) -> Message {
    tokio::time::timeout(DEADLINE, subscription.next()).await.expect("a message within the deadline").unwrap()
}

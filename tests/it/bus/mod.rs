//! The bus: both kinds of it against one suite, then what only a real server can do to a connection.

mod connection;
mod inbound;
mod suite;

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use pmp::bus::{Bus, ConnectOptions, Link, Message, Subscription};

use crate::support::Nats;

/// How long anything on loopback may take before a test gives up.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Options that notice a dead link within a second or two.
pub fn options(server: &Nats) -> ConnectOptions {
    let mut options = ConnectOptions::new([server.url.clone()]);
    options.name = "bus test".to_owned();
    options.ping_interval = Duration::from_millis(300);
    options.connect_timeout = Duration::from_millis(900);
    options.tls.ca = server.authority.clone();
    if let Some(identity) = &server.identity {
        options.tls.cert = Some(identity.certificate.clone());
        options.tls.key = Some(identity.key.clone());
    }
    options
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
    match tokio::time::timeout(DEADLINE, link.wait_for(wanted)).await {
        Ok(found) => found.unwrap().clone(),
        Err(_) => panic!("not within {DEADLINE:?}: {what}; the link is {:?}", bus.link().borrow()),
    }
}

/// The next message's body.
pub async fn next_body(subscription: &mut Subscription) -> Bytes {
    next(subscription).await.body
}

pub async fn next(subscription: &mut Subscription) -> Message {
    tokio::time::timeout(DEADLINE, subscription.next()).await.expect("a message within the deadline").unwrap()
}

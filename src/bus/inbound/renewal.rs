//! Subscriptions that are made anew under a reader that does not notice.
//!
//! A server that denies a subscription, at first or in mid-run after its rights were edited, removes it and says so once. The
//! client knows nothing of that, and the right may come back at any time; so whoever is denied subscribes anew, again and
//! again.

use std::{
    collections::BTreeSet,
    pin::Pin,
    task::{Context, Poll},
};

use futures::Stream;
use tokio::sync::mpsc;

use super::CHANNELS;
use crate::{
    bus::{Bus, Error, Message, Source, Subscription},
    protocol::{Channel, Prefix},
};

/// Where the subscriptions of [`CHANNELS`] are replaced.
pub(super) struct Renewals {
    to: Vec<mpsc::UnboundedSender<Source>>,
    /// Whose denial was forgotten, and whose new subscription is not made yet.
    owed: BTreeSet<Channel>,
}

impl Renewals {
    /// Subscribes to all channels; what is read stays the same when one of them is made anew.
    pub(super) async fn subscribe(bus: &Bus, prefix: &Prefix) -> Result<(Vec<Subscription>, Self), Error> {
        let (mut subscriptions, mut to) = (Vec::new(), Vec::new());
        for channel in CHANNELS {
            let Subscription { source, pattern, queue, ahead } = bus.subscribe(&prefix.pattern(channel), None).await?;
            let (sender, next) = mpsc::unbounded_channel();
            let source: Source = Box::pin(Renewable { now: source, next });
            subscriptions.push(Subscription { source, pattern, queue, ahead });
            to.push(sender);
        }
        Ok((subscriptions, Self { to, owed: BTreeSet::new() }))
    }

    /// Makes anew what the server denied.
    pub(super) async fn renew(&mut self, bus: &Bus, prefix: &Prefix) -> Result<(), Error> {
        let Some(denied) = bus.denied() else { return Ok(()) };
        for channel in CHANNELS {
            let pattern = prefix.pattern(channel);
            if denied.borrow().contains(&pattern) {
                self.owed.insert(channel);
                bus.forgive(&pattern);
            }
        }
        for (channel, to) in CHANNELS.into_iter().zip(&self.to) {
            if self.owed.contains(&channel) {
                let source = bus.subscribe(&prefix.pattern(channel), None).await?.source;
                // Whoever reads has ended: then nobody listens at all.
                let _ = to.send(source);
                self.owed.remove(&channel);
            }
        }
        Ok(())
    }
}

/// Reads one source until there is a newer one. The old one is dropped then: it hears nothing any more.
struct Renewable {
    now: Source,
    next: mpsc::UnboundedReceiver<Source>,
}

impl Stream for Renewable {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        while let Poll::Ready(Some(newer)) = self.next.poll_recv(cx) {
            self.now = newer;
        }
        self.now.as_mut().poll_next(cx)
    }
}

//! Proof that a subscription is live: a message to oneself that comes back through it.
//!
//! Without it a fast runtime's answer to the first offer may come before the server knows that anyone listens, and a
//! denied subscription is deaf for ever without a word.

use std::{collections::BTreeSet, future::poll_fn, time::Duration};

use rand::Rng;
use tokio::{sync::watch, time::Instant};

use super::{Bus, Error, Message, Subscription, connect::QUEUE_MESSAGES_MAX, subject};
use crate::protocol::headers;

/// Whether a message is somebody's probe, and so nobody's news.
pub(super) fn is_probe(message: &Message) -> bool {
    message.headers.get(headers::PROBE).is_some()
}

/// A number that no other probe has.
pub(super) fn nonce() -> String {
    format!("{:032x}", u128::from(rand::rng().next_u64()) << 64 | u128::from(rand::rng().next_u64()))
}

/// The message that proves a subscription to whatever matches `subject`.
pub(super) fn probe(subject: &str, nonce: &str) -> Message {
    Message::new(subject, "").with_header(headers::PROBE, nonce)
}

impl Bus {
    /// Publishes to `subject`, which the subscription's pattern has to match, and waits until it comes back through it.
    ///
    /// [`Error::Denied`] names what the server refuses, [`Error::Unproven`] says that nothing came in `timeout`. What
    /// came meanwhile is kept for the reader. In a queue group the probe may go to another member, so there the order of
    /// the connection is the proof: what was subscribed to later is live, and no refusal was heard.
    pub async fn prove(&self, subscription: &mut Subscription, subject: &str, timeout: Duration) -> Result<(), Error> {
        let pattern = subscription.pattern.clone();
        if !subject::matches(&pattern, subject) {
            return Err(Error::Pattern { pattern });
        }
        if subscription.queue.is_some() {
            let inbox = self.inbox();
            let mut later = self.subscribe(&inbox, None).await?;
            // Twice there and back: a refusal that came before the first is noted by the time of the second.
            for _ in 0..2 {
                let heard = self.hear_oneself(&mut later, &inbox, &pattern, timeout).await;
                if matches!(&heard, Err(Error::Denied { subject }) if *subject == inbox) {
                    // Nobody says anything there again: it shall not take the room of denials that matter.
                    self.forgive(&inbox);
                }
                heard?;
            }
            return Ok(());
        }
        self.hear_oneself(subscription, subject, &pattern, timeout).await
    }

    async fn hear_oneself(
        &self,
        through: &mut Subscription,
        subject: &str,
        pattern: &str,
        timeout: Duration,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + timeout;
        let nonce = nonce();
        let watched = [pattern.to_owned(), through.pattern.clone(), subject.to_owned()];
        self.publish(probe(subject, &nonce)).await?;
        let heard = tokio::select! {
            // A queue group's proof comes through another subscription, so a denial outweighs it.
            biased;
            subject = denial(self.denied(), &watched) => return Err(Error::Denied { subject }),
            heard = tokio::time::timeout_at(deadline, through.read_up_to(&nonce)) => heard.unwrap_or(Heard::Nothing),
        };
        match heard {
            Heard::Probe => Ok(()),
            Heard::Nothing => Err(Error::Unproven { pattern: pattern.to_owned() }),
            Heard::End => Err(Error::Closed),
        }
    }
}

enum Heard {
    Probe,
    Nothing,
    End,
}

impl Subscription {
    /// Reads until the probe comes, and keeps what it reads; whatever moment it is cancelled at.
    async fn read_up_to(&mut self, nonce: &str) -> Heard {
        while self.ahead.len() < QUEUE_MESSAGES_MAX {
            match poll_fn(|cx| self.source.as_mut().poll_next(cx)).await {
                None => return Heard::End,
                Some(message) if message.headers.get(headers::PROBE) == Some(nonce) => return Heard::Probe,
                Some(message) => self.ahead.push_back(message),
            }
        }
        Heard::Nothing
    }
}

/// Waits until the server denies one of these, for ever if it does not.
pub(super) async fn denial(denied: Option<watch::Receiver<BTreeSet<String>>>, any_of: &[String]) -> String {
    if let Some(mut denied) = denied
        && let Ok(denied) = denied.wait_for(|denied| any_of.iter().any(|subject| denied.contains(subject))).await
        && let Some(subject) = any_of.iter().find(|subject| denied.contains(*subject))
    {
        return subject.clone();
    }
    std::future::pending().await
}

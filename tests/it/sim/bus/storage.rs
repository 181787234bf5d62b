//! The calls of [`Storage`] on the fake server: each goes through a door and over a link, and fate may have it fail.

use std::time::Duration;

use futures::stream;
use jiff::Timestamp;
use pmp::bus::{Answer, Begin, CALL_TIMEOUT, Error, Message, Reading, Storage, Stored, StreamFacts, StreamWish};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::{
    client::Client,
    streams::{Said, Streams},
};
use crate::sim::{
    fates::{After, Effect, WriteFate},
    world::{Door, Shared},
};

/// As long as the product waits for a stream's word.
const KEEP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a call is on its way when all is well.
const WAY: Duration = Duration::from_millis(1);

/// Whether a call changes anything: then it is an effect, and counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Look,
    Change,
}

impl Client {
    /// One call to the server's API.
    async fn call<T: Send>(
        &self,
        kind: Call,
        what: &str,
        act: impl FnOnce(&mut Streams, Timestamp) -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        self.door.pass().await;
        self.check(&Message::default())?;
        let shared = self.nats.shared();
        if !self.nats.keeps() {
            return Err(Error::NoStorage { detail: "JetStream is off on this server".to_owned() });
        }
        let (asked, epoch) = (Instant::now(), self.link.borrow().epoch);
        // A way there: what is published in the same moment is there before, whoever of a process is woken first.
        sleep(WAY).await;
        let fate = match kind {
            Call::Change => shared.fates.write(&self.door, Effect::Stream),
            Call::Look => shared.fates.look(&self.door),
        };
        let WriteFate { effect, delay, refused, after } = fate;
        if !delay.is_zero() {
            sleep(delay).await;
            self.door.pass().await;
        }
        let done = match refused {
            Some(failure) => Err(failed(what, failure.reason)),
            None => self.nats.on_streams(act),
        };
        if self.door.is_operator() {
            let outcome = done.as_ref().map_or_else(ToString::to_string, |_| "ok".to_owned());
            shared.trace.note(format_args!("{effect} {} asks the bus to {what}: {outcome}", self.door));
        }
        let is_same_link = self.link.borrow().is_connected() && self.link.borrow().epoch == epoch;
        match after {
            After::Crash => self.door.shut(),
            After::Error(failure) => return Err(failed(what, failure.reason)),
            After::Answer if is_same_link => {}
            After::Answer | After::Silence => {
                sleep_until(asked + CALL_TIMEOUT).await;
                return Err(Error::Timeout { subject: what.to_owned() });
            }
        }
        self.door.pass().await;
        done
    }

    async fn keep(&self, message: Message) -> Result<u64, Error> {
        let subject = message.subject.clone();
        let answer = self.ask(message, KEEP_TIMEOUT).await?;
        let answer: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        answer["seq"]
            .as_u64()
            .ok_or_else(|| failed(&subject, answer["error"].as_str().unwrap_or("no word of a stream")))
    }
}

fn failed(what: &str, why: &str) -> Error {
    Error::Stream { stream: what.to_owned(), detail: why.to_owned() }
}

/// What a stream answers to whoever published with a reply.
pub fn word(stream: &str, place: Result<u64, &'static str>) -> String {
    match place {
        Ok(sequence) => json!({"stream": stream, "seq": sequence}),
        Err(why) => json!({"error": why}),
    }
    .to_string()
}

impl Storage for Client {
    fn ensure<'a>(&'a self, wish: &'a StreamWish) -> Answer<'a, StreamFacts> {
        Box::pin(async move {
            let what = format!("make {}", wish.name);
            // What is as it should be is looked at again and again, and no call of those does anything.
            let is_made = self.nats.on_streams(|streams, _| streams.is_made(wish));
            let kind = if is_made { Call::Look } else { Call::Change };
            self.call(kind, &what, |streams, now| streams.ensure(wish, now)).await
        })
    }

    fn facts<'a>(&'a self, stream: &'a str) -> Answer<'a, StreamFacts> {
        Box::pin(async move {
            let what = format!("tell of {stream}");
            self.call(Call::Look, &what, |streams, now| streams.facts(stream, now)).await
        })
    }

    fn read<'a>(&'a self, stream: &'a str, patterns: &'a [String], begin: Begin) -> Answer<'a, Reading> {
        Box::pin(async move {
            let what = format!("read {stream} {begin:?}");
            let (pending, from) = self
                .call(Call::Look, &what, |streams, now| streams.read((self.id, stream), patterns, begin, now))
                .await?;
            let out = Out { from, door: self.door.clone(), shared: self.nats.shared().clone() };
            let messages = stream::unfold(out, |mut out| async move { Some((out.next().await?, out)) });
            Ok(Reading { pending, messages: Box::pin(messages) })
        })
    }

    fn publish(&self, message: Message) -> Answer<'_, u64> {
        Box::pin(self.keep(message))
    }

    fn keeps<'a>(&'a self, subject: &'a str) -> Answer<'a, bool> {
        Box::pin(self.call(Call::Look, subject, |streams, _| Ok(streams.keeps(subject))))
    }

    fn subjects<'a>(&'a self, stream: &'a str, pattern: &'a str, count_max: usize) -> Answer<'a, Vec<String>> {
        Box::pin(self.call(Call::Look, stream, move |streams, now| {
            let mut found = streams.subjects(stream, pattern, now)?;
            found.truncate(count_max);
            Ok(found)
        }))
    }

    fn last<'a>(&'a self, stream: &'a str, subject: &'a str) -> Answer<'a, Option<Stored>> {
        Box::pin(self.call(Call::Look, stream, |streams, now| streams.last(stream, subject, now)))
    }

    fn purge<'a>(&'a self, stream: &'a str, pattern: &'a str, before: u64) -> Answer<'a, ()> {
        Box::pin(async move {
            let what = format!("purge {stream} of {pattern} before {before}");
            self.call(Call::Change, &what, |streams, now| streams.purge(stream, pattern, before, now)).await
        })
    }
}

/// Where a reading comes out.
struct Out {
    from: mpsc::UnboundedReceiver<Said>,
    door: Door,
    shared: Shared,
}

impl Out {
    async fn next(&mut self) -> Option<Result<Stored, Error>> {
        let said = self.from.recv().await;
        // The dead read nothing, not even the end.
        self.door.pass().await;
        let (at, said) = said?;
        if at > Instant::now() {
            sleep_until(at).await;
            self.door.pass().await;
        }
        if let Ok(stored) = &said
            && self.door.is_operator()
        {
            self.shared.checks.heard(&self.door, &stored.message);
        }
        Some(said)
    }
}

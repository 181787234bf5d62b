//! The reader of the stream of reports: one for each connection and process, from where it was to whatever comes.
//!
//! It makes the streams, reads without a gap, and begins again where it was after whatever ended the reading. Where the
//! stream is another one by now, or has lost what was not read yet, it says so, and everyone asks anew. It decides
//! nothing about what it reads.

use std::time::Duration;

use futures::StreamExt;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use crate::{
    bus::{Begin, Bus, Error, Link, Position, Reading, Storage, Stored, streams},
    protocol::Prefix,
};

/// Between two tries to open the stream: soon after a failure, seldom where there is none.
const RETRY: Duration = Duration::from_secs(2);
const RETRY_WITHOUT: Duration = Duration::from_secs(30);
/// Of a reading that ended: reports are heard meanwhile.
const RETRY_READING: Duration = Duration::from_millis(250);

/// What the pump is told.
#[derive(Debug)]
pub(super) enum FromStream {
    /// Reading goes on behind this place. What the stream has up to `kept` was said before.
    At {
        position: Position,
        kept: u64,
    },
    /// Something between the last place and the next was lost.
    Gap,
    Message(Stored),
}

/// Whether reports are kept, in one epoch of the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keeping {
    Unknown,
    /// Every report is kept in the stream.
    Reports,
    /// None is; `reason` is [`Error::reason`], `message` is for people.
    Nothing {
        reason: &'static str,
        message: String,
    },
}

/// Reads for as long as the bus lives.
pub(super) async fn read(bus: Bus, prefix: Prefix, to: mpsc::Sender<FromStream>, says: watch::Sender<(u64, Keeping)>) {
    let Some(storage) = bus.storage() else {
        let message = "messages inside one process are not kept".to_owned();
        says.send_replace((u64::MAX, Keeping::Nothing { reason: "NoJetStream", message }));
        return;
    };
    let mut reader = Reader { storage, prefix, to, reached: None };
    let mut link = bus.link();
    loop {
        let Ok(epoch) = link.wait_for(Link::is_connected).await.map(|link| link.epoch) else { return };
        let opened = reader.open().await;
        let pause = match opened {
            Ok(reading) => {
                say(&says, epoch, Keeping::Reports);
                match reader.follow(reading, &mut link, epoch).await {
                    Ended::Link => Duration::ZERO,
                    Ended::Stream(error) => {
                        tracing::warn!(%error, "the stream of reports cannot be read on; reports are heard all the same");
                        RETRY_READING
                    }
                    Ended::Pump => return,
                }
            }
            Err(error) => {
                tracing::debug!(%error, "reports are not kept");
                say(&says, epoch, Keeping::Nothing { reason: error.reason(), message: error.to_string() });
                if matches!(error, Error::NoStream { .. } | Error::Stream { .. } | Error::Timeout { .. }) {
                    RETRY
                } else {
                    RETRY_WITHOUT
                }
            }
        };
        let is_other = |link: &Link| link.epoch != epoch || !link.is_connected();
        // Elapsing is the other way to go on.
        if !pause.is_zero() && matches!(timeout(pause, link.wait_for(is_other)).await, Ok(Err(_))) {
            return;
        }
    }
}

fn say(says: &watch::Sender<(u64, Keeping)>, epoch: u64, keeping: Keeping) {
    says.send_if_modified(|said| {
        let news = (epoch, keeping);
        let is_news = *said != news;
        *said = news;
        is_news
    });
}

enum Ended {
    Link,
    Stream(Error),
    Pump,
}

struct Reader<'a> {
    storage: &'a dyn Storage,
    prefix: Prefix,
    to: mpsc::Sender<FromStream>,
    reached: Option<Position>,
}

impl Reader<'_> {
    /// Makes both streams and begins to read where it was, or with what comes next.
    async fn open(&mut self) -> Result<Reading, Error> {
        let wish = streams::reports(&self.prefix);
        let facts = self.storage.ensure(&wish).await?;
        if let Err(error) = self.storage.ensure(&streams::record(&self.prefix)).await {
            tracing::warn!(%error, "targets, logs and events are not kept");
        }
        let is_same = |at: &&Position| at.stream == facts.name && at.created == facts.created;
        let kept = facts.first.saturating_sub(1)..=facts.last;
        let behind = self.reached.as_ref().filter(is_same).map_or(facts.last, |at| {
            // Short of the oldest that is left, or past the newest: messages are lost either way.
            at.sequence.clamp(*kept.start(), *kept.end())
        });
        let position = Position { stream: facts.name, created: facts.created, sequence: behind };
        let is_gap = self.reached.as_ref().is_some_and(|at| *at != position);
        let reading = self.storage.read(&wish.name, &[], Begin::Sequence(behind + 1)).await?;
        self.reached = Some(position.clone());
        if is_gap {
            self.tell(FromStream::Gap).await?;
        }
        self.tell(FromStream::At { position, kept: facts.last }).await?;
        Ok(reading)
    }

    async fn follow(&mut self, mut reading: Reading, link: &mut watch::Receiver<Link>, epoch: u64) -> Ended {
        loop {
            let stored = tokio::select! {
                // What was read of another connection is read again.
                biased;
                other = link.wait_for(|link| link.epoch != epoch || !link.is_connected()) => {
                    return if other.is_ok() { Ended::Link } else { Ended::Pump };
                }
                stored = reading.messages.next() => stored,
            };
            let stored = match stored {
                Some(Ok(stored)) => stored,
                Some(Err(error)) => return Ended::Stream(error),
                None => return Ended::Stream(Error::Closed),
            };
            if let Some(reached) = &mut self.reached {
                reached.sequence = stored.sequence;
            }
            if self.tell(FromStream::Message(stored)).await.is_err() {
                return Ended::Pump;
            }
        }
    }

    async fn tell(&self, what: FromStream) -> Result<(), Error> {
        self.to.send(what).await.map_err(|_| Error::Closed)
    }
}

//! Sessions whose resource went away while no operator looked, or while none could say so: cancelled on the bus and removed
//! from its streams.
//!
//! The stream of reports says which sessions this cluster began; who is not among the resources any more is gone. Only an
//! operator of the whole cluster may conclude that: to one of a few namespaces, or of some labels, the others' sessions
//! would look the same. Without streams nobody knows, and runtimes give up when nobody reports back.

use std::time::Duration;

use tokio::time::{interval, sleep, timeout};

use super::view::View;
use crate::{
    bus::{self, Bus, InboundHandle, Keeping, Message, Ready, Storage, streams},
    protocol::{Channel, Command, ControlMessage, Prefix, SessionId, headers},
};

/// Sessions looked at; more than this many were begun in a week.
const SESSIONS_MAX: usize = 100_000;

/// Between two looks whether the caches are filled.
const LOOK: Duration = Duration::from_millis(500);

/// Of one sweep; the next goes on.
const SWEEP_TIMEOUT: Duration = Duration::from_mins(5);

/// Between two sweeps, however often the link comes and goes.
const PAUSE: Duration = Duration::from_secs(10);

/// Sweeps in one epoch of the link, while there is something that could not be ended.
const TRIES_MAX: u32 = 3;

pub struct Sweep {
    pub bus: Bus,
    pub inbound: InboundHandle,
    pub prefix: Prefix,
    /// `Pmp-Origin`: only what this cluster began is ours to end.
    pub origin: String,
    /// All resources of the cluster.
    pub view: View,
}

impl Sweep {
    /// When the caches are filled and the stream of reports is read; and again whenever the link was lost meanwhile, since
    /// what was said of a deletion then was said to nobody.
    pub async fn run(self) {
        let mut looks = interval(LOOK);
        while !self.view.is_filled() {
            looks.tick().await;
        }
        let mut ready = self.inbound.ready();
        let (mut last, mut tries) = (None, 0);
        loop {
            let is_news = |ready: &Ready| is_kept(ready) && (ready.epoch() != last || tries < TRIES_MAX);
            let Ok(epoch) = ready.wait_for(is_news).await.map(|ready| ready.epoch()) else { return };
            tries = if epoch == last { tries + 1 } else { 1 };
            last = epoch;
            let swept = timeout(SWEEP_TIMEOUT, self.sweep()).await;
            match &swept {
                Ok(Ok(Swept { ended: 0, left: 0 })) => {}
                Ok(Ok(Swept { ended, left })) => tracing::info!(ended, left, "ended sessions whose resource is gone"),
                Ok(Err(error)) => tracing::warn!(%error, "sessions whose resource is gone cannot be looked for"),
                Err(_) => tracing::warn!("looking for sessions whose resource is gone takes too long"),
            }
            if matches!(swept, Ok(Ok(Swept { left: 0, .. }))) {
                tries = TRIES_MAX;
            }
            sleep(PAUSE).await;
        }
    }

    async fn sweep(&self) -> Result<Swept, bus::Error> {
        let mut swept = Swept::default();
        let Some(storage) = self.bus.storage() else { return Ok(swept) };
        let stream = streams::reports(&self.prefix).name;
        let begun = storage.subjects(&stream, &self.prefix.pattern(Channel::Start), SESSIONS_MAX).await?;
        for subject in begun {
            let Some((session, _)) = self.prefix.parse(&subject) else { continue };
            if self.has_resource(&session) {
                continue;
            }
            match self.end(storage, &stream, &session, &subject).await {
                Ok(Ended::Here) => swept.ended += 1,
                Ok(Ended::NotOurs) => {}
                // Of all the others nothing can be said either; the next epoch brings another sweep.
                Err(error @ (bus::Error::Disconnected { .. } | bus::Error::Closed)) => return Err(error),
                Err(error) => {
                    tracing::warn!(%session, %error, "a session whose resource is gone was not ended");
                    swept.left += 1;
                }
            }
        }
        Ok(swept)
    }

    fn has_resource(&self, session: &SessionId) -> bool {
        self.view.find(session, None).is_some()
    }

    async fn end(
        &self,
        storage: &dyn Storage,
        stream: &str,
        session: &SessionId,
        start: &str,
    ) -> Result<Ended, bus::Error> {
        let start = storage.last(stream, start).await?;
        let is_ours = start.is_some_and(|start| start.message.headers.get(headers::ORIGIN) == Some(&self.origin));
        // Looked at again: its resource may have come in between.
        if !is_ours || self.has_resource(session) {
            return Ok(Ended::NotOurs);
        }
        let cancel = ControlMessage { command: Command::Cancel, phase: None, attempt: None, runtime: None };
        let subject = self.prefix.subject(session, Channel::Control);
        let message = Message::new(subject, cancel.to_bytes()).with_header(headers::ORIGIN, &self.origin);
        self.bus.publish(message).await?;
        let ends = streams::ends(&self.bus, &self.prefix).await?;
        streams::purge(&self.bus, &self.prefix, session, &ends).await?;
        Ok(Ended::Here)
    }
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default)]
struct Swept {
    ended: usize,
    /// Could not be ended.
    left: usize,
}

enum Ended {
    Here,
    /// Another cluster's, or its resource is there after all.
    NotOurs,
}

fn is_kept(ready: &Ready) -> bool {
    matches!(ready, Ready::Yes { keeping: Keeping::Reports, .. })
}

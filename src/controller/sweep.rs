//! Sessions whose resource went away while no operator looked: cancelled on the bus and removed from its streams.
//!
//! The stream of reports says which sessions this cluster began; who is not among the resources any more is gone. Only an
//! operator of the whole cluster may conclude that: to one of a few namespaces, or of some labels, the others' sessions
//! would look the same. Without streams nobody knows, and runtimes give up when nobody reports back.

use std::time::Duration;

use tokio::time::{interval, timeout};

use super::view::View;
use crate::{
    bus::{self, Bus, InboundHandle, Keeping, Message, Ready, streams},
    protocol::{Channel, Command, ControlMessage, Prefix, SessionId, headers},
};

/// Sessions looked at; more than this many were begun in a week.
const SESSIONS_MAX: usize = 100_000;

/// Between two looks whether the caches are filled.
const LOOK: Duration = Duration::from_millis(500);

/// Of the whole sweep; the next start goes on.
const SWEEP_TIMEOUT: Duration = Duration::from_mins(5);

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
    /// Once, when the caches are filled and the stream of reports is read for the first time.
    pub async fn run(self) {
        let mut looks = interval(LOOK);
        while !self.view.is_filled() {
            looks.tick().await;
        }
        let mut ready = self.inbound.ready();
        let is_kept = |ready: &Ready| matches!(ready, Ready::Yes { keeping: Keeping::Reports, .. });
        if ready.wait_for(is_kept).await.is_err() {
            return;
        }
        match timeout(SWEEP_TIMEOUT, self.sweep()).await {
            Ok(Ok(0)) => {}
            Ok(Ok(sessions)) => tracing::info!(sessions, "ended sessions whose resource is gone"),
            Ok(Err(error)) => tracing::warn!(%error, "sessions whose resource is gone cannot be looked for"),
            Err(_) => tracing::warn!("looking for sessions whose resource is gone takes too long"),
        }
    }

    async fn sweep(&self) -> Result<usize, bus::Error> {
        let Some(storage) = self.bus.storage() else { return Ok(0) };
        let stream = streams::reports(&self.prefix).name;
        let begun = storage.subjects(&stream, &self.prefix.pattern(Channel::Start), SESSIONS_MAX).await?;
        let mut ended = 0;
        for subject in begun {
            let Some((session, _)) = self.prefix.parse(&subject) else { continue };
            if self.has_resource(&session) {
                continue;
            }
            let start = storage.last(&stream, &subject).await?;
            let is_ours = start.is_some_and(|start| start.message.headers.get(headers::ORIGIN) == Some(&self.origin));
            // Looked at again: its resource may have come in between.
            if is_ours && !self.has_resource(&session) {
                self.end(&session).await?;
                ended += 1;
            }
        }
        Ok(ended)
    }

    fn has_resource(&self, session: &SessionId) -> bool {
        self.view.find(session, None).is_some()
    }

    async fn end(&self, session: &SessionId) -> Result<(), bus::Error> {
        let cancel = ControlMessage { command: Command::Cancel, phase: None, attempt: None, runtime: None };
        let subject = self.prefix.subject(session, Channel::Control);
        let message = Message::new(subject, cancel.to_bytes()).with_header(headers::ORIGIN, &self.origin);
        self.bus.publish(message).await?;
        streams::purge(&self.bus, &self.prefix, session).await
    }
}

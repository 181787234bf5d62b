//! Sessions that another process of the cluster took over: taken back when that one is gone.
//!
//! Two operators on one cluster are a mistake, and one of them may well be ended for it: the one that has the sessions.
//! So whoever was deposed looks again from time to time. A long phase writes nothing for hours; therefore the holder is
//! asked on the bus, as by a takeover, and answers by a write. Silence means that it cannot hear or cannot store, and in
//! either case the session is nobody's.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use futures::channel::mpsc;
use kube::{Api, Client, runtime::reflector::ObjectRef};
use tokio::time::sleep;

use super::{
    call::{self, call, name, namespace, uid},
    claim::Claim,
    roster::Roster,
};
use crate::{
    bus::{Bus, Message},
    protocol::{Channel, Command, ControlMessage, Prefix, headers},
    resource::PhaseManifest,
};

/// Before the first look; doubled by each that finds the other alive, and by each time that the session was lost before.
const PAUSE_FIRST: Duration = Duration::from_secs(30);
const PAUSE_MAX: Duration = Duration::from_mins(5);

/// How long a holder that lives may take to write: the longest pause between two writes, and the longest call.
const ANSWER_MAX: Duration = Duration::from_secs(12);

/// What looking after them needs. Cloning is a few reference counts.
#[derive(Clone)]
pub struct Rivals {
    pub client: Client,
    pub bus: Bus,
    pub prefix: Prefix,
    pub origin: String,
    /// This one.
    pub process: String,
    pub roster: Roster,
    /// Objects to begin again.
    pub wake: mpsc::UnboundedSender<ObjectRef<PhaseManifest>>,
}

/// What is to be done about a session that another process took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    /// It has its verdict, or its resource is gone.
    Over,
    /// Its holder writes.
    Alive,
    /// Nobody has it.
    Free,
}

impl Rivals {
    /// Looks until the session is over, is nobody's, or is run or looked after here by somebody else.
    pub async fn stand_by(self, object: PhaseManifest) {
        let times = self.roster.note_loss(uid(&object));
        for looks in 0.. {
            sleep(self.pause(&object, times.saturating_sub(1).saturating_add(looks))).await;
            if !self.roster.is_lost(uid(&object), times) {
                return;
            }
            match self.look(&object).await {
                Ok(Finding::Alive) => {}
                Ok(Finding::Over) => return self.roster.forget_loss(uid(&object)),
                Ok(Finding::Free) => {
                    tracing::warn!(resource = name(&object), "whoever took the session over is gone: taking it back");
                    return self.wake(&object);
                }
                Err(error) => tracing::debug!(resource = name(&object), %error, "cannot see who holds the session"),
            }
        }
    }

    /// The watch brought a status: if a process that took the session from us let go of it in order, it need not be asked.
    pub fn see(&self, object: &PhaseManifest) {
        let is_free = object.status.as_ref().is_some_and(|status| status.holder.is_none() && status.verdict.is_none());
        if is_free && self.roster.has_lost(uid(object)) {
            self.wake(object);
        }
    }

    fn wake(&self, object: &PhaseManifest) {
        drop(self.wake.unbounded_send(ObjectRef::from_obj(object)));
    }

    async fn look(&self, object: &PhaseManifest) -> Result<Finding, call::Error> {
        let mut version = None;
        // Twice: one that writes anyhow is not asked, because its session pauses until it has answered.
        for asks in [false, true] {
            let Some(found) = self.unfinished(object).await? else { return Ok(Finding::Over) };
            let holder = found.status.as_ref().and_then(|status| status.holder.as_ref());
            if holder.is_none_or(|holder| holder.process == self.process) {
                return Ok(Finding::Free);
            }
            if version.is_some() && version != found.metadata.resource_version {
                return Ok(Finding::Alive);
            }
            if asks && !self.ask(&found).await {
                // It is we who are not heard.
                return Ok(Finding::Alive);
            }
            version = found.metadata.resource_version;
            sleep(ANSWER_MAX).await;
        }
        let found = self.unfinished(object).await?;
        Ok(match found {
            None => Finding::Over,
            Some(found) if found.metadata.resource_version == version => Finding::Free,
            Some(_) => Finding::Alive,
        })
    }

    /// The object as it is; nothing where its session is over.
    async fn unfinished(&self, object: &PhaseManifest) -> Result<Option<PhaseManifest>, call::Error> {
        let api: Api<PhaseManifest> = Api::namespaced(self.client.clone(), namespace(object));
        let found = call("read the resource", api.get_opt(name(object))).await?;
        let is_open = |found: &PhaseManifest| {
            uid(found) == uid(object) && found.status.as_ref().is_none_or(|status| status.verdict.is_none())
        };
        Ok(found.filter(is_open))
    }

    /// Whoever holds the session hears another name as its holder's, and writes that it is not. Whether it was asked.
    async fn ask(&self, object: &PhaseManifest) -> bool {
        let Some(claim) = Claim::of(object) else { return false };
        let report = ControlMessage { command: Command::Report, phase: None, attempt: None, runtime: None };
        let message = Message::new(self.prefix.subject(&claim.session_id, Channel::Control), report.to_bytes())
            .with_header(headers::ORIGIN, &self.origin)
            .with_header(headers::HOLDER, &self.process);
        let asked = self.bus.publish(message).await;
        asked
            .inspect_err(|error| {
                tracing::debug!(resource = name(object), %error, "whoever holds the session was not asked");
            })
            .is_ok()
    }

    /// A quarter more or less, and the same for the same look, so that a simulation can be replayed.
    fn pause(&self, object: &PhaseManifest, doublings: u32) -> Duration {
        let mut dice = DefaultHasher::new();
        (&self.process, uid(object), doublings).hash(&mut dice);
        let quarters = 0.75 + 0.5 * f64::from(u16::try_from(dice.finish() >> 48).unwrap_or_default()) / 65536.0;
        PAUSE_FIRST.saturating_mul(1 << doublings.min(8)).min(PAUSE_MAX).mul_f64(quarters)
    }
}

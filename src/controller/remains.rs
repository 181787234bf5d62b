//! What the bus keeps of a resource that is gone: removed as its deletion is seen, whether its session ran or had ended.

use std::sync::Arc;

use kube::runtime::reflector::Store;
use tokio::sync::Semaphore;

use super::{call::uid, claim::Claim};
use crate::{
    bus::{Bus, streams},
    protocol::{Prefix, SessionId},
    resource::PhaseManifest,
    sessions::{End, EndWatch},
};

/// Sessions removed at a time; a namespace that is deleted may have thousands.
const AT_A_TIME: usize = 64;

/// Removes what the streams hold of deleted resources' sessions.
pub struct Remains {
    bus: Bus,
    prefix: Prefix,
    objects: Store<PhaseManifest>,
    turns: Arc<Semaphore>,
}

impl Remains {
    pub fn new(bus: Bus, prefix: Prefix, objects: Store<PhaseManifest>) -> Self {
        Self { bus, prefix, objects, turns: Arc::new(Semaphore::new(AT_A_TIME)) }
    }

    /// Beside the caller. `end` is of the session's task, where one was told that its resource is gone: such a task
    /// removes everything itself, its last words too.
    pub fn remove(&self, object: &PhaseManifest, end: Option<EndWatch>) {
        // One that never had its session id has nothing, and what is there is somebody else's.
        let has_begun = object.status.as_ref().is_some_and(|status| status.revision.is_some());
        let Some(session) = Claim::of(object).map(|claim| claim.session_id).filter(|_| has_begun) else { return };
        if is_claimed(&self.objects, &session, uid(object)) {
            return;
        }
        let (bus, prefix, objects, turns) =
            (self.bus.clone(), self.prefix.clone(), self.objects.clone(), Arc::clone(&self.turns));
        let gone = uid(object).to_owned();
        tokio::spawn(async move {
            let (turn, was_at_once) = match Arc::clone(&turns).try_acquire_owned() {
                Ok(turn) => (Some(turn), true),
                Err(_) => (turns.acquire_owned().await.ok(), false),
            };
            // At once, before a resource made anew under the name says its first word.
            let ends = match streams::ends(&bus, &prefix).await {
                Ok(ends) if was_at_once || !is_claimed(&objects, &session, &gone) => ends,
                Ok(_) => return,
                Err(error) => return tracing::debug!(%session, %error, "what the bus keeps of it was not removed"),
            };
            if let Some(mut end) = end
                && end.end().await == Some(End::Gone)
            {
                return;
            }
            if let Err(error) = streams::purge(&bus, &prefix, &session, &ends).await {
                tracing::debug!(%session, %error, "what the bus keeps of it was not removed");
            }
            drop(turn);
        });
    }
}

/// Whether another resource wants the session id.
fn is_claimed(objects: &Store<PhaseManifest>, session: &SessionId, gone: &str) -> bool {
    let is_it = |other: &PhaseManifest| {
        uid(other) != gone
            && Claim::may_be_to(other, session)
            && Claim::of(other).is_some_and(|claim| claim.session_id == *session)
    };
    objects.find(is_it).is_some()
}

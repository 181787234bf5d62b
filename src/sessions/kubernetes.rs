//! The store of the operator: the resource's own status, written under a fence.
//!
//! One merge patch a write, with the resourceVersion that was last seen. When somebody else wrote in between, the object
//! is read again: if it is still ours, the same status goes onto the new version; if not, the session is given up at
//! once. Whoever holds the session is written down in `status.holder` before its first message.

use std::{future::Future, pin::Pin, time::Duration};

use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};

use super::{
    pace::Pacing,
    store::{Hold, Picture, Store, StoreError},
};
use crate::{
    bus::Position,
    engine::{Availability, Pace, PhaseState, Record, Verdict},
    manifest::Plan,
    protocol::SessionId,
    resource::{
        BusPosition, Frame, Holder, Moment, PhaseManifest, PhaseManifestStatus, Situation, conditions, project,
        status_bytes_max, status_patch,
    },
};

/// Longest single call to the API server.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Writers that may come in between, one after the other, before the write waits for its next turn.
const CONFLICTS_MAX: u32 = 5;

/// Who this process is, in `status.holder`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keeper(pub Holder);

/// The status of one resource.
pub struct KubernetesStore {
    api: Api<PhaseManifest>,
    keeper: Keeper,
    session: SessionId,
    name: String,
    uid: Option<String>,
    /// As last read or written.
    version: Option<String>,
    last: PhaseManifestStatus,
    bytes_max: usize,
}

impl KubernetesStore {
    /// Takes the session over: writes our name into the status of the object, which was read and judged just now. Answers
    /// with the object as it is, whose status is the truth to restore from; or, where somebody wrote in between, with that
    /// one, which nobody has judged yet and which is not ours.
    pub async fn take_over(
        api: Api<PhaseManifest>,
        keeper: Keeper,
        session: SessionId,
        object: &PhaseManifest,
    ) -> Result<Result<(Self, PhaseManifest), PhaseManifest>, StoreError> {
        let name = object.name_any();
        let uid = object.meta().uid.clone();
        if object.meta().deletion_timestamp.is_some() {
            return Err(StoreError::Gone);
        }
        let holder = serde_json::json!({
            "metadata": {"resourceVersion": object.meta().resource_version, "uid": uid},
            "status": {"holder": keeper.0},
        });
        let taken = match timely(api.patch_status(&name, &PatchParams::default(), &Patch::Merge(holder))).await {
            Ok(taken) => taken,
            Err(Failure::Conflict) => {
                let fresh = timely(api.get(&name)).await?;
                return if fresh.meta().uid == uid { Ok(Err(fresh)) } else { Err(StoreError::Gone) };
            }
            Err(error) => return Err(error.into()),
        };
        let store = Self {
            api,
            keeper,
            session,
            name,
            uid,
            version: taken.meta().resource_version.clone(),
            last: taken.status.clone().unwrap_or_default(),
            bytes_max: status_bytes_max(&taken),
        };
        Ok(Ok((store, taken)))
    }

    async fn write(&mut self, picture: Picture) -> Result<(), StoreError> {
        if picture.hold == Hold::Asked {
            self.keeper.0.answered = Some(Moment::from(picture.at));
        }
        let (status, too_large) = match self.status(&picture) {
            Ok(status) => (status_patch(&status), None),
            Err((status, why)) => (status, Some(why)),
        };
        for _ in 0..CONFLICTS_MAX {
            let mut patch = status.clone();
            patch["metadata"] = serde_json::json!({"resourceVersion": self.version, "uid": self.uid});
            let answer = timely(self.api.patch_status(&self.name, &PatchParams::default(), &Patch::Merge(patch))).await;
            match answer {
                Ok(written) => {
                    self.seen(&written);
                    return too_large.map_or(Ok(()), |why| Err(StoreError::TooLarge(why)));
                }
                Err(Failure::Conflict) => self.look_again().await?,
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Unavailable("the resource is written to all the time".into()))
    }

    /// Somebody wrote: is it still ours?
    async fn look_again(&mut self) -> Result<(), StoreError> {
        let fresh = match timely(self.api.get(&self.name)).await {
            Err(Failure::Other(error)) => return Err(StoreError::InDoubt(error)),
            fresh => fresh?,
        };
        if fresh.meta().uid != self.uid {
            return Err(StoreError::Gone);
        }
        let holder = fresh.status.as_ref().and_then(|status| status.holder.as_ref());
        if !holder.is_some_and(|holder| holder.is(&self.keeper.0)) {
            return Err(StoreError::Deposed);
        }
        self.seen(&fresh);
        Ok(())
    }

    fn seen(&mut self, object: &PhaseManifest) {
        self.version.clone_from(&object.meta().resource_version);
        self.last = object.status.clone().unwrap_or_default();
        self.bytes_max = status_bytes_max(object);
    }

    /// The whole status; or, where it does not fit, what to say about that beside the rows that are there.
    fn status(&self, picture: &Picture) -> Result<PhaseManifestStatus, (serde_json::Value, String)> {
        let situation = situation(picture);
        let availability = picture.record.availability;
        let judged = |situation: &Situation| {
            conditions(situation, availability, &picture.bus, &self.last.conditions, picture.generation, picture.at)
        };
        let holder = (picture.hold != Hold::Released).then(|| self.keeper.0.clone());
        let frame = Frame {
            observed_generation: picture.generation,
            session_id: self.session.as_str().to_owned(),
            digest: picture.plan.digest().to_string(),
            state: situation.state().to_owned(),
            message: situation.message(),
            holder: holder.clone(),
            target_phase: picture.settings.target_phase.as_ref().map(ToString::to_string),
            counts: picture.counts,
            bus: picture.position.as_ref().map(position),
            outbox: self.last.outbox.clone(),
            conditions: judged(&situation),
        };
        project(&picture.record, &picture.plan, frame, self.bytes_max).map_err(|error| {
            let why = error.to_string();
            let refused = Situation::Refused { refusal: crate::resource::Refusal::TooLarge, message: why.clone() };
            let status = serde_json::json!({"status": {
                "observedGeneration": picture.generation,
                "holder": holder,
                "state": refused.state(),
                "message": refused.message(),
                "conditions": judged(&refused),
            }});
            (status, why)
        })
    }
}

impl Store for KubernetesStore {
    fn save(&mut self, picture: Picture) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
        Box::pin(self.write(picture))
    }

    /// A write costs the API server some 4 ms at 1 KiB and 80 ms at 200 KiB; ten times that leaves it for others.
    fn pacing(&self) -> Pacing {
        Pacing { least: Duration::from_millis(250), times_last: 10, most: Duration::from_secs(5) }
    }
}

fn position(position: &Position) -> BusPosition {
    BusPosition {
        stream: position.stream.clone(),
        created: Some(Moment::from(position.created)),
        sequence: i64::try_from(position.sequence).unwrap_or(i64::MAX),
    }
}

/// One row of the table in the design, from what the engine knows.
fn situation(picture: &Picture) -> Situation {
    let record = &picture.record;
    let counts = picture.counts;
    let named = |is: &dyn Fn(&crate::engine::PhaseRecord) -> bool| -> Vec<String> {
        record.phases.iter().filter(|row| is(row)).map(|row| row.id.to_string()).collect()
    };
    if let Some(refused) = &picture.refused {
        return Situation::Refused { refusal: refused.refusal, message: refused.message.clone() };
    }
    if picture.staged {
        return Situation::Staged;
    }
    match record.verdict {
        Some(Verdict::Succeeded) if counts.ignored > 0 => {
            Situation::SucceededWithIgnored { phases: named(&|row| row.state == PhaseState::Failed && row.ignored) }
        }
        Some(Verdict::Succeeded) => Situation::Succeeded,
        Some(Verdict::Failed) => {
            Situation::Failed { phases: named(&|row| row.state == PhaseState::Failed && !row.ignored) }
        }
        Some(Verdict::Cancelled) => Situation::Cancelled,
        Some(Verdict::Planned) => Situation::Planned,
        None if picture.contested => Situation::Contested,
        None if picture.settings.shutdown.is_some() => Situation::Stopping,
        None if picture.settings.pace == Pace::Suspended => Situation::Suspended,
        None if counts.held > 0 => {
            let phases = named(&|row| row.state == PhaseState::Held);
            let others = counts.offered + counts.queued + counts.running + counts.backing_off + counts.cancelling;
            let is_alone = others == 0 && !goes_on_beside(record, &picture.plan);
            if is_alone { Situation::HeldAlone { phases } } else { Situation::HeldWithOthers { phases } }
        }
        None if record.availability == Availability::Unavailable => Situation::NoRuntime,
        None => Situation::Running,
    }
}

/// Whether a phase waits for something else than a person's word on what is held: for its next offer, or for another
/// manifest.
fn goes_on_beside(record: &Record, plan: &Plan) -> bool {
    let mut is_stuck = vec![false; plan.len()];
    for &ix in plan.topological_order() {
        let is_held = record.phases[ix.index()].state == PhaseState::Held;
        is_stuck[ix.index()] = is_held || plan.waits(ix).iter().any(|on| is_stuck[on.index()]);
    }
    let mut rows = record.phases.iter().zip(is_stuck);
    rows.any(|(row, is_stuck)| row.state == PhaseState::Waiting && !is_stuck)
}

/// How a call failed.
enum Failure {
    Conflict,
    NotFound,
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotFound => Self::Gone,
            Failure::Conflict => Self::Unavailable("the resource was written to in between".into()),
            Failure::Other(error) => Self::Unavailable(error),
        }
    }
}

async fn timely<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.is_conflict() => Err(Failure::Conflict),
        Ok(Err(kube::Error::Api(status))) if status.is_not_found() => Err(Failure::NotFound),
        Ok(Err(error)) => Err(Failure::Other(Box::new(error))),
        Err(elapsed) => Err(Failure::Other(Box::new(elapsed))),
    }
}

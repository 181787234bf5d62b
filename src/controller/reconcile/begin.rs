//! A session that does not run here: from what is stored and what is written to a task that runs it.
//!
//! Everything is read and judged first, then the session is taken over by a fenced write, and only then is anything said.

use std::{sync::Arc, time::Duration};

use kube::{Api, runtime::controller::Action};

use super::{Context, Error, REJECTED, awaits, goes_on, is_unfinished, may_go_on, staging, status_revision};
use crate::{
    bus::Position,
    controller::{
        accept::Accepted,
        call::{call, name, namespace, uid},
        claim::Claim,
        revision,
        roster::Running,
        standing,
    },
    engine::{Edit, Session, Settings, Verdict},
    manifest::{PhaseId, Plan},
    resource::{PhaseManifest, PhaseManifestStatus, Refusal, Situation, UpdatePolicy, restore},
    sessions::{self, KubernetesStore, Order, Past, Refused, Start, StoreError},
};

/// Writers that may come in between a judgement and its takeover, one after the other.
const TAKEOVERS_MAX: u32 = 5;

/// Between two looks whether somebody has put a revision back that was not there.
const LOOK_FOR_REVISION: Duration = Duration::from_secs(10);

impl Context {
    /// Takes the session over and starts its task: a first revision, or from what is stored.
    ///
    /// From here on only the object that the fenced write answered with counts: the one that called us may be old.
    pub(super) async fn begin(&self, object: &PhaseManifest) -> Result<Action, Error> {
        let api: Api<PhaseManifest> = Api::namespaced(self.client.clone(), namespace(object));
        let Some(claim) = Claim::of(object) else { return Ok(Action::await_change()) };
        let fresh = match call("read the resource", api.get(name(object))).await {
            Ok(fresh) if uid(&fresh) == uid(object) => fresh,
            // Another one under that name has its own turn.
            Ok(_) => return Ok(Action::await_change()),
            Err(error) if error.is_not_found() => return Ok(Action::await_change()),
            Err(error) => return Err(error.into()),
        };
        // Boxed, here and below: whole resources live in these futures, and in all that wait for them.
        let Taken { store, object: fresh, judged, past } = match Box::pin(self.taken(api, fresh, &claim)).await? {
            Ok(taken) => *taken,
            Err(action) => return Ok(action),
        };
        let generation = fresh.metadata.generation.unwrap_or_default();
        let begun = match judged {
            Ok(accepted) if !accepted.is_held_back() => Box::pin(self.restored(&fresh, accepted)).await?,
            Ok(accepted) => self.resumed(&fresh, staging(generation, accepted)).await?.ok_or_else(|| lost(&fresh)),
            Err(refused) => self.resumed_or_refused(&fresh, refused).await?,
        };
        let Begun { session, plan, edit, order, was_refused } = match begun {
            Ok(begun) => begun,
            Err((refusal, message)) => {
                standing::write(&self.client, &fresh, &Situation::Refused { refusal, message }, self.clock.now())
                    .await?;
                return Ok(Action::await_change());
            }
        };
        let strategy = edit.as_ref().map_or(session.strategy(), |edit| edit.strategy);
        let revision = edit.as_ref().map_or(session.revision(), |edit| edit.revision);
        let listener = self.voice.of(&fresh, &session);
        let start = Start {
            session,
            id: claim.session_id,
            prefix: self.prefix.clone(),
            origin: self.origin.clone(),
            generation,
            orders: vec![order],
            past,
            position: position(&fresh),
            clock: self.clock,
        };
        let handle = sessions::spawn(self.bus.clone(), &self.inbound, start, store, listener);
        let namespace = namespace(&fresh).to_owned();
        self.watch_over(&fresh, &handle);
        let (digest, awaits) = (*plan.digest(), awaits(&plan));
        let running = Running { handle, namespace, generation, was_refused, revision, digest, strategy, awaits };
        self.roster.insert(uid(&fresh), running);
        Ok(self.look_elsewhere(&fresh))
    }

    /// Judges the object as it is, and takes its session over if there is one to run: in this order, so that a process that
    /// could run nothing of it does not depose one that does. Otherwise what there is to do later.
    async fn taken(
        &self,
        api: Api<PhaseManifest>,
        mut object: PhaseManifest,
        claim: &Claim,
    ) -> Result<Result<Box<Taken>, Action>, Error> {
        for _ in 0..TAKEOVERS_MAX {
            // The copy that called us may be older than the verdict that we wrote.
            if let Some(action) = self.settled(&object).await? {
                return Ok(Err(action));
            }
            let judged = match self.judge(&object).await? {
                Ok(accepted) if accepted.is_held_back() && !goes_on(&object, &accepted) => {
                    return self.stand(&object, &accepted).await.map(Err);
                }
                Err((refusal, message)) if !may_go_on(refusal) || !is_unfinished(&object) => {
                    let situation = Situation::Refused { refusal, message };
                    standing::write(&self.client, &object, &situation, self.clock.now()).await?;
                    return Ok(Err(Action::await_change()));
                }
                judged => judged,
            };
            if !self.can_begin(&object, judged.as_ref().ok()).await? {
                let (refusal, message) = judged.err().unwrap_or_else(|| lost(&object));
                let situation = Situation::Refused { refusal, message };
                standing::write(&self.client, &object, &situation, self.clock.now()).await?;
                return Ok(Err(Action::requeue(LOOK_FOR_REVISION)));
            }
            let has_begun = status_revision(&object).is_some() || self.is_anothers(&object);
            let past = if has_begun { Past::Stored } else { Past::None };
            let keeper = self.keeper.clone();
            match KubernetesStore::take_over(api.clone(), keeper, claim.session_id.clone(), &object).await {
                Ok(Ok((store, object))) => return Ok(Ok(Box::new(Taken { store, object, judged, past }))),
                Ok(Err(fresh)) => object = fresh,
                Err(StoreError::Gone) => return Ok(Err(Action::await_change())),
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Unavailable("the resource is written to all the time".into()).into())
    }

    /// Whether the revision that the session goes on from is there, and ours to read: looked at before it is taken from
    /// anybody.
    async fn can_begin(&self, object: &PhaseManifest, accepted: Option<&Accepted>) -> Result<bool, Error> {
        let digest = object.status.as_ref().and_then(|status| status.digest.as_deref());
        let is_as_stored =
            |accepted: &Accepted| !accepted.is_held_back() && digest == Some(&accepted.plan.digest().to_string());
        match status_revision(object) {
            Some(_) if accepted.is_some_and(is_as_stored) => Ok(true),
            Some(stored) => Ok(revision::load(&self.client, object, stored).await?.is_some()),
            None => {
                if self.is_anothers(object) {
                    revision::find(&self.client, object, 1).await?;
                }
                Ok(true)
            }
        }
    }

    fn is_anothers(&self, object: &PhaseManifest) -> bool {
        let holder = object.status.as_ref().and_then(|status| status.holder.as_ref());
        holder.is_some_and(|holder| !holder.is(&self.keeper.0))
    }

    /// The session of the last revision, for a spec that is not acted on: it goes on under the settings of today where they
    /// can be read. Nothing where there is no such revision any more.
    async fn resumed(&self, object: &PhaseManifest, order: Order) -> Result<Option<Begun>, Error> {
        let Some(revision) = status_revision(object) else { return Ok(None) };
        let Some(plan) = revision::load(&self.client, object, revision).await? else { return Ok(None) };
        let plan = Arc::new(plan);
        let status = object.status.clone().unwrap_or_default();
        let Ok(record) = restore(&status, &plan) else { return Ok(None) };
        let settings = crate::resource::Orders::readable_settings(&object.spec);
        let settings = Settings { target_phase: stored_target(&status), ..settings };
        let session = Session::restore(uid(object), Arc::clone(&plan), record, settings, self.clock.now());
        Ok(Some(Begun { session, plan, edit: None, order, was_refused: true }))
    }

    /// The unfinished session of a spec that is refused.
    async fn resumed_or_refused(
        &self,
        object: &PhaseManifest,
        (refusal, message): (Refusal, String),
    ) -> Result<Result<Begun, (Refusal, String)>, Error> {
        if !is_unfinished(object) {
            return Ok(Err((refusal, message)));
        }
        let generation = object.metadata.generation.unwrap_or_default();
        let order = Order::Refuse { generation, refused: Refused { refusal, message: message.clone() } };
        Ok(self.resumed(object, order).await?.ok_or((refusal, message)))
    }

    /// A session from what is stored, and the edit that brings it to the spec; a new one where nothing is.
    async fn restored(
        &self,
        object: &PhaseManifest,
        accepted: Accepted,
    ) -> Result<Result<Begun, (Refusal, String)>, Error> {
        let now = self.clock.now();
        let status = object.status.clone().unwrap_or_default();
        let uid = uid(object);
        let generation = object.metadata.generation.unwrap_or_default();
        let settings = accepted.settings.clone();
        // A dry run has a verdict and no revision.
        let Some(stored) = status_revision(object) else {
            let plan = Arc::clone(&accepted.plan);
            self.next_revision(object, &accepted, 1).await?;
            let session = Session::start(uid, Arc::clone(&plan), 1, accepted.strategy, settings, now);
            return Ok(Ok(Begun::obeying(session, plan, None, generation, accepted)));
        };
        let is_same = status.digest.as_deref() == Some(&accepted.plan.digest().to_string());
        let old = if is_same {
            Arc::clone(&accepted.plan)
        } else {
            let Some(plan) = revision::load(&self.client, object, stored).await? else {
                return Ok(Err(lost(object)));
            };
            Arc::new(plan)
        };
        let mut record = match restore(&status, &old) {
            Ok(record) => record,
            Err(error) => return Ok(Err((Refusal::StatusUnreadable, error.to_string()))),
        };
        if record.verdict == Some(Verdict::Planned) {
            // A dry run in between judged another plan; the rows know how this one ended.
            (record.verdict, record.finished_at) = (None, None);
        }
        let is_edit = !is_same || record.strategy != accepted.strategy;
        if is_edit && record.verdict.is_none() && accepted.update_policy == UpdatePolicy::Reject {
            return self.resumed_or_refused(object, (Refusal::UpdateRejected, REJECTED.to_owned())).await;
        }
        let edit = if is_edit { Some(self.next_revision(object, &accepted, stored + 1).await?) } else { None };
        let plan = Arc::clone(&accepted.plan);
        // The target of today may be of the plan of today: the first order brings it.
        let settings = Settings { target_phase: stored_target(&status), ..settings };
        let session = Session::restore(uid, old, record, settings, now);
        Ok(Ok(Begun::obeying(session, plan, edit, generation, accepted)))
    }
}

/// A session that is ours, and what its spec was judged to be in that version.
struct Taken {
    store: KubernetesStore,
    object: PhaseManifest,
    judged: Result<Accepted, (Refusal, String)>,
    past: Past,
}

/// A session about to run, and what it is to hear first.
struct Begun {
    session: Session,
    /// As the first order leaves it.
    plan: Arc<Plan>,
    edit: Option<Edit>,
    order: Order,
    was_refused: bool,
}

impl Begun {
    fn obeying(session: Session, plan: Arc<Plan>, edit: Option<Edit>, generation: i64, accepted: Accepted) -> Self {
        let settings = Box::new(accepted.settings);
        let order = Order::Obey { generation, settings, requests: accepted.requests, edit: edit.clone() };
        Self { session, plan, edit, order, was_refused: false }
    }
}

/// The target that the session was last under.
fn stored_target(status: &PhaseManifestStatus) -> Option<PhaseId> {
    PhaseId::new(status.target_phase.as_deref()?).ok()
}

/// What has started, and cannot be read any more.
fn lost(object: &PhaseManifest) -> (Refusal, String) {
    let number = status_revision(object).unwrap_or_default();
    let message =
        format!("revision {number} is not to be found; restore its ControllerRevision, or make the resource anew");
    (Refusal::StatusUnreadable, message)
}

/// Up to where the stored status knows the stream of reports.
fn position(object: &PhaseManifest) -> Option<Position> {
    let bus = object.status.as_ref()?.bus.as_ref()?;
    let sequence = u64::try_from(bus.sequence).ok()?;
    Some(Position { stream: bus.stream.clone(), created: bus.created.as_ref()?.get(), sequence })
}

//! One resource, from what is written to what is run: accept, claim the session id, then hand the plan to its session.
//!
//! Level-triggered: it looks at what is there and does what is missing, however often it is called. A refused spec is
//! no error and is not tried again before it is edited; an error is our own reading or writing that failed.

mod begin;

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::channel::mpsc;
use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{DeleteParams, Preconditions},
    runtime::{
        controller::Action,
        reflector::{ObjectRef, Store},
    },
};

use super::{
    accept::{self, Accepted, accept},
    call::{self, call, identity, name, namespace, uid},
    claim::{self, Claim, Serves},
    events::{Events, regarding},
    listener::Voice,
    remains::Remains,
    revision,
    rivals::Rivals,
    roster::Roster,
    standing,
};
use crate::{
    bus::{Bus, InboundHandle},
    engine::{Edit, Keep},
    manifest::{ExternalWait, Plan},
    protocol::Prefix,
    resource::{PhaseManifest, Refusal, Situation, UpdatePolicy},
    sessions::{self, Clock, End, EndWatch, Keeper, Order, Origin, Refused, StoreError},
};

const REJECTED: &str = "the session runs and spec.updatePolicy is Reject: wait for its verdict, or change the policy";

/// Everything that reconciling needs.
pub struct Context {
    pub client: Client,
    pub keeper: Keeper,
    pub origin: Origin,
    pub bus: Bus,
    pub inbound: InboundHandle,
    pub prefix: Prefix,
    /// The name of the one connection.
    pub connection: String,
    pub serves: Serves,
    /// Of all in `objects`; none where they are of all namespaces.
    pub namespace: Option<String>,
    pub objects: Store<PhaseManifest>,
    pub roster: Roster,
    pub remains: Remains,
    pub events: Events,
    pub voice: Voice,
    pub rivals: Rivals,
    /// Objects to look at again, though nobody edited them.
    pub wake: mpsc::UnboundedSender<ObjectRef<PhaseManifest>>,
    pub clock: Clock,
}

/// Between two looks at what other manifests have done, beside the word of those that run here.
const LOOK_ELSEWHERE: Duration = Duration::from_secs(5);

/// How far the cache may reasonably be behind a write of ours.
const CACHE_LAG: Duration = Duration::from_secs(1);

/// Before a session that nobody lets hear is begun again: whoever took its messages has stood by then.
const DEAF_PAUSE: Duration = Duration::from_secs(10);

/// Our own reading or writing failed; tried again with growing pauses.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the spec could not be judged")]
    Accept(#[from] accept::Error),
    #[error("a revision could not be kept")]
    Revision(#[from] revision::Error),
    #[error("the session could not be taken over")]
    TakeOver(#[from] StoreError),
    #[error("the API server did not do as it was asked")]
    Call(#[from] call::Error),
    #[error("the session has too many orders waiting")]
    Busy,
}

impl Error {
    /// One PascalCase word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Accept(error) => error.reason(),
            Self::Revision(error) => error.reason(),
            Self::TakeOver(_) => "TakeOverFailed",
            Self::Call(error) => error.reason(),
            Self::Busy => "SessionBusy",
        }
    }
}

/// Judges the object and does what is missing.
pub async fn reconcile(object: Arc<PhaseManifest>, context: &Context) -> Result<Action, Error> {
    if object.metadata.deletion_timestamp.is_some() {
        context.forget(&object);
        return Ok(Action::await_change());
    }
    if context.roster.with(uid(&object), |running| running.handle.is_stopping()) == Some(true) {
        // It takes no orders any more, and beside its last write another one of ours would take itself for the only one.
        return Ok(Action::requeue(CACHE_LAG));
    }
    if let Some(action) = context.settled(&object).await? {
        return Ok(action);
    }
    let accepted = match context.judge(&object).await? {
        Ok(accepted) => accepted,
        Err((refusal, message)) => return context.refuse(&object, refusal, message).await,
    };
    let running = context.roster.with(uid(&object), |running| running.generation);
    match running {
        // An older copy than the one acted on last: the cache lags behind our own writes.
        Some(generation) if generation > object.metadata.generation.unwrap_or_default() => Ok(Action::await_change()),
        Some(_) => context.order(&object, accepted).await,
        // What is held back is not begun, but the last revision goes on beside it, and does what is asked of it.
        None if accepted.is_held_back() && !goes_on(&object, &accepted) => context.stand(&object, &accepted).await,
        None => context.begin(&object).await,
    }
}

impl Context {
    /// Whether there is nothing to do: the verdict on this generation is written. Only its time to live may be left.
    async fn settled(&self, object: &PhaseManifest) -> Result<Option<Action>, Error> {
        let Some(status) = &object.status else { return Ok(None) };
        let is_judged = status.observed_generation == object.metadata.generation;
        let runs_here = self.roster.with(uid(object), |_| ()).is_some();
        // A refused or staged edit has an old verdict beside it, and is looked at again.
        let is_final =
            status.conditions.iter().any(|condition| condition.type_ == "Completed" && condition.status == "True");
        if !is_judged || status.verdict.is_none() || !is_final || runs_here {
            return Ok(None);
        }
        let Some(due) = due(object) else { return Ok(Some(Action::await_change())) };
        let left = Duration::try_from(due.duration_since(self.clock.now())).unwrap_or(Duration::ZERO);
        if !left.is_zero() {
            return Ok(Some(Action::requeue(left)));
        }
        let api: Api<PhaseManifest> = Api::namespaced(self.client.clone(), namespace(object));
        let unchanged = Preconditions {
            uid: object.metadata.uid.clone(),
            resource_version: object.metadata.resource_version.clone(),
        };
        let params = DeleteParams { preconditions: Some(unchanged), ..DeleteParams::default() };
        match call("delete the resource after its time", api.delete(name(object), &params)).await {
            Ok(_) => Ok(Some(Action::await_change())),
            Err(error) if error.is_not_found() => Ok(Some(Action::await_change())),
            // Somebody wrote in between: by an edit we come back here anyhow, by a label we would not.
            Err(error) if error.is_conflict() => Ok(Some(Action::requeue(CACHE_LAG))),
            Err(error) => Err(error.into()),
        }
    }

    async fn judge(&self, object: &PhaseManifest) -> Result<Result<Accepted, (Refusal, String)>, Error> {
        let accepted = match accept(&self.client, object).await? {
            Ok(accepted) => accepted,
            Err(refused) => return Ok(Err(refused)),
        };
        if accepted.connection != self.connection {
            let message =
                format!("spec.connection {} is none of this operator's: use {}", accepted.connection, self.connection);
            return Ok(Err((Refusal::UnknownConnection, message)));
        }
        let Some(own) = Claim::of(object) else { return Ok(Ok(accepted)) };
        let is_rival = |claim: &Claim| claim.session_id == own.session_id;
        let objects = self.objects.state();
        let near = objects.iter().filter(|object| Claim::may_be_to(object, &own.session_id));
        let claims: Vec<Claim> = near.filter_map(|object| Claim::of(object).filter(is_rival)).collect();
        Ok(claim::judge(&own, self.serves, claims.iter()).map(|()| accepted))
    }

    /// The spec is not acted on; a session that runs goes on with its last revision.
    async fn refuse(&self, object: &PhaseManifest, refusal: Refusal, message: String) -> Result<Action, Error> {
        let generation = object.metadata.generation.unwrap_or_default();
        self.events.session(&regarding(object)).refused(generation, refusal, &message);
        if !may_go_on(refusal) && self.roster.with(uid(object), |running| running.handle.stop()).is_some() {
            // What it stores comes first; then it is written why it stands.
            return Ok(Action::requeue(CACHE_LAG));
        }
        let refused = Refused { refusal, message: message.clone() };
        let told = self.tell(object, Order::Refuse { generation, refused })?;
        if !told && may_go_on(refusal) && is_unfinished(object) {
            return self.begin(object).await;
        }
        if !told {
            standing::write(&self.client, object, &Situation::Refused { refusal, message }, self.clock.now()).await?;
        }
        let elsewhere = self.look_elsewhere(object);
        // Both can be mended by what is not this resource: another one that goes away, a ConfigMap that comes.
        Ok(match refusal {
            Refusal::SessionTaken | Refusal::ManifestNotFound => Action::requeue(Duration::from_secs(10)),
            _ => elsewhere,
        })
    }

    /// Says of a spec that is held back what it would be, where nothing goes on beside it.
    async fn stand(&self, object: &PhaseManifest, accepted: &Accepted) -> Result<Action, Error> {
        let now = self.clock.now();
        if accepted.dry_run {
            let id = accepted.session_id.as_str();
            standing::write_planned(&self.client, object, id, &accepted.plan, now).await?;
        } else {
            standing::write(&self.client, object, &Situation::Staged, now).await?;
        }
        Ok(Action::await_change())
    }

    /// Gives the session its order, if it runs here.
    fn tell(&self, object: &PhaseManifest, order: Order) -> Result<bool, Error> {
        let generation = object.metadata.generation.unwrap_or_default();
        let told = self.roster.with(uid(object), |running| {
            let is_refused = matches!(order, Order::Refuse { .. } | Order::Stage { .. });
            running.handle.order(order).map_err(|_| Error::Busy)?;
            // Not before it was taken: one that was told nothing must be told when we come again.
            (running.generation, running.was_refused) = (generation, is_refused);
            Ok(())
        });
        told.transpose().map(|told| told.is_some())
    }

    /// The session runs here: a new revision, or the same plan under other settings.
    async fn order(&self, object: &PhaseManifest, accepted: Accepted) -> Result<Action, Error> {
        let generation = object.metadata.generation.unwrap_or_default();
        if accepted.is_held_back() {
            // Not told if it ended between two looks; then it is looked at again.
            self.tell(object, staging(generation, accepted))?;
            return Ok(self.look_elsewhere(object));
        }
        let at = self.roster.with(uid(object), |running| (running.digest, running.strategy, running.revision));
        let Some((digest, strategy, revision)) = at else { return self.begin(object).await };
        let is_edit = digest != *accepted.plan.digest() || strategy != accepted.strategy;
        let plan = Arc::clone(&accepted.plan);
        if self.roster.with(uid(object), |running| running.generation == generation && !running.was_refused)
            == Some(true)
        {
            return Ok(self.look_elsewhere(object));
        }
        if is_edit && accepted.update_policy == UpdatePolicy::Reject {
            return self.refuse(object, Refusal::UpdateRejected, REJECTED.to_owned()).await;
        }
        let edit = if is_edit { Some(self.next_revision(object, &accepted, revision + 1).await?) } else { None };
        let order = Order::Obey {
            generation,
            settings: Box::new(accepted.settings),
            requests: accepted.requests,
            edit: edit.clone(),
        };
        if self.tell(object, order)? {
            self.roster.with(uid(object), |running| {
                running.awaits = awaits(&plan);
                if let Some(edit) = &edit {
                    (running.revision, running.digest, running.strategy) =
                        (edit.revision, *edit.plan.digest(), edit.strategy);
                }
            });
            return Ok(self.look_elsewhere(object));
        }
        // It ended between two looks; what it stored is where the next one begins.
        self.begin(object).await
    }

    /// Tells the session what it waits for in other manifests and the cache knows done; and comes again later, because their
    /// statuses wake nobody.
    fn look_elsewhere(&self, object: &PhaseManifest) -> Action {
        let awaited = self.roster.with(uid(object), |running| running.awaits.clone()).unwrap_or_default();
        for wait in awaited.into_iter().filter(|wait| self.is_released(object, wait)) {
            let told = self.roster.with(uid(object), |running| {
                if running.awaits.remove(&wait) && running.handle.order(Order::Release(wait.clone())).is_err() {
                    running.awaits.insert(wait.clone());
                }
            });
            if told.is_none() {
                break;
            }
        }
        let is_waiting = self.roster.with(uid(object), |running| !running.awaits.is_empty()).unwrap_or(false);
        if is_waiting { Action::requeue(LOOK_ELSEWHERE) } else { Action::await_change() }
    }

    /// Keeps the plan under its number before anything is said of it.
    async fn next_revision(&self, object: &PhaseManifest, accepted: &Accepted, number: u64) -> Result<Edit, Error> {
        revision::store(&self.client, object, number, &accepted.plan, accepted.strategy).await?;
        // The one that the status names is what a crash would restore, until it names this one.
        let needed = status_revision(object).unwrap_or(0);
        revision::prune(&self.client, object, accepted.revision_history_limit, needed..number).await?;
        Ok(Edit {
            plan: Arc::clone(&accepted.plan),
            revision: number,
            strategy: accepted.strategy,
            keep: match accepted.update_policy {
                UpdatePolicy::Replace => Keep::Nothing,
                UpdatePolicy::Merge | UpdatePolicy::Reject => Keep::Unchanged,
            },
        })
    }

    /// Whether what is waited for elsewhere is done, as far as the cache knows.
    fn is_released(&self, object: &PhaseManifest, wait: &ExternalWait) -> bool {
        let is_it = |other: &PhaseManifest| name(other) == wait.manifest && namespace(other) == namespace(object);
        self.objects.state().iter().any(|other| is_it(other) && is_done(other, wait))
    }

    /// The resource is going: its session is cancelled on the bus, and its task ends.
    fn forget(&self, object: &PhaseManifest) -> Option<EndWatch> {
        let running = self.roster.remove(uid(object))?;
        running.handle.forget();
        Some(running.handle.watch())
    }

    /// The resource is gone: so is its session, and what the bus keeps of it.
    pub fn gone(&self, object: &PhaseManifest) {
        let end = self.forget(object);
        self.remains.remove(object, end);
    }

    /// The store was filled anew: what was deleted since the last time is told by nobody.
    pub fn forget_missing(&self) {
        let there: HashSet<String> = self.objects.state().iter().map(|object| uid(object).to_owned()).collect();
        let is_missing = |uid: &str, namespace: &str| {
            self.namespace.as_deref().is_none_or(|watched| watched == namespace) && !there.contains(uid)
        };
        for running in self.roster.remove_all(is_missing) {
            running.handle.forget();
        }
    }

    /// A task that panics takes its own session down and no other; its resource says so.
    fn watch_over(&self, object: &PhaseManifest, handle: &sessions::Handle) {
        let (client, object, mut end) = (self.client.clone(), identity(object), handle.watch());
        let (wake, clock) = (self.wake.clone(), self.clock);
        let rivals = self.rivals.clone();
        tokio::spawn(async move {
            match end.end().await {
                Some(End::Finished) => {
                    rivals.roster.forget_loss(uid(&object));
                    // Its time to live begins, and an edit that waited for the verdict; the cache has it by then.
                    tokio::time::sleep(CACHE_LAG).await;
                    drop(wake.unbounded_send(ObjectRef::from_obj(&object)));
                }
                Some(End::Stopped) => {}
                Some(End::Gone) => rivals.roster.forget_loss(uid(&object)),
                Some(End::Deaf) => {
                    // Whoever has the id now is judged anew; if it is ours after all, it is taken again.
                    tokio::time::sleep(DEAF_PAUSE).await;
                    drop(wake.unbounded_send(ObjectRef::from_obj(&object)));
                }
                Some(End::Deposed) => {
                    tracing::warn!(resource = name(&object), "another process has taken the session over");
                    Box::pin(rivals.stand_by(object)).await;
                }
                None => {
                    tracing::error!(resource = name(&object), "the session task panicked; the object is set aside");
                    // Boxed: the task is as large as the largest of its futures, and waits for as long as the session runs.
                    Box::pin(set_aside(&client, &object, "its session ended by a defect of the operator", clock)).await;
                }
            }
        });
    }
}

/// The last revision of a spec that is held back has something to do: it has no verdict, or is asked for something.
fn goes_on(object: &PhaseManifest, accepted: &Accepted) -> bool {
    let is_answered = |token: &str| {
        object.status.as_ref().is_some_and(|status| status.requests.iter().any(|request| request.token == token))
    };
    is_unfinished(object)
        || (status_revision(object).is_some() && !accepted.requests.iter().all(|request| is_answered(&request.token)))
}

/// Whose id it is not, or whose bus, must not speak; any other unfinished session goes on as it was.
fn may_go_on(refusal: Refusal) -> bool {
    !matches!(refusal, Refusal::SessionTaken | Refusal::UnknownConnection | Refusal::StatusUnreadable)
}

fn staging(generation: i64, accepted: Accepted) -> Order {
    Order::Stage { generation, settings: Box::new(accepted.settings), requests: accepted.requests }
}

/// A revision has started and has no verdict.
fn is_unfinished(object: &PhaseManifest) -> bool {
    let has_verdict = object.status.as_ref().is_some_and(|status| status.verdict.is_some());
    status_revision(object).is_some() && !has_verdict
}

fn awaits(plan: &Plan) -> BTreeSet<ExternalWait> {
    plan.phases().iter().flat_map(|phase| phase.spec.wait_for_others.iter().cloned()).collect()
}

/// Writes that the object is left alone until it is edited, onto the object as it is now.
pub async fn set_aside(client: &Client, object: &PhaseManifest, why: &str, clock: Clock) {
    let api: Api<PhaseManifest> = Api::namespaced(client.clone(), namespace(object));
    let situation = Situation::Refused {
        refusal: Refusal::SetAside,
        message: format!("set aside: {why}; the operator's log says more; an edit is tried again"),
    };
    let written = async {
        let fresh = call("read the resource", api.get(name(object))).await?;
        standing::write(client, &fresh, &situation, clock.now()).await
    };
    if let Err(error) = written.await {
        tracing::warn!(resource = name(object), %error, "cannot write that the object is set aside");
    }
}

/// When `spec.ttlAfterFinished` is over.
fn due(object: &PhaseManifest) -> Option<Timestamp> {
    let orders = crate::resource::Orders::new(&object.spec).ok()?;
    let finished = object.status.as_ref()?.finished_at?.get();
    finished.checked_add(jiff::SignedDuration::try_from(orders.ttl_after_finished?).ok()?).ok()
}

/// The revision that has started; nothing before the first, and after a dry run.
fn status_revision(object: &PhaseManifest) -> Option<u64> {
    u64::try_from(object.status.as_ref()?.revision?).ok()
}

/// Whether the other manifest's status says that the phase is done.
fn is_done(other: &PhaseManifest, wait: &ExternalWait) -> bool {
    let Some(status) = &other.status else { return false };
    let row = status.phases.iter().find(|row| row.id == wait.phase.as_str());
    match row {
        Some(row) => matches!(row.state.as_str(), "Complete" | "Skipped") || (row.state == "Failed" && row.ignored),
        // Finished rows of large manifests are letters only: of one that succeeded, every wanted phase is done.
        None => status.outcomes.is_some() && status.verdict.as_deref() == Some("Succeeded"),
    }
}

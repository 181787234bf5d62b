//! Kubernetes Events: the story of a session for `kubectl describe`.
//!
//! Telling must never hold up doing. So there is a bounded queue and one task behind it: what does not fit is dropped
//! and counted. An Event is named by when it was told, because `kubectl describe` lists Events in the order of their
//! names, and by what happened, so that the same thing told twice, by this process or by the next leader, is one Event.
//! Needs `create` and `list` on `events.events.k8s.io`; without `list` the next leader tells some of it again.

mod bucket;
mod story;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client, Resource,
    api::{ListParams, PostParams},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};

pub use self::story::{NOTE_BYTES_MAX, Reason, TOLD_IN_FULL_MAX, Tale, Weight};
use self::{bucket::Bucket, story::tale};
use super::{
    call::{self, call},
    labels::RefusedLabel,
};
use crate::{
    engine::{Output, Session},
    resource::{ConditionReason, PhaseManifest, Refusal},
    sessions::Clock,
};

/// Who speaks, in every Event.
pub const CONTROLLER: &str = "pmp.dev/operator";

/// Events that wait for the API server; some 1 KiB each.
const QUEUE_MAX: usize = 4096;

/// Of one session's phases: a story at once, then one every so often.
const BURST: u32 = 25;
const EVERY: Duration = Duration::from_secs(10);

/// Tries for one Event, and the pause before the second; it doubles.
const TRIES_MAX: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// Things told that are remembered, so that a runtime that repeats itself costs no calls.
const REMEMBERED_MAX: usize = 256;

/// Objects of which the poster knows what was told; the oldest knowledge is cheap to ask for again.
const OBJECTS_MAX: usize = 1024;
/// Events of one object that are looked through: more than its budget makes in the hour that they are kept.
const TOLD_MAX: u32 = 500;

/// Longest name of an object, and of the instance in an Event.
const NAME_BYTES_MAX: usize = 253;
const INSTANCE_BYTES_MAX: usize = 128;

/// What became of Events since the process began. For metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Taken by the API server, or there before.
    pub posted: u64,
    /// Over a session's budget, or the queue was full.
    pub dropped: u64,
    /// Refused, or not taken in time.
    pub failed: u64,
}

#[derive(Debug, Default)]
struct Tally {
    posted: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

enum Work {
    Post(Box<Event>),
    /// Everything before it has been tried.
    Mark(oneshot::Sender<()>),
}

/// The way to the queue. Cloning is a reference count; the task ends with the last clone and the last session.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<Work>,
    reporter: Arc<str>,
    tally: Arc<Tally>,
    clock: Clock,
}

/// Tells of one object, within a budget.
#[derive(Debug)]
pub struct SessionEvents {
    events: Events,
    regarding: ObjectReference,
    bucket: Bucket,
    told: HashSet<String>,
    /// The time in the last name: of two things told within a millisecond, the second is named by the next one.
    last_millis: i64,
}

impl Events {
    /// Starts the task. `reporter` names this process (`reportingInstance`).
    pub fn start(client: Client, reporter: &str, clock: Clock) -> Self {
        let (queue, work) = mpsc::channel(QUEUE_MAX);
        let tally = Arc::new(Tally::default());
        tokio::spawn(post_all(client, work, Arc::clone(&tally)));
        let reporter = match &reporter[..reporter.floor_char_boundary(INSTANCE_BYTES_MAX)] {
            "" => CONTROLLER,
            reporter => reporter,
        };
        Self { queue, reporter: reporter.into(), tally, clock }
    }

    /// To tell of this object; see [`regarding`]. The budget is the caller's to keep: make one a session, not one an Event.
    pub fn session(&self, regarding: &ObjectReference) -> SessionEvents {
        SessionEvents {
            events: self.clone(),
            regarding: regarding.clone(),
            bucket: Bucket::new(BURST, EVERY, Instant::now()),
            told: HashSet::new(),
            last_millis: 0,
        }
    }

    pub fn counters(&self) -> Counters {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counters {
            posted: read(&self.tally.posted),
            dropped: read(&self.tally.dropped),
            failed: read(&self.tally.failed),
        }
    }

    /// Waits until what was told so far has been tried, at most for so long; false if that was too short.
    pub async fn flush(&self, within: Duration) -> bool {
        let (mark, marked) = oneshot::channel();
        let flushed = async {
            self.queue.send(Work::Mark(mark)).await.ok()?;
            marked.await.ok()
        };
        matches!(timeout(within, flushed).await, Ok(Some(())))
    }
}

/// The object as Events point to it, with uid and resourceVersion.
pub fn regarding(object: &PhaseManifest) -> ObjectReference {
    ObjectReference { resource_version: object.metadata.resource_version.clone(), ..object.object_ref(&()) }
}

impl SessionEvents {
    /// Tells what there is to tell of an output. Never waits.
    pub fn hear(&mut self, output: &Output, session: &Session) {
        if let Some(tale) = tale(output, session) {
            self.tell(&tale);
        }
    }

    /// Tells that the spec of this generation is not acted on.
    pub fn refused(&mut self, generation: i64, refusal: Refusal, message: &str) {
        let reason: ConditionReason = refusal.reason();
        let id = format!("refused/{generation}/{}/{message}", reason.as_str());
        self.tell(&Tale::new(Reason::Refused(reason), Weight::Warning, id, message));
    }

    /// Tells which labels of a handler are not on the resource.
    pub fn labels_refused(&mut self, labels: &[RefusedLabel]) {
        for label in labels {
            let id = format!("label/{}/{}", label.key, label.value);
            let note = format!("the label {}={} was not put onto the resource: {}", label.key, label.value, label.why);
            self.tell(&Tale::new(Reason::LabelRefused, Weight::Warning, id, &note));
        }
    }

    fn tell(&mut self, tale: &Tale) {
        let hash = self.hash(&tale.id);
        if self.told.contains(&hash) {
            return;
        }
        let now = self.events.clock.now();
        self.last_millis = now.as_millisecond().max(self.last_millis + 1);
        let event = self.event(tale, now, &hash);
        // However much the phases had to say, how it ended is told; the session's own turns are few.
        let is_within = tale.reason.is_of_session() || self.bucket.take(Instant::now());
        let is_told = is_within && self.events.queue.try_send(Work::Post(Box::new(event))).is_ok();
        if is_told {
            if self.told.len() == REMEMBERED_MAX {
                self.told.clear();
            }
            self.told.insert(hash);
        } else {
            self.events.tally.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn event(&self, tale: &Tale, now: Timestamp, hash: &str) -> Event {
        Event {
            metadata: ObjectMeta {
                name: Some(self.name(hash)),
                namespace: self.regarding.namespace.clone(),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.events.reporter.as_ref().to_owned()),
            regarding: Some(self.regarding.clone()),
            action: Some(tale.reason.action().to_owned()),
            reason: Some(tale.reason.as_str().to_owned()),
            type_: Some(tale.weight.as_str().to_owned()),
            note: Some(tale.note.clone()),
            ..Event::default()
        }
    }

    /// What happened, to this very object: the same whoever tells it.
    fn hash(&self, id: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(self.regarding.uid.as_deref().unwrap_or_default());
        hash.update([0]);
        hash.update(id);
        let bits = hash.finalize()[..8].iter().fold(0_u64, |bits, &byte| bits << 8 | u64::from(byte));
        format!("{bits:016x}")
    }

    /// `<name of the object>.<milliseconds since 1970, hex>-<hash of what happened>`. The new Events API takes none of
    /// the timestamps that `kubectl describe` sorts by, and leaves it the order of the names.
    fn name(&self, hash: &str) -> String {
        let tail = format!(".{:012x}-{hash}", self.last_millis);
        let name = self.regarding.name.as_deref().unwrap_or_default();
        let head = name[..name.len().min(NAME_BYTES_MAX - tail.len())].trim_end_matches(['.', '-']);
        format!("{head}{tail}")
    }
}

/// One at a time: a call takes a millisecond or two, and a server that is slow is not asked for more.
async fn post_all(client: Client, mut work: mpsc::Receiver<Work>, tally: Arc<Tally>) {
    let mut is_denied = false;
    let mut past = Past::default();
    while let Some(next) = work.recv().await {
        let event = match next {
            Work::Post(event) => event,
            Work::Mark(mark) => {
                // Who asked may have stopped waiting.
                let _ = mark.send(());
                continue;
            }
        };
        match past.post(&client, &event).await {
            Ok(()) => {
                tally.posted.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                tally.failed.fetch_add(1, Ordering::Relaxed);
                // A namespace that is going away forbids too; said once, it is in the log.
                if error.is_forbidden() && !std::mem::replace(&mut is_denied, true) {
                    tracing::warn!(error = &error as &dyn std::error::Error, "Events are not written");
                } else {
                    tracing::debug!(error = &error as &dyn std::error::Error, "an Event is not written");
                }
            }
        }
    }
}

/// What was told of each object, by this process and by those before it: the hashes at the end of the names.
#[derive(Default)]
struct Past(HashMap<String, HashSet<String>>);

impl Past {
    async fn post(&mut self, client: &Client, event: &Event) -> Result<(), call::Error> {
        let uid = event.regarding.as_ref().and_then(|about| about.uid.clone()).unwrap_or_default();
        if !self.0.contains_key(&uid) {
            if self.0.len() == OBJECTS_MAX {
                self.0.clear();
            }
            // Not knowing the past is no reason to be silent.
            let told = told(client, event, &uid).await.unwrap_or_default();
            self.0.insert(uid.clone(), told);
        }
        let told = self.0.entry(uid).or_default();
        let Some(hash) = hash_in(event) else { return post(client, event).await };
        if told.contains(hash) {
            return Ok(());
        }
        post(client, event).await?;
        if told.len() == TOLD_MAX as usize {
            told.clear();
        }
        told.insert(hash.to_owned());
        Ok(())
    }
}

fn hash_in(event: &Event) -> Option<&str> {
    event.metadata.name.as_deref()?.rsplit_once('-').map(|(_, hash)| hash)
}

/// The hashes of all that the API server still has of the object that this Event is about.
async fn told(client: &Client, event: &Event, uid: &str) -> Result<HashSet<String>, call::Error> {
    let api: Api<Event> = Api::namespaced(client.clone(), event.metadata.namespace.as_deref().unwrap_or_default());
    let of_it = ListParams::default().fields(&format!("regarding.uid={uid}")).limit(TOLD_MAX);
    let found = call("list Events", api.list(&of_it)).await?;
    Ok(found.items.iter().filter_map(hash_in).map(str::to_owned).collect())
}

async fn post(client: &Client, event: &Event) -> Result<(), call::Error> {
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let mut tries = 1;
    loop {
        match call("write an Event", api.create(&PostParams::default(), event)).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_already_exists() => return Ok(()),
            Err(error) if error.is_final() || tries == TRIES_MAX => return Err(error),
            Err(_) => sleep(PAUSE * 2_u32.pow(tries - 1)).await,
        }
        tries += 1;
    }
}

#[cfg(test)]
mod tests;

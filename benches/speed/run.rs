//! One measured run: objects are created, a watch tells when the last of them is done, and the meters are read.
//!
//! The controller is a black box here, ours or a peer's: this knows only what an object looks like when it is done.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
    core::{ApiResource, DynamicObject, Object},
    runtime::watcher::{self, watcher},
};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{
    floor::Floor,
    meter::{CpuReading, Writes, memory_mib},
    stats::{median_and_p99, millis},
};

/// Clients that create objects at the same time.
const CREATORS: usize = 8;
/// A run that takes longer has not finished.
const RUN_MAX: Duration = Duration::from_mins(4);
/// After the end Events and labels come late, one after the other: there are no more when none came for so long.
const LATE: Duration = Duration::from_secs(2);
/// Whoever still writes then writes for ever.
const LATE_MAX: Duration = Duration::from_mins(1);
/// For as many idle resources as there are.
const CLEAR_MAX: Duration = Duration::from_mins(15);

/// As much of an object as is needed to see that it is done.
pub type Seen = Object<Ignored, SeenStatus>;

#[derive(Debug, Clone, Deserialize)]
pub struct Ignored {}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct SeenStatus {
    pub conditions: Vec<SeenCondition>,
    /// Rows of a PhaseManifest.
    pub phases: Vec<IgnoredAny>,
    pub revision: Option<i64>,
    /// Of a Workflow.
    pub phase: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct SeenCondition {
    #[serde(rename = "type")]
    pub name: String,
    pub status: String,
}

/// What is to be run.
pub struct Job<'a> {
    pub client: &'a Client,
    pub namespace: &'a str,
    pub resource: ApiResource,
    pub objects: Vec<Value>,
    /// Whether the object is done, and if so whether well.
    pub judge: fn(&Seen) -> Option<bool>,
    pub controller: u32,
}

/// What a run showed.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Every object was done, and well, in time.
    pub ok: bool,
    /// From the first POST sent to the watch event that shows the last object done.
    pub makespan_ms: f64,
    /// The same from the API server's first answer.
    pub after_answer_ms: f64,
    /// From one step's beginning to the next one's, at the runtime: chains only.
    pub hop: Option<Hop>,
    /// CPU seconds by program, from the first POST to the end.
    pub cpu_s: BTreeMap<String, f64>,
    pub noise: f64,
    pub controller_peak_mib: f64,
    /// Writes that the API server counted, without the creates of the bench itself.
    pub writes: Writes,
    /// Rows in the status that first names a revision: what the write that starts one carries.
    pub rows_at_start: Option<usize>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Hop {
    pub median_ms: f64,
    pub p99_ms: f64,
    /// Measured just before, on the same server.
    pub floor: Option<Floor>,
}

impl Hop {
    pub fn of(begun: &[Instant], floor: Option<Floor>) -> Self {
        let hops: Vec<Duration> = begun.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let (median_ms, p99_ms) = median_and_p99(&hops);
        Self { median_ms, p99_ms, floor }
    }

    pub fn over_floor(&self) -> Option<f64> {
        self.floor.map(|floor| self.median_ms / floor.median_ms)
    }
}

/// Runs it once, and clears the objects away.
pub async fn run(job: Job<'_>) -> Figures {
    let kind = job.resource.plural.clone();
    let count = job.objects.len();
    let seen: Api<Seen> = Api::namespaced_with(job.client.clone(), job.namespace, &job.resource);
    let (to, mut sights) = mpsc::unbounded_channel();
    let watching = tokio::spawn(watch(seen, job.judge, to));
    let _ = tokio::time::timeout(RUN_MAX, sights.recv()).await.expect("the watch begins");

    let writes = Writes::read(job.client).await;
    let cpu = CpuReading::now();
    let began = Instant::now();
    let answered = create(&job).await;
    let mut figures = Figures {
        ok: true,
        makespan_ms: f64::NAN,
        after_answer_ms: f64::NAN,
        hop: None,
        cpu_s: BTreeMap::new(),
        noise: 0.0,
        controller_peak_mib: 0.0,
        writes: Writes::default(),
        rows_at_start: None,
    };
    let mut done = BTreeMap::new();
    let deadline = tokio::time::Instant::now() + RUN_MAX;
    while done.len() < count {
        match tokio::time::timeout_at(deadline, sights.recv()).await {
            Ok(Some(Sight::Done { name, at, is_good })) => {
                figures.ok &= is_good;
                done.insert(name, at);
            }
            Ok(Some(Sight::Started { rows })) => {
                figures.rows_at_start = Some(figures.rows_at_start.unwrap_or_default().max(rows));
            }
            Ok(Some(Sight::Synced)) => {}
            Ok(None) | Err(_) => {
                figures.ok = false;
                break;
            }
        }
    }
    let used = CpuReading::now().since(&cpu);
    watching.abort();
    if let Some(ended) = done.values().max() {
        figures.makespan_ms = millis(*ended - began);
        figures.after_answer_ms = millis(*ended - answered);
    }
    (figures.cpu_s, figures.noise) = (used.seconds, used.noise);
    figures.controller_peak_mib = memory_mib(job.controller).1;
    let own = u64::try_from(count).unwrap_or(u64::MAX);
    figures.writes = all_writes(job.client).await.since(&writes).without(&format!("POST {kind}"), own);
    clear(job.client, job.namespace, &job.resource).await;
    figures
}

/// What the API server has counted once no more is written.
async fn all_writes(client: &Client) -> Writes {
    let began = Instant::now();
    let mut last = Writes::read(client).await;
    while began.elapsed() < LATE_MAX {
        tokio::time::sleep(LATE).await;
        let now = Writes::read(client).await;
        if now == last {
            break;
        }
        last = now;
    }
    last
}

/// Creates them all; says when the first answer came.
async fn create(job: &Job<'_>) -> Instant {
    let api: Api<DynamicObject> = Api::namespaced_with(job.client.clone(), job.namespace, &job.resource);
    let answers = stream::iter(&job.objects).map(|object| {
        let api = api.clone();
        async move {
            let object: DynamicObject = serde_json::from_value(object.clone()).expect("the bench made this object");
            api.create(&PostParams::default(), &object).await.expect("a new object is taken");
            Instant::now()
        }
    });
    let answers: Vec<Instant> = answers.buffer_unordered(CREATORS).collect().await;
    answers.into_iter().min().expect("there is at least one object")
}

/// Deletes what the run made, and returns when the API server has none left. Ten thousand take it longer than the minute
/// that it gives a call: it breaks that off, and the next goes on.
pub async fn clear(client: &Client, namespace: &str, resource: &ApiResource) {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let began = Instant::now();
    loop {
        let deleted = api.delete_collection(&DeleteParams::default(), &ListParams::default()).await;
        if api.list_metadata(&ListParams::default().limit(1)).await.is_ok_and(|list| list.items.is_empty()) {
            return;
        }
        assert!(began.elapsed() < CLEAR_MAX, "objects are left: {:?}", deleted.err());
    }
}

enum Sight {
    /// The watch has begun: what is created from now on is seen.
    Synced,
    /// A revision was named, with so many rows.
    Started {
        rows: usize,
    },
    Done {
        name: String,
        at: Instant,
        is_good: bool,
    },
}

async fn watch(api: Api<Seen>, judge: fn(&Seen) -> Option<bool>, to: mpsc::UnboundedSender<Sight>) {
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
    let mut started = std::collections::BTreeSet::new();
    while let Some(event) = events.next().await {
        let sight = match event {
            Ok(watcher::Event::InitDone) => Sight::Synced,
            Ok(watcher::Event::Apply(object)) => {
                let status = object.status.as_ref();
                if status.is_some_and(|status| status.revision.is_some()) && started.insert(object.name_any()) {
                    let rows = status.map_or(0, |status| status.phases.len());
                    let _ = to.send(Sight::Started { rows });
                }
                match judge(&object) {
                    Some(is_good) => Sight::Done { name: object.name_any(), at: Instant::now(), is_good },
                    None => continue,
                }
            }
            _ => continue,
        };
        if to.send(sight).is_err() {
            return;
        }
    }
}

//! Runtimes under the operator's own session task, whose process ends at any moment and forgets what it had not stored.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use pmp::{
    bus::{Bus, Inbound, InboundHandle},
    engine::{Record, Session, Settings, Strategy, Verdict},
    manifest::{self, Format, OtherKinds, Plan},
    protocol::{Prefix, SessionId},
    runtime::{Handle, Job, Outcome, Work},
    sessions::{self, Clock, LocalStore, Origin, Past, Start},
};
use serde_json::{Value, json};
use tokio::{runtime::Runtime as Tokio, sync::watch, time::timeout};

use super::{DEADLINE, listening, options};
use crate::{
    bus::{connected, options as connection},
    support::{shared_nats, unique},
    tasks::Deaf,
};

/// The part of an operator that runs one session, on threads of its own: ending those is its kill -9.
pub struct Operator {
    /// There until it ends.
    threads: Option<Tokio>,
    stored: watch::Receiver<Arc<Record>>,
}

impl Operator {
    /// A new session, or one that goes on from what was stored.
    pub async fn start(bus: &Bus, prefix: &Prefix, plan: &Arc<Plan>, stored: Option<Arc<Record>>) -> Self {
        let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let settings = Settings { timeouts: quick(), ..Settings::default() };
        let (clock, uid) = (Clock::System, "3f1c6f5e-uid");
        let past = if stored.is_some() { Past::Stored } else { Past::None };
        let session = match stored {
            None => Session::start(uid, Arc::clone(plan), 1, Strategy::Hybrid, settings, clock.now()),
            Some(record) => Session::restore(uid, Arc::clone(plan), (*record).clone(), settings, clock.now()),
        };
        let (picture, stored) = watch::channel(Arc::new(session.record()));
        let (bus, prefix) = (bus.clone(), prefix.clone());
        let started = threads.spawn(async move {
            let inbound = Inbound::run(bus.clone(), prefix.clone(), "here".to_owned()).await.unwrap();
            let start = Start {
                session,
                id: SessionId::new("s1").unwrap(),
                prefix,
                origin: Origin("here".to_owned()),
                generation: 1,
                orders: Vec::new(),
                past,
                position: None,
                clock,
            };
            let task = sessions::spawn(bus, &inbound, start, LocalStore(picture), Deaf);
            tokio::spawn(live(task, inbound));
        });
        started.await.unwrap();
        Self { threads: Some(threads), stored }
    }

    /// Ends it between two effects; answers with what it had stored.
    fn kill(mut self) -> Arc<Record> {
        self.end();
        self.stored.borrow().clone()
    }

    fn end(&mut self) {
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }

    pub async fn verdict(&mut self) -> Option<Verdict> {
        let over = self.stored.wait_for(|record| record.verdict.is_some());
        timeout(DEADLINE, over).await.expect("the session ends").unwrap().verdict
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.end();
    }
}

/// For as long as its threads.
async fn live(task: sessions::Handle, _inbound: InboundHandle) {
    let mut end = task.watch();
    end.end().await;
    std::future::pending::<()>().await;
}

fn quick() -> pmp::engine::Timeouts {
    pmp::engine::Timeouts { offer: Duration::from_millis(300), ..Settings::default().timeouts }
}

/// Work of some milliseconds that counts how often each phase was begun.
#[derive(Clone, Default)]
struct Counting(Arc<Mutex<BTreeMap<String, usize>>>, Arc<watch::Sender<usize>>);

impl Work for Counting {
    async fn run(&self, job: &Job, _: &Handle) -> Outcome {
        *self.0.lock().unwrap().entry(job.phase.to_string()).or_default() += 1;
        tokio::time::sleep(Duration::from_millis(15)).await;
        self.1.send_modify(|ended| *ended += 1);
        Outcome::complete()
    }
}

/// `layers` rows of four, each waiting for one of the row before.
fn layered(layers: usize) -> Arc<Plan> {
    let phases: Vec<Value> = (0..layers * 4)
        .map(|n| {
            let waits: Vec<String> = n.checked_sub(4).map(|before| format!("p{before}")).into_iter().collect();
            json!({"kind": "Phase", "id": format!("p{n}"), "spec": {"waitFor": {"phases": waits}}})
        })
        .collect();
    plan(&json!(phases))
}

pub fn plan(phases: &Value) -> Arc<Plan> {
    let document = manifest::parse(phases.to_string().as_bytes(), Format::Json, OtherKinds::Refuse).unwrap();
    Arc::new(document.plan)
}

/// Runs 60 phases on three runtimes under operators that are killed at these counts of ended phases.
async fn killed_at(operator_bus: Bus, runtime_bus: Bus, counts: impl IntoIterator<Item = usize>) {
    let prefix = Prefix::new(&unique("runtime.sessions")).unwrap();
    let (plan, work) = (layered(15), Counting::default());
    let mut runtimes = Vec::new();
    for (name, labels) in [("a", &["site=lab"][..]), ("b", &["site=lab"]), ("c", &[])] {
        runtimes.push(listening(&runtime_bus, options(name, &prefix, labels), work.clone()).await);
    }
    let mut operator = Operator::start(&operator_bus, &prefix, &plan, None).await;
    let mut ended = work.1.subscribe();
    for count in counts {
        timeout(DEADLINE, ended.wait_for(|ended| *ended >= count)).await.expect("phases end").unwrap();
        let stored = operator.kill();
        operator = Operator::start(&operator_bus, &prefix, &plan, Some(stored)).await;
    }
    assert_eq!(operator.verdict().await, Some(Verdict::Succeeded));
    let begun = work.0.lock().unwrap().clone();
    assert_eq!(begun.len(), 60);
    assert!(begun.values().all(|&times| times == 1), "{begun:?}");
}

#[tokio::test]
async fn an_operator_killed_at_any_count_of_ended_phases_runs_each_once() {
    let run = async |first: usize| {
        let bus = Bus::memory();
        killed_at(bus.clone(), bus, (first..60).step_by(12)).await;
    };
    futures::future::join_all((0..12).map(run)).await;
}

#[tokio::test]
async fn over_nats_an_operator_killed_now_and_then_runs_each_phase_once() {
    let server = shared_nats().await;
    let bus = connected(connection(server)).await;
    killed_at(connected(connection(server)).await, bus, (5..60).step_by(11)).await;
}

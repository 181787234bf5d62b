//! One schedule from its beginning to its end: servers, operator, runtimes and a person, on one thread in virtual time.

mod storm;

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use pmp::{
    bus::Message,
    controller::{self, Options, Scope, View, heart::Heart, labels::LabelRules},
    protocol::{Channel, Prefix, SessionId},
    sessions::Clock,
};
use rand::RngExt;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    api::{ApiServer, NAMESPACE},
    bus::{Nats, Server},
    checks::state_of,
    fates::{Effect, Fates, Sky},
    peer::invite,
    scenarios::{Bears, Expected, Runtimes, Scenario},
    worker::{Script, hire},
    world::{Door, Role, Shared},
};

/// Longest virtual time until a schedule has to be where it should, once nothing goes wrong any more.
const PATIENCE: Duration = Duration::from_mins(30);
/// How long nothing may happen once all is done.
const QUIET: Duration = Duration::from_mins(10);
/// How long a storm lasts, and how long one that is only watched.
const STORM: Duration = Duration::from_mins(1);

/// What is asked of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// That no promise is broken, whatever goes wrong.
    Safety,
    /// That once nothing goes wrong any more the session gets where the reference says, and then is silent.
    Liveness,
}

/// What makes a schedule, beside its scenario. The same gives the same.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    pub seed: u64,
    pub sky: Sky,
    pub server: Server,
    pub mode: Mode,
}

/// What came of it.
pub struct Outcome {
    pub hash: u64,
    pub effects: Vec<Effect>,
    pub violations: Vec<String>,
    pub lines: Vec<String>,
}

/// What scenarios act on. Cloning is a reference count.
#[derive(Clone)]
pub struct Stage(Arc<Inner>);

struct Inner {
    shared: Shared,
    api: ApiServer,
    nats: Nats,
    clock: Clock,
    prefix: Prefix,
    operator: Mutex<Door>,
    /// Of that operator.
    stop: Mutex<CancellationToken>,
    runtimes: Mutex<Vec<Door>>,
    sky: Sky,
    /// Streams may lose what they keep.
    wipes: bool,
    /// Of runtimes that may die: what whoever takes their place does.
    deaths: Option<Script>,
    /// Phases may be tried again in this storm.
    is_tough: bool,
}

/// Plays the scenario.
pub fn play(scenario: &Scenario, schedule: Schedule) -> Outcome {
    // The jitter of kube's own watches.
    fastrand::seed(schedule.seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime of one thread needs nothing").block_on(async {
        let stage = Stage::new(scenario, schedule);
        stage.open(scenario).await;
        let broken = stage.violated();
        tokio::select! {
            biased;
            () = broken => {}
            () = stage.run(scenario, schedule) => {}
        }
        let shared = &stage.0.shared;
        Outcome {
            hash: shared.trace.hash(),
            effects: shared.fates.kinds(),
            violations: shared.trace.violations(),
            lines: shared.trace.lines(),
        }
    })
}

impl Stage {
    fn new(scenario: &Scenario, Schedule { seed, sky, server, .. }: Schedule) -> Self {
        let epoch: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a legal time");
        let clock = Clock::Since { epoch, began: Instant::now() };
        let at_first = match sky {
            Sky::Storm(_) if scenario.bears == Bears::Nothing => Sky::Calm,
            sky => sky,
        };
        let shared = Shared::new(Fates::new(seed, at_first));
        let api = ApiServer::new(clock, shared.clone());
        let nats = Nats::new(clock, shared.clone(), server);
        let prefix = Prefix::new("plan.session").expect("the protocol's own prefix");
        let operator = Mutex::new(Door::new("nobody", Role::Operator));
        let (stop, runtimes) = (Mutex::default(), Mutex::default());
        let climate = if let Sky::Storm(climate) = sky { Some(climate) } else { None };
        let wipes = climate.is_some_and(|climate| climate.wipes) && scenario.bears != Bears::Nothing;
        let deaths = match scenario.runtimes {
            Runtimes::Workers(script) if scenario.bears == Bears::Deaths => {
                climate.filter(|climate| climate.deaths).map(|_| script)
            }
            Runtimes::Workers(_) | Runtimes::EarlyPeer(_) => None,
        };
        let is_lossy = climate.is_some_and(|climate| climate.deaths || climate.lost > 0.0 || climate.held > 0.0);
        let is_tough = is_lossy && scenario.bears == Bears::Deaths;
        Self(Arc::new(Inner {
            shared,
            api,
            nats,
            clock,
            prefix,
            operator,
            stop,
            runtimes,
            sky,
            wipes,
            deaths,
            is_tough,
        }))
    }

    async fn open(&self, scenario: &Scenario) {
        let Inner { nats, shared, prefix, .. } = &*self.0;
        let doors = match scenario.runtimes {
            Runtimes::Workers(script) => vec![
                hire("worker-1", nats, shared, prefix, script).await,
                hire("worker-2", nats, shared, prefix, script).await,
            ],
            Runtimes::EarlyPeer(habit) => vec![invite("peer", nats, shared, prefix, habit).await],
        };
        *self.0.runtimes.lock().expect("nobody panics while holding it") = doors;
        tokio::spawn(self.clone().keep_operator());
        tokio::spawn(self.clone().cut_history());
    }

    async fn run(&self, scenario: &Scenario, Schedule { sky, mode, .. }: Schedule) {
        let shared = &self.0.shared;
        if let Sky::Storm(climate) = sky {
            let storm = tokio::spawn(self.clone().storm());
            if mode == Mode::Safety {
                if climate.rivals {
                    tokio::spawn(self.clone().rivals());
                }
                let _ = timeout(STORM * 2, (scenario.script)(self)).await;
                sleep(STORM).await;
                return;
            }
            let stage = self.clone();
            tokio::spawn(async move {
                sleep(STORM).await;
                storm.abort();
                stage.clear_up();
            });
        }
        if timeout(PATIENCE, (scenario.script)(self)).await.is_err() {
            return shared.trace.violation("the scenario came to no end".to_owned());
        }
        if let Sky::Storm(_) = sky {
            sleep(STORM).await;
        }
        let expected = &scenario.expected;
        if timeout(PATIENCE, self.until_is(expected)).await.is_err() {
            let object = self.0.api.manifest("boot");
            let status = object.as_ref().map(|object| &object["status"]);
            return shared.trace.violation(format!("not where it should be ({expected:?}): {status:?}"));
        }
        // Events follow at their own pace, and streams that somebody deleted are made anew once a minute.
        sleep(if self.0.wipes { Duration::from_mins(2) } else { Duration::from_secs(30) }).await;
        let before = shared.fates.effects();
        sleep(QUIET).await;
        let after = shared.fates.effects();
        if before != after {
            shared.trace.violation(format!("{} effects after everything was done", after - before));
        }
        if !matches!(sky, Sky::Storm(_)) {
            for (phase, least, most) in scenario.executions {
                let times = shared.checks.times_executed(phase);
                if times < *least || times > *most {
                    shared.trace.violation(format!("{phase} ran {times} times instead of {least} to {most}"));
                }
            }
        }
    }

    async fn violated(&self) {
        let trace = &self.0.shared.trace;
        loop {
            let changed = trace.changed();
            if trace.is_broken() {
                return;
            }
            changed.await;
        }
    }

    fn clear_up(&self) {
        self.0.shared.trace.note(format_args!("the sky clears up"));
        self.0.shared.fates.clear_up();
        self.0.nats.mend(&self.operator());
        for door in self.runtimes() {
            self.0.nats.mend(&door);
        }
    }

    // === the operator ===

    /// Starts the operator, and another one a while after each that dies.
    async fn keep_operator(self) {
        for number in 1.. {
            let door = Door::new(&format!("operator-{number}"), Role::Operator);
            *self.0.operator.lock().expect("nobody panics while holding it") = door.clone();
            self.0.shared.trace.note(format_args!("{door} starts"));
            let stop = CancellationToken::new();
            *self.0.stop.lock().expect("nobody panics while holding it") = stop.clone();
            let mut process = tokio::spawn(controller::run(self.options(&door), stop));
            tokio::select! {
                biased;
                () = door.shut_down() => {}
                _ = &mut process => door.shut(),
            }
            // What of it still runs is behind a shut door; this ends most of it.
            process.abort();
            self.0.nats.forget(&door);
            self.0.shared.trace.note(format_args!("{door} is dead"));
            let pause = self.0.shared.fates.throw(|dice| dice.random_range(100..3000));
            sleep(Duration::from_millis(pause)).await;
        }
    }

    fn options(&self, door: &Door) -> Options {
        Options {
            client: self.0.api.client(door),
            bus: self.0.nats.connect(door),
            prefix: self.0.prefix.clone(),
            origin: "cluster".to_owned(),
            process: door.name().to_owned(),
            scope: Scope::of(vec![NAMESPACE.to_owned()]),
            selector: None,
            labels: LabelRules::default(),
            heart: Heart::new(),
            view: View::new(),
            clock: self.0.clock,
        }
    }

    fn operator(&self) -> Door {
        self.0.operator.lock().expect("nobody panics while holding it").clone()
    }

    fn runtimes(&self) -> Vec<Door> {
        self.0.runtimes.lock().expect("nobody panics while holding it").clone()
    }

    async fn cut_history(self) {
        loop {
            let changed = self.0.shared.trace.changed();
            if self.0.shared.fates.take_relist() {
                self.0.api.compact();
            }
            changed.await;
        }
    }

    // === the person ===

    pub fn create(&self, spec: &Value) {
        self.0.shared.trace.note(format_args!("a person creates boot"));
        self.0.api.create_manifest("boot", &self.toughened(spec));
    }

    pub fn edit(&self, spec: &Value) {
        self.0.shared.trace.note(format_args!("a person edits boot: {spec:.200}"));
        self.0.api.edit_manifest("boot", &self.toughened(spec));
    }

    /// With attempts enough for runtimes that die, and for grants that come when nobody waits for them any more.
    fn toughened(&self, spec: &Value) -> Value {
        let mut spec = spec.clone();
        if self.0.is_tough
            && let Some(phases) = spec.get_mut("phases").and_then(Value::as_array_mut)
        {
            for phase in phases {
                phase["spec"]["retry"] = json!({"maxAttempts": 50});
            }
            spec["backoff"] = json!({"initial": "1s", "factor": 1, "jitter": "None"});
        }
        spec
    }

    pub fn delete(&self) {
        self.0.shared.trace.note(format_args!("a person deletes boot"));
        self.0.api.delete_manifest("boot");
    }

    pub fn request(&self, token: &str, action: &str, phase: Option<&str>) {
        let mut request = json!({"token": token, "action": action});
        if let Some(phase) = phase {
            request["phase"] = json!(phase);
        }
        self.edit(&json!({"requests": [request]}));
    }

    /// Whether more than one thing goes wrong.
    pub fn is_stormy(&self) -> bool {
        matches!(self.0.sky, Sky::Storm(_))
    }

    /// Whether a stream keeps what it is given, to the end.
    pub fn keeps_all(&self) -> bool {
        self.0.nats.keeps() && !self.is_stormy()
    }

    /// A command of a client, over the bus.
    pub async fn command(&self, command: &str) {
        let bus = self.0.nats.connect(&Door::new("client", Role::Person));
        let session = SessionId::default_for(NAMESPACE, "boot");
        let body = json!({"command": command}).to_string();
        let message = Message::new(self.0.prefix.subject(&session, Channel::Control), body);
        bus.publish(message).await.expect("a person's link is up");
    }

    /// Until the phase was begun so often.
    pub async fn until_begun(&self, phase: &str, times: usize) {
        self.until(|stage| stage.0.shared.checks.times_executed(phase) >= times).await;
    }

    /// Until the stored resource is so.
    pub async fn until_stored(&self, is: impl Fn(&Value) -> bool) {
        self.until(|stage| stage.is_stored(&is)).await;
    }

    /// Whether the stored resource is so now.
    pub fn is_stored(&self, is: impl Fn(&Value) -> bool) -> bool {
        self.0.api.manifest("boot").is_some_and(|object| is(&object))
    }

    async fn until(&self, is: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.0.shared.trace.changed();
            if is(self) {
                return;
            }
            changed.await;
        }
    }

    fn until_is(&self, expected: &Expected) -> impl Future<Output = ()> {
        let in_storms = expected.in_storms.filter(|_| self.is_stormy());
        let (verdict, wanted) = (expected.verdict, in_storms.unwrap_or(expected.states));
        self.until_stored(move |object| {
            let status = &object["status"];
            status["verdict"] == verdict
                && status["observedGeneration"] == object["metadata"]["generation"]
                && wanted
                    .iter()
                    .all(|(phase, states)| states.split(" or ").any(|state| state_of(object, phase) == state))
        })
    }
}

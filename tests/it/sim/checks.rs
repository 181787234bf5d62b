//! What must hold at every step: of what is said, of what runs, and of what is stored.
//!
//! It knows the promises and not how they are kept: it reads what crosses the doors, as an outsider could.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use pmp::{
    bus::Message,
    engine::{AttemptToken, ReportStatus},
    manifest::PhaseId,
    protocol::{Command, ControlMessage, StateMessage, TargetMessage},
};
use serde_json::Value;

use super::{
    api::{Change, Kind, Stored},
    world::Door,
};

/// Attempts of one run that are looked through for a token.
const ATTEMPTS_MAX: u32 = 60;

/// One attempt that some runtime began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    pub runtime: String,
    pub session: String,
    pub phase: String,
    /// Absent for peers that know none.
    pub token: Option<String>,
}

/// Which operator process heard something, of which session and phase.
type Hearing = (String, String, String);

/// Of which token, if any, and what.
type Said = (Option<String>, ReportStatus);

#[derive(Default)]
pub struct Checks(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// By session id, as stored now.
    manifests: BTreeMap<String, Arc<Stored>>,
    /// By session id and operator, as the last one was that named this operator as its holder: what it is to know.
    held: BTreeMap<(String, String), Arc<Stored>>,
    /// Deleted ones as they were last: an operator that has not seen it goes on with them.
    deleted: Vec<Arc<Stored>>,
    heard: BTreeMap<Hearing, Vec<Said>>,
    /// What each token was first said to mean.
    meanings: BTreeMap<String, Value>,
    executed: Vec<Executed>,
    /// Attempts that failed by their runtime's own word, and those that an operator called off.
    ended: BTreeSet<String>,
    /// By whom: it may take them for failed before that is stored.
    called_off: BTreeSet<(String, String)>,
    /// Runtimes that died.
    dead: BTreeSet<String>,
}

impl Checks {
    /// How often the phase was begun, by all runtimes and in all runs.
    pub fn times_executed(&self, phase: &str) -> usize {
        self.inner().executed.iter().filter(|one| one.phase == phase).count()
    }

    /// A runtime begins: what it was granted nobody else ever had but the dead, nobody is done with, and no other attempt
    /// of that run is still somebody's.
    pub fn begins(&self, executed: Executed) -> Vec<String> {
        let mut inner = self.inner();
        let mut found = Vec::new();
        let Executed { runtime, session, phase, token } = &executed;
        if let Some(token) = token {
            let row = inner.manifests.get(session).and_then(|object| Row::of(object, phase));
            let is_of_run = |token: &str| row.as_ref().is_some_and(|row| row.has_token(token));
            for one in inner.executed.iter().filter(|one| one.phase == *phase && !inner.dead.contains(&one.runtime)) {
                let Some(before) = &one.token else { continue };
                if before == token {
                    found.push(format!("{runtime} runs {phase} of {session} though that attempt ran before"));
                } else if is_of_run(before) && is_of_run(token) && !inner.ended.contains(before) {
                    let holder = &one.runtime;
                    found.push(format!("{runtime} runs {phase} of {session} again though {holder} lives and has it"));
                }
            }
            if row.as_ref().is_some_and(|row| row.state == "Complete" && row.has_token(token)) {
                found.push(format!("{runtime} runs {phase} of {session} though it is stored as complete"));
            }
        }
        inner.executed.push(executed);
        found
    }

    /// A runtime ends an attempt with failure.
    pub fn failed(&self, token: &str) {
        self.inner().ended.insert(token.to_owned());
    }

    /// A runtime dies, with all that it runs and all that it knows.
    pub fn died(&self, runtime: &str) {
        self.inner().dead.insert(runtime.to_owned());
    }

    /// An operator heard something; only reports matter here.
    pub fn heard(&self, door: &Door, message: &Message) {
        let Some((session, "state")) = place(&message.subject) else { return };
        let Ok(state) = StateMessage::parse(&message.body) else { return };
        let key = (door.name().to_owned(), session.to_owned(), state.phase.to_string());
        let token = state.attempt.map(|token| token.to_string());
        self.inner().heard.entry(key).or_default().push((token, state.status));
    }

    /// Somebody said something; only an operator's targets and cancels matter here.
    pub fn said(&self, door: &Door, message: &Message) -> Vec<String> {
        let Some((session, channel)) = place(&message.subject).filter(|_| door.is_operator()) else {
            return Vec::new();
        };
        if channel == "control"
            && let Ok(control) = ControlMessage::parse(&message.body)
            && control.command == Command::CancelAttempt
        {
            let mut inner = self.inner();
            if let Some(token) = control.attempt.map(|token| token.to_string()) {
                inner.called_off.insert((door.name().to_owned(), token.clone()));
                inner.ended.insert(token);
            }
        }
        if channel != "target" {
            return Vec::new();
        }
        let target = match TargetMessage::parse(&message.body) {
            Ok(target) => target,
            Err(error) => return vec![format!("{door} said a target that cannot be read: {error}")],
        };
        let mut inner = self.inner();
        let mut found = inner.meaning(&target);
        match inner.owner(session, door, &target) {
            Some(object) => {
                // Of a newer spec it may know already.
                if inner.is_newest(session, &object) {
                    found.extend(allowed(&object, &target));
                }
                found.extend(inner.order(door, session, &object, &target));
            }
            None => found.push(format!("{door} offers {} under a token of no stored run", target.phase)),
        }
        found
    }

    /// The API server stored something.
    pub fn committed(&self, change: &Change) -> Vec<String> {
        if change.key.kind != Kind::PhaseManifest {
            return Vec::new();
        }
        let session = format!("{}_{}", change.key.namespace, change.key.name);
        let mut inner = self.inner();
        if change.word == "DELETED" {
            let gone = inner.manifests.remove(&session);
            inner.deleted.extend(gone);
            return Vec::new();
        }
        if let Some(process) = change.object.pointer("/status/holder/process").and_then(Value::as_str) {
            inner.held.insert((session.clone(), process.to_owned()), Arc::clone(&change.object));
        }
        inner.manifests.insert(session, Arc::clone(&change.object));
        drop(inner);
        let Some(before) = &change.before else { return Vec::new() };
        let mut found = fence(before, &change.object);
        found.extend(forward(before, &change.object));
        found
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nobody panics while holding it")
    }
}

impl Inner {
    /// All targets of one token say the same.
    fn meaning(&mut self, target: &TargetMessage) -> Vec<String> {
        let (Some(token), Some(spec)) = (&target.attempt, &target.spec) else {
            return vec![format!("a target for {} has no token or no phase", target.phase)];
        };
        let meant = self.meanings.entry(token.to_string()).or_insert_with(|| spec.clone());
        if meant == spec { Vec::new() } else { vec![format!("two meanings of one token of {}", target.phase)] }
    }

    /// Whether the spec was not edited since.
    fn is_newest(&self, session: &str, object: &Value) -> bool {
        let newest = self.manifests.get(session);
        newest.is_none_or(|newest| newest["metadata"]["generation"] == object["metadata"]["generation"])
    }

    /// The resource that the target's token belongs to, as it was when this operator had it last: who was deposed does not
    /// know it yet. (Processes are named like their doors.) Or one that was deleted.
    fn owner(&self, session: &str, door: &Door, target: &TargetMessage) -> Option<Arc<Stored>> {
        let token = target.attempt.as_ref()?;
        let is_its = |object: &&Arc<Stored>| {
            Row::of(object, target.phase.as_str()).is_some_and(|row| row.has_token(token.as_str()))
        };
        let held = self.held.get(&(session.to_owned(), door.name().to_owned()));
        held.into_iter().chain(&self.deleted).find(is_its).cloned()
    }

    /// Everything that the phase waits for is done: stored so, or heard by this very process.
    fn order(&self, door: &Door, session: &str, object: &Value, target: &TargetMessage) -> Vec<String> {
        let waits = target.spec.as_ref().and_then(|phase| phase.pointer("/spec/waitFor/phases"));
        let waits = waits.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        waits
            .filter(|on| {
                let Some(row) = Row::of(object, on) else { return false };
                let key = (door.name().to_owned(), session.to_owned(), (*on).to_owned());
                let heard = self.heard.get(&key).into_iter().flatten();
                let is_heard = heard.clone().any(|(token, status)| {
                    let is_of_run = token.as_ref().is_none_or(|token| row.has_token(token));
                    let counts =
                        *status == ReportStatus::Complete || (*status == ReportStatus::Failed && row.is_forgiven);
                    is_of_run && counts
                });
                let given_up = || self.called_off.iter().any(|(by, token)| by == door.name() && row.has_token(token));
                !(row.is_done() || is_heard || row.is_forgiven && given_up() || asked_to_settle(object, on))
            })
            .map(|on| format!("{door} offers {} before {on} is done", target.phase))
            .collect()
    }
}

/// A person asked that the phase counts as done.
fn asked_to_settle(object: &Value, phase: &str) -> bool {
    let requests = object.pointer("/spec/requests").and_then(Value::as_array);
    requests
        .into_iter()
        .flatten()
        .any(|request| request["phase"] == phase && (request["action"] == "Skip" || request["action"] == "Complete"))
}

/// Nothing is offered in a session that is stored as cancelled, suspended or over, by an operator that stored that.
fn allowed(object: &Value, target: &TargetMessage) -> Vec<String> {
    let (spec, status) = (&object["spec"], &object["status"]);
    if status["observedGeneration"] != object["metadata"]["generation"] {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut forbidden = |is: bool, what: &str| {
        if is {
            found.push(format!("{} is offered though {what}", target.phase));
        }
    };
    forbidden(
        spec["shutdown"] == "Cancel" || spec["shutdown"] == "Drain" && status["verdict"].is_string(),
        "it is shut down",
    );
    forbidden(spec["suspend"] == true, "the session is suspended");
    found
}

/// A status that changes hands changes in nothing else: so nobody writes who was deposed.
fn fence(before: &Value, after: &Value) -> Vec<String> {
    let holder = |object: &Value| object.pointer("/status/holder/process").cloned();
    let (was, is) = (holder(before), holder(after));
    // Whoever lets go says so in its last status; nobody but the holder can, since everyone else writes its own name.
    if was.is_none() || is.is_none() || was == is {
        return Vec::new();
    }
    let rest = |object: &Value| {
        let mut status = object["status"].clone();
        status["holder"] = Value::Null;
        status
    };
    if rest(before) == rest(after) { Vec::new() } else { vec![format!("{is:?} wrote over {was:?}")] }
}

/// Runs and attempts only rise, and what ended stays ended within its run, but for what a person asks.
fn forward(before: &Value, after: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for phase in phase_ids(before) {
        let (Some(was), Some(is)) = (Row::of(before, &phase), Row::of(after, &phase)) else { continue };
        if is.run < was.run {
            found.push(format!("{phase}: a stored run went from {} to {}", was.run, is.run));
        }
        if is.run != was.run {
            continue;
        }
        if is.attempt < was.attempt {
            found.push(format!("{phase}: a stored attempt went from {} to {}", was.attempt, is.attempt));
        }
        let is_untried = was.attempt == 0 && matches!(was.state.as_str(), "Cancelled" | "UpstreamFailed");
        let is_final = matches!(was.state.as_str(), "Complete" | "Failed" | "Skipped" | "Cancelled" | "UpstreamFailed");
        if is_final && is.state != was.state && !is_untried && is.reason != "Requested" {
            found.push(format!("{phase}: {} became {} within run {}", was.state, is.state, is.run));
        }
    }
    found
}

/// A phase as it is stored.
struct Row {
    uid: String,
    phase: PhaseId,
    state: String,
    reason: String,
    run: u32,
    attempt: u32,
    ignored: bool,
    /// Its own failure counts as done.
    is_forgiven: bool,
}

impl Row {
    /// Nothing for a phase that is not in the spec.
    fn of(object: &Value, phase: &str) -> Option<Self> {
        let phases = object.pointer("/spec/phases")?.as_array()?;
        let spec = &phases.iter().find(|one| one["id"] == phase)?["spec"];
        let status = &object["status"];
        let rows = status["phases"].as_array().into_iter().flatten();
        let row = rows.clone().find(|row| row["id"] == phase).unwrap_or(&Value::Null);
        let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        Some(Self {
            uid: object["metadata"]["uid"].as_str()?.to_owned(),
            phase: PhaseId::new(phase).ok()?,
            state: row["state"].as_str().unwrap_or("Waiting").to_owned(),
            reason: row["reason"].as_str().unwrap_or_default().to_owned(),
            run: number(&row["run"]).or(number(&status["run"])).unwrap_or(1),
            attempt: number(&row["attempt"]).unwrap_or(0),
            ignored: row["ignored"] == true,
            is_forgiven: spec.pointer("/onFailure/action").is_some_and(|action| action == "continue"),
        })
    }

    fn is_done(&self) -> bool {
        matches!(self.state.as_str(), "Complete" | "Skipped") || (self.state == "Failed" && self.ignored)
    }

    /// Whether the token is of this run.
    fn has_token(&self, token: &str) -> bool {
        (1..=ATTEMPTS_MAX).any(|attempt| AttemptToken::new(&self.uid, &self.phase, self.run, attempt).as_str() == token)
    }
}

fn phase_ids(object: &Value) -> Vec<String> {
    let phases = object.pointer("/spec/phases").and_then(Value::as_array);
    phases.into_iter().flatten().filter_map(|phase| phase["id"].as_str().map(str::to_owned)).collect()
}

/// `plan.session.<session>.<channel>`.
pub fn place(subject: &str) -> Option<(&str, &str)> {
    subject.strip_prefix("plan.session.")?.split_once('.')
}

/// The state of a phase as it is stored; Waiting where nothing is.
pub fn state_of(object: &Value, phase: &str) -> String {
    Row::of(object, phase).map_or_else(String::new, |row| row.state)
}

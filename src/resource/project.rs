//! The engine's record as a status that fits into etcd. [`super::restore`] is the way back.
//!
//! The law, tested over arbitrary records through the serialized form: `restore(project(record))` is `record`, or
//! [`collapsed`]`(record)` where rows had to be given up for room; times are whole milliseconds.

use std::{collections::BTreeMap, io};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;

use super::{
    outcomes,
    spec::PhaseManifest,
    status::{
        BusPosition, Holder, OutboxEntry, PhaseCounts, PhaseManifestStatus, PhaseStatus, Release, RequestStatus,
        STATUS_SCHEMA,
    },
    written::{Moment, Span},
};
use crate::{
    engine::{Availability, Counts, PhaseRecord, PhaseState, Record, RequestRecord, RequestResult, Strategy},
    manifest::{ExternalWait, InstanceMode, Phase, Plan},
};

/// The most a status takes, in bytes of JSON: a patch of this size takes the API server 200 ms, one of 1 MiB a second.
pub const STATUS_BYTES_MAX: usize = 512 * 1024;

/// What spec, metadata and status may take together: etcd refuses requests of 1.5 MiB; the rest is for its framing and
/// for metadata that others add. 1.4 MiB.
const OBJECT_BYTES_MAX: usize = 1_468_006;

/// Everything in the status that the engine does not remember.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Frame {
    pub observed_generation: i64,
    pub session_id: String,
    /// Of the revision's plan.
    pub digest: String,
    /// [`super::Situation::state`].
    pub state: String,
    /// [`super::Situation::message`].
    pub message: String,
    pub holder: Option<Holder>,
    /// Of the settings that the session is under.
    pub target_phase: Option<String>,
    pub counts: Counts,
    pub bus: Option<BusPosition>,
    pub outbox: Vec<OutboxEntry>,
    pub conditions: Vec<Condition>,
}

/// The status cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "the status of {phases} phases takes {bytes} bytes with {rows} of them open, failed or held, and {bytes_max} are \
         left beside the spec; split the manifest, lower parallelism, or take it from a ConfigMap"
    )]
    TooLarge { phases: usize, rows: usize, bytes: usize, bytes_max: usize },
}

impl Error {
    /// One PascalCase word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "TooLarge",
        }
    }
}

/// How large this object's status may become, in bytes of JSON: at most [`STATUS_BYTES_MAX`].
///
/// Takes the object as the API server sent it: managed fields and the last-applied annotation are as large as the spec
/// and count too. Serializes spec and metadata, so ask once an edit, not once a write.
pub fn status_bytes_max(object: &PhaseManifest) -> usize {
    let taken = json_bytes(&object.spec) + json_bytes(&object.metadata);
    OBJECT_BYTES_MAX.saturating_sub(taken).min(STATUS_BYTES_MAX)
}

/// The status of a session whose record is `record`, at most `bytes_max` of JSON.
///
/// `plan` is the record's: the same phases in the same order. All rows are kept while they fit; then finished ones
/// become letters in `outcomes`.
pub fn project(record: &Record, plan: &Plan, frame: Frame, bytes_max: usize) -> Result<PhaseManifestStatus, Error> {
    debug_assert!(record.phases.iter().map(|row| &row.id).eq(plan.phases().iter().map(|phase| &phase.id)));
    let run = common_run(record);
    let started_at = Moment::from(record.started_at);
    let rows = || record.phases.iter().zip(plan.phases());
    let mut status = header(record, frame, run);
    status.phases = rows().filter_map(|(row, phase)| written(row, phase, started_at, run)).collect();
    if json_bytes(&status) <= bytes_max {
        return Ok(status);
    }
    let letter = |row: &PhaseRecord| outcomes::letter(row, run);
    status.outcomes = Some(record.phases.iter().map(|row| letter(row).unwrap_or(outcomes::NOTHING)).collect());
    let remaining = rows().filter(|(row, _)| letter(row).is_none());
    status.phases = remaining.filter_map(|(row, phase)| written(row, phase, started_at, run)).collect();
    match json_bytes(&status) {
        bytes if bytes <= bytes_max => Ok(status),
        bytes => Err(Error::TooLarge { phases: record.phases.len(), rows: status.phases.len(), bytes, bytes_max }),
    }
}

/// What is left of a record whose finished rows became letters: of each of these its id, state, reason and run, that
/// nothing of it was offered if it was left undone, and its root causes as the plan has them.
pub fn collapsed(record: &Record, plan: &Plan) -> Record {
    let run = common_run(record);
    let letter = |row: &PhaseRecord| outcomes::letter(row, run);
    let left = |row: &PhaseRecord| outcomes::row(letter(row)?, &row.id, run, record.started_at);
    let mut phases: Vec<PhaseRecord> =
        record.phases.iter().map(|row| left(row).unwrap_or_else(|| row.clone())).collect();
    outcomes::trace_causes(plan, &mut phases, |ix| letter(&record.phases[ix.index()]).is_some());
    Record { phases, ..record.clone() }
}

/// The state in which a revision starts a phase, unless spec.targetPhase or a Use says otherwise.
pub(super) fn started_state(phase: &Phase) -> PhaseState {
    match phase.spec.instance_mode {
        InstanceMode::Immediate => PhaseState::Waiting,
        InstanceMode::OnUse => PhaseState::Idle,
    }
}

/// The run of most phases; the lower one of two. A Restart raises all, so that one number says it for all.
fn common_run(record: &Record) -> u32 {
    let mut phases_by_run: BTreeMap<u32, usize> = BTreeMap::new();
    for row in &record.phases {
        *phases_by_run.entry(row.run).or_default() += 1;
    }
    let most = phases_by_run.iter().rev().max_by_key(|&(_, phases)| phases);
    most.map_or(1, |(&run, _)| run)
}

fn header(record: &Record, frame: Frame, run: u32) -> PhaseManifestStatus {
    let Frame { observed_generation, session_id, digest, state, message, holder, .. } = frame;
    let Frame { target_phase, counts, bus, outbox, conditions, .. } = frame;
    PhaseManifestStatus {
        schema: Some(STATUS_SCHEMA),
        observed_generation: Some(observed_generation),
        session_id: Some(session_id),
        revision: Some(i64::try_from(record.revision).unwrap_or(i64::MAX)),
        digest: Some(digest),
        strategy: Some(strategy_word(record.strategy).to_owned()),
        state: Some(state),
        message: Some(message),
        verdict: record.verdict.map(|verdict| verdict.as_str().to_owned()),
        holder,
        counts: Some(PhaseCounts::from(counts)),
        progress: Some(format!("{}/{}", counts.done(), counts.wanted)),
        target_phase,
        started_at: Some(record.started_at.into()),
        finished_at: record.finished_at.map(Moment::from),
        paused_since: record.paused_since.map(Moment::from),
        paused_total: Some(Span::from(record.paused_total)).filter(|total| *total != Span::default()),
        availability: Some(availability_word(record.availability).to_owned()),
        heard: record.heard,
        timed_out: record.timed_out,
        runs_removed: (record.runs_removed != 0).then_some(record.runs_removed.into()),
        bus,
        run: (run != 1).then_some(run.into()),
        phases: Vec::new(),
        outcomes: None,
        requests: record.requests.iter().map(request).collect(),
        outbox,
        conditions,
    }
}

/// The row as it is written; absent where it says only what a revision starts with.
fn written(row: &PhaseRecord, phase: &Phase, started_at: Moment, run: u32) -> Option<PhaseStatus> {
    let since = Moment::from(row.since);
    let written = PhaseStatus {
        id: row.id.as_str().to_owned(),
        state: row.state.as_str().to_owned(),
        run: (row.run != run).then_some(row.run.into()),
        attempt: row.attempt.into(),
        offers: row.offers.into(),
        reason: row.reason.map(|reason| reason.as_str().to_owned()),
        message: row.message.clone(),
        blocked_by: row.blocked_by.iter().map(|id| id.as_str().to_owned()).collect(),
        runtime: row.runtime.clone(),
        progress: row.progress.clone(),
        since: (since != started_at).then_some(since),
        due: row.due.map(Moment::from),
        started_at: row.started_at.map(Moment::from),
        finished_at: row.finished_at.map(Moment::from),
        released: row.released.iter().map(release).collect(),
        ignored: row.ignored,
        used: row.used,
        superseded: row.superseded,
        tokenless: row.tokenless,
        heartbeat: row.heartbeat.map(Span::from),
    };
    let state = started_state(phase).as_str().to_owned();
    let nothing = PhaseStatus { id: written.id.clone(), state, ..PhaseStatus::default() };
    (written != nothing).then_some(written)
}

fn release(wait: &ExternalWait) -> Release {
    Release { manifest: wait.manifest.clone(), phase: wait.phase.as_str().to_owned() }
}

fn request(request: &RequestRecord) -> RequestStatus {
    let (result, message) = match &request.result {
        RequestResult::Done => ("Done", None),
        RequestResult::Refused(why) => ("Refused", Some(why.clone())),
    };
    RequestStatus { token: request.token.clone(), result: result.to_owned(), message }
}

pub(super) fn strategy_word(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Hybrid => "Hybrid",
        Strategy::Directed => "Directed",
        Strategy::Runtime => "Runtime",
    }
}

pub(super) fn availability_word(availability: Availability) -> &'static str {
    match availability {
        Availability::Unknown => "Unknown",
        Availability::Available => "Available",
        Availability::Unavailable => "Unavailable",
    }
}

/// Bytes of JSON, counted without keeping them.
fn json_bytes(value: &impl Serialize) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).expect("these types are JSON, and counting does not fail");
    count.0
}

#[cfg(test)]
mod tests;

//! The status read back into the engine's record. The law is in [`super::project`].
//!
//! Whatever [`super::project`] did not write is an error that names the field: a session that is restored wrongly runs
//! phases twice, one that is refused is looked at by a person.

use std::time::Duration;

use super::{
    outcomes,
    project::{availability_word, started_state, strategy_word},
    status::{PhaseManifestStatus, PhaseStatus, Release, RequestStatus, STATUS_SCHEMA},
    written::{Moment, Span},
};
use crate::{
    engine::{
        Availability, PhaseReason, PhaseRecord, PhaseState, Record, RequestRecord, RequestResult, Strategy, Verdict,
    },
    manifest::{ExternalWait, Phase, PhaseId, PhaseIx, Plan},
};

/// Why a status is no record of a session over this plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("status has schema {0}, which this operator does not know: run the newer operator that wrote it")]
    UnknownSchema(i64),
    #[error("status has no {0}: no revision has started, or somebody else wrote it")]
    Missing(&'static str),
    #[error("status has {word:?} as {field}, which is no word for that")]
    UnknownWord { field: &'static str, word: String },
    #[error("status has {number} as {field}, which is out of range")]
    OutOfRange { field: &'static str, number: i64 },
    #[error("status has a row for phase {0:?}, which the revision's manifest does not have")]
    UnknownPhase(String),
    #[error("status has two rows for phase {0:?}")]
    RepeatedPhase(String),
    #[error("status has {letters} outcomes for the {phases} phases of the revision's manifest")]
    OutcomesLength { letters: usize, phases: usize },
}

impl Error {
    /// One PascalCase word.
    pub fn reason(&self) -> &'static str {
        "StatusUnreadable"
    }
}

/// The record of the session whose status this is; `plan` is the plan of `status.revision`.
///
/// Linear in the phases. A status without a started revision is [`Error::Missing`].
pub fn restore(status: &PhaseManifestStatus, plan: &Plan) -> Result<Record, Error> {
    match status.schema.ok_or(Error::Missing("schema"))? {
        STATUS_SCHEMA => {}
        other => return Err(Error::UnknownSchema(other)),
    }
    let started_at = status.started_at.ok_or(Error::Missing("startedAt"))?;
    let revision = status.revision.ok_or(Error::Missing("revision"))?;
    Ok(Record {
        revision: revision.try_into().map_err(|_| Error::OutOfRange { field: "revision", number: revision })?,
        strategy: strategy(status.strategy.as_deref())?,
        started_at: started_at.get(),
        finished_at: status.finished_at.map(Moment::get),
        verdict: status.verdict.as_deref().map(verdict).transpose()?,
        paused_since: status.paused_since.map(Moment::get),
        paused_total: status.paused_total.map_or(Duration::ZERO, Span::get),
        availability: availability(status.availability.as_deref())?,
        heard: status.heard,
        timed_out: status.timed_out,
        runs_removed: number(status.runs_removed.unwrap_or(0), "runsRemoved")?,
        phases: phases(status, plan, started_at)?,
        requests: status.requests.iter().map(request).collect::<Result<_, _>>()?,
    })
}

/// As the revision started them, then as the letters have it, then as the rows have it.
fn phases(status: &PhaseManifestStatus, plan: &Plan, started_at: Moment) -> Result<Vec<PhaseRecord>, Error> {
    let run = status.run.map_or(Ok(1), |run| number(run, "run"))?;
    let start = |phase: &Phase| outcomes::fresh(&phase.id, started_state(phase), run, started_at.get());
    let mut phases: Vec<PhaseRecord> = plan.phases().iter().map(start).collect();
    if let Some(letters) = &status.outcomes {
        apply_outcomes(&mut phases, letters)?;
    }
    let mut seen = vec![false; phases.len()];
    for written in &status.phases {
        let ix: PhaseIx = plan.index_of(&written.id).ok_or_else(|| Error::UnknownPhase(written.id.clone()))?;
        if std::mem::replace(&mut seen[ix.index()], true) {
            return Err(Error::RepeatedPhase(written.id.clone()));
        }
        phases[ix.index()] = row(written, plan.id(ix), run, started_at)?;
    }
    outcomes::trace_causes(plan, &mut phases, |ix| !seen[ix.index()]);
    Ok(phases)
}

fn apply_outcomes(phases: &mut [PhaseRecord], letters: &str) -> Result<(), Error> {
    let found = letters.chars().count();
    if found != phases.len() {
        return Err(Error::OutcomesLength { letters: found, phases: phases.len() });
    }
    let finished = phases.iter_mut().zip(letters.chars()).filter(|&(_, letter)| letter != outcomes::NOTHING);
    for (phase, letter) in finished {
        let row = outcomes::row(letter, &phase.id, phase.run, phase.since);
        *phase = row.ok_or_else(|| Error::UnknownWord { field: "outcomes", word: letter.to_string() })?;
    }
    Ok(())
}

fn row(written: &PhaseStatus, id: &PhaseId, run: u32, started_at: Moment) -> Result<PhaseRecord, Error> {
    Ok(PhaseRecord {
        id: id.clone(),
        state: state(&written.state)?,
        run: written.run.map_or(Ok(run), |run| number(run, "phases.run"))?,
        attempt: number(written.attempt, "phases.attempt")?,
        offers: number(written.offers, "phases.offers")?,
        reason: written.reason.as_deref().map(reason).transpose()?,
        message: written.message.clone(),
        blocked_by: written.blocked_by.iter().map(|id| phase_id(id, "phases.blockedBy")).collect::<Result<_, _>>()?,
        runtime: written.runtime.clone(),
        progress: written.progress.clone(),
        since: written.since.unwrap_or(started_at).get(),
        due: written.due.map(Moment::get),
        started_at: written.started_at.map(Moment::get),
        finished_at: written.finished_at.map(Moment::get),
        released: written.released.iter().map(released).collect::<Result<_, _>>()?,
        ignored: written.ignored,
        used: written.used,
        superseded: written.superseded,
        tokenless: written.tokenless,
        heartbeat: written.heartbeat.map(Span::get),
    })
}

fn released(written: &Release) -> Result<ExternalWait, Error> {
    let phase = phase_id(&written.phase, "phases.released.phase")?;
    Ok(ExternalWait { manifest: written.manifest.clone(), phase })
}

fn request(written: &RequestStatus) -> Result<RequestRecord, Error> {
    let result = match written.result.as_str() {
        "Done" => RequestResult::Done,
        "Refused" => RequestResult::Refused(written.message.clone().unwrap_or_default()),
        other => return Err(unknown("requests.result", other)),
    };
    Ok(RequestRecord { token: written.token.clone(), result })
}

fn state(word: &str) -> Result<PhaseState, Error> {
    let known = PhaseState::ALL.into_iter().find(|state| state.as_str() == word);
    known.ok_or_else(|| unknown("phases.state", word))
}

fn reason(word: &str) -> Result<PhaseReason, Error> {
    let known = PhaseReason::ALL.into_iter().find(|reason| reason.as_str() == word);
    known.ok_or_else(|| unknown("phases.reason", word))
}

fn verdict(word: &str) -> Result<Verdict, Error> {
    let all = [Verdict::Succeeded, Verdict::Failed, Verdict::Cancelled, Verdict::Planned];
    all.into_iter().find(|verdict| verdict.as_str() == word).ok_or_else(|| unknown("verdict", word))
}

fn strategy(word: Option<&str>) -> Result<Strategy, Error> {
    let word = word.ok_or(Error::Missing("strategy"))?;
    let all = [Strategy::Hybrid, Strategy::Directed, Strategy::Runtime];
    all.into_iter().find(|&strategy| strategy_word(strategy) == word).ok_or_else(|| unknown("strategy", word))
}

fn availability(word: Option<&str>) -> Result<Availability, Error> {
    let Some(word) = word else { return Ok(Availability::Unknown) };
    let all = [Availability::Unknown, Availability::Available, Availability::Unavailable];
    all.into_iter().find(|&known| availability_word(known) == word).ok_or_else(|| unknown("availability", word))
}

fn phase_id(text: &str, field: &'static str) -> Result<PhaseId, Error> {
    PhaseId::new(text).map_err(|_| unknown(field, text))
}

fn number(number: i64, field: &'static str) -> Result<u32, Error> {
    number.try_into().map_err(|_| Error::OutOfRange { field, number })
}

fn unknown(field: &'static str, word: &str) -> Error {
    Error::UnknownWord { field, word: word.to_owned() }
}

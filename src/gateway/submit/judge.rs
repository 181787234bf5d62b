//! What a plan means for a session that is there already. PURE: from the object as the API server has it now.

use super::wish::{Mode, OnConflict};
use crate::resource::{ConditionType, PhaseManifest};

/// Where the session is, as far as a new plan is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// A revision runs, or is about to.
    pub is_executing: bool,
    /// The spec holds an edit that no operator has looked at, and that would run.
    pub is_pending: bool,
}

/// Whether the new plan is the one that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    /// It is in the spec, and the last revision is it.
    Same,
    /// It is in the spec, staged, planned only or not yet looked at; or it runs beside a staged one.
    SameInPart,
    /// The same plan executes, and the document brings other settings than the spec has.
    OtherSettings,
    Different,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing: it is what the client wants already.
    Attach,
    /// Ask for a Restart.
    Restart,
    /// Write it into the spec.
    Edit,
    /// The same plan executes.
    RefuseExecuting,
    /// The same plan executes under other settings.
    RefuseSettings,
    /// Another plan executes.
    RefuseConflicting,
}

impl Standing {
    pub fn of(object: &PhaseManifest) -> Self {
        let status = object.status.as_ref();
        let is_observed = status.and_then(|status| status.observed_generation) == object.metadata.generation;
        let has_verdict = status.is_some_and(|status| status.verdict.is_some());
        let has_revision = status.is_some_and(|status| status.revision.is_some());
        let is_refused = status.is_some_and(|status| {
            let accepted = ConditionType::Accepted.as_str();
            status.conditions.iter().any(|condition| condition.type_ == accepted && condition.status == "False")
        });
        let is_pending = !is_observed && !is_held_back(object);
        let is_unfinished = has_revision && !has_verdict;
        let is_starting = is_observed && !is_held_back(object) && !is_refused && !has_verdict;
        Self { is_executing: is_unfinished || is_pending || is_starting, is_pending }
    }
}

/// What is compared, of a new plan and of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    /// The spec holds this plan, and not held back.
    pub is_in_spec: bool,
    /// It is the plan of the last revision.
    pub has_started: bool,
    /// The document brings settings that the spec does not have.
    pub has_other_settings: bool,
}

impl Likeness {
    /// Where nothing executes, what the spec holds besides (a staged plan, a dry run) is of no account: it goes.
    pub fn of(object: &PhaseManifest, standing: Standing, comparison: Comparison) -> Self {
        let Comparison { is_in_spec, has_started, has_other_settings } = comparison;
        let likeness = match (is_in_spec, has_started) {
            (true, true) => Self::Same,
            (false, true) if !standing.is_executing => Self::Same,
            (false, true) if is_held_back(object) => Self::SameInPart,
            (true, false) => Self::SameInPart,
            (false, _) => Self::Different,
        };
        match likeness {
            Self::Same | Self::SameInPart if standing.is_executing && has_other_settings => Self::OtherSettings,
            likeness => likeness,
        }
    }
}

/// Staged, or planned only.
pub fn is_held_back(object: &PhaseManifest) -> bool {
    object.spec.staged == Some(true) || object.spec.dry_run == Some(true)
}

/// What a plan of this likeness does to a session there.
pub fn judge(standing: Standing, likeness: Likeness, mode: Mode, on_conflict: OnConflict) -> Action {
    match mode {
        // The last revision goes on beside it; but an edit that nobody has seen would be lost.
        Mode::Stage if standing.is_pending => refusal(likeness),
        Mode::Stage => Action::Edit,
        _ if standing.is_executing => match (likeness, on_conflict) {
            (Likeness::Same | Likeness::SameInPart, OnConflict::Attach | OnConflict::Replace) if mode == Mode::Run => {
                Action::Attach
            }
            (Likeness::OtherSettings | Likeness::Different, OnConflict::Replace) if mode == Mode::Run => Action::Edit,
            _ => refusal(likeness),
        },
        Mode::Run if likeness == Likeness::Same => Action::Restart,
        Mode::Run | Mode::DryRun => Action::Edit,
    }
}

fn refusal(likeness: Likeness) -> Action {
    match likeness {
        Likeness::Same | Likeness::SameInPart => Action::RefuseExecuting,
        Likeness::OtherSettings => Action::RefuseSettings,
        Likeness::Different => Action::RefuseConflicting,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::resource::PhaseManifestSpec;

    fn standing(spec: Value, status: Value) -> Standing {
        let spec: PhaseManifestSpec = serde_json::from_value(spec).unwrap();
        let mut object = PhaseManifest::new("boot", spec);
        object.metadata.generation = Some(2);
        object.status = serde_json::from_value(status).unwrap();
        Standing::of(&object)
    }

    const IDLE: Standing = Standing { is_executing: false, is_pending: false };
    const RUNNING: Standing = Standing { is_executing: true, is_pending: false };
    const PENDING: Standing = Standing { is_executing: true, is_pending: true };

    #[test]
    fn a_session_executes_from_its_creation_to_its_verdict() {
        assert_eq!(standing(json!({}), json!({"observedGeneration": -1})), PENDING);
        assert_eq!(standing(json!({}), json!({"observedGeneration": 2})), RUNNING);
        assert_eq!(standing(json!({}), json!({"observedGeneration": 2, "revision": 1})), RUNNING);
        let done = json!({"observedGeneration": 2, "revision": 1, "verdict": "Succeeded"});
        assert_eq!(standing(json!({}), done), IDLE);
        let edited = json!({"observedGeneration": 1, "revision": 1, "verdict": "Succeeded"});
        assert_eq!(standing(json!({}), edited), PENDING);
    }

    #[test]
    fn what_is_staged_planned_or_refused_does_not_execute() {
        assert_eq!(standing(json!({"staged": true}), json!({"observedGeneration": 1})), IDLE);
        assert_eq!(standing(json!({"dryRun": true}), Value::Null), IDLE);
        let refused = json!({"observedGeneration": 2, "conditions": [{
            "type": "Accepted", "status": "False", "reason": "InvalidSpec", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]});
        assert_eq!(standing(json!({}), refused), IDLE);
        let beside = json!({"observedGeneration": 2, "revision": 1});
        assert_eq!(standing(json!({"staged": true}), beside), RUNNING);
    }

    #[test]
    fn what_executes_is_not_replaced_unless_that_is_asked_for() {
        let ask = |likeness, on| judge(RUNNING, likeness, Mode::Run, on);
        assert_eq!(ask(Likeness::Same, OnConflict::Refuse), Action::RefuseExecuting);
        assert_eq!(ask(Likeness::Same, OnConflict::Attach), Action::Attach);
        assert_eq!(ask(Likeness::Different, OnConflict::Refuse), Action::RefuseConflicting);
        assert_eq!(ask(Likeness::Different, OnConflict::Attach), Action::RefuseConflicting);
        assert_eq!(ask(Likeness::Different, OnConflict::Replace), Action::Edit);
        let dry = judge(RUNNING, Likeness::Different, Mode::DryRun, OnConflict::Replace);
        assert_eq!(dry, Action::RefuseConflicting);
    }

    #[test]
    fn a_finished_session_is_restarted_by_its_own_plan_and_edited_by_another() {
        let ask = |likeness, mode| judge(IDLE, likeness, mode, OnConflict::Refuse);
        assert_eq!(ask(Likeness::Same, Mode::Run), Action::Restart);
        assert_eq!(ask(Likeness::SameInPart, Mode::Run), Action::Edit);
        assert_eq!(ask(Likeness::Different, Mode::Run), Action::Edit);
        assert_eq!(ask(Likeness::Same, Mode::DryRun), Action::Edit);
    }

    #[test]
    fn other_settings_of_what_executes_are_never_dropped_in_silence() {
        let ask = |on| judge(RUNNING, Likeness::OtherSettings, Mode::Run, on);
        assert_eq!(ask(OnConflict::Refuse), Action::RefuseSettings);
        assert_eq!(ask(OnConflict::Attach), Action::RefuseSettings);
        assert_eq!(ask(OnConflict::Replace), Action::Edit);
    }

    #[test]
    fn the_plan_that_ran_last_is_the_same_whatever_the_spec_holds_by_now() {
        let likeness = |spec: Value, standing, is_in_spec, has_started, has_other_settings| {
            let object = PhaseManifest::new("boot", serde_json::from_value(spec).unwrap());
            Likeness::of(&object, standing, Comparison { is_in_spec, has_started, has_other_settings })
        };
        for held in [json!({"staged": true}), json!({"dryRun": true}), json!({})] {
            assert_eq!(likeness(held, IDLE, false, true, true), Likeness::Same);
        }
        assert_eq!(likeness(json!({"staged": true}), RUNNING, false, true, false), Likeness::SameInPart);
        assert_eq!(likeness(json!({}), RUNNING, false, true, false), Likeness::Different);
        assert_eq!(likeness(json!({}), RUNNING, true, true, false), Likeness::Same);
        assert_eq!(likeness(json!({}), RUNNING, true, true, true), Likeness::OtherSettings);
        assert_eq!(likeness(json!({}), PENDING, true, false, true), Likeness::OtherSettings);
        assert_eq!(likeness(json!({}), IDLE, true, true, true), Likeness::Same, "a restart writes them, too");
        assert_eq!(likeness(json!({}), IDLE, false, false, false), Likeness::Different);
    }

    #[test]
    fn staging_goes_beside_what_runs_but_not_over_what_nobody_has_seen() {
        let ask = |standing| judge(standing, Likeness::Different, Mode::Stage, OnConflict::Refuse);
        assert_eq!(ask(RUNNING), Action::Edit);
        assert_eq!(ask(IDLE), Action::Edit);
        assert_eq!(ask(PENDING), Action::RefuseConflicting);
    }
}

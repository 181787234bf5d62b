//! One line for each thing that happens: all there is when nobody watches a terminal, and what scrolls by above the
//! board when somebody does. Pure.

use jiff::Timestamp;

use super::paint::{Paint, millis_between, padded, printable, span};
use crate::{
    engine::{PhaseReason, PhaseState, Transition},
    manifest::Plan,
};

/// Width of the widest id, within reason: columns stand under each other without one long id pushing all others off.
pub fn id_width(plan: &Plan) -> usize {
    plan.phases().iter().map(|phase| console::measure_text_width(phase.id.as_str())).max().unwrap_or(0).min(28)
}

/// How lines of one session are written.
#[derive(Debug, Clone, Copy)]
pub struct Lines {
    pub paint: Paint,
    pub id_width: usize,
    pub started_at: Timestamp,
}

impl Lines {
    /// What a transition says to a person, or nothing where the next one says it better: that a target is out, and
    /// that a runtime took it, take microseconds here.
    pub fn transition(&self, plan: &Plan, transition: &Transition, now: Timestamp) -> Option<String> {
        let text = wording(plan, transition)?;
        let text = self.paint.state(transition.to, transition.ignored, &text);
        Some(self.line(transition.phase.as_str(), &text, now))
    }

    /// A line that a phase wrote.
    pub fn log(&self, phase: &str, line: &str, now: Timestamp) -> String {
        let text = format!("{} {}", self.paint.faint("|"), printable(line));
        self.line(phase, &text, now)
    }

    fn line(&self, phase: &str, text: &str, now: Timestamp) -> String {
        let elapsed = span(millis_between(self.started_at, now));
        format!("{} {} {text}", self.paint.faint(&format!("{elapsed:>7}")), padded(&printable(phase), self.id_width))
            .trim_end()
            .to_owned()
    }
}

fn wording(plan: &Plan, transition: &Transition) -> Option<String> {
    let is_waiting_as_usual = transition.to == PhaseState::Waiting && transition.reason.is_none();
    if is_waiting_as_usual || matches!(transition.to, PhaseState::Offered | PhaseState::Queued | PhaseState::Idle) {
        return None;
    }
    let max = plan.index_of(transition.phase.as_str()).map_or(1, |ix| plan.phase(ix).spec.max_attempts);
    let attempt = attempt_of(transition.attempt, max);
    let why = why(transition.reason, &transition.message);
    Some(match transition.to {
        PhaseState::Waiting | PhaseState::Idle | PhaseState::Offered | PhaseState::Queued => format!("waiting{why}"),
        PhaseState::Running => format!("running{attempt}"),
        PhaseState::BackingOff => format!("failed{attempt}{why}, will try again"),
        PhaseState::Held => format!("held for a person to decide{why}"),
        PhaseState::Cancelling => "stopping".to_owned(),
        PhaseState::Complete => format!("complete{attempt}{why}"),
        PhaseState::Failed if transition.ignored => format!("failed{attempt}{why}; ignored, the others go on"),
        PhaseState::Failed => format!("failed{attempt}{why}"),
        PhaseState::UpstreamFailed => format!("will not run{why}"),
        PhaseState::Skipped => format!("skipped{why}"),
        PhaseState::Cancelled => format!("cancelled{why}"),
    })
}

/// ` (attempt 2 of 3)`, or nothing where there is only one to have.
pub fn attempt_of(attempt: u32, max: u32) -> String {
    if attempt == 0 || max == 1 { String::new() } else { format!(" (attempt {attempt} of {max})") }
}

/// `: the message`, or the reason in words where there is no message.
pub fn why(reason: Option<PhaseReason>, message: &str) -> String {
    let text = match (message, reason) {
        ("", None) => return String::new(),
        ("", Some(reason)) => reason_in_words(reason).to_owned(),
        (message, _) => printable(message),
    };
    format!(": {text}")
}

fn reason_in_words(reason: PhaseReason) -> &'static str {
    match reason {
        PhaseReason::Unanswered => "no runtime answered",
        PhaseReason::Declined => "declined",
        PhaseReason::RuntimeFailed => "the runtime reported a failure",
        PhaseReason::WaitTimeout => "what it waits for took too long",
        PhaseReason::StartTimeout => "taken, but not begun in time",
        PhaseReason::AttemptTimeout => "the attempt took too long",
        PhaseReason::TotalTimeout => "all attempts together took too long",
        PhaseReason::HeartbeatLost => "the runtime fell silent",
        PhaseReason::RevisionTimeout => "the time for the whole run is over",
        PhaseReason::Stopped => "a failure elsewhere stopped the run",
        PhaseReason::DependencyFailed => "what it waits for failed",
        PhaseReason::Drained => "the session is being drained",
        PhaseReason::Shutdown => "the session was cancelled",
        PhaseReason::Superseded => "an edit replaced it",
        PhaseReason::AttemptsExhausted => "all attempts are spent",
        PhaseReason::Requested => "asked for by a person",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::run::samples::{at, id, phase, plan};

    fn transition(to: PhaseState) -> Transition {
        Transition {
            phase: id("net"),
            from: PhaseState::Waiting,
            to,
            run: 1,
            attempt: 2,
            reason: None,
            message: String::new(),
            ignored: false,
        }
    }

    fn said(transition: &Transition) -> Option<String> {
        let plan = plan(vec![phase("net", &[]), phase("database", &["net"])]);
        let lines = Lines { paint: Paint::Plain, id_width: id_width(&plan), started_at: at(0) };
        lines.transition(&plan, transition, at(1_500))
    }

    #[test]
    fn a_transition_is_one_line_with_time_phase_and_attempt() {
        assert_eq!(said(&transition(PhaseState::Running)).unwrap(), "   1.5s net      running (attempt 2 of 3)");
        let failed = Transition { message: "exit status 3".to_owned(), ..transition(PhaseState::BackingOff) };
        let line = said(&failed).unwrap();
        assert_eq!(line, "   1.5s net      failed (attempt 2 of 3): exit status 3, will try again");
    }

    #[test]
    fn an_ignored_failure_says_that_the_others_go_on() {
        let ignored = Transition { ignored: true, ..transition(PhaseState::Failed) };
        assert!(said(&ignored).unwrap().ends_with("ignored, the others go on"));
    }

    #[test]
    fn a_reason_stands_in_for_a_missing_message() {
        let lost = Transition { reason: Some(PhaseReason::HeartbeatLost), ..transition(PhaseState::Failed) };
        assert!(said(&lost).unwrap().ends_with("failed (attempt 2 of 3): the runtime fell silent"));
    }

    #[test]
    fn offers_and_acks_are_not_worth_a_line() {
        assert_eq!(said(&transition(PhaseState::Offered)), None);
        assert_eq!(said(&transition(PhaseState::Queued)), None);
    }

    #[test]
    fn a_line_of_a_phase_is_marked_as_its_own() {
        let lines = Lines { paint: Paint::Plain, id_width: 4, started_at: at(0) };
        assert_eq!(lines.log("net", "up\x1b[1m!", at(20)), "   0.0s net  | up!");
    }
}

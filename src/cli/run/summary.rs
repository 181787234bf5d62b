//! What is said at the end: a table for people, a document for machines. Pure.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    lines::{id_width, why},
    paint::{Paint, millis_between, padded, span},
};
use crate::{
    engine::{PhaseRecord, PhaseState, Record, Verdict},
    manifest::Plan,
    runtime::NOTHING_TO_RUN,
};

/// Most rows of the table; of a larger plan only what did not simply complete is listed.
const ROWS_MAX: usize = 200;

/// One row a phase in document order, then the verdict in a sentence.
pub fn text(plan: &Plan, record: &Record, now: Timestamp, paint: Paint) -> String {
    let width = id_width(plan).max("PHASE".len());
    let head = format!("{}  STATE           TRIES   TIME", padded("PHASE", width));
    let mut out = vec![paint.strong(&head)];
    let is_large = record.phases.len() > ROWS_MAX;
    let listed = plan.indices().zip(&record.phases).filter(|(_, row)| !is_large || row.state != PhaseState::Complete);
    for (ix, row) in listed.take(ROWS_MAX) {
        let max = plan.phase(ix).spec.max_attempts;
        let tries = match (row.attempt, max) {
            (0, _) => "-".to_owned(),
            (tries, 1) => tries.to_string(),
            (tries, max) => format!("{tries} of {max}"),
        };
        let state = paint.state(row.state, row.ignored, &padded(row.state.as_str(), 14));
        let time = duration_millis(row, now).map_or("-".to_owned(), span);
        let name = padded(row.id.as_str(), width);
        let line = format!("{name}  {state}  {}  {}  {}", padded(&tries, 6), padded(&time, 7), remark(row));
        out.push(line.trim_end().to_owned());
    }
    out.push(verdict_sentence(record, now, paint));
    let empty: Vec<&str> = record.phases.iter().filter(|row| ran_nothing(row)).map(|row| row.id.as_str()).collect();
    if !empty.is_empty() {
        out.push(format!("without x-exec, complete at once: {}", empty.join(", ")));
    }
    out.join("\n") + "\n"
}

fn ran_nothing(row: &PhaseRecord) -> bool {
    row.state == PhaseState::Complete && row.message == NOTHING_TO_RUN
}

fn remark(row: &PhaseRecord) -> String {
    if ran_nothing(row) {
        return String::new();
    }
    let mut text = match row.state {
        PhaseState::Idle => "not wanted".to_owned(),
        PhaseState::UpstreamFailed if !row.blocked_by.is_empty() => {
            let causes: Vec<&str> = row.blocked_by.iter().map(crate::manifest::PhaseId::as_str).collect();
            format!("because of {}", causes.join(", "))
        }
        _ => why(row.reason, &row.message).trim_start_matches(": ").to_owned(),
    };
    if row.ignored {
        text = format!("ignored: {text}");
    }
    text
}

/// From the run's first taken attempt to its end, or to now.
fn duration_millis(row: &PhaseRecord, now: Timestamp) -> Option<u64> {
    row.started_at.map(|from| millis_between(from, row.finished_at.unwrap_or(now)))
}

fn verdict_sentence(record: &Record, now: Timestamp, paint: Paint) -> String {
    let count = |state: PhaseState| record.phases.iter().filter(|row| row.state == state).count();
    let ignored = record.phases.iter().filter(|row| row.ignored && row.state == PhaseState::Failed).count();
    let mut parts = vec![format!("{} complete", count(PhaseState::Complete))];
    for (number, word) in [
        (count(PhaseState::Failed) - ignored, "failed"),
        (ignored, "failed and ignored"),
        (count(PhaseState::UpstreamFailed), "not run because of a failure"),
        (count(PhaseState::Skipped), "skipped"),
        (count(PhaseState::Cancelled), "cancelled"),
        (count(PhaseState::Idle), "not wanted"),
    ] {
        if number > 0 {
            parts.push(format!("{number} {word}"));
        }
    }
    let word = record.verdict.map_or("Unfinished", Verdict::as_str);
    let word = match record.verdict {
        Some(Verdict::Succeeded | Verdict::Planned) => paint.good(word),
        Some(Verdict::Failed) => paint.bad(word),
        Some(Verdict::Cancelled) | None => paint.warn(word),
    };
    let elapsed = span(millis_between(record.started_at, record.finished_at.unwrap_or(now)));
    format!("{word} in {elapsed}: {}", parts.join(", "))
}

/// `{verdict, exitCode, digest, startedAt, finishedAt, durationMs, phases: [{id, state, run, attempt, maxAttempts,
/// reason, message, blockedBy, ignored, startedAt, finishedAt, durationMs}]}`; what is absent is null, times are
/// RFC 3339. Described in docs/run.md.
pub fn document(plan: &Plan, record: &Record, exit_code: u8, now: Timestamp) -> Value {
    let phases: Vec<Value> = plan
        .phases()
        .iter()
        .zip(&record.phases)
        .map(|(phase, row)| {
            json!({
                "id": row.id.as_str(),
                "state": row.state.as_str(),
                "run": row.run,
                "attempt": row.attempt,
                "maxAttempts": phase.spec.max_attempts,
                "reason": row.reason.map(crate::engine::PhaseReason::as_str),
                "message": row.message,
                "blockedBy": row.blocked_by.iter().map(crate::manifest::PhaseId::as_str).collect::<Vec<_>>(),
                "ignored": row.ignored,
                "startedAt": row.started_at,
                "finishedAt": row.finished_at,
                "durationMs": duration_millis(row, now),
            })
        })
        .collect();
    json!({
        "verdict": record.verdict.map(Verdict::as_str),
        "exitCode": exit_code,
        "digest": plan.digest().to_string(),
        "startedAt": record.started_at,
        "finishedAt": record.finished_at,
        "durationMs": millis_between(record.started_at, record.finished_at.unwrap_or(now)),
        "phases": phases,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::run::samples::{at, id, on_use, phase, plan, record, set},
        engine::PhaseReason,
    };

    fn finished() -> (std::sync::Arc<Plan>, Record) {
        let plan = plan(vec![
            phase("disk", &[]),
            phase("motd", &[]),
            phase("net", &[]),
            phase("web", &["net"]),
            phase("ready", &[]),
            on_use("rescue", &[]),
        ]);
        let mut record = record(&plan);
        record.verdict = Some(Verdict::Failed);
        record.finished_at = Some(at(6_200));
        let ran = |row: &mut PhaseRecord| {
            row.attempt = 2;
            row.started_at = Some(at(100));
            row.finished_at = Some(at(1_400));
        };
        set(&mut record, "disk", PhaseState::Complete, ran);
        set(&mut record, "motd", PhaseState::Failed, |row| {
            ran(row);
            row.ignored = true;
            row.message = "exit status 1".to_owned();
        });
        set(&mut record, "net", PhaseState::Failed, |row| {
            ran(row);
            row.reason = Some(PhaseReason::AttemptTimeout);
        });
        set(&mut record, "web", PhaseState::UpstreamFailed, |row| row.blocked_by = vec![id("net")]);
        set(&mut record, "ready", PhaseState::Complete, |row| row.message = NOTHING_TO_RUN.to_owned());
        set(&mut record, "rescue", PhaseState::Idle, |_| {});
        (plan, record)
    }

    #[test]
    fn the_table_says_how_every_phase_ended_and_why() {
        let (plan, record) = finished();
        assert_eq!(
            text(&plan, &record, at(9_000), Paint::Plain),
            "PHASE   STATE           TRIES   TIME\n\
             disk    Complete        2 of 3  1.3s\n\
             motd    Failed          2 of 3  1.3s     ignored: exit status 1\n\
             net     Failed          2 of 3  1.3s     the attempt took too long\n\
             web     UpstreamFailed  -       -        because of net\n\
             ready   Complete        -       -\n\
             rescue  Idle            -       -        not wanted\n\
             Failed in 6.2s: 2 complete, 1 failed, 1 failed and ignored, 1 not run because of a failure, 1 not wanted\n\
             without x-exec, complete at once: ready\n"
        );
    }

    #[test]
    fn the_document_has_every_phase_with_its_times() {
        let (plan, record) = finished();
        let document = document(&plan, &record, 1, at(9_000));
        assert_eq!(document["verdict"], "Failed");
        assert_eq!(document["exitCode"], 1);
        assert_eq!(document["durationMs"], 6_200);
        assert_eq!(document["phases"][2]["reason"], "AttemptTimeout");
        assert_eq!(document["phases"][2]["durationMs"], 1_300);
        assert_eq!(document["phases"][3]["blockedBy"], json!(["net"]));
        assert_eq!(document["phases"][5]["startedAt"], Value::Null);
    }
}

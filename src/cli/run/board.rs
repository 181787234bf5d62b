//! What a person sees at the bottom of the terminal while a session runs. Pure: the plan, the latest record, the time
//! and the size of the terminal in; lines out.

use jiff::Timestamp;

use super::{
    lines::attempt_of,
    paint::{Paint, millis_between, padded, printable, span},
};
use crate::{
    engine::{PhaseRecord, PhaseState, Record},
    manifest::{PhaseIx, Plan},
};

/// Most rows besides the head, so that what has scrolled by above stays in sight.
pub const ROWS_MAX: usize = 20;
/// Most names in `waiting for ..`.
const NAMES_MAX: usize = 3;
const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// The size of what may be drawn on.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    pub columns: usize,
    pub rows: usize,
}

/// A head line, then the phases that are open, the busiest first, each cut to the width; how many are left out is said
/// in the last line. Finished phases are in the head's numbers only.
pub fn lines(plan: &Plan, record: &Record, now: Timestamp, area: Area, id_width: usize, paint: Paint) -> Vec<String> {
    let mut open: Vec<(u8, PhaseIx, &PhaseRecord)> =
        plan.indices().zip(&record.phases).filter_map(|(ix, row)| Some((rank(row.state)?, ix, row))).collect();
    open.sort_by_key(|(rank, ix, _)| (*rank, *ix));
    let room = area.rows.saturating_sub(2).min(ROWS_MAX);
    let mut out = vec![head(plan, record, now, paint)];
    for (_, ix, row) in open.iter().take(room) {
        out.push(line(plan, record, *ix, row, now, id_width, paint));
    }
    if open.len() > room {
        out.push(paint.faint(&format!("  and {} more waiting", open.len() - room)));
    }
    out.iter().map(|line| console::truncate_str(line, area.columns, "…").into_owned()).collect()
}

/// Smaller stands higher; finished and idle phases are not on the board.
fn rank(state: PhaseState) -> Option<u8> {
    match state {
        PhaseState::Running | PhaseState::Cancelling => Some(0),
        PhaseState::BackingOff | PhaseState::Held => Some(1),
        PhaseState::Offered | PhaseState::Queued => Some(2),
        PhaseState::Waiting => Some(3),
        _ => None,
    }
}

fn head(plan: &Plan, record: &Record, now: Timestamp, paint: Paint) -> String {
    let count = |wanted: &dyn Fn(&PhaseRecord) -> bool| record.phases.iter().filter(|row| wanted(row)).count();
    let idle = count(&|row| row.state == PhaseState::Idle);
    let done = count(&is_done);
    let running = count(&|row| row.state == PhaseState::Running);
    let failed = count(&|row| row.state == PhaseState::Failed && !row.ignored);
    let elapsed = span(millis_between(record.started_at, now));
    let mut parts = vec![paint.strong(&format!("{done}/{} done", plan.len() - idle)), format!("{running} running")];
    if failed > 0 {
        parts.push(paint.bad(&format!("{failed} failed")));
    }
    if record.paused_since.is_some() {
        parts.push(paint.warn("paused"));
    }
    parts.push(elapsed);
    parts.join(", ")
}

/// What waits for it may go on.
pub(super) fn is_done(row: &PhaseRecord) -> bool {
    match row.state {
        PhaseState::Complete | PhaseState::Skipped => true,
        PhaseState::Failed => row.ignored,
        _ => false,
    }
}

fn line(
    plan: &Plan,
    record: &Record,
    ix: PhaseIx,
    row: &PhaseRecord,
    now: Timestamp,
    id_width: usize,
    paint: Paint,
) -> String {
    let for_millis = millis_between(row.since, now);
    let attempt = attempt_of(row.attempt, plan.phase(ix).spec.max_attempts);
    let progress = row.progress.as_deref().map(|text| format!(" {}", printable(text))).unwrap_or_default();
    let (mark, text) = match row.state {
        PhaseState::Running => {
            let frame = usize::try_from(for_millis / 100).unwrap_or(0) % SPINNER.len();
            (SPINNER[frame], format!("{}{attempt}{progress}", span(for_millis)))
        }
        PhaseState::Cancelling => ("■", format!("stopping, {}", span(for_millis))),
        PhaseState::BackingOff => {
            let left = row.due.map(|due| format!(" in {}", span(millis_between(now, due)))).unwrap_or_default();
            ("↻", format!("tries again{left}{attempt}: {}", printable(&row.message)))
        }
        PhaseState::Held => ("!", format!("held: {}", printable(&row.message))),
        PhaseState::Offered | PhaseState::Queued => ("·", "offered".to_owned()),
        _ => ("·", waiting_for(plan, record, ix)),
    };
    let text = paint.state(row.state, row.ignored, &format!("{mark} {} {text}", padded(row.id.as_str(), id_width)));
    format!("  {text}")
}

/// Whom the phase waits for; nobody means a free slot.
fn waiting_for(plan: &Plan, record: &Record, ix: PhaseIx) -> String {
    let open: Vec<&str> = plan
        .waits(ix)
        .iter()
        .filter(|on| !is_done(&record.phases[on.index()]))
        .map(|&on| plan.id(on).as_str())
        .collect();
    match open.len() {
        0 => "ready, waits for its turn".to_owned(),
        1..=NAMES_MAX => format!("waits for {}", open.join(", ")),
        count => format!("waits for {} and {} more", open[..NAMES_MAX].join(", "), count - NAMES_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::run::samples::{at, phase, plan, record, set};

    const AREA: Area = Area { columns: 60, rows: 24 };

    #[test]
    fn the_board_shows_who_runs_who_tries_again_and_who_waits_for_whom() {
        let plan = plan(vec![
            phase("done", &[]),
            phase("disk", &["done"]),
            phase("net", &["done"]),
            phase("web", &["disk", "net", "done"]),
        ]);
        let mut record = record(&plan);
        set(&mut record, "done", PhaseState::Complete, |_| {});
        set(&mut record, "disk", PhaseState::BackingOff, |row| {
            row.attempt = 1;
            row.message = "exit status 1".to_owned();
            row.due = Some(at(4_000));
        });
        set(&mut record, "net", PhaseState::Running, |row| {
            row.attempt = 2;
            row.progress = Some("3/7".to_owned());
            row.since = at(1_000);
        });
        assert_eq!(
            lines(&plan, &record, at(3_200), AREA, 4, Paint::Plain),
            [
                "1/4 done, 1 running, 3.2s",
                "  ⠹ net  2.2s (attempt 2 of 3) 3/7",
                "  ↻ disk tries again in 0.8s (attempt 1 of 3): exit status 1",
                "  · web  waits for disk, net",
            ]
        );
    }

    #[test]
    fn an_ignored_failure_counts_as_done_and_a_raised_one_is_named() {
        let plan = plan(vec![phase("a", &[]), phase("b", &[])]);
        let mut record = record(&plan);
        set(&mut record, "a", PhaseState::Failed, |row| row.ignored = true);
        set(&mut record, "b", PhaseState::Failed, |_| {});
        assert_eq!(lines(&plan, &record, at(100), AREA, 1, Paint::Plain), ["1/2 done, 0 running, 1 failed, 0.1s"]);
    }

    #[test]
    fn a_large_plan_never_outgrows_the_terminal() {
        let names: Vec<String> = (0..500).map(|i| format!("a-phase-with-a-rather-long-name-{i}")).collect();
        let plan = plan(names.iter().map(|name| phase(name, &[])).collect());
        let shown = lines(&plan, &record(&plan), at(0), Area { columns: 30, rows: 10 }, 28, Paint::Plain);
        assert_eq!(shown.len(), 10);
        assert!(shown.iter().all(|line| console::measure_text_width(line) <= 30));
        assert_eq!(shown.last().unwrap(), "  and 492 more waiting");
    }

    #[test]
    fn a_phase_that_waits_for_many_names_a_few() {
        let plan = plan(vec![
            phase("a", &[]),
            phase("b", &[]),
            phase("c", &[]),
            phase("d", &[]),
            phase("e", &["a", "b", "c", "d"]),
        ]);
        let e = plan.index_of("e").unwrap();
        assert_eq!(waiting_for(&plan, &record(&plan), e), "waits for a, b, c and 1 more");
    }
}

//! Watching a session to its end: what it says onto the screen, Ctrl-C to the session.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, Stream, StreamExt as _};
use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::{board, lines::Lines, screen::Screen};
use crate::{
    bus::Message,
    engine::{Output, PhaseState, Record, Shutdown},
    manifest::Plan,
    protocol::LogMessage,
};

/// Between two frames of the board.
const FRAME: Duration = Duration::from_millis(100);

/// A running session as this verb sees it.
pub struct Feed<Outputs, Logs, Signals> {
    pub plan: Arc<Plan>,
    /// The latest record; it holds a verdict in the end.
    pub picture: watch::Receiver<Arc<Record>>,
    /// What the engine put out, in order; only transitions are shown.
    pub outputs: Outputs,
    /// Messages of the session's `.log` subject.
    pub logs: Logs,
    /// Each signal as the exit code that it asks for.
    pub signals: Signals,
}

/// How watching ended.
#[derive(Debug, PartialEq)]
pub enum End {
    Verdict {
        record: Arc<Record>,
        /// The exit code that the first signal asked for, if there was one.
        signalled: Option<u8>,
    },
    /// A second signal: the person will not wait for the children.
    Abandoned(u8),
    /// The session went away without a verdict.
    Lost,
}

/// Shows the session until its verdict. `shut_down` is called at the first signal, and once nothing is left but what waits
/// for a person's decision, which nobody can make here.
pub async fn follow(
    mut feed: Feed<
        impl Stream<Item = Output> + Unpin,
        impl Stream<Item = Message> + Unpin,
        impl Stream<Item = u8> + Unpin,
    >,
    screen: &Screen,
    lines: Lines,
    shut_down: impl Fn(Shutdown),
) -> End {
    let mut frames = interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut signalled, mut given_up) = (None, false);
    // An empty manifest has its verdict from the start.
    feed.picture.mark_changed();
    let mut outputs_ended = false;
    loop {
        tokio::select! {
            biased;
            Some(code) = feed.signals.next() => {
                if signalled.replace(code).is_some() {
                    return End::Abandoned(code);
                }
                screen.say("stopping what runs; once more to leave at once");
                shut_down(Shutdown::Cancel);
            }
            Some(message) = feed.logs.next() => say_log(screen, lines, &message),
            output = feed.outputs.next(), if !outputs_ended => match output {
                Some(output) => say_output(screen, lines, &feed.plan, &output),
                None => outputs_ended = true,
            },
            changed = feed.picture.changed() => {
                let record = Arc::clone(&feed.picture.borrow_and_update());
                if record.verdict.is_some() {
                    say_the_rest(&mut feed, screen, lines);
                    return End::Verdict { record, signalled };
                }
                if changed.is_err() {
                    return End::Lost;
                }
                if !given_up && signalled.is_none() && let Some(held) = held_for_ever(&feed.plan, &record) {
                    given_up = true;
                    screen.say(&lines.paint.bad(&format!("nobody can decide here: {held} held by x-onExhausted, given up")));
                    shut_down(Shutdown::Drain);
                }
            }
            _ = frames.tick(), if screen.is_live() => {
                let record = Arc::clone(&feed.picture.borrow());
                let area = Screen::area();
                screen.draw(&board::lines(&feed.plan, &record, Timestamp::now(), area, lines.id_width, lines.paint));
            }
        }
    }
}

/// The names of what is held, where nothing else will ever move.
fn held_for_ever(plan: &Plan, record: &Record) -> Option<String> {
    let is_stuck = plan.indices().zip(&record.phases).all(|(ix, row)| match row.state {
        PhaseState::Waiting => {
            row.due.is_none() && plan.waits(ix).iter().any(|on| !board::is_done(&record.phases[on.index()]))
        }
        PhaseState::Idle | PhaseState::Held => true,
        other => other.is_terminal(),
    });
    let held = record.phases.iter().filter(|row| row.state == PhaseState::Held);
    let held: Vec<&str> = held.map(|row| row.id.as_str()).collect();
    (is_stuck && !held.is_empty()).then(|| held.join(", "))
}

/// What came before the verdict and was not shown yet.
fn say_the_rest<Signals>(
    feed: &mut Feed<impl Stream<Item = Output> + Unpin, impl Stream<Item = Message> + Unpin, Signals>,
    screen: &Screen,
    lines: Lines,
) {
    while let Some(Some(message)) = feed.logs.next().now_or_never() {
        say_log(screen, lines, &message);
    }
    while let Some(Some(output)) = feed.outputs.next().now_or_never() {
        say_output(screen, lines, &feed.plan, &output);
    }
}

fn say_output(screen: &Screen, lines: Lines, plan: &Plan, output: &Output) {
    if let Output::Transition(transition) = output
        && let Some(line) = lines.transition(plan, transition, Timestamp::now())
    {
        screen.say(&line);
    }
}

fn say_log(screen: &Screen, lines: Lines, message: &Message) {
    let Ok(log) = LogMessage::parse(&message.body) else { return };
    let phase = log.phase.as_ref().map_or("", crate::manifest::PhaseId::as_str);
    screen.say(&lines.log(phase, &log.message, Timestamp::now()));
}

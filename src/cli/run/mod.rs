//! `pmp run`: a manifest on this machine, with neither cluster nor NATS.
//!
//! The operator's engine and messages over the in-process bus, and the exec runtime doing the work. In the order in
//! which data flows: `input` reads, `problems` complains, `waves` plans, `session` runs, `follow` watches and says
//! `lines` and a `board` on the `screen`, `summary` concludes. Only `input`, `session`, `follow` and `screen` do IO.

mod board;
mod follow;
mod input;
mod lines;
mod paint;
mod problems;
#[cfg(test)]
mod samples;
mod screen;
mod session;
mod summary;
mod waves;

use std::{
    io::{ErrorKind, Write as _},
    num::NonZeroU32,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::ValueEnum;
use futures::{Stream, stream};
use jiff::Timestamp;
use serde_json::Value;

use self::{
    follow::{End, Feed, follow},
    input::Task,
    lines::Lines,
    paint::Paint,
    screen::Screen,
    waves::Shape,
};
use super::process::signals;
use crate::{
    bus::Bus,
    engine::{Settings, Verdict},
    manifest::{Plan, Problem},
    protocol::{Channel, Prefix},
    runtime::{self, Exec, Labels},
};

/// Exit codes: 0 Succeeded, 1 Failed, 2 invalid manifest, 130 stopped by Ctrl-C (143 by SIGTERM, 129 by SIGHUP).
const INVALID: u8 = 2;

/// How long the runtime may take to put its things away after the verdict; its children have ended by then.
const DRAIN: Duration = Duration::from_secs(1);

/// Runs a manifest on this machine, with neither cluster nor NATS.
///
/// Each phase runs the command in its x-exec: {command: [program, argument, ..], env: {..}, workingDir}; a phase without
/// x-exec is complete at once. Progress goes to standard error, the result to standard output.
///
/// Exit status: 0 Succeeded, 1 Failed, 2 the manifest is invalid, 130 stopped by Ctrl-C.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A PhaseManifest resource or a bare array of phases, YAML or JSON; - for standard input
    manifest: PathBuf,
    /// Take only phases whose selector these labels satisfy; without any, all phases [repeatable]
    #[arg(long = "runtime-label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Run at most this many phases at a time
    #[arg(long, value_name = "N")]
    parallelism: Option<NonZeroU32>,
    /// Run this phase and what it waits for, nothing else
    #[arg(long, value_name = "PHASE")]
    target: Option<String>,
    /// Show the waves and the critical path; run nothing
    #[arg(long)]
    dry_run: bool,
    /// What goes to standard output
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Say nothing until the end
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    /// One document; docs/run.md describes it
    Json,
}

/// Reads, judges, runs and concludes.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let labels = Labels::of_texts(args.labels.iter().map(String::as_str))?;
    let source = match input::read(&args.manifest) {
        Ok(source) => source,
        Err(error) => {
            anstream::eprintln!("pmp: {error:#}");
            return Ok(ExitCode::from(INVALID));
        }
    };
    let task = match input::understand(&source) {
        Ok(task) => task,
        Err(problems) => return refuse(&source, &problems, args.output),
    };
    let task = match overridden(task, args) {
        Ok(task) => task,
        Err(message) => {
            anstream::eprintln!("pmp: {message}");
            return Ok(ExitCode::from(INVALID));
        }
    };
    if args.dry_run || task.is_dry_run {
        return plan_only(&task, args.output);
    }
    let shape = Shape::of(&task.plan, task.settings.target_phase.as_ref());
    let work = Exec::on_laptop();
    let problems = input::unmeetable(&task, shape.wanted(&task.plan), &labels, &work);
    if !problems.is_empty() {
        return refuse(&source, &problems, args.output);
    }
    let screen = if args.quiet { Screen::Silent } else { Screen::open() };
    let tokio = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let end = tokio.block_on(async { carry_out(&task, labels, work, &screen, signals()?).await })?;
    // A child that ignores everything must not keep us here.
    tokio.shutdown_timeout(DRAIN);
    conclude(&task.plan, end, args.output)
}

/// The command line outweighs the document.
fn overridden(mut task: Task, args: &Args) -> Result<Task, String> {
    if let Some(name) = &args.target {
        let known = task.plan.index_of(name).map(|ix| task.plan.id(ix).clone());
        task.settings.target_phase = Some(known.ok_or_else(|| unknown_target(&task.plan, name))?);
    }
    if args.parallelism.is_some() {
        task.settings.parallelism = args.parallelism;
    }
    Ok(task)
}

fn unknown_target(plan: &Plan, name: &str) -> String {
    let nearest = plan
        .phases()
        .iter()
        .map(|phase| (strsim::osa_distance(phase.id.as_str(), name), &phase.id))
        .filter(|(distance, id)| *distance <= (id.as_str().chars().count() / 2).max(1))
        .min_by_key(|(distance, _)| *distance);
    let hint = nearest.map(|(_, id)| format!("; did you mean '{id}'?")).unwrap_or_default();
    format!("--target: no phase is called '{name}'{hint}")
}

fn refuse(source: &input::Source, problems: &[Problem], output: Format) -> anyhow::Result<ExitCode> {
    if output == Format::Json {
        print(&pretty(&problems::document(problems)))?;
    }
    let told = problems::report(&source.name, &source.text, problems, Screen::area().columns, Screen::paint());
    anstream::eprint!("{told}");
    Ok(ExitCode::from(INVALID))
}

fn plan_only(task: &Task, output: Format) -> anyhow::Result<ExitCode> {
    let shape = Shape::of(&task.plan, task.settings.target_phase.as_ref());
    match output {
        Format::Json => print(&pretty(&waves::document(&task.plan, &shape)))?,
        Format::Text => print(&waves::text(&task.plan, &shape, result_paint()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The whole product in one process: bus, runtime, session, and somebody who watches.
async fn carry_out(
    task: &Task,
    labels: Labels,
    work: Exec,
    screen: &Screen,
    signals: impl Stream<Item = u8> + Unpin,
) -> anyhow::Result<End> {
    let bus = Bus::memory();
    let prefix = Prefix::default();
    let options = runtime::Options {
        name: "laptop".to_owned(),
        labels,
        prefix: prefix.clone(),
        session: Some(task.session.clone()),
        ..runtime::Options::new("laptop")
    };
    let runtime = runtime::start(bus.clone(), options, work).await.context("cannot start the runtime")?;
    let logs = bus.subscribe(&prefix.subject(&task.session, Channel::Log), None).await?;
    let (local, mut outputs) = session::start(bus.clone(), &prefix, task).await.context("cannot start the session")?;
    let lines = Lines { paint: Screen::paint(), id_width: lines::id_width(&task.plan), started_at: Timestamp::now() };
    let feed = Feed {
        plan: Arc::clone(&task.plan),
        picture: local.picture.clone(),
        outputs: stream::poll_fn(move |cx| outputs.poll_recv(cx)),
        logs,
        signals,
    };
    let shut_down = |how| local.settle(Settings { shutdown: Some(how), ..task.settings.clone() });
    let end = follow(feed, screen, lines, shut_down).await;
    screen.close();
    // Dropped at once when the person will not wait: that kills what still runs.
    if !matches!(end, End::Abandoned(_)) {
        runtime.drain(DRAIN).await;
    }
    Ok(end)
}

fn conclude(plan: &Plan, end: End, output: Format) -> anyhow::Result<ExitCode> {
    let (record, signalled) = match end {
        End::Verdict { record, signalled } => (record, signalled),
        End::Abandoned(code) => return Ok(ExitCode::from(code)),
        End::Lost => anyhow::bail!("the session ended without a verdict; this is a defect of pmp"),
    };
    let code = match (record.verdict, signalled) {
        (Some(Verdict::Succeeded | Verdict::Planned), _) => 0,
        (_, Some(code)) => code,
        (_, None) => 1,
    };
    let now = Timestamp::now();
    match output {
        Format::Json => print(&pretty(&summary::document(plan, &record, code, now)))?,
        Format::Text => print(&summary::text(plan, &record, now, result_paint()))?,
    }
    Ok(ExitCode::from(code))
}

/// How standard output takes colours.
fn result_paint() -> Paint {
    Paint::of(anstream::AutoStream::choice(&std::io::stdout()))
}

fn pretty(document: &Value) -> String {
    format!("{document:#}\n")
}

/// To standard output; a reader that has gone away is no mistake, and neither is a terminal that was closed.
fn print(text: &str) -> anyhow::Result<()> {
    let is_gone = |error: &std::io::Error| {
        error.kind() == ErrorKind::BrokenPipe || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if !is_gone(&error) => Err(error).context("cannot write to standard output"),
        _ => Ok(()),
    }
}

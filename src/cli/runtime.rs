//! `pmp runtime`: the exec runtime on NATS. Arguments become [`runtime::Options`] and [`Exec`], signals a drain.

use std::{num::NonZeroUsize, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;

use super::{
    filled,
    nats::NatsArgs,
    process::{LogArgs, host_name, run_to_end, signals},
};
use crate::{
    bus::{Bus, ConnectOptions},
    manifest::parse_duration,
    protocol::SessionId,
    runtime::{self, Exec, Labels, Options, exec::Commands},
};

/// Takes phases that are offered on NATS and runs their x-exec.
///
/// Without --allow-exec or --commands it declines everything. The first SIGTERM or SIGINT takes nothing new, lets what
/// runs finish for --drain-timeout, stops the rest, reports all of it and ends with 0, or with 1 if the bus did not take
/// every report. A second one ends at once.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    nats: NatsArgs,
    /// Serve this session only; default is every session
    #[arg(long, env = "PMP_SESSION", value_name = "SESSION")]
    session: Option<String>,
    /// A label that this runtime carries: it takes phases whose selector asks for no other [repeatable]
    #[arg(long = "label", env = "PMP_LABELS", value_name = "KEY=VALUE", value_delimiter = ',')]
    labels: Vec<String>,
    /// Run the commands written in phases: whoever may publish an offer may then run anything here
    #[arg(long, env = "PMP_ALLOW_EXEC", conflicts_with = "commands")]
    allow_exec: bool,
    /// Run the executable of this directory that x-exec.name names, and nothing else
    #[arg(long, env = "PMP_COMMANDS", value_name = "DIR")]
    commands: Option<PathBuf>,
    /// Let phases set this variable of a command from --commands [repeatable]
    #[arg(
        long = "allow-env",
        env = "PMP_ALLOW_ENV",
        value_name = "NAME",
        value_delimiter = ',',
        requires = "commands"
    )]
    allow_env: Vec<String>,
    /// Phases at a time
    #[arg(long, env = "PMP_CONCURRENCY", value_name = "N", default_value = "4")]
    concurrency: NonZeroUsize,
    /// What people call this runtime; something random is put behind it [default: the host's name]
    #[arg(long, env = "PMP_RUNTIME_NAME", value_name = "NAME")]
    name: Option<String>,
    /// How often it says that a phase still runs; three missed are the end of the attempt
    #[arg(long, env = "PMP_HEARTBEAT", value_name = "DURATION", default_value = "10s", value_parser = positive)]
    heartbeat: Duration,
    /// How long what runs may take after the first signal
    #[arg(long, env = "PMP_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "20s", value_parser = parse_duration)]
    drain_timeout: Duration,
    #[command(flatten)]
    pub log: LogArgs,
}

fn positive(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|error| error.to_string())?;
    if duration.is_zero() { Err("it is above zero".to_owned()) } else { Ok(duration) }
}

/// Runs until a signal.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (options, work) = (options(args)?, work(args)?);
    run_to_end(live(args, options, work))
}

async fn live(args: &Args, options: Options, work: Exec) -> anyhow::Result<ExitCode> {
    let mut signals = signals()?;
    let connection = ConnectOptions { name: options.name.clone(), ..args.nats.options("pmp-runtime")? };
    let bus = Bus::connect(connection).await.context("cannot set up the connection to NATS")?;
    let runtime = runtime::start(bus, options, work).await.context("cannot start the runtime")?;
    let mut standing = runtime.standing();
    let closed = async { while standing.changed().await.is_ok() {} };
    tokio::select! {
        _ = signals.next() => {}
        () = closed => anyhow::bail!("the connection to NATS is closed"),
    }
    tracing::info!(running = runtime.running(), "draining");
    let drained = tokio::select! {
        drained = runtime.drain(args.drain_timeout) => drained,
        Some(code) = signals.next() => return Ok(ExitCode::from(code)),
    };
    if drained.unsaid > 0 {
        tracing::error!(attempts = drained.unsaid, "ends that could not be reported; the operator notices the silence");
        return Ok(ExitCode::FAILURE);
    }
    tracing::info!(stopped = drained.stopped, "everything is reported");
    Ok(ExitCode::SUCCESS)
}

fn options(args: &Args) -> anyhow::Result<Options> {
    let who = args.name.clone().filter(|name| !name.is_empty()).unwrap_or_else(host_name);
    let session = match args.session.as_deref().filter(|text| !text.is_empty()) {
        Some(text) => Some(SessionId::new(text).context("--session")?),
        None => None,
    };
    let labels = filled(&args.labels);
    let options = Options {
        labels: Labels::carried(labels.iter().map(String::as_str)).context("--label")?,
        prefix: args.nats.prefix()?,
        session,
        concurrency: Some(args.concurrency),
        heartbeat: args.heartbeat,
        ..Options::new(&who)
    };
    // A name is made to fit.
    options.check().context("--heartbeat")?;
    Ok(options)
}

fn work(args: &Args) -> anyhow::Result<Exec> {
    let commands = match &args.commands {
        Some(dir) => {
            // Absolute, so that it means the same wherever a child is started.
            let path = dir.canonicalize().with_context(|| format!("--commands {}", dir.display()))?;
            ensure!(path.is_dir(), "--commands {} is no directory", dir.display());
            Commands::Directory { path, variables: filled(&args.allow_env).into_iter().collect() }
        }
        None if args.allow_exec => Commands::InLine,
        None => {
            tracing::warn!("neither --allow-exec nor --commands: every phase is declined");
            Commands::Refused
        }
    };
    Ok(Exec::on_nats(commands))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn line(arguments: &[&str]) -> Result<Args, clap::Error> {
        Line::try_parse_from([&["runtime"], arguments].concat()).map(|line| line.args)
    }

    #[test]
    fn commands_come_from_the_phase_from_a_directory_or_from_nowhere() {
        let commands = |arguments: &[&str]| work(&line(arguments).unwrap()).map(|exec| exec.commands);
        assert_eq!(commands(&[]).unwrap(), Commands::Refused);
        assert_eq!(commands(&["--allow-exec"]).unwrap(), Commands::InLine);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        match commands(&["--commands", path, "--allow-env=LEVEL,MODE"]).unwrap() {
            Commands::Directory { path: taken, variables } => {
                assert_eq!(taken, dir.path().canonicalize().unwrap());
                assert_eq!(variables, ["LEVEL".to_owned(), "MODE".to_owned()].into());
            }
            other => panic!("{other:?}"),
        }
        let error = commands(&["--commands=/no/such/directory"]).unwrap_err();
        assert!(format!("{error:#}").contains("--commands /no/such/directory"), "{error:#}");
        assert!(line(&["--allow-exec", "--commands", path]).is_err());
        assert!(line(&["--allow-env=LEVEL"]).is_err());
    }

    #[test]
    fn what_is_wrong_is_named_by_its_flag() {
        for (argument, flag) in [
            ("--session=a.b", "--session"),
            ("--label=lonely", "--label"),
            ("--subject-prefix=a..b", "--subject-prefix"),
            ("--heartbeat=100h", "--heartbeat"),
        ] {
            let error = options(&line(&[argument]).unwrap()).unwrap_err();
            assert!(format!("{error:#}").starts_with(flag), "{error:#}");
        }
        for argument in ["--heartbeat=0s", "--concurrency=0", "--drain-timeout=soon"] {
            assert!(line(&[argument]).is_err(), "{argument}");
        }
    }

    #[test]
    fn a_runtime_without_labels_takes_no_phase_that_asks_for_one() {
        let options = options(&line(&["--name=db1"]).unwrap()).unwrap();
        assert!(options.name.starts_with("db1-"), "{}", options.name);
        assert!(!options.labels.match_selector(&[("site".to_owned(), "lab".to_owned())].into()));
    }
}

//! What every verb that runs as a service has in common: its log, its name, and how it is told to end.

use std::{io::Stderr, process::ExitCode, task::Poll, time::Duration};

use anyhow::Context as _;
use clap::ValueEnum;
use futures::{Stream, stream};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        SubscriberBuilder,
        format::{DefaultFields, Format},
    },
};

/// For what still runs at the end.
const REST: Duration = Duration::from_secs(1);

/// Exit codes of a process that would not wait for its own orderly end.
const HUNG_UP: u8 = 129;
const INTERRUPTED: u8 = 130;
const TERMINATED: u8 = 143;

#[derive(Debug, clap::Args)]
pub struct LogArgs {
    /// How log lines are written to standard error; RUST_LOG says which
    #[arg(long, env = "PMP_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    /// One object a line
    Json,
}

impl LogArgs {
    /// Starts the log: `RUST_LOG` as usual, without it what an operator of the operator wants to see.
    pub fn start(&self) {
        match self.log_format {
            LogFormat::Text => log("info").init(),
            LogFormat::Json => log("info").json().init(),
        }
    }
}

/// To standard error, filtered by `RUST_LOG` or else as said. Colours are for terminals: the log of a pod, or in a file, is
/// read by machines, too.
pub fn log(filter: &str) -> SubscriberBuilder<DefaultFields, Format, EnvFilter, fn() -> Stderr> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter));
    let has_colours = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
    let to: fn() -> Stderr = std::io::stderr;
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(has_colours).with_writer(to)
}

/// `<host>-<random>`: the host is the pod's name, the rest keeps a restarted container apart from its last life.
pub fn process_name() -> String {
    format!("{}-{:08x}", host_name(), rand::random::<u32>())
}

/// What this machine, or this pod, calls itself; at most 100 bytes.
pub fn host_name() -> String {
    let from_kernel = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host = std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty()).unwrap_or_else(from_kernel);
    let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')).take(100).collect();
    if host.is_empty() { "pmp".to_owned() } else { host }
}

/// Runs to the end; what still runs beside it then has a second.
pub fn run_to_end(life: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let tokio = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let ended = tokio.block_on(life);
    tokio.shutdown_timeout(REST);
    ended
}

/// SIGINT, SIGTERM and SIGHUP as the exit codes that a process has that ends by them.
///
/// A terminal that is closed hangs up on us and not on our children, which have groups of their own. A SIGHUP that we were
/// started to ignore (nohup) stays ignored; so does its default where that cannot be known.
pub fn signals() -> anyhow::Result<impl Stream<Item = u8> + Unpin> {
    let mut hang_up = match std::fs::read_to_string("/proc/self/status") {
        Ok(status) if !ignores_hang_up(&status) => {
            Some(signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?)
        }
        _ => None,
    };
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    Ok(stream::poll_fn(move |cx| {
        if interrupt.poll_recv(cx).is_ready() {
            return Poll::Ready(Some(INTERRUPTED));
        }
        if hang_up.as_mut().is_some_and(|hang_up| hang_up.poll_recv(cx).is_ready()) {
            return Poll::Ready(Some(HUNG_UP));
        }
        terminate.poll_recv(cx).map(|_| Some(TERMINATED))
    }))
}

/// From the kernel's account of a process: a mask of its ignored signals, in hexadecimal, the first one in the last bit.
fn ignores_hang_up(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hang_up_that_is_ignored_is_read_from_the_kernels_account() {
        assert!(ignores_hang_up("Name:\tpmp\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n"));
        assert!(!ignores_hang_up("Name:\tpmp\nSigIgn:\t0000000000001000\nSigCgt:\t0000000000000001\n"));
        assert!(!ignores_hang_up(""));
    }

    #[test]
    fn two_lives_of_a_process_have_two_names() {
        assert_ne!(process_name(), process_name());
    }
}

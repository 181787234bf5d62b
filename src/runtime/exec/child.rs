//! One child process: started in a group of its own, listened to, waited for, and stopped as a group.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use futures::{FutureExt as _, future::FusedFuture};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::{
    io::{AsyncRead, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

use super::{Environment, MINIMAL_ENV, Order, lines::next_line};
use crate::{
    protocol::LogLevel,
    runtime::{Handle, Outcome},
};

/// How often a group that was told to end is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long output is read after the child has ended: something it left behind may hold the pipe open for ever.
const OUTPUT_AFTER_END: Duration = Duration::from_millis(500);

/// Runs the order to its end, or until it is cancelled.
pub(super) async fn run(order: &Order, handle: &Handle) -> Outcome {
    let mut child = match command(order).spawn() {
        Ok(child) => child,
        Err(error) => return Outcome::failed(no_start(order, &error)),
    };
    let mut group = Group::of(&child);
    let stdout = child.stdout.take().expect("stdout is piped");
    let stderr = child.stderr.take().expect("stderr is piped");
    let output = async {
        tokio::join!(forward(stdout, LogLevel::Info, handle), forward(stderr, LogLevel::Error, handle));
    };
    let output = output.fuse();
    tokio::pin!(output);
    let ended = reading(&mut output, async {
        tokio::select! {
            // A child that has ended was not cancelled.
            biased;
            status = child.wait() => Some(status),
            () = handle.cancelled() => None,
        }
    });
    let ended = ended.await;
    if ended.is_none() {
        reading(&mut output, stop(&mut child, &group, order.grace)).await;
    }
    // What a child that did its work leaves behind is meant to stay: a daemon.
    group.may_stay = matches!(&ended, Some(Ok(status)) if status.success());
    if !output.is_terminated() && timeout(OUTPUT_AFTER_END, &mut output).await.is_err() {
        tracing::debug!("the child ended and left its output open");
    }
    if ended.is_some() && !group.may_stay && group.has_members() {
        // The next attempt must not meet the rest of this one.
        reading(&mut output, stop(&mut child, &group, order.grace)).await;
    }
    group.may_stay = true;
    match ended {
        None => Outcome::Cancelled,
        Some(Ok(status)) if status.success() => Outcome::complete(),
        Some(Ok(status)) => Outcome::failed(ending(status)),
        Some(Err(error)) => Outcome::failed(format!("cannot wait for {}: {error}", order.program.display())),
    }
}

/// Why there is no child.
fn no_start(order: &Order, error: &std::io::Error) -> String {
    let program = order.program.display();
    match &order.working_dir {
        // The system's "no such file" does not say which.
        Some(dir) if !dir.is_dir() => {
            format!("cannot start {program} in {}: there is no such directory", dir.display())
        }
        _ => format!("cannot start {program}: {error}"),
    }
}

/// Waits for `end` and reads the output meanwhile: a full pipe would keep the child from ending.
async fn reading<End>(output: &mut (impl FusedFuture<Output = ()> + Unpin), end: impl Future<Output = End>) -> End {
    tokio::pin!(end);
    loop {
        tokio::select! {
            end = &mut end => return end,
            () = &mut *output, if !output.is_terminated() => {}
        }
    }
}

fn command(order: &Order) -> Command {
    let mut command = Command::new(&order.program);
    command.args(&order.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if order.environment == Environment::Minimal {
        command.env_clear();
        command.envs(MINIMAL_ENV.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    }
    command.envs(&order.env);
    if let Some(dir) = &order.working_dir {
        command.current_dir(dir);
    }
    // A group of its own: Ctrl-C at the terminal reaches us and not the child, and stopping reaches its children too.
    command.process_group(0).kill_on_drop(true);
    command
}

/// `exit status 3`, or `signal 9`.
fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

async fn forward(output: impl AsyncRead + Unpin, level: LogLevel, handle: &Handle) {
    let mut reader = BufReader::new(output);
    loop {
        match next_line(&mut reader).await {
            Ok(Some(line)) => handle.log(level, &line).await,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "the child's output cannot be read on");
                return;
            }
        }
    }
}

/// SIGTERM to the group, and SIGKILL to what is left of it after the grace, which all of its members have: a shell ends
/// at once and may leave behind who does the work.
async fn stop(child: &mut Child, group: &Group, grace: Duration) {
    group.signal(Signal::TERM);
    let all_ended = async {
        if let Err(error) = child.wait().await {
            tracing::warn!(%error, "a child that was told to end cannot be waited for");
        }
        while group.has_members() {
            sleep(LOOK_AGAIN).await;
        }
    };
    // The kernel keeps a group's number from being used again while it has members, and the moment between two looks is
    // too short for the numbers to come round.
    if timeout(grace, all_ended).await.is_err() {
        group.signal(Signal::KILL);
        if let Err(error) = child.wait().await {
            tracing::warn!(%error, "a killed child cannot be waited for");
        }
    }
}

/// The process group that the child leads. Dropped before it may stay (a runtime that is torn down), it is killed: tokio's
/// `kill_on_drop` reaches the leader only.
struct Group {
    leader: Option<Pid>,
    may_stay: bool,
}

impl Group {
    fn of(child: &Child) -> Self {
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Self { leader, may_stay: false }
    }

    fn signal(&self, signal: Signal) {
        let Some(pid) = self.leader else { return };
        // The only error is that nobody is left.
        if let Err(error) = kill_process_group(pid, signal) {
            tracing::trace!(%error, "no process left in the group");
        }
    }

    /// Whether anybody is left, corpses that nobody has collected among them.
    fn has_members(&self) -> bool {
        self.leader.is_some_and(|pid| test_kill_process_group(pid).is_ok())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.may_stay {
            self.signal(Signal::KILL);
        }
    }
}

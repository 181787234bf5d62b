//! One child process: started in a group of its own, listened to, waited for, and stopped as a group.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use futures::{FutureExt as _, future::FusedFuture};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::{Environment, MINIMAL_ENV, Order, lines::next_line};
use crate::{
    protocol::LogLevel,
    runtime::{Handle, Outcome},
};

/// How long output is read after the child has ended: something it left behind may hold the pipe open for ever.
const OUTPUT_AFTER_END: Duration = Duration::from_millis(500);

/// Runs the order to its end, or until it is cancelled.
pub(super) async fn run(order: &Order, handle: &Handle) -> Outcome {
    let mut child = match command(order).spawn() {
        Ok(child) => child,
        Err(error) => return Outcome::failed(format!("cannot start {}: {error}", order.program.display())),
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
    group.leader_ended = true;
    if !output.is_terminated() && timeout(OUTPUT_AFTER_END, &mut output).await.is_err() {
        tracing::debug!("the child ended and left its output open");
    }
    match ended {
        None => Outcome::Cancelled,
        Some(Ok(status)) if status.success() => Outcome::Complete { message: String::new() },
        Some(Ok(status)) => Outcome::failed(ending(status)),
        Some(Err(error)) => Outcome::failed(format!("cannot wait for {}: {error}", order.program.display())),
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

/// SIGTERM to the group, SIGKILL after the grace; then what is left of the group goes too.
async fn stop(child: &mut Child, group: &Group, grace: Duration) {
    group.signal(Signal::TERM);
    if timeout(grace, child.wait()).await.is_err() {
        group.signal(Signal::KILL);
        if let Err(error) = child.wait().await {
            tracing::warn!(%error, "a killed child cannot be waited for");
        }
    }
    // Members that outlived their leader. The kernel keeps a group's number from being used again while it has one,
    // and the moment between the wait and this line is too short for the numbers to come round.
    group.signal(Signal::KILL);
}

/// The process group that the child leads. Dropped while the child runs (a runtime that is torn down), it is killed:
/// tokio's `kill_on_drop` reaches the leader only.
struct Group {
    leader: Option<Pid>,
    leader_ended: bool,
}

impl Group {
    fn of(child: &Child) -> Self {
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Self { leader, leader_ended: false }
    }

    fn signal(&self, signal: Signal) {
        let Some(pid) = self.leader else { return };
        // The only error is that nobody is left.
        if let Err(error) = kill_process_group(pid, signal) {
            tracing::trace!(%error, "no process left in the group");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.leader_ended {
            self.signal(Signal::KILL);
        }
    }
}

//! One child process: started in a group of its own, listened to, waited for, and stopped as a group.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    time::Duration,
};

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
    tokio::pin!(output);
    let mut output_ended = false;
    let ended = loop {
        tokio::select! {
            status = child.wait() => break Some(status),
            () = handle.cancelled() => break None,
            () = &mut output, if !output_ended => output_ended = true,
        }
    };
    let status = match ended {
        Some(status) => status,
        None => {
            // The output is read on while the child is stopped: a full pipe would keep it from ending.
            {
                let stopped = stop(&mut child, &group, order.grace);
                tokio::pin!(stopped);
                loop {
                    tokio::select! {
                        () = &mut stopped => break,
                        () = &mut output, if !output_ended => output_ended = true,
                    }
                }
            }
            group.leader_ended = true;
            return Outcome::Cancelled;
        }
    };
    group.leader_ended = true;
    if !output_ended && timeout(OUTPUT_AFTER_END, &mut output).await.is_err() {
        tracing::debug!("the child ended and left its output open");
    }
    match status {
        Ok(status) if status.success() => Outcome::Complete { message: String::new() },
        Ok(status) => Outcome::failed(ending(status)),
        Err(error) => Outcome::failed(format!("cannot wait for {}: {error}", order.program.display())),
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

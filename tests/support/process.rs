//! A child process that is ended with the test that started it, and whose output a failing test can show.
//!
//! The child hangs on `testbed/leash`: the leash's standard input is a pipe that only this process holds, so the child
//! ends when a `Process` is dropped and also when the whole test binary is killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process, kill_process_group, test_kill_process};

/// How much of an output a failure shows, in lines.
const TAIL_LINES: usize = 40;

/// For the threads of a busy machine to notice that they are stopped.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// A running child. Dropping it kills it.
pub struct Process {
    name: String,
    dir: PathBuf,
    pid: u32,
    leash: Child,
}

impl Process {
    /// Starts `command` (its program, arguments, environment and directory; the rest is set here) under a leash.
    ///
    /// Fails the test, with what the program said, when it cannot be started.
    pub fn start(name: &str, command: &Command) -> Self {
        let dir = super::scratch(name);
        let pid_file = dir.join("pid");
        let mut leash = Command::new(super::tool("leash"));
        leash.arg(&pid_file).arg(command.get_program()).args(command.get_args());
        // Two operators of two tests would want the same port.
        leash.env("PMP_GATEWAY_ADDR", "127.0.0.1:0");
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => leash.env(key, value),
                None => leash.env_remove(key),
            };
        }
        if let Some(current) = command.get_current_dir() {
            leash.current_dir(current);
        }
        let output = |file: &str| File::create(dir.join(file)).expect("the scratch directory was just made");
        leash.stdin(Stdio::piped()).stdout(output("stdout")).stderr(output("stderr"));
        let child = leash.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let mut process = Self { name: name.to_owned(), dir, pid: 0, leash: child };
        process.pid = process.first_pid(&pid_file);
        process
    }

    /// The process id of the command itself, not of its leash.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it has written to its standard output so far.
    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    /// What it has written to its standard error so far.
    pub fn stderr(&self) -> String {
        self.read("stderr")
    }

    /// Where its standard error is kept, also when it is gone.
    #[allow(dead_code, reason = "the bench has no use for it, tests have")]
    pub fn stderr_file(&self) -> PathBuf {
        self.dir.join("stderr")
    }

    /// Its exit code if it has ended: 128 plus the signal where one ended it.
    pub fn exit_code(&mut self) -> Option<i32> {
        let status = self.leash.try_wait().expect("the leash is our child");
        // A leash without a code was killed itself, and its command with it.
        status.map(|status| status.code().unwrap_or(128 + 9))
    }

    /// Sends a signal to the command itself; nothing happens when it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.exit_code().is_none() {
            // It may end between the question and the signal, which is what the signal was for.
            let _ = kill_process(pid_of(self.pid), signal);
        }
        if signal == Signal::STOP {
            self.await_stop();
        }
    }

    /// A stop takes hold when the process next runs, and on a busy machine its other threads answer until then.
    fn await_stop(&self) {
        let is_stopped = |task: &Path| {
            let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('T'))
        };
        let end = Instant::now() + STOP_DEADLINE;
        while Instant::now() < end {
            let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.pid)) else { return };
            if tasks.flatten().all(|task| is_stopped(&task.path())) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for its end and gives the exit code; fails the test when it is still there after `deadline`.
    pub async fn wait(&mut self, deadline: Duration) -> i32 {
        let what = format!("{} has ended", self.name);
        super::eventually(deadline, &what, async || self.exit_code()).await
    }

    /// Ends it by force, as a crash does, and returns when it is gone.
    pub fn kill(&mut self) {
        drop(self.leash.stdin.take());
        let _ = self.leash.wait();
    }

    /// Ends it by force together with the commands that it has started, each with its whole process group: as the end of
    /// a machine or of a container does it. Nothing that it started goes on when this returns.
    pub fn kill_with_children(&mut self) {
        self.signal(Signal::STOP);
        let began = Instant::now();
        while stat(self.pid).is_some_and(|stat| !matches!(stat.state, 'T' | 'Z')) {
            assert!(began.elapsed() < super::START_DEADLINE, "does not stop: {}", self.tail());
            std::thread::sleep(Duration::from_millis(1));
        }
        // Stopped, it starts no more of them.
        let children = children_of(self.pid);
        self.kill();
        for child in children {
            // Whoever has not made a group of its own yet is killed by itself. Both may have ended meanwhile.
            let _ = kill_process_group(pid_of(child), Signal::KILL);
            let _ = kill_process(pid_of(child), Signal::KILL);
        }
    }

    /// The last lines of both outputs, for the message of a failure.
    pub fn tail(&self) -> String {
        let last = |text: String| {
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
        };
        format!("{} ({}):\n{}\n{}", self.name, self.dir.display(), last(self.stdout()), last(self.stderr()))
    }

    fn first_pid(&mut self, pid_file: &Path) -> u32 {
        let began = Instant::now();
        loop {
            if let Ok(text) = fs::read_to_string(pid_file) {
                return text.parse().expect("the leash writes a process id");
            }
            // The file may have been written between the two looks by a command that ended at once.
            let ended = self.exit_code().is_some() && !pid_file.exists();
            assert!(!ended && began.elapsed() < super::START_DEADLINE, "did not start: {}", self.tail());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn read(&self, file: &str) -> String {
        let bytes = fs::read(self.dir.join(file)).expect("the output file exists as long as the process");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether a process of this id runs. One that has ended but was not yet waited for does not.
pub fn alive(pid: u32) -> bool {
    stat(pid).is_none_or(|stat| stat.state != 'Z') && test_kill_process(pid_of(pid)).is_ok()
}

/// What the kernel says of a process; nothing where there is no such process or no `/proc`.
struct Stat {
    /// `R`unning, `S`leeping, s`T`opped, `Z`ombie, ...
    state: char,
    parent: u32,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold any.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some(Stat { state: fields.next()?.chars().next()?, parent: fields.next()?.parse().ok()? })
}

fn children_of(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == parent)).collect()
}

fn pid_of(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id is a positive i32")
}

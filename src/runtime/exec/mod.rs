//! The exec work: a phase's `x-exec` run as a child process.
//!
//! `x-exec: {command: [program, arg, ..], env: {NAME: value}, workingDir: dir}`. Its lines become `.log` messages, its
//! exit code the report. No shell is implied: who wants one writes `["sh", "-c", ".."]`. Whoever may publish a target
//! could otherwise run anything, so on NATS a command written in the phase needs [`Commands::InLine`] to be asked for;
//! without it `x-exec: {name, args}` picks an executable from one directory. Arguments reach it as they are written and
//! nothing else does: an environment (`LD_PRELOAD`, `BASH_ENV`) or a working directory of somebody else's choice would
//! be a command of their choice.

mod child;
mod lines;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::work::{Decline, Handle, Job, Outcome, Work};

/// How long a child may take to end after SIGTERM before SIGKILL.
pub const GRACE: Duration = Duration::from_secs(5);

/// By anybody: whether by us is found out when it is started.
const EXECUTABLE: u32 = 0o111;

/// Variables that a child gets from a runtime that keeps its own environment to itself.
const MINIMAL_ENV: [&str; 8] = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "SHELL"];

/// Where commands come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commands {
    /// From `x-exec.command` of the phase itself (`--allow-exec`; `pmp run`).
    InLine,
    /// From this directory, by `x-exec.name` (`--commands`): any executable file in it, and what links there point to.
    /// Only variables on the list are taken from `x-exec.env` (`--allow-env`), and no `x-exec.workingDir`.
    Directory { path: PathBuf, variables: BTreeSet<String> },
    /// From nowhere: everything is declined.
    Refused,
}

/// What to do with a phase that has no `x-exec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithoutExec {
    /// It is complete at once (the laptop, where nobody else could take it).
    Complete,
    /// Somebody else's: `x-reason: NoExec`.
    Decline,
}

/// What a child knows of our environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// All of it.
    Inherit,
    /// `PATH`, `HOME`, `USER`, `LANG`, `LC_ALL`, `TZ`, `TMPDIR` and `SHELL` only: a runtime's own variables may hold the
    /// bus's password.
    Minimal,
}

/// Runs phases as child processes.
#[derive(Debug, Clone)]
pub struct Exec {
    /// Where commands come from.
    pub commands: Commands,
    /// What becomes of a phase that has none.
    pub without: WithoutExec,
    /// What a child knows of our environment.
    pub environment: Environment,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
}

impl Exec {
    /// As `pmp run` does it.
    pub fn on_laptop() -> Self {
        Self {
            commands: Commands::InLine,
            without: WithoutExec::Complete,
            environment: Environment::Inherit,
            grace: GRACE,
        }
    }

    /// As a runtime on NATS does it.
    pub fn on_nats(commands: Commands) -> Self {
        Self { commands, without: WithoutExec::Decline, environment: Environment::Minimal, grace: GRACE }
    }

    /// What is wrong with a phase's `x-exec`, which every attempt would fail of; nothing where it is right, or for others to
    /// take.
    pub fn objection(&self, exec: &Value) -> Option<String> {
        match self.understood(exec) {
            Err(Refusal::Bad(why)) => Some(why),
            _ => None,
        }
    }

    fn order(&self, job: &Job) -> Result<Order, Refusal> {
        let mut order = self.understood(job.spec.get("x-exec").unwrap_or(&Value::Null))?;
        order.env.insert("PMP_SESSION_ID".to_owned(), job.session.to_string());
        order.env.insert("PMP_PHASE_ID".to_owned(), job.phase.to_string());
        order.env.insert("PMP_ATTEMPT".to_owned(), job.token.to_string());
        Ok(order)
    }

    fn understood(&self, exec: &Value) -> Result<Order, Refusal> {
        if exec.is_null() {
            return Err(Refusal::NoExec);
        }
        let exec = exec.as_object().ok_or(Refusal::bad("x-exec is not an object"))?;
        let (program, args) = match &self.commands {
            Commands::Refused => return Err(Refusal::NotAllowed),
            Commands::InLine => in_line(exec)?,
            Commands::Directory { path, .. } => from_directory(exec, path)?,
        };
        let env = texts_by_name(exec)?;
        if let Commands::Directory { variables, .. } = &self.commands
            && env.keys().any(|name| !variables.contains(name))
        {
            return Err(Refusal::NotAllowed);
        }
        let working_dir = match exec.get("workingDir").or_else(|| exec.get("working_dir")) {
            None | Some(Value::Null) => None,
            Some(_) if matches!(self.commands, Commands::Directory { .. }) => {
                return Err(Refusal::bad("x-exec.workingDir is not taken by this runtime"));
            }
            Some(Value::String(dir)) => Some(PathBuf::from(dir)),
            Some(_) => return Err(Refusal::bad("x-exec.workingDir is not a string")),
        };
        Ok(Order { program, args, env, working_dir, environment: self.environment, grace: self.grace })
    }
}

/// What is to be started: `x-exec`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Order {
    program: PathBuf,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    working_dir: Option<PathBuf>,
    environment: Environment,
    grace: Duration,
}

/// Why nothing is started.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refusal {
    NoExec,
    /// Another runtime may.
    NotAllowed,
    /// The phase itself is wrong; every runtime would say so.
    Bad(String),
}

impl Refusal {
    fn bad(text: &str) -> Self {
        Self::Bad(text.to_owned())
    }
}

fn in_line(exec: &Map<String, Value>) -> Result<(PathBuf, Vec<String>), Refusal> {
    let Some(command) = exec.get("command") else {
        return Err(Refusal::bad("x-exec has no command: write command: [program, argument, ...]"));
    };
    let mut words = texts(command).ok_or(Refusal::bad("x-exec.command is not an array of strings"))?;
    if words.is_empty() || words[0].is_empty() {
        return Err(Refusal::bad("x-exec.command names no program"));
    }
    let program = words.remove(0);
    Ok((program.into(), words))
}

/// `name` is an executable file in `dir`, never a path out of it.
fn from_directory(exec: &Map<String, Value>, dir: &Path) -> Result<(PathBuf, Vec<String>), Refusal> {
    let Some(name) = exec.get("name").and_then(Value::as_str) else { return Err(Refusal::NotAllowed) };
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
        return Err(Refusal::bad("x-exec.name is not the plain name of a command"));
    }
    let path = dir.join(name);
    if !is_command(&path) {
        return Err(Refusal::NotAllowed);
    }
    let args = match exec.get("args") {
        None | Some(Value::Null) => Vec::new(),
        Some(args) => texts(args).ok_or(Refusal::bad("x-exec.args is not an array of strings"))?,
    };
    Ok((path, args))
}

fn is_command(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & EXECUTABLE != 0)
}

/// Of what a directory offers and which variables are taken: the same for whoever can do the same.
fn fingerprint(dir: &Path, variables: &BTreeSet<String>) -> String {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names: BTreeSet<_> = entries.filter(|entry| is_command(&entry.path())).map(|entry| entry.file_name()).collect();
    let mut hash = Sha256::new();
    for name in &names {
        hash.update(name.as_bytes());
        hash.update([0]);
    }
    // No name is empty.
    hash.update([0]);
    for name in variables {
        hash.update(name);
        hash.update([0]);
    }
    let hash = hash.finalize();
    format!("{:08x}", u32::from_be_bytes(hash[..4].try_into().expect("a SHA-256 has 32 bytes")))
}

/// Numbers and booleans count as what they are written as: YAML makes them of `[sleep, 1]`.
fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(scalar).collect()
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

fn texts_by_name(exec: &Map<String, Value>) -> Result<BTreeMap<String, String>, Refusal> {
    match exec.get("env") {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::Object(env)) => env
            .iter()
            .map(|(name, value)| {
                let value = scalar(value).filter(|_| !name.is_empty() && !name.contains(['=', '\0']));
                Some((name.clone(), value?))
            })
            .collect::<Option<_>>()
            .ok_or(Refusal::bad("x-exec.env holds something that is no variable")),
        Some(_) => Err(Refusal::bad("x-exec.env is not a map of names to strings")),
    }
}

impl Work for Exec {
    /// Those that take other commands, or other variables, decline what these take, so they share no offers.
    fn kind(&self) -> Cow<'static, str> {
        match &self.commands {
            Commands::InLine => "exec".into(),
            Commands::Directory { path, variables } => format!("exec-named-{}", fingerprint(path, variables)).into(),
            Commands::Refused => "exec-none".into(),
        }
    }

    fn judge(&self, job: &Job) -> Result<(), Decline> {
        match self.order(job) {
            // A wrong x-exec is taken and fails with its reason, because nobody else would make it right either.
            Ok(_) | Err(Refusal::Bad(_)) => Ok(()),
            Err(Refusal::NoExec) if self.without == WithoutExec::Complete => Ok(()),
            Err(Refusal::NoExec) => Err(Decline("NoExec")),
            Err(Refusal::NotAllowed) => Err(Decline("NotAllowed")),
        }
    }

    async fn run(&self, job: &Job, handle: &Handle) -> Outcome {
        match self.order(job) {
            Ok(order) => child::run(&order, handle).await,
            Err(Refusal::NoExec) => Outcome::Complete { message: NOTHING_TO_RUN.to_owned() },
            Err(Refusal::NotAllowed) => Outcome::failed_for_good("commands of this phase are not allowed here"),
            Err(Refusal::Bad(why)) => Outcome::failed_for_good(why),
        }
    }
}

/// The message of a phase without `x-exec` that is complete at once.
pub const NOTHING_TO_RUN: &str = "nothing to run: no x-exec";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{engine::AttemptToken, manifest::PhaseId, protocol::SessionId};

    fn job(spec: &Value) -> Job {
        Job {
            session: SessionId::new("s").unwrap(),
            phase: PhaseId::new("p").unwrap(),
            token: AttemptToken::received("t"),
            selector: BTreeMap::new(),
            spec: spec.as_object().unwrap().clone(),
        }
    }

    #[test]
    fn on_nats_a_phase_without_x_exec_is_declined_and_on_the_laptop_taken() {
        let phase = job(&json!({}));
        assert_eq!(Exec::on_nats(Commands::InLine).judge(&phase), Err(Decline("NoExec")));
        assert_eq!(Exec::on_laptop().judge(&phase), Ok(()));
    }

    #[test]
    fn a_command_written_in_the_phase_is_declined_unless_allowed() {
        let phase = job(&json!({"x-exec": {"command": ["true"]}}));
        assert_eq!(Exec::on_nats(Commands::Refused).judge(&phase), Err(Decline("NotAllowed")));
        assert_eq!(Exec::on_nats(commands_in(Path::new("/nowhere"))).judge(&phase), Err(Decline("NotAllowed")));
        assert_eq!(Exec::on_nats(Commands::InLine).judge(&phase), Ok(()));
    }

    #[test]
    fn a_named_command_never_leaves_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        executable(&dir.path().join("fsck"));
        let exec = Exec::on_nats(commands_in(dir.path()));
        let order = exec.order(&job(&json!({"x-exec": {"name": "fsck", "args": ["-y", 3]}}))).unwrap();
        assert_eq!((order.program, order.args), (dir.path().join("fsck"), vec!["-y".to_owned(), "3".to_owned()]));
        for name in ["../fsck", "/bin/sh", "", "..", ".", ".hidden", "a/b", "a\\b", "a\0"] {
            let refusal = exec.order(&job(&json!({"x-exec": {"name": name}}))).unwrap_err();
            assert!(matches!(refusal, Refusal::Bad(_)), "{name}: {refusal:?}");
        }
        assert_eq!(exec.order(&job(&json!({"x-exec": {"name": "absent"}}))).unwrap_err(), Refusal::NotAllowed);
    }

    fn commands_in(path: &Path) -> Commands {
        Commands::Directory { path: path.to_owned(), variables: ["LEVEL".to_owned()].into() }
    }

    fn executable(path: &Path) {
        std::fs::write(path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_file_that_is_not_executable_is_no_command_and_neither_is_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("notes"), "").unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let exec = Exec::on_nats(commands_in(dir.path()));
        for name in ["notes", "sub"] {
            assert_eq!(
                exec.order(&job(&json!({"x-exec": {"name": name}}))).unwrap_err(),
                Refusal::NotAllowed,
                "{name}"
            );
        }
        assert_eq!(exec.judge(&job(&json!({"x-exec": {"command": ["sh"]}}))), Err(Decline("NotAllowed")));
    }

    #[test]
    fn a_named_command_takes_no_surroundings_but_what_its_runtime_lists() {
        let dir = tempfile::tempdir().unwrap();
        executable(&dir.path().join("fsck"));
        let exec = Exec::on_nats(commands_in(dir.path()));
        let order = exec.order(&job(&json!({"x-exec": {"name": "fsck", "env": {"LEVEL": 3}}}))).unwrap();
        assert_eq!(order.env["LEVEL"], "3");
        for name in ["LD_PRELOAD", "BASH_ENV"] {
            let phase = job(&json!({"x-exec": {"name": "fsck", "env": {name: "$(id)"}}}));
            assert_eq!(exec.judge(&phase), Err(Decline("NotAllowed")), "{name}: one that lists it may take it");
        }
        match exec.order(&job(&json!({"x-exec": {"name": "fsck", "workingDir": "/"}}))) {
            Err(Refusal::Bad(text)) => assert!(text.contains("not taken"), "{text}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn offers_are_shared_by_those_who_can_do_the_same() {
        let [one, two] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for dir in [&one, &two] {
            executable(&dir.path().join("fsck"));
            std::fs::write(dir.path().join(if dir.path() == one.path() { "notes" } else { "readme" }), "").unwrap();
        }
        let kind = |commands| Exec::on_nats(commands).kind();
        assert_eq!(kind(commands_in(one.path())), kind(commands_in(two.path())));
        let without = Commands::Directory { path: one.path().to_owned(), variables: BTreeSet::new() };
        assert_ne!(kind(commands_in(one.path())), kind(without));
        executable(&two.path().join("mkfs"));
        assert_ne!(kind(commands_in(one.path())), kind(commands_in(two.path())));
    }

    #[test]
    fn a_wrong_x_exec_names_what_is_wrong() {
        for (exec, word) in [
            (json!("ls"), "object"),
            (json!({}), "no command"),
            (json!({"command": "ls -l"}), "array"),
            (json!({"command": []}), "no program"),
            (json!({"command": ["ls"], "env": {"A": []}}), "variable"),
            (json!({"command": ["ls"], "workingDir": 3}), "workingDir"),
        ] {
            match Exec::on_laptop().order(&job(&json!({"x-exec": exec}))) {
                Err(Refusal::Bad(text)) => assert!(text.contains(word), "{text}"),
                other => panic!("{exec}: {other:?}"),
            }
        }
    }
}

//! `pmp runtime` and `examples/runtime.py` as people run them: each law holds for both.

use std::{path::PathBuf, process::Command, time::Duration};

use jiff::Timestamp;
use pmp::{engine::ReportStatus, protocol::Prefix};
use serde_json::{Value, json};

use super::{Clerk, DEADLINE};
use crate::{
    bus::{connected, options as connection},
    support::{
        Nats, NatsConfig, Passage, Process, Signal, alive, bin, eventually, nats, python, scratch, shared_nats, unique,
    },
};

/// Makes each law two tests.
macro_rules! laws {
    ($($law:ident)*) => {
        mod pmp_runtime {
            use super::*;
            $(#[tokio::test] async fn $law() { super::$law(Kind::Pmp).await; })*
        }
        mod python_example {
            use super::*;
            $(#[tokio::test] async fn $law() { super::$law(Kind::Python).await; })*
        }
    };
}

laws! {
    an_offer_becomes_a_child_a_grant_comes_first_and_the_end_is_known_afterwards
    what_is_not_for_it_is_declined_with_a_word_or_left_alone
    an_answer_that_got_lost_is_asked_for_again
    told_to_end_it_takes_nothing_new_and_waits_for_what_runs
    what_does_not_end_in_time_is_stopped_and_reported
    a_server_that_was_away_hears_what_ended_meanwhile
    a_dead_connection_loses_no_report
    two_copies_run_nothing_twice
    an_x_exec_that_nobody_would_make_right_fails_with_its_reason
    the_environment_of_the_runtime_stays_its_own
    a_shell_that_ends_first_costs_its_command_no_grace
    told_to_end_before_its_server_is_there_it_ends
    a_second_signal_ends_it_at_once
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Pmp,
    Python,
}

/// Where runtimes find their offers.
pub struct Place {
    pub url: String,
    pub prefix: Prefix,
    pub dir: PathBuf,
}

impl Place {
    pub fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            prefix: Prefix::new(&unique("runtime.processes")).unwrap(),
            dir: scratch("runtime"),
        }
    }

    pub fn command(&self, kind: Kind, name: &str) -> Command {
        let mut command = match kind {
            Kind::Pmp => Command::new(bin()),
            Kind::Python => Command::new(python()),
        };
        match kind {
            Kind::Pmp => command.args(["runtime", "--subject-prefix", self.prefix.as_str()]),
            Kind::Python => command
                .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/runtime.py"))
                .args(["--prefix", self.prefix.as_str()]),
        };
        command.args(["--nats", &self.url, "--name", name]);
        command
    }

    /// A runtime that listens.
    pub async fn runtime(&self, kind: Kind, name: &str, arguments: &[&str]) -> Process {
        let mut command = self.command(kind, name);
        command.args(arguments);
        let process = Process::start(name, &command);
        eventually(DEADLINE, "the runtime listens", async || {
            process.stderr().contains("waits for phases").then_some(())
        })
        .await;
        process
    }

    /// Of an operator that reaches this server directly.
    pub async fn clerk(&self, server: &Nats) -> Clerk {
        Clerk::on(&connected(connection(server)).await, &self.prefix).await
    }

    /// A line of shell, with `$DIR`.
    fn shell(&self, line: &str) -> Value {
        json!({"x-exec": {"command": ["sh", "-c", line], "env": {"DIR": self.dir}}})
    }

    /// Work that ends when the gate is open, and notes that it was begun.
    pub fn gated(&self) -> Value {
        self.shell("echo $$ >> $DIR/begun; until [ -e $DIR/gate ]; do kill -0 $PPID || exit 1; sleep 0.05; done")
    }

    pub fn open(&self) {
        std::fs::write(self.dir.join("gate"), "").unwrap();
    }

    /// Process ids of children, as they began.
    pub fn begun(&self) -> Vec<u32> {
        let text = std::fs::read_to_string(self.dir.join("begun")).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    pub async fn until_begun(&self, count: usize) {
        eventually(DEADLINE, "the children run", async || (self.begun().len() == count).then_some(())).await;
    }
}

/// Grants the next ack and sees it begin.
pub async fn grant(clerk: &mut Clerk) {
    clerk.answer(true).await;
    assert_eq!(clerk.state().await.status, ReportStatus::Running);
}

fn drain(kind: Kind, seconds: &str) -> [String; 2] {
    match kind {
        Kind::Pmp => ["--drain-timeout".to_owned(), format!("{seconds}s")],
        Kind::Python => ["--drain".to_owned(), seconds.to_owned()],
    }
}

async fn an_offer_becomes_a_child_a_grant_comes_first_and_the_end_is_known_afterwards(kind: Kind) {
    let server = shared_nats().await;
    let place = Place::new(&server.url);
    let mut clerk = place.clerk(server).await;
    let _runtime = place.runtime(kind, "one", &["--allow-exec", "--heartbeat", "7"]).await;
    let spec = place.shell("echo $$ >> $DIR/begun; exit 3");
    clerk.offer("p", "t1", &spec).await;
    let ack = clerk.answer(false).await;
    assert!(ack.accepted && ack.runtime.unwrap().starts_with("one"));
    assert_eq!(ack.heartbeat, Some(Duration::from_secs(7)));
    clerk.offer("p", "t2", &spec).await;
    grant(&mut clerk).await;
    for _ in 0..3 {
        let state = clerk.end().await;
        assert_eq!((state.status, state.message.as_deref()), (ReportStatus::Failed, Some("exit status 3")));
        assert_eq!(state.attempt.unwrap().as_str(), "t2");
        // Asked in two ways.
        clerk.control(&json!({"command": "x-report", "x-attempt": "t2"})).await;
        let again = clerk.end().await;
        assert_eq!(again.message.as_deref(), Some("exit status 3"));
        clerk.offer("p", "t2", &spec).await;
    }
    assert_eq!(place.begun().len(), 1);
}

async fn what_is_not_for_it_is_declined_with_a_word_or_left_alone(kind: Kind) {
    let server = shared_nats().await;
    let place = Place::new(&server.url);
    let mut clerk = place.clerk(server).await;
    let _runtime = place.runtime(kind, "one", &["--allow-exec", "--label", "site=lab"]).await;
    let elsewhere = json!({"selector": {"matchLabels": {"site": "field"}}, "x-exec": {"command": ["true"]}});
    clerk.offer("far", "t0", &elsewhere).await;
    clerk.offer("bare", "t1", &json!({})).await;
    let (ack, reply) = clerk.ack().await;
    assert_eq!((ack.phase.as_str(), ack.accepted, ack.reason.as_deref(), reply), ("bare", false, Some("NoExec"), None));
    clerk.offer_until("late", "t2", &place.gated(), Timestamp::now() - Duration::from_secs(1)).await;
    let (ack, _) = clerk.ack().await;
    assert_eq!((ack.accepted, ack.reason.as_deref()), (false, Some("Expired")));
    let apart = Timestamp::now().duration_since(ack.now.unwrap());
    assert!(apart.abs() < jiff::SignedDuration::from_secs(60), "{apart:?}");

    let without = Place::new(&server.url);
    let mut clerk = without.clerk(server).await;
    let _runtime = without.runtime(kind, "careful", &[]).await;
    clerk.offer("p", "t3", &without.gated()).await;
    assert_eq!(clerk.ack().await.0.reason.as_deref(), Some("NotAllowed"));
}

async fn an_answer_that_got_lost_is_asked_for_again(kind: Kind) {
    let server = shared_nats().await;
    let place = Place::new(&server.url);
    let mut clerk = place.clerk(server).await;
    let _runtime = place.runtime(kind, "one", &["--allow-exec"]).await;
    place.open();
    clerk.offer("p", "t", &place.gated()).await;
    let (first, _) = clerk.ack().await;
    // Nobody listens for a while: the operator restarts.
    drop(clerk);
    let mut clerk = place.clerk(server).await;
    assert_eq!(clerk.answer(true).await, first);
    assert_eq!(clerk.end().await.status, ReportStatus::Complete);
    assert_eq!(place.begun().len(), 1);
}

async fn told_to_end_it_takes_nothing_new_and_waits_for_what_runs(kind: Kind) {
    let server = shared_nats().await;
    let place = Place::new(&server.url);
    let mut clerk = place.clerk(server).await;
    let mut runtime = place.runtime(kind, "one", &["--allow-exec"]).await;
    clerk.offer("p", "t", &place.gated()).await;
    grant(&mut clerk).await;
    place.until_begun(1).await;
    runtime.signal(Signal::TERM);
    eventually(DEADLINE, "it drains", async || runtime.stderr().contains("draining").then_some(())).await;
    clerk.offer("q", "new", &place.gated()).await;
    // Commands are still heard, so what follows the offer tells that it was not taken.
    clerk.control(&json!({"command": "x-report"})).await;
    assert_eq!(clerk.state().await.status, ReportStatus::Running);
    place.open();
    assert_eq!(clerk.end().await.status, ReportStatus::Complete);
    assert_eq!(runtime.wait(DEADLINE).await, 0, "{}", runtime.tail());
    assert_eq!(place.begun().len(), 1);
}

async fn what_does_not_end_in_time_is_stopped_and_reported(kind: Kind) {
    let server = shared_nats().await;
    let place = Place::new(&server.url);
    let mut clerk = place.clerk(server).await;
    let [flag, grace] = drain(kind, "0.2");
    let mut runtime = place.runtime(kind, "one", &["--allow-exec", &flag, &grace]).await;
    for token in ["t1", "t2"] {
        clerk.offer("p", token, &place.gated()).await;
        grant(&mut clerk).await;
    }
    place.until_begun(2).await;
    runtime.signal(Signal::INT);
    for _ in 0..2 {
        let state = clerk.end().await;
        assert_eq!((state.status, state.message.as_deref()), (ReportStatus::Failed, Some("the runtime was stopped")));
    }
    assert_eq!(runtime.wait(DEADLINE).await, 0, "{}", runtime.tail());
    for pid in place.begun() {
        eventually(DEADLINE, "the child is gone", async || (!alive(pid)).then_some(())).await;
    }
}

async fn a_server_that_was_away_hears_what_ended_meanwhile(kind: Kind) {
    let server = nats(NatsConfig::default()).await;
    let place = Place::new(&server.url);
    let mut clerk = place.clerk(&server).await;
    let mut runtime = place.runtime(kind, "one", &["--allow-exec"]).await;
    clerk.offer("p", "t", &place.gated()).await;
    grant(&mut clerk).await;
    place.until_begun(1).await;
    server.kill();
    place.open();
    let pid = place.begun()[0];
    eventually(DEADLINE, "the child has ended", async || (!alive(pid)).then_some(())).await;
    server.start().await;
    // Whether the runtime or this one is back first: what was missed is asked for.
    let mut clerk = place.clerk(&server).await;
    let state = eventually(DEADLINE, "the end is reported", async || {
        clerk.control(&json!({"command": "x-report"})).await;
        tokio::time::timeout(Duration::from_millis(200), clerk.end()).await.ok()
    })
    .await;
    assert_eq!((state.status, state.attempt.unwrap().as_str()), (ReportStatus::Complete, "t"));
    runtime.signal(Signal::TERM);
    assert_eq!(runtime.wait(DEADLINE).await, 0, "{}", runtime.tail());
    assert_eq!(place.begun().len(), 1);
}

/// Noticed by three pings of five seconds; nobody asks.
async fn a_dead_connection_loses_no_report(kind: Kind) {
    let server = shared_nats().await;
    let passage = Passage::to(server.address()).await;
    let place = Place::new(&format!("nats://{}", passage.address));
    let mut clerk = place.clerk(server).await;
    let _runtime = place.runtime(kind, "one", &["--allow-exec", "--heartbeat", "600"]).await;
    clerk.offer("p", "t", &place.gated()).await;
    grant(&mut clerk).await;
    place.until_begun(1).await;
    passage.swallow();
    place.open();
    let pid = place.begun()[0];
    eventually(DEADLINE, "the child has ended", async || (!alive(pid)).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    passage.open();
    let state = tokio::time::timeout(DEADLINE, clerk.end()).await.expect("said again");
    assert_eq!((state.status, state.attempt.unwrap().as_str()), (ReportStatus::Complete, "t"));
    assert_eq!(place.begun().len(), 1);
}

async fn two_copies_run_nothing_twice(kind: Kind) {
    const OFFERS: usize = 30;
    let server = shared_nats().await;
    let place = Place::new(&server.url);
    let mut clerk = place.clerk(server).await;
    let _one = place.runtime(kind, "one", &["--allow-exec", "--concurrency", "8"]).await;
    let _two = place.runtime(kind, "two", &["--allow-exec", "--concurrency", "8"]).await;
    // Of another label set, so that it hears every offer too.
    let _three = place.runtime(kind, "three", &["--allow-exec", "--concurrency", "8", "--label", "site=lab"]).await;
    place.open();
    for _ in 0..3 {
        for n in 0..OFFERS {
            clerk.offer(&format!("p{n}"), &format!("t{n}"), &place.gated()).await;
        }
    }
    clerk.bind_until_ended(OFFERS).await;
    assert_eq!(place.begun().len(), OFFERS);
}

async fn an_x_exec_that_nobody_would_make_right_fails_with_its_reason(kind: Kind) {
    let server = shared_nats().await;
    let place = Place::new(&server.url);
    let mut clerk = place.clerk(server).await;
    let _runtime = place.runtime(kind, "one", &["--allow-exec"]).await;
    clerk.offer("p", "t", &json!({"x-exec": "ls"})).await;
    clerk.answer(true).await;
    let state = clerk.end().await;
    assert_eq!((state.status, state.message.as_deref()), (ReportStatus::Failed, Some("x-exec is not an object")));
    assert_eq!(state.retryable, Some(false));
}

async fn the_environment_of_the_runtime_stays_its_own(kind: Kind) {
    let server = shared_nats().await;
    let place = Place::new(&server.url);
    let mut clerk = place.clerk(server).await;
    let _runtime = place.runtime(kind, "one", &["--allow-exec"]).await;
    // Cargo sets this for every test, and so for the runtime.
    assert!(std::env::var_os("CARGO_PKG_NAME").is_some());
    clerk
        .offer("p", "t", &place.shell("[ -z \"$CARGO_PKG_NAME\" ] && [ -n \"$PATH\" ] && [ -n \"$PMP_ATTEMPT\" ]"))
        .await;
    clerk.answer(true).await;
    assert_eq!(clerk.end().await.status, ReportStatus::Complete);
}

async fn a_shell_that_ends_first_costs_its_command_no_grace(kind: Kind) {
    let server = shared_nats().await;
    let place = Place::new(&server.url);
    let mut clerk = place.clerk(server).await;
    let _runtime = place.runtime(kind, "one", &["--allow-exec"]).await;
    let worker =
        "trap 'sleep 0.3; echo > $DIR/tidied; exit 1' TERM; echo $$ >> $DIR/begun; while :; do sleep 0.05; done";
    let spec = json!({"x-exec": {"command": ["sh", "-c", "sh -c \"$0\"; exit 0", worker], "env": {"DIR": place.dir}}});
    clerk.offer("p", "t", &spec).await;
    grant(&mut clerk).await;
    place.until_begun(1).await;
    clerk.control(&json!({"command": "x-cancel", "x-phaseId": "p", "x-attempt": "t"})).await;
    assert_eq!(clerk.end().await.message.as_deref(), Some("cancelled"));
    assert!(place.dir.join("tidied").exists(), "it was killed before it could tidy");
}

async fn told_to_end_before_its_server_is_there_it_ends(kind: Kind) {
    let server = nats(NatsConfig::default()).await;
    let place = Place::new(&server.url);
    server.stop().await;
    let mut runtime = Process::start("early", &place.command(kind, "early"));
    let word = match kind {
        Kind::Pmp => "not connected to the bus",
        Kind::Python => "NATS: ",
    };
    eventually(DEADLINE, "it tries to connect", async || runtime.stderr().contains(word).then_some(())).await;
    runtime.signal(Signal::TERM);
    assert_eq!(runtime.wait(DEADLINE).await, 0, "{}", runtime.tail());
}

async fn a_second_signal_ends_it_at_once(kind: Kind) {
    let server = shared_nats().await;
    let place = Place::new(&server.url);
    let mut clerk = place.clerk(server).await;
    let [flag, grace] = drain(kind, "600");
    let mut runtime = place.runtime(kind, "one", &["--allow-exec", &flag, &grace]).await;
    clerk.offer("p", "t", &place.gated()).await;
    grant(&mut clerk).await;
    place.until_begun(1).await;
    runtime.signal(Signal::TERM);
    eventually(DEADLINE, "it drains", async || runtime.stderr().contains("draining").then_some(())).await;
    runtime.signal(Signal::INT);
    assert_eq!(runtime.wait(Duration::from_secs(5)).await, 130);
    let pid = place.begun()[0];
    eventually(DEADLINE, "the child goes with it", async || (!alive(pid)).then_some(())).await;
}

//! What only `pmp runtime` has: commands from a directory, one session, its rights on NATS.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use futures::StreamExt as _;
use pmp::{
    bus::{Auth, Secret},
    engine::ReportStatus,
    protocol::Prefix,
};
use serde_json::{Value, json};

use super::{
    Clerk, DEADLINE,
    processes::{Kind, Place},
};
use crate::{
    bus::{connected, options as connection},
    docs::{blocks, text as document},
    support::{Nats, NatsConfig, Process, Signal, eventually, nats, scratch, shared_nats},
};

#[tokio::test]
async fn only_commands_of_its_directory_are_run_and_their_surroundings_are_its_own() {
    let server = shared_nats().await;
    let place = Place::new(&server.url);
    let commands = scratch("commands");
    let write = |name: &str, mode: u32| {
        let file = commands.join(name);
        std::fs::write(&file, "#!/bin/sh\nexit \"$1\"\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    write("end", 0o755);
    write("notes", 0o644);
    let mut clerk = place.clerk(server).await;
    let _runtime = place.runtime(Kind::Pmp, "one", &["--commands", text(&commands)]).await;
    for (n, (exec, reason)) in [
        (json!({"command": ["sh", "-c", "exit 0"]}), "NotAllowed"),
        (json!({"name": "notes"}), "NotAllowed"),
        (json!({"name": "absent"}), "NotAllowed"),
        (json!({"name": "end", "env": {"LD_PRELOAD": "x"}}), "NotAllowed"),
    ]
    .into_iter()
    .enumerate()
    {
        clerk.offer("p", &format!("t{n}"), &json!({"x-exec": exec})).await;
        let (ack, _) = clerk.ack().await;
        assert_eq!((ack.accepted, ack.reason.as_deref()), (false, Some(reason)), "{exec}");
    }
    for (n, (exec, message)) in [
        (json!({"name": "end", "args": [4]}), "exit status 4"),
        (json!({"name": "../end"}), "x-exec.name is not the plain name of a command"),
        (json!({"name": "end", "workingDir": "/"}), "x-exec.workingDir is not taken by this runtime"),
    ]
    .into_iter()
    .enumerate()
    {
        clerk.offer("p", &format!("u{n}"), &json!({"x-exec": exec})).await;
        clerk.answer(true).await;
        let state = clerk.end().await;
        assert_eq!((state.status, state.message.as_deref()), (ReportStatus::Failed, Some(message)), "{exec}");
    }
}

/// A server with the rights that docs/operations.md gives, and what they call an operator and a runtime.
async fn documented_rights() -> (Nats, Clerk, Vec<String>) {
    rights_without("").await
}

/// The same without one of them.
async fn rights_without(right: &str) -> (Nats, Clerk, Vec<String>) {
    let block =
        blocks(&document("docs/operations.md"), "json").into_iter().find(|block| block.contains("authorization"));
    let block = block.unwrap().replace("OPERATOR-PASSWORD", "o-secret").replace("RUNTIME-PASSWORD", "r-secret");
    let mut rights: Value = serde_json::from_str(&block).unwrap();
    let publish = &mut rights["authorization"]["users"][1]["permissions"]["publish"]["allow"];
    publish.as_array_mut().unwrap().retain(|allowed| *allowed != right);
    let server = nats(NatsConfig::default().authorization(rights["authorization"].clone())).await;
    let mut operator = connection(&server);
    let secret = |text: &str| Secret::Text(text.to_owned());
    "_INBOX_pmp-operator.one".clone_into(&mut operator.inbox_prefix);
    operator.auth = Auth::User { name: secret("operator"), password: secret("o-secret") };
    let clerk = Clerk::on(&connected(operator).await, &Prefix::default()).await;
    let password = scratch("rights").join("password");
    std::fs::write(&password, "r-secret\n").unwrap();
    let login = ["--nats-user=runtime".to_owned(), format!("--nats-password-file={}", text(&password))];
    (server, clerk, login.into())
}

/// A runtime under these rights, which runs whatever it is told.
async fn logged_in(server: &Nats, login: &[String]) -> Process {
    let place = Place { prefix: Prefix::default(), ..Place::new(&server.url) };
    let arguments: Vec<&str> = login.iter().map(String::as_str).chain(["--allow-exec"]).collect();
    let runtime = place.runtime(Kind::Pmp, "one", &arguments).await;
    place.open();
    runtime
}

#[tokio::test]
async fn two_directories_share_no_offers() {
    let server = shared_nats().await;
    let place = Place::new(&server.url);
    let mut clerk = place.clerk(server).await;
    let mut runtimes = Vec::new();
    for name in ["left", "right"] {
        let commands = scratch(name);
        std::fs::write(commands.join(name), "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(commands.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        runtimes.push(place.runtime(Kind::Pmp, name, &["--commands", text(&commands)]).await);
    }
    for n in 0..8 {
        clerk.offer("p", &format!("t{n}"), &json!({"x-exec": {"name": "left"}})).await;
        // Both hear it, and one of them can.
        let mut heard = Vec::new();
        for _ in 0..2 {
            let (ack, reply) = clerk.ack().await;
            heard.push((ack.runtime.unwrap()[..4].to_owned(), ack.accepted));
            if ack.accepted {
                clerk.reply(reply, false).await;
            }
        }
        heard.sort();
        assert_eq!(heard, [("left".to_owned(), true), ("righ".to_owned(), false)]);
    }
}

#[tokio::test]
async fn documented_rights_on_nats_are_enough_for_it() {
    let (server, mut clerk, login) = documented_rights().await;
    let operator = async_nats::ConnectOptions::with_user_and_password("operator".to_owned(), "o-secret".to_owned())
        .custom_inbox_prefix("_INBOX_pmp-operator.two")
        .connect(&server.url)
        .await
        .unwrap();
    let mut lines = operator.subscribe("plan.session.*.log").await.unwrap();
    let reports = async_nats::jetstream::stream::Config {
        name: "plan_session_reports".to_owned(),
        subjects: ["start", "control", "state"].map(|channel| format!("plan.session.*.{channel}")).into(),
        ..Default::default()
    };
    let mut stream = async_nats::jetstream::new(operator.clone()).create_stream(reports).await.unwrap();
    let mut runtime = logged_in(&server, &login).await;
    for token in ["t1", "t2"] {
        clerk.offer("p", token, &json!({"x-exec": {"command": ["echo", token]}})).await;
        clerk.answer(true).await;
        assert_eq!(clerk.end().await.status, ReportStatus::Complete);
        let line = tokio::time::timeout(DEADLINE, lines.next()).await.expect("its line is heard").unwrap();
        assert_eq!(pmp::protocol::LogMessage::parse(&line.payload).unwrap().message, token);
    }
    assert!(stream.info().await.unwrap().state.messages >= 4, "two of the reports are ends");
    assert!(!runtime.stderr().contains("plainly"), "the stream confirmed them: {}", runtime.tail());
    clerk.control(&json!({"command": "x-report", "x-attempt": "t1"})).await;
    assert_eq!(clerk.end().await.status, ReportStatus::Complete);
    runtime.signal(Signal::TERM);
    assert_eq!(runtime.wait(DEADLINE).await, 0, "{}", runtime.tail());
    assert!(!runtime.stderr().contains("Violation"), "{}", runtime.tail());
}

/// Each proof asks under a name of its own, and was once taken for news of a denial: there was no end of proofs.
#[tokio::test]
async fn without_leave_to_prove_its_connection_it_works_all_the_same() {
    let (server, mut clerk, login) = rights_without("_INBOX_pmp-runtime.>").await;
    let mut runtime = logged_in(&server, &login).await;
    for token in ["t1", "t2"] {
        clerk.offer("p", token, &json!({"x-exec": {"command": ["true"]}})).await;
        clerk.answer(true).await;
        assert_eq!(clerk.end().await.status, ReportStatus::Complete);
    }
    runtime.signal(Signal::TERM);
    assert_eq!(runtime.wait(DEADLINE).await, 0, "{}", runtime.tail());
    let refusals = runtime.stderr().matches("Violation").count();
    assert!(refusals < 10, "{refusals} refusals: {}", runtime.tail());
}

#[tokio::test]
async fn without_leave_to_hear_replies_it_says_so_and_takes_nothing() {
    let (server, mut clerk, login) = documented_rights().await;
    let place = Place { prefix: Prefix::default(), ..Place::new(&server.url) };
    let mut command = place.command(Kind::Pmp, "deaf");
    command.args(&login).args(["--nats-inbox-prefix=_INBOX_other", "--allow-exec"]);
    let runtime = Process::start("deaf", &command);
    eventually(DEADLINE, "the denial is named", async || {
        let log = runtime.stderr();
        (log.contains("the bus denies") && log.contains("_INBOX_other.")).then_some(())
    })
    .await;
    clerk.offer("p", "t", &place.gated()).await;
    let mut worker: Vec<&str> = login.iter().map(String::as_str).collect();
    worker.extend(["--allow-exec", "--label", "site=lab"]);
    let _worker = place.runtime(Kind::Pmp, "able", &worker).await;
    clerk.offer("p", "t", &place.gated()).await;
    assert!(clerk.answer(false).await.runtime.unwrap().starts_with("able-"));
}

#[tokio::test]
async fn one_session_is_served_where_one_is_named() {
    let server = shared_nats().await;
    let place = Place::new(&server.url);
    let mut clerk = place.clerk(server).await;
    let other = Place { url: place.url.clone(), prefix: place.prefix.clone(), dir: scratch("other") };
    let _elsewhere = other.runtime(Kind::Pmp, "elsewhere", &["--allow-exec", "--session", "s2"]).await;
    let _here = place.runtime(Kind::Pmp, "here", &["--allow-exec", "--session", "s1", "--label", "a=b"]).await;
    place.open();
    // Of two groups: whoever heard these would ask for half of them.
    for n in 1..=16 {
        clerk.offer("p", &format!("t{n}"), &place.gated()).await;
        let bound = clerk.bind_until_ended(n).await;
        assert!(bound.values().all(|runtime| runtime.starts_with("here-")), "{bound:?}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

//! A server that goes away while work runs and ends: no report is lost while the runtime lives.

use std::time::Duration;

use pmp::{
    bus::{Bus, Link},
    engine::ReportStatus,
    protocol::Prefix,
    runtime::{Options, Runtime, Standing},
};
use serde_json::json;

use super::{Clerk, DEADLINE, Gated, listening, options, until_listening};
use crate::{
    bus::{connected, link_where, options as connection},
    support::{Nats, NatsConfig, Passage, eventually, nats, shared_nats, unique},
};

fn prefix() -> Prefix {
    Prefix::new(&unique("runtime.outages")).unwrap()
}

/// `count` attempts that a runtime holds.
async fn hold(clerk: &mut Clerk, count: usize) {
    for n in 0..count {
        clerk.offer(&format!("p{n}"), &format!("t{n}"), &json!({})).await;
        clerk.answer(true).await;
        assert_eq!(clerk.state().await.status, ReportStatus::Running);
    }
}

async fn until_away(runtime: &Runtime) {
    let mut standing = runtime.standing();
    let away = standing.wait_for(|standing| matches!(standing, Standing::Away { .. }));
    tokio::time::timeout(DEADLINE, away).await.expect("the loss is noticed").unwrap();
}

async fn until_running(runtime: &Runtime, count: usize) {
    eventually(DEADLINE, "work has ended", async || (runtime.running() == count).then_some(())).await;
}

/// Ends, once each, in any order; repeats are passed over.
async fn ends(clerk: &mut Clerk, count: usize) {
    let mut ended = std::collections::BTreeSet::new();
    while ended.len() < count {
        let state = clerk.end().await;
        assert_eq!(state.status, ReportStatus::Complete);
        ended.insert(state.attempt.unwrap());
    }
}

async fn work_that_ends_while_the_server_is_away(server: Nats) {
    let prefix = prefix();
    let bus = connected(connection(&server)).await;
    let work = Gated::closed();
    let runtime = listening(&bus, options("a", &prefix, &[]), work.clone()).await;
    let mut clerk = Clerk::on(&connected(connection(&server)).await, &prefix).await;
    hold(&mut clerk, 5).await;
    server.stop().await;
    until_away(&runtime).await;
    work.let_go();
    until_running(&runtime, 0).await;
    server.start().await;
    until_listening(&runtime).await;
    link_where(&clerk.bus, "connected again", Link::is_connected).await;
    // Both come back in any order: what the operator missed it asks for.
    let mut clerk = Clerk::on(&clerk.bus, &prefix).await;
    clerk.control(&json!({"command": "x-report"})).await;
    ends(&mut clerk, 5).await;
    // It takes offers again.
    clerk.offer("q", "new", &json!({})).await;
    assert_eq!(clerk.answer(true).await.attempt.unwrap().as_str(), "new");
    assert_eq!(work.begun().iter().filter(|token| token.starts_with('t')).count(), 5);
}

#[tokio::test]
async fn work_that_ends_while_the_server_is_away_is_reported_when_it_is_back() {
    work_that_ends_while_the_server_is_away(nats(NatsConfig::default()).await).await;
}

#[tokio::test]
async fn work_that_ends_while_a_server_without_jetstream_is_away_is_reported_too() {
    work_that_ends_while_the_server_is_away(nats(NatsConfig::default().without_jetstream()).await).await;
}

/// A runtime behind a passage, on a server that the operator reaches directly.
async fn behind(passage: &Passage) -> Bus {
    let mut behind = connection(shared_nats().await);
    behind.servers = vec![format!("nats://{}", passage.address)];
    connected(behind).await
}

#[tokio::test]
async fn what_was_said_into_a_dead_connection_is_said_again_without_being_asked() {
    let prefix = prefix();
    let passage = Passage::to(shared_nats().await.address()).await;
    let work = Gated::closed();
    let runtime = listening(&behind(&passage).await, options("a", &prefix, &[]), work.clone()).await;
    let mut clerk = Clerk::on(&connected(connection(shared_nats().await)).await, &prefix).await;
    hold(&mut clerk, 3).await;
    passage.swallow();
    // The connection looks well: these reports are taken, and lost.
    work.let_go();
    until_running(&runtime, 0).await;
    until_away(&runtime).await;
    passage.open();
    ends(&mut clerk, 3).await;
    assert_eq!(work.begun().len(), 3);
}

#[tokio::test]
async fn a_grant_that_a_dead_connection_swallowed_is_asked_for_when_it_is_back() {
    let prefix = prefix();
    let passage = Passage::to(shared_nats().await.address()).await;
    let work = Gated::open();
    let runtime = listening(&behind(&passage).await, options("a", &prefix, &[]), work.clone()).await;
    let mut clerk = Clerk::on(&connected(connection(shared_nats().await)).await, &prefix).await;
    clerk.offer("p", "t", &json!({})).await;
    let (_, reply) = clerk.ack().await;
    passage.swallow();
    clerk.reply(reply, true).await;
    until_away(&runtime).await;
    assert!(work.begun().is_empty());
    passage.open();
    clerk.answer(true).await;
    assert_eq!(clerk.end().await.status, ReportStatus::Complete);
    assert_eq!(work.begun(), ["t"]);
}

#[tokio::test]
async fn a_runtime_that_starts_before_its_server_listens_when_it_is_there() {
    let server = nats(NatsConfig::default()).await;
    server.stop().await;
    let prefix = prefix();
    let bus = Bus::connect(connection(&server)).await.unwrap();
    let runtime = pmp::runtime::start(bus, options("a", &prefix, &[]), Gated::open()).await.unwrap();
    until_away(&runtime).await;
    server.start().await;
    until_listening(&runtime).await;
    let mut clerk = Clerk::on(&connected(connection(&server)).await, &prefix).await;
    clerk.offer("p", "t", &json!({})).await;
    clerk.bind_until_ended(1).await;
}

#[tokio::test]
async fn a_drain_without_a_server_ends_and_says_what_it_could_not_report() {
    let server = nats(NatsConfig::default()).await;
    let prefix = prefix();
    let runtime = listening(&connected(connection(&server)).await, options("a", &prefix, &[]), Gated::closed()).await;
    let mut clerk = Clerk::on(&connected(connection(&server)).await, &prefix).await;
    hold(&mut clerk, 2).await;
    server.kill();
    until_away(&runtime).await;
    let drained = tokio::time::timeout(DEADLINE, runtime.drain(Duration::ZERO)).await.expect("a drain ends");
    assert_eq!((drained.stopped, drained.unsaid), (2, 2));
}

/// A runtime whose two reports went into a dead connection, which pings will not tell in time.
async fn said_into_the_void(passage: &Passage) -> (Runtime, Clerk) {
    let prefix = prefix();
    let mut slow = connection(shared_nats().await);
    slow.servers = vec![format!("nats://{}", passage.address)];
    slow.ping_interval = Duration::from_secs(10);
    let work = Gated::open();
    let runtime = listening(&connected(slow).await, options("a", &prefix, &[]), work.clone()).await;
    let mut clerk = Clerk::on(&connected(connection(shared_nats().await)).await, &prefix).await;
    // That no stream keeps reports is known from here on.
    clerk.offer("first", "first", &json!({})).await;
    clerk.bind_until_ended(1).await;
    work.gate.send_replace(false);
    hold(&mut clerk, 2).await;
    passage.swallow();
    work.let_go();
    until_running(&runtime, 0).await;
    (runtime, clerk)
}

#[tokio::test]
async fn a_drain_over_a_dead_connection_that_nobody_noticed_does_not_say_that_all_is_reported() {
    let passage = Passage::to(shared_nats().await.address()).await;
    let (runtime, _clerk) = said_into_the_void(&passage).await;
    let drained = tokio::time::timeout(DEADLINE, runtime.drain(Duration::from_secs(1))).await.expect("a drain ends");
    assert_eq!(drained.stopped, 0);
    // The first one too, if it was said a moment before.
    assert!(drained.unsaid >= 2, "{drained:?}");
}

#[tokio::test]
async fn a_drain_over_a_connection_that_comes_back_says_again_what_was_lost() {
    let passage = Passage::to(shared_nats().await.address()).await;
    let (runtime, mut clerk) = said_into_the_void(&passage).await;
    let draining = tokio::spawn(runtime.drain(Duration::from_secs(1)));
    tokio::time::sleep(Duration::from_secs(2)).await;
    passage.open();
    let drained = tokio::time::timeout(DEADLINE, draining).await.expect("a drain ends").unwrap();
    assert_eq!((drained.stopped, drained.unsaid), (0, 0));
    let mut heard = std::collections::BTreeSet::new();
    while !heard.contains("t0") || !heard.contains("t1") {
        heard.insert(clerk.end().await.attempt.unwrap().to_string());
    }
}

#[tokio::test]
async fn a_report_that_the_server_denies_is_named_and_nothing_more_is_taken() {
    let prefix = prefix();
    let users = json!({"users": [
        {"user": "op", "password": "op"},
        {"user": "bob", "password": "builder", "permissions": {
            "publish": {"allow": [format!("{prefix}.*.ack"), format!("{prefix}.*.log")]}, "subscribe": {"allow": [">"]}}},
    ]});
    let server = nats(NatsConfig::default().authorization(users)).await;
    let text = |text: &str| pmp::bus::Secret::Text(text.to_owned());
    let user = |name: &str, password: &str| {
        let mut options = connection(&server);
        options.auth = pmp::bus::Auth::User { name: text(name), password: text(password) };
        options
    };
    let work = Gated::closed();
    let runtime = listening(&connected(user("bob", "builder")).await, options("a", &prefix, &[]), work.clone()).await;
    let mut clerk = Clerk::on(&connected(user("op", "op")).await, &prefix).await;
    clerk.offer("p", "t1", &json!({})).await;
    clerk.answer(true).await;
    let mut standing = runtime.standing();
    let denied = standing.wait_for(|standing| matches!(standing, Standing::Denied { .. }));
    let denied = tokio::time::timeout(DEADLINE, denied).await.expect("the denial is noticed").unwrap().clone();
    assert_eq!(denied, Standing::Denied { subjects: vec![format!("{prefix}.s1.state")] });
    clerk.offer("q", "t2", &json!({})).await;
    assert!(tokio::time::timeout(Duration::from_millis(300), clerk.ack()).await.is_err());
    work.let_go();
    let drained = tokio::time::timeout(DEADLINE, runtime.drain(DEADLINE)).await.expect("a drain ends");
    assert_eq!(drained.unsaid, 1, "what was said was thrown away");
    assert_eq!(work.begun(), ["t1"]);
}

#[tokio::test]
async fn a_subscription_that_the_server_denies_is_named() {
    let prefix = prefix();
    let users = json!({"users": [{"user": "bob", "password": "builder", "permissions": {
        "publish": {"allow": [">"]}, "subscribe": {"allow": [format!("{prefix}.*.control"), "_INBOX.>"]}}}]});
    let server = nats(NatsConfig::default().authorization(users)).await;
    let mut bob = connection(&server);
    let text = |text: &str| pmp::bus::Secret::Text(text.to_owned());
    bob.auth = pmp::bus::Auth::User { name: text("bob"), password: text("builder") };
    bob.inbox_prefix = "_INBOX.bob".to_owned();
    let runtime = pmp::runtime::start(connected(bob).await, options("a", &prefix, &[]), Gated::open()).await.unwrap();
    let mut standing = runtime.standing();
    let denied = standing.wait_for(|standing| matches!(standing, Standing::Denied { .. }));
    let denied = tokio::time::timeout(DEADLINE, denied).await.expect("the denial is noticed").unwrap().clone();
    assert_eq!(denied, Standing::Denied { subjects: vec![format!("{prefix}.*.target")] });
}

#[tokio::test]
async fn an_attempt_that_was_given_up_behind_a_dead_connection_is_stopped_when_it_is_back() {
    let prefix = prefix();
    let passage = Passage::to(shared_nats().await.address()).await;
    let direct = connected(connection(shared_nats().await)).await;
    let (lost, next) = (Gated::closed(), Gated::closed());
    let often = |name: &str| Options { heartbeat: Duration::from_millis(200), ..options(name, &prefix, &[]) };
    let behind = listening(&behind(&passage).await, often("behind"), lost.clone()).await;
    let plan = super::sessions::plan(&json!([{"kind": "Phase", "id": "p", "spec": {"retry": {"maxAttempts": 2}}}]));
    let mut operator = super::sessions::Operator::start(&direct, &prefix, &plan, None).await;
    eventually(DEADLINE, "it has begun", async || (lost.begun().len() == 1).then_some(())).await;
    passage.swallow();
    let _direct = listening(&direct, often("direct"), next.clone()).await;
    eventually(DEADLINE, "the next attempt has begun", async || (next.begun().len() == 1).then_some(())).await;
    assert_eq!(behind.running(), 1);
    passage.open();
    until_running(&behind, 0).await;
    next.let_go();
    assert_eq!(operator.verdict().await, Some(pmp::engine::Verdict::Succeeded));
    assert_eq!((lost.begun().len(), next.begun().len()), (1, 1));
}

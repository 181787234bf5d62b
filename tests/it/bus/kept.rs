//! What the operator hears where reports are kept: each once, whatever was missed made good, and its place told.

use std::{fs, time::Duration};

use pmp::{
    bus::{Arrival, Bus, Inbound, InboundBody, InboundHandle, Keeping, Message, Position, Ready, Sink, streams},
    protocol::{Channel, Prefix, SessionId},
};
use serde_json::json;

use super::{DEADLINE, connected, link_where, options};
use crate::support::{Nats, NatsConfig, eventually, nats, scratch};

fn session() -> SessionId {
    SessionId::new("s1").unwrap()
}

async fn run(bus: &Bus) -> InboundHandle {
    let inbound = Inbound::run(bus.clone(), Prefix::default(), "here").await.unwrap();
    kept(&inbound).await;
    inbound
}

async fn ready_where(inbound: &InboundHandle, what: &str, wanted: impl FnMut(&Ready) -> bool) {
    let mut ready = inbound.ready();
    let found = tokio::time::timeout(DEADLINE, ready.wait_for(wanted)).await.map(|found| found.is_ok());
    assert_eq!(found, Ok(true), "{what}; it is {:?}", inbound.ready().borrow());
}

async fn kept(inbound: &InboundHandle) {
    let is_kept = |ready: &Ready| matches!(ready, Ready::Yes { keeping: Keeping::Reports, .. });
    ready_where(inbound, "reports are kept", is_kept).await;
}

async fn say(bus: &Bus, channel: Channel, body: serde_json::Value) {
    let subject = Prefix::default().subject(&session(), channel);
    bus.publish(Message::new(subject, body.to_string())).await.unwrap();
}

async fn report(bus: &Bus, phase: &str, status: &str) {
    say(bus, Channel::State, json!({"phaseId": phase, "status": status})).await;
}

async fn arrival(sink: &mut Sink) -> Arrival {
    tokio::time::timeout(DEADLINE, sink.next()).await.expect("an arrival within the deadline").unwrap()
}

/// The phases of the reports up to and with this one; `caught up` where the past ended.
async fn phases_to(sink: &mut Sink, last: &str) -> Vec<String> {
    let mut phases = Vec::new();
    while phases.last().is_none_or(|phase| phase != last) {
        match arrival(sink).await {
            Arrival::Message(message) => match message.body {
                InboundBody::State(state) => phases.push(state.phase.to_string()),
                InboundBody::Control(control) => phases.push(control.command.as_str().to_owned()),
                _ => {}
            },
            Arrival::CaughtUp => phases.push("caught up".to_owned()),
            Arrival::Missed => phases.push("missed".to_owned()),
        }
    }
    phases
}

/// Its place as soon as the stream was read that far.
async fn position(sink: &mut Sink, sequence: u64) -> Position {
    eventually(DEADLINE, "the stream is read", async || {
        sink.position().filter(|position| position.sequence >= sequence).cloned()
    })
    .await
}

/// What the stream holds by now.
async fn last(bus: &Bus) -> u64 {
    bus.storage().unwrap().facts(&streams::reports(&Prefix::default()).name).await.unwrap().last
}

async fn pair(server: &Nats) -> (Bus, Bus) {
    (connected(options(server)).await, connected(options(server)).await)
}

#[tokio::test]
async fn a_report_is_heard_once_though_it_comes_twice() {
    let server = nats(NatsConfig::default()).await;
    let (bus, runtime) = pair(&server).await;
    let inbound = run(&bus).await;
    let mut sink = inbound.register(&session());
    for n in 0..200 {
        report(&runtime, &format!("p{n}"), "running").await;
    }
    say(&runtime, Channel::Control, json!({"command": "pause"})).await;
    report(&runtime, "end", "running").await;
    let mut heard = phases_to(&mut sink, "end").await;
    if !heard.contains(&"pause".to_owned()) {
        heard.extend(phases_to(&mut sink, "pause").await);
    }
    assert_eq!(heard.len(), 202, "{heard:?}");
    let end = last(&runtime).await;
    let place = position(&mut sink, end).await;
    assert_eq!(place.sequence, end);
    assert_eq!(inbound.counters().made_good, 0, "nothing was missed");
}

#[tokio::test]
async fn what_was_said_while_the_link_was_down_is_made_good() {
    let server = nats(NatsConfig::default()).await;
    let bus = connected(options(&server)).await;
    let inbound = run(&bus).await;
    let mut sink = inbound.register(&session());
    report(&bus, "before", "running").await;
    assert_eq!(phases_to(&mut sink, "before").await, ["before"]);
    let end = last(&bus).await;
    position(&mut sink, end).await;
    server.stop().await;
    link_where(&bus, "the link is down", |link| !link.is_connected()).await;
    server.start().await;
    let runtime = connected(options(&server)).await;
    report(&runtime, "after", "complete").await;
    let heard = phases_to(&mut sink, "after").await;
    assert_eq!(heard.iter().filter(|phase| *phase == "after").count(), 1, "{heard:?}");
    kept(&inbound).await;
    let end = last(&runtime).await;
    position(&mut sink, end).await;
    assert!(!heard.contains(&"missed".to_owned()), "the stream is the same and has no gap: {heard:?}");
}

#[tokio::test]
async fn a_process_that_comes_later_reads_first_what_it_missed_and_nothing_twice() {
    let server = nats(NatsConfig::default()).await;
    let (bus, runtime) = pair(&server).await;
    let since = {
        let inbound = run(&bus).await;
        let mut sink = inbound.register(&session());
        report(&runtime, "known", "running").await;
        phases_to(&mut sink, "known").await;
        let end = last(&runtime).await;
        position(&mut sink, end).await
    };
    for phase in ["a", "b"] {
        report(&runtime, phase, "complete").await;
    }
    say(&runtime, Channel::Control, json!({"command": "pause"})).await;
    runtime.storage().unwrap().publish(Message::new("plan.session.other.state", "{}")).await.unwrap();
    let inbound = run(&bus).await;
    let mut sink = inbound.register(&session()).since(Some(since.clone()));
    assert_eq!(sink.position(), Some(&since), "there is more behind it");
    report(&runtime, "c", "running").await;
    let end = last(&runtime).await;
    assert!(sink.catch_up().await.unwrap() >= 3);
    assert_eq!(sink.position(), Some(&since), "nothing of it is folded yet");
    report(&runtime, "d", "running").await;
    let heard = phases_to(&mut sink, "d").await;
    let expected = ["a", "b", "pause", "c", "caught up", "d"];
    // `c` may come from the stream or live, and is told once.
    let mut sorted = heard.clone();
    sorted.sort();
    let mut wanted = expected.to_vec();
    wanted.sort_unstable();
    assert_eq!(sorted, wanted, "{heard:?}");
    assert_eq!(heard[..3], expected[..3]);
    position(&mut sink, end + 1).await;
}

#[tokio::test]
async fn a_command_from_the_stream_has_a_place() {
    let server = nats(NatsConfig::default()).await;
    let (bus, client) = pair(&server).await;
    let inbound = run(&bus).await;
    let mut sink = inbound.register(&session());
    let mut places = Vec::new();
    for _ in 0..2 {
        say(&client, Channel::Control, json!({"command": "x-retry", "x-phaseId": "a"})).await;
        // On a busy machine the place may come after the command.
        let place = loop {
            let Arrival::Message(command) = arrival(&mut sink).await else { panic!("a command") };
            if let Some(place) = command.place {
                break place;
            }
        };
        places.push(place.position.sequence);
    }
    assert!(places[0] < places[1], "the same words twice are two commands");
}

#[tokio::test]
async fn a_stream_that_is_full_takes_no_report_away() {
    let settings = json!({"store_dir": scratch("full"), "max_file_store": 8 << 20});
    let server = nats(NatsConfig::default().without_jetstream().setting("jetstream", settings)).await;
    let (bus, runtime) = pair(&server).await;
    let inbound = run(&bus).await;
    let mut sink = inbound.register(&session());
    // Whoever set limits on the stream by hand may have meant to refuse what is new.
    let full = fill(&runtime).await;
    assert!(full, "the stream of reports takes no more");
    report(&runtime, "late", "complete").await;
    say(&runtime, Channel::Control, json!({"command": "pause"})).await;
    let heard = phases_to(&mut sink, "pause").await;
    assert!(heard.contains(&"late".to_owned()), "{heard:?}");
}

/// Makes the stream refuse what is new, as an administrator could, and fills it.
async fn fill(bus: &Bus) -> bool {
    let name = streams::reports(&Prefix::default()).name;
    let ask = |call: &str, body: serde_json::Value| Message::new(format!("$JS.API.{call}.{name}"), body.to_string());
    let info = bus.request(ask("STREAM.INFO", json!({})), DEADLINE).await.unwrap();
    let mut config = serde_json::from_slice::<serde_json::Value>(&info.body).unwrap()["config"].clone();
    config["discard"] = "new".into();
    config["max_msgs"] = 1.into();
    config["max_msgs_per_subject"] = (-1).into();
    let updated = bus.request(ask("STREAM.UPDATE", config), DEADLINE).await.unwrap();
    let updated: serde_json::Value = serde_json::from_slice(&updated.body).unwrap();
    assert!(updated["error"].is_null(), "{updated}");
    let filler = || Message::new("plan.session.filler.state", "{}");
    for _ in 0..3 {
        if bus.storage().unwrap().publish(filler()).await.is_err() {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn a_stream_that_was_wiped_is_made_anew_and_everybody_asks_again() {
    let store = scratch("wiped");
    let settings = json!({"store_dir": store});
    let server = nats(NatsConfig::default().without_jetstream().setting("jetstream", settings)).await;
    let bus = connected(options(&server)).await;
    let inbound = run(&bus).await;
    let mut sink = inbound.register(&session());
    report(&bus, "before", "running").await;
    phases_to(&mut sink, "before").await;
    let end = last(&bus).await;
    let before = position(&mut sink, end).await;
    server.stop().await;
    fs::remove_dir_all(&store).unwrap();
    server.start().await;
    let mut arrivals = Vec::new();
    while !arrivals.contains(&Arrival::Missed) {
        arrivals.push(arrival(&mut sink).await);
    }
    kept(&inbound).await;
    report(&bus, "after", "running").await;
    assert_eq!(phases_to(&mut sink, "after").await, ["after"]);
    let after = eventually(DEADLINE, "the new stream is read", async || {
        sink.position().filter(|position| position.created != before.created).cloned()
    })
    .await;
    let mut late = inbound.register(&SessionId::new("s2").unwrap()).since(Some(before.clone()));
    assert_eq!(late.catch_up().await.unwrap(), 0, "a place in a stream that is gone means nothing");
    assert_eq!(late.position().map(|position| position.created), Some(after.created));
    assert!(after.created > before.created);
}

#[tokio::test]
async fn a_stream_that_is_deleted_in_mid_run_is_missed_by_nobody() {
    let server = nats(NatsConfig::default()).await;
    let (bus, runtime) = pair(&server).await;
    let inbound = run(&bus).await;
    let mut sink = inbound.register(&session());
    let name = streams::reports(&Prefix::default()).name;
    let gone = runtime.request(Message::new(format!("$JS.API.STREAM.DELETE.{name}"), ""), DEADLINE).await.unwrap();
    assert!(std::str::from_utf8(&gone.body).unwrap().contains("true"));
    for n in 0..50 {
        report(&runtime, &format!("p{n}"), "running").await;
    }
    report(&runtime, "end", "running").await;
    let heard = phases_to(&mut sink, "end").await;
    assert_eq!(heard.iter().filter(|phase| phase.starts_with('p')).count(), 50, "{heard:?}");
    eventually(DEADLINE, "the stream is made anew", async || bus.storage().unwrap().facts(&name).await.ok().map(drop))
        .await;
}

#[tokio::test]
async fn without_jetstream_it_is_said_that_nothing_is_kept() {
    let server = nats(NatsConfig::default().without_jetstream()).await;
    let bus = connected(options(&server)).await;
    let inbound = Inbound::run(bus.clone(), Prefix::default(), "here").await.unwrap();
    let is_plain =
        |ready: &Ready| matches!(ready, Ready::Yes { keeping: Keeping::Nothing { reason: "NoJetStream", .. }, .. });
    ready_where(&inbound, "reports are heard and not kept", is_plain).await;
    let mut sink = inbound.register(&session());
    report(&bus, "a", "running").await;
    assert_eq!(phases_to(&mut sink, "a").await, ["a"]);
    assert_eq!(sink.position(), None);
}

#[tokio::test]
async fn a_foreign_stream_over_our_subjects_is_named_and_reports_are_heard() {
    let server = nats(NatsConfig::default()).await;
    let bus = connected(options(&server)).await;
    let config = json!({"name": "theirs", "subjects": ["plan.session.*.state"], "storage": "memory"});
    let made = bus.request(Message::new("$JS.API.STREAM.CREATE.theirs", config.to_string()), DEADLINE).await.unwrap();
    assert!(!std::str::from_utf8(&made.body).unwrap().contains("error"));
    let inbound = Inbound::run(bus.clone(), Prefix::default(), "here").await.unwrap();
    let is_foreign =
        |ready: &Ready| matches!(ready, Ready::Yes { keeping: Keeping::Nothing { reason: "ForeignStream", .. }, .. });
    ready_where(&inbound, "a foreign stream is named", is_foreign).await;
    let mut sink = inbound.register(&session());
    report(&bus, "a", "running").await;
    report(&bus, "b", "running").await;
    assert_eq!(phases_to(&mut sink, "b").await, ["a", "b"]);
    assert!(tokio::time::timeout(Duration::from_millis(200), sink.next()).await.is_err(), "and nothing twice");
}

#[tokio::test]
async fn foreign_streams_over_acks_and_over_the_record_are_named() {
    let server = nats(NatsConfig::default()).await;
    let bus = connected(options(&server)).await;
    for (name, subject) in [("acks", "plan.session.*.ack"), ("logs", "plan.session.*.log")] {
        let config = json!({"name": name, "subjects": [subject], "storage": "memory"});
        let call = format!("$JS.API.STREAM.CREATE.{name}");
        let made = bus.request(Message::new(call, config.to_string()), DEADLINE).await.unwrap();
        assert!(!std::str::from_utf8(&made.body).unwrap().contains("error"));
    }
    let inbound = run(&bus).await;
    ready_where(&inbound, "both are named", |ready| {
        let Ready::Yes { keeping: Keeping::Reports, troubles, .. } = ready else { return false };
        let [acks, record] = &**troubles else { return false };
        acks.hinders(&session())
            && acks.message().contains("plan.session.*.ack")
            && !record.hinders(&session())
            && (acks.reason(), record.reason()) == ("ForeignStream", "ForeignStream")
    })
    .await;
}

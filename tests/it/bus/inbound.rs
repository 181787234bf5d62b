//! What the operator hears: routing, losses, and when it may rely on being heard.

use pmp::{
    bus::{
        Arrival, Auth, Bus, ConnectOptions, Inbound, InboundBody, InboundHandle, InboundMessage, Message, Origin,
        Ready, Secret, Sink,
    },
    protocol::{Channel, Command, Prefix, SessionId},
};
use serde_json::json;

use super::{DEADLINE, connected, options};
use crate::support::{Nats, NatsConfig, eventually, nats, shared_nats, unique};

fn session(id: &str) -> SessionId {
    SessionId::new(id).unwrap()
}

/// A prefix that no other test uses.
fn own_prefix() -> Prefix {
    Prefix::new(&format!("plan.{}", unique("inbound"))).unwrap()
}

async fn run(bus: &Bus, prefix: &Prefix) -> InboundHandle {
    let inbound = Inbound::run(bus.clone(), prefix.clone(), "here").await.unwrap();
    ready_where(&inbound, "all subscriptions are proved", |ready| ready.epoch().is_some()).await;
    inbound
}

async fn ready_where(inbound: &InboundHandle, what: &str, wanted: impl FnMut(&Ready) -> bool) -> Ready {
    let mut ready = inbound.ready();
    let Ok(found) = tokio::time::timeout(DEADLINE, ready.wait_for(wanted)).await else {
        panic!("not within {DEADLINE:?}: {what}; it is {:?}", inbound.ready().borrow())
    };
    found.unwrap().clone()
}

async fn message(sink: &mut Sink) -> InboundMessage {
    match tokio::time::timeout(DEADLINE, sink.next()).await.expect("an arrival within the deadline") {
        Some(Arrival::Message(message)) => *message,
        other => panic!("not a message but {other:?}"),
    }
}

async fn say(bus: &Bus, prefix: &Prefix, to: &str, channel: Channel, body: &str) {
    bus.publish(Message::new(prefix.subject(&session(to), channel), body.to_owned())).await.unwrap();
}

const RUNNING: &str = r#"{"phaseId":"a","status":"running"}"#;

async fn messages_go_to_their_session_and_the_rest_to_whoever_takes_it(bus: Bus) {
    let prefix = own_prefix();
    let inbound = run(&bus, &prefix).await;
    let mut first = inbound.register(&session("s1"));
    let mut second = inbound.register(&session("s2"));
    let mut rest = inbound.register_rest();
    say(&bus, &prefix, "s1", Channel::Ack, r#"{"phaseId":"a","accepted":true}"#).await;
    say(&bus, &prefix, "s2", Channel::State, RUNNING).await;
    say(&bus, &prefix, "s3", Channel::Control, r#"{"command":"x-restart"}"#).await;

    let ack = message(&mut first).await;
    assert_eq!((ack.session, ack.origin), (session("s1"), Origin::None));
    assert!(matches!(ack.body, InboundBody::Ack(ack) if ack.accepted && ack.phase.as_str() == "a"));
    assert_eq!(message(&mut second).await.channel(), Channel::State);
    let control = message(&mut rest).await;
    assert_eq!(control.session, session("s3"));
    assert!(matches!(control.body, InboundBody::Control(control) if control.command == Command::Restart));
}

async fn a_request_can_be_answered(bus: Bus) {
    let prefix = own_prefix();
    let inbound = run(&bus, &prefix).await;
    let mut sink = inbound.register(&session("s1"));
    let question = Message::new(prefix.subject(&session("s1"), Channel::GetState), "");
    let asked = tokio::spawn({
        let bus = bus.clone();
        async move { bus.request(question, DEADLINE).await }
    });
    let question = message(&mut sink).await;
    assert_eq!(question.body, InboundBody::GetState);
    bus.publish(Message::new(question.reply.unwrap(), "answer")).await.unwrap();
    assert_eq!(asked.await.unwrap().unwrap().body, "answer");
}

async fn origins_are_told_apart(bus: Bus) {
    let prefix = own_prefix();
    let inbound = run(&bus, &prefix).await;
    let mut sink = inbound.register(&session("s1"));
    let subject = prefix.subject(&session("s1"), Channel::Control);
    for (origin, expected) in [("here", Origin::Own), ("there", Origin::Foreign("there".to_owned()))] {
        let control = Message::new(subject.clone(), r#"{"command":"pause"}"#).with_header("Pmp-Origin", origin);
        bus.publish(control).await.unwrap();
        assert_eq!(message(&mut sink).await.origin, expected);
    }
    let counters = inbound.counters();
    assert_eq!((counters.own, counters.foreign, counters.received), (1, 1, 2));
}

async fn what_cannot_be_read_is_counted_and_dropped(bus: Bus) {
    let prefix = own_prefix();
    let inbound = run(&bus, &prefix).await;
    let mut sink = inbound.register(&session("s1"));
    say(&bus, &prefix, "s1", Channel::State, "nonsense").await;
    say(&bus, &prefix, "s1", Channel::State, r#"{"phaseId":"a","status":"exploded"}"#).await;
    say(&bus, &prefix, "unknown", Channel::State, RUNNING).await;
    bus.publish(Message::new(format!("{prefix}.bad$id.state"), RUNNING)).await.unwrap();
    say(&bus, &prefix, "s1", Channel::State, RUNNING).await;
    assert_eq!(message(&mut sink).await.channel(), Channel::State);
    let counters = inbound.counters();
    assert_eq!((counters.malformed, counters.unclaimed, counters.misdirected, counters.received), (2, 1, 1, 5));
}

async fn a_slow_session_misses_messages_and_is_told_while_others_hear_theirs(bus: Bus) {
    let prefix = own_prefix();
    let inbound = run(&bus, &prefix).await;
    let mut slow = inbound.register(&session("slow"));
    let mut other = inbound.register(&session("other"));
    for _ in 0..5000 {
        say(&bus, &prefix, "slow", Channel::State, RUNNING).await;
    }
    say(&bus, &prefix, "other", Channel::State, RUNNING).await;
    assert_eq!(message(&mut other).await.channel(), Channel::State);
    assert_eq!(slow.next().await, Some(Arrival::Missed));
    assert_eq!(message(&mut slow).await.channel(), Channel::State);
    assert_eq!(inbound.counters().missed, 5000 - 4096);
}

async fn a_session_registered_anew_is_taken_over(bus: Bus) {
    let prefix = own_prefix();
    let inbound = run(&bus, &prefix).await;
    let mut old = inbound.register(&session("s1"));
    let mut new = inbound.register(&session("s1"));
    assert_eq!(old.next().await, None);
    drop(old);
    say(&bus, &prefix, "s1", Channel::State, RUNNING).await;
    assert_eq!(message(&mut new).await.channel(), Channel::State);
    drop(inbound);
    assert_eq!(tokio::time::timeout(DEADLINE, new.next()).await.unwrap(), None);
}

/// Makes each law two tests.
macro_rules! laws {
    ($($law:ident)*) => {
        mod in_memory {
            use super::*;
            $(#[tokio::test] async fn $law() { super::$law(Bus::memory()).await; })*
        }
        mod over_nats {
            use super::*;
            $(#[tokio::test] async fn $law() { super::$law(connected(options(shared_nats().await)).await).await; })*
        }
    };
}

laws! {
    messages_go_to_their_session_and_the_rest_to_whoever_takes_it
    a_request_can_be_answered
    origins_are_told_apart
    what_cannot_be_read_is_counted_and_dropped
    a_slow_session_misses_messages_and_is_told_while_others_hear_theirs
    a_session_registered_anew_is_taken_over
}

#[tokio::test]
async fn readiness_is_lost_with_the_server_and_proved_anew_after_it() {
    let server = nats(NatsConfig::default().without_jetstream()).await;
    let bus = connected(options(&server)).await;
    let prefix = own_prefix();
    let inbound = run(&bus, &prefix).await;
    let mut sink = inbound.register(&session("s1"));
    let before = inbound.ready().borrow().epoch().unwrap();

    server.kill();
    let lost = ready_where(&inbound, "the loss is noticed", |ready| ready.epoch().is_none()).await;
    assert!(matches!(lost, Ready::No { reason: "BusDisconnected", .. }), "{lost:?}");
    server.start().await;
    let again = ready_where(&inbound, "ready again", |ready| ready.epoch().is_some()).await;
    assert!(again.epoch().unwrap() > before);
    // Proved means that from here on nothing is missed.
    say(&bus, &prefix, "s1", Channel::State, RUNNING).await;
    assert_eq!(message(&mut sink).await.channel(), Channel::State);
}

/// The one user, with these subjects below the prefix denied.
fn denying(publish: &[&str], subscribe: &[&str]) -> serde_json::Value {
    let rights = |denied: &[&str]| json!({"allow": ["plan.>", "_INBOX_pmp.>"], "deny": denied});
    json!({"users": [{"user": "bob", "password": "builder", "permissions": {
        "publish": rights(publish), "subscribe": rights(subscribe),
    }}]})
}

async fn as_bob(server: &Nats) -> Bus {
    let auth = Auth::User { name: Secret::Text("bob".into()), password: Secret::Text("builder".into()) };
    connected(ConnectOptions { auth, ..options(server) }).await
}

async fn until_denied(inbound: &InboundHandle, subject: &str) {
    let denied = |ready: &Ready| matches!(ready, Ready::No { reason: "PermissionDenied", .. });
    let Ready::No { message, .. } = ready_where(inbound, "the denial is found", denied).await else {
        unreachable!("only this is waited for")
    };
    assert!(message.contains(subject), "{message}");
}

#[tokio::test]
async fn one_denied_subject_keeps_it_unready_and_is_named_until_it_is_granted() {
    let denied = denying(&[], &["plan.session.*.state"]);
    let server = nats(NatsConfig::default().without_jetstream().authorization(denied)).await;
    let bus = as_bob(&server).await;
    let inbound = Inbound::run(bus.clone(), Prefix::default(), "here").await.unwrap();
    let mut sink = inbound.register(&session("s1"));
    until_denied(&inbound, "plan.session.*.state").await;
    server.configure("authorization", Some(denying(&[], &[])));
    server.reload();
    ready_where(&inbound, "the right is used", |ready| ready.epoch().is_some()).await;
    say(&bus, &Prefix::default(), "s1", Channel::State, RUNNING).await;
    assert_eq!(message(&mut sink).await.channel(), Channel::State);
}

#[tokio::test]
async fn a_subscription_that_is_revoked_in_mid_run_is_noticed_and_made_anew_once_it_may_be() {
    let server = nats(NatsConfig::default().without_jetstream().authorization(denying(&[], &[]))).await;
    let bus = as_bob(&server).await;
    let prefix = Prefix::default();
    let inbound = run(&bus, &prefix).await;
    let mut sink = inbound.register(&session("s1"));
    server.configure("authorization", Some(denying(&[], &["plan.session.*.ack"])));
    server.reload();
    until_denied(&inbound, "plan.session.*.ack").await;
    server.configure("authorization", Some(denying(&[], &[])));
    server.reload();
    ready_where(&inbound, "the right is used", |ready| ready.epoch().is_some()).await;
    for phase in ["a", "b"] {
        let ack = format!(r#"{{"phaseId":"{phase}","accepted":true}}"#);
        say(&bus, &prefix, "s1", Channel::Ack, &ack).await;
    }
    for phase in ["a", "b"] {
        let heard = message(&mut sink).await;
        assert!(matches!(heard.body, InboundBody::Ack(ack) if ack.phase.as_str() == phase), "each is heard once");
    }
}

#[tokio::test]
async fn a_message_that_may_not_be_said_is_told_to_its_session_and_holds_up_no_other() {
    let denied = denying(&["plan.session.s1.target"], &[]);
    let server = nats(NatsConfig::default().without_jetstream().authorization(denied)).await;
    let bus = as_bob(&server).await;
    let prefix = Prefix::default();
    let inbound = run(&bus, &prefix).await;
    say(&bus, &prefix, "s1", Channel::Target, "{}").await;
    let is_told = |ready: &Ready| matches!(ready, Ready::Yes { troubles, .. } if !troubles.is_empty());
    let Ready::Yes { troubles, .. } = ready_where(&inbound, "the denial is told", is_told).await else {
        unreachable!("only this is waited for")
    };
    assert_eq!(troubles[0].reason(), "PermissionDenied");
    assert!(troubles[0].message().contains("plan.session.s1.target"), "{troubles:?}");
    assert!(troubles[0].hinders(&session("s1")) && !troubles[0].hinders(&session("s2")));
}

#[tokio::test]
async fn a_burst_that_overruns_the_connection_proves_it_anew() {
    let server = shared_nats().await;
    let bus = connected(options(server)).await;
    let prefix = own_prefix();
    let mut small = options(server);
    small.queue_messages_max = 16;
    let overrun = connected(small).await;
    let inbound = run(&overrun, &prefix).await;
    let before = inbound.ready().borrow().epoch().unwrap();
    // The pump keeps up with what loopback usually brings, so bursts are sent until it did not.
    eventually(DEADLINE, "the connection is overrun", async || {
        for _ in 0..5000 {
            say(&bus, &prefix, "s1", Channel::State, RUNNING).await;
        }
        (overrun.link().borrow().epoch > before).then_some(())
    })
    .await;
    ready_where(&inbound, "proved anew", |ready| ready.epoch().is_some_and(|epoch| epoch > before)).await;
}

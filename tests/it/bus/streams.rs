//! Streams: what every storage does, the real server's and the simulation's; and what only JetStream can do to us.

use std::time::Duration;

use futures::StreamExt;
use pmp::{
    bus::{Begin, Bus, Error, Message, Reading, Storage, Stored, StreamWish, streams},
    protocol::{Channel, Prefix, SessionId},
};
use serde_json::json;

use super::{DEADLINE, connected, options};
use crate::support::{NatsConfig, eventually, nats, shared_nats, unique};

/// Makes each law two tests.
macro_rules! laws {
    ($($law:ident)*) => {
        mod over_nats {
            use super::*;
            $(#[tokio::test] async fn $law() {
                let server = shared_nats().await;
                super::$law(connected(options(server)).await, unique("stream")).await;
            })*
        }
        mod in_the_simulation {
            use super::*;
            $(#[tokio::test] async fn $law() { super::$law(crate::sim::calm_bus(), unique("stream")).await; })*
        }
    };
}

laws! {
    a_stream_is_made_once_and_brought_in_line
    what_is_published_is_kept_in_order_and_read_from_anywhere
    a_repeated_message_is_kept_once_and_the_oldest_of_a_subject_go_first
    subjects_are_listed_the_last_message_is_found_and_a_purge_spares_what_came_later
    a_foreign_stream_over_a_subject_is_named_and_left_alone
    what_is_published_by_hand_is_heard_whether_a_stream_takes_it_or_not
    a_reading_goes_from_the_past_to_what_comes
    the_oldest_go_when_there_is_no_room
    a_stream_that_was_purged_goes_on_counting
    what_is_not_there_is_named
    what_the_bus_keeps_of_a_session_is_removed_and_its_neighbours_stay
    a_stream_that_is_not_there_keeps_nothing_to_remove
}

fn storage(bus: &Bus) -> &dyn Storage {
    bus.storage().expect("NATS may keep messages")
}

fn wish(name: &str) -> StreamWish {
    StreamWish {
        name: name.to_owned(),
        owner: "here".to_owned(),
        description: "of a test".to_owned(),
        subjects: vec![format!("{name}.*.a"), format!("{name}.*.b")],
        age_max: Some(Duration::from_hours(1)),
        bytes_max: Some(1 << 20),
        messages_per_subject_max: Some(3),
        message_bytes_max: Some(1024),
        duplicate_window: Duration::from_mins(2),
    }
}

async fn next(reading: &mut Reading) -> Stored {
    let stored = tokio::time::timeout(DEADLINE, reading.messages.next()).await.expect("a message within the deadline");
    stored.unwrap().unwrap()
}

fn text(stored: &Stored) -> &str {
    std::str::from_utf8(&stored.message.body).unwrap()
}

async fn a_stream_is_made_once_and_brought_in_line(bus: Bus, name: String) {
    let storage = storage(&bus);
    let first = storage.ensure(&wish(&name)).await.unwrap();
    assert_eq!((first.first, first.last), (1, 0));
    let wider = StreamWish { subjects: vec![format!("{name}.>")], ..wish(&name) };
    let second = storage.ensure(&wider).await.unwrap();
    assert_eq!(second.created, first.created, "it is the same stream");
    assert!(storage.keeps(&format!("{name}.s.c")).await.unwrap());
    assert!(!storage.keeps(&format!("{name}-else.s.c")).await.unwrap());
}

async fn what_is_published_is_kept_in_order_and_read_from_anywhere(bus: Bus, name: String) {
    let storage = storage(&bus);
    storage.ensure(&wish(&name)).await.unwrap();
    for n in 1..=3 {
        let message = Message::new(format!("{name}.s.a"), format!("a{n}")).with_header("Pmp-Origin", "x");
        assert_eq!(storage.publish(message).await.unwrap(), n);
    }
    bus.publish(Message::new(format!("{name}.t.b"), "b1")).await.unwrap();
    let all = storage.read(&name, &[], Begin::Sequence(1)).await;
    let mut all = all.unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(text(&next(&mut all).await).to_owned());
    }
    assert_eq!(seen, ["a1", "a2", "a3", "b1"]);
    let mut some = storage.read(&name, &[format!("{name}.s.a")], Begin::Sequence(2)).await.unwrap();
    assert_eq!(some.pending, 2);
    let stored = next(&mut some).await;
    assert_eq!((stored.sequence, text(&stored)), (2, "a2"));
    assert_eq!(stored.message.headers.get("Pmp-Origin"), Some("x"));
    assert_eq!(stored.message.reply, None);
    assert_eq!(next(&mut some).await.sequence, 3);
    let mut fresh = storage.read(&name, &[], Begin::New).await.unwrap();
    assert_eq!(fresh.pending, 0);
    bus.publish(Message::new(format!("{name}.t.b"), "b2")).await.unwrap();
    assert_eq!(text(&next(&mut fresh).await), "b2");
    let mut since = storage.read(&name, &[], Begin::Time(stored.at)).await.unwrap();
    assert_eq!(next(&mut since).await.sequence, 2);
}

async fn a_repeated_message_is_kept_once_and_the_oldest_of_a_subject_go_first(bus: Bus, name: String) {
    let storage = storage(&bus);
    storage.ensure(&wish(&name)).await.unwrap();
    let named = || Message::new(format!("{name}.s.a"), "once").with_header("Nats-Msg-Id", "m1");
    let place = storage.publish(named()).await.unwrap();
    assert_eq!(storage.publish(named()).await.unwrap(), place);
    for n in 0..4 {
        storage.publish(Message::new(format!("{name}.s.a"), n.to_string())).await.unwrap();
    }
    let facts = storage.facts(&name).await.unwrap();
    assert_eq!((facts.first, facts.last), (3, 5));
    let mut reading = storage.read(&name, &[], Begin::Sequence(1)).await.unwrap();
    assert_eq!((reading.pending, next(&mut reading).await.sequence), (3, 3));
    let large = storage.publish(Message::new(format!("{name}.s.a"), "x".repeat(2000))).await;
    assert!(matches!(large, Err(Error::Stream { .. })), "{large:?}");
}

async fn subjects_are_listed_the_last_message_is_found_and_a_purge_spares_what_came_later(bus: Bus, name: String) {
    let storage = storage(&bus);
    storage.ensure(&wish(&name)).await.unwrap();
    for (session, body) in [("s", "1"), ("t", "2"), ("s", "3")] {
        let message = Message::new(format!("{name}.{session}.a"), body).with_header("Pmp-Origin", "here");
        storage.publish(message).await.unwrap();
    }
    let mut subjects = storage.subjects(&name, &format!("{name}.*.a"), 10).await.unwrap();
    subjects.sort();
    assert_eq!(subjects, [format!("{name}.s.a"), format!("{name}.t.a")]);
    assert_eq!(storage.subjects(&name, &format!("{name}.*.a"), 1).await.unwrap().len(), 1);
    let last = storage.last(&name, &subjects[0]).await.unwrap().unwrap();
    assert_eq!((last.sequence, text(&last), last.message.headers.get("Pmp-Origin")), (3, "3", Some("here")));
    assert_eq!(storage.last(&name, &format!("{name}.u.a")).await.unwrap(), None);
    storage.purge(&name, &format!("{name}.s.*"), 3).await.unwrap();
    assert_eq!(storage.last(&name, &subjects[0]).await.unwrap().unwrap().sequence, 3);
    storage.purge(&name, &format!("{name}.s.*"), 4).await.unwrap();
    assert_eq!(storage.last(&name, &subjects[0]).await.unwrap(), None);
    assert_eq!(storage.last(&name, &subjects[1]).await.unwrap().unwrap().sequence, 2);
}

async fn a_foreign_stream_over_a_subject_is_named_and_left_alone(bus: Bus, name: String) {
    let storage = storage(&bus);
    let other = StreamWish { name: format!("{name}-other"), owner: "them".to_owned(), ..wish(&name) };
    storage.ensure(&other).await.unwrap();
    let foreign = storage.ensure(&wish(&name)).await;
    assert!(matches!(foreign, Err(Error::ForeignStream { .. })), "{foreign:?}");
    let taken = StreamWish { owner: "them".to_owned(), subjects: vec![format!("{name}.x")], ..wish(&name) };
    storage.ensure(&StreamWish { name: format!("{name}-taken"), ..taken.clone() }).await.unwrap();
    let ours = StreamWish { name: format!("{name}-taken"), subjects: vec![format!("{name}.y")], ..wish(&name) };
    let foreign = storage.ensure(&ours).await;
    assert!(matches!(foreign, Err(Error::ForeignStream { .. })), "{foreign:?}");
    let covered = StreamWish { owner: "us".to_owned(), name: format!("{name}-taken"), ..taken };
    storage.ensure(&covered).await.unwrap();
}

async fn what_is_published_by_hand_is_heard_whether_a_stream_takes_it_or_not(bus: Bus, name: String) {
    let storage = storage(&bus);
    storage.ensure(&wish(&name)).await.unwrap();
    let mut heard = bus.subscribe(&format!("{name}.>"), None).await.unwrap();
    bus.prove(&mut heard, &format!("{name}.proof"), DEADLINE).await.unwrap();
    let nobody = storage.publish(Message::new(format!("{name}-else.s"), "")).await;
    assert!(matches!(nobody, Err(Error::NoResponders { .. })), "{nobody:?}");
    assert_eq!(storage.publish(Message::new(format!("{name}.s.a"), "kept")).await.unwrap(), 1);
    let large = storage.publish(Message::new(format!("{name}.s.a"), "x".repeat(2000))).await;
    assert!(matches!(large, Err(Error::Stream { .. })), "{large:?}");
    let passed_on = storage.publish(Message::new(format!("{name}.s.c"), "passed on")).await;
    assert!(matches!(passed_on, Err(Error::Timeout { .. })), "{passed_on:?}");
    for body in ["kept", "x", "passed on"] {
        let message = super::next_body(&mut heard).await;
        assert!(message.starts_with(body.as_bytes()), "{message:?}");
    }
}

async fn a_reading_goes_from_the_past_to_what_comes(bus: Bus, name: String) {
    let storage = storage(&bus);
    storage.ensure(&wish(&name)).await.unwrap();
    for body in ["past", "passed over"] {
        let subject = if body == "past" { "a" } else { "b" };
        storage.publish(Message::new(format!("{name}.s.{subject}"), body)).await.unwrap();
    }
    let mut reading = storage.read(&name, &[format!("{name}.*.a")], Begin::Sequence(1)).await.unwrap();
    assert_eq!(reading.pending, 1);
    storage.publish(Message::new(format!("{name}.t.a"), "next")).await.unwrap();
    let (past, next) = (next(&mut reading).await, next(&mut reading).await);
    assert_eq!((past.sequence, text(&past)), (1, "past"));
    assert_eq!((next.sequence, text(&next)), (3, "next"));
    assert!(past.at <= next.at);
    // Past the end is the next that comes.
    let mut ahead = storage.read(&name, &[], Begin::Sequence(4)).await.unwrap();
    assert_eq!(ahead.pending, 0);
    storage.publish(Message::new(format!("{name}.t.b"), "new")).await.unwrap();
    assert_eq!(self::next(&mut ahead).await.sequence, 4);
}

async fn the_oldest_go_when_there_is_no_room(bus: Bus, name: String) {
    let storage = storage(&bus);
    let wish = StreamWish { bytes_max: Some(4096), messages_per_subject_max: None, ..wish(&name) };
    storage.ensure(&wish).await.unwrap();
    for n in 1..=20 {
        assert_eq!(storage.publish(Message::new(format!("{name}.s.a"), "x".repeat(500))).await.unwrap(), n);
    }
    let facts = storage.facts(&name).await.unwrap();
    assert_eq!(facts.last, 20);
    assert!((10..=17).contains(&facts.first), "{facts:?}");
    let mut reading = storage.read(&name, &[], Begin::Sequence(1)).await.unwrap();
    assert_eq!(next(&mut reading).await.sequence, facts.first);
}

async fn a_stream_that_was_purged_goes_on_counting(bus: Bus, name: String) {
    let storage = storage(&bus);
    let made = storage.ensure(&wish(&name)).await.unwrap();
    for _ in 0..2 {
        storage.publish(Message::new(format!("{name}.s.a"), "")).await.unwrap();
    }
    storage.purge(&name, &format!("{name}.>"), 3).await.unwrap();
    let facts = storage.facts(&name).await.unwrap();
    assert_eq!((facts.first, facts.last, facts.created), (3, 2, made.created));
    assert_eq!(storage.read(&name, &[], Begin::Sequence(1)).await.unwrap().pending, 0);
    assert_eq!(storage.publish(Message::new(format!("{name}.s.a"), "")).await.unwrap(), 3);
}

async fn what_is_not_there_is_named(bus: Bus, name: String) {
    let storage = storage(&bus);
    let facts = storage.facts(&name).await;
    assert!(matches!(facts, Err(Error::NoStream { .. })), "{facts:?}");
    let reading = storage.read(&name, &[], Begin::New).await;
    assert!(matches!(reading, Err(Error::NoStream { .. })), "{reading:?}");
    let purged = storage.purge(&name, ">", 1).await;
    assert!(matches!(purged, Err(Error::NoStream { .. })), "{purged:?}");
    assert!(!storage.keeps(&format!("{name}.s.a")).await.unwrap());
}

#[tokio::test]
async fn a_server_without_jetstream_says_that_it_keeps_nothing() {
    let server = nats(NatsConfig::default().without_jetstream()).await;
    let bus = connected(options(&server)).await;
    let none = storage(&bus).ensure(&streams::reports(&Prefix::default())).await;
    assert!(matches!(none, Err(Error::NoStorage { .. })), "{none:?}");
    assert!(matches!(storage(&bus).keeps("a.b").await, Err(Error::NoStorage { .. })));
}

#[tokio::test]
async fn a_server_with_little_room_is_asked_for_less() {
    let settings = json!({"store_dir": crate::support::scratch("small"), "max_file_store": 40 << 20});
    let server = nats(NatsConfig::default().without_jetstream().setting("jetstream", settings)).await;
    let bus = connected(options(&server)).await;
    let prefix = Prefix::default();
    storage(&bus).ensure(&streams::reports(&prefix)).await.unwrap();
    storage(&bus).ensure(&streams::record(&prefix)).await.unwrap();
    assert!(storage(&bus).keeps(&prefix.pattern(Channel::State)).await.unwrap());
    let wish = streams::record(&prefix);
    let ask = Message::new(format!("$JS.API.STREAM.INFO.{}", wish.name), "");
    let info: serde_json::Value = serde_json::from_slice(&bus.request(ask, DEADLINE).await.unwrap().body).unwrap();
    let of = |name: &str| info["config"][name].as_u64().unwrap();
    assert!(of("max_bytes") < wish.bytes_max.unwrap());
    // One session's share is as much less.
    let largest = 3 * of("max_msgs_per_subject") * wish.message_bytes_max.unwrap() as u64;
    assert!(largest > 0 && 2 * largest <= of("max_bytes"), "{info:#}");
    // And so it stays when the operator looks again.
    storage(&bus).ensure(&wish).await.unwrap();
}

#[tokio::test]
async fn a_reading_ends_with_an_error_when_its_server_goes_away() {
    let server = nats(NatsConfig::default()).await;
    let (bus, name) = (connected(options(&server)).await, unique("stream"));
    storage(&bus).ensure(&wish(&name)).await.unwrap();
    let mut reading = storage(&bus).read(&name, &[], Begin::New).await.unwrap();
    server.stop().await;
    server.start().await;
    let end = tokio::time::timeout(DEADLINE, reading.messages.next()).await.unwrap();
    assert!(matches!(end, Some(Err(_))), "{end:?}");
    assert!(reading.messages.next().await.is_none());
    eventually(DEADLINE, "the stream is there again", async || storage(&bus).facts(&name).await.ok()).await;
}

async fn what_the_bus_keeps_of_a_session_is_removed_and_its_neighbours_stay(bus: Bus, name: String) {
    let prefix = Prefix::new(&format!("plan.{name}")).unwrap();
    let (gone, stays) = (SessionId::new("gone").unwrap(), SessionId::new("stays").unwrap());
    for wish in [streams::reports(&prefix), streams::record(&prefix)] {
        storage(&bus).ensure(&wish).await.unwrap();
    }
    for channel in [Channel::State, Channel::Log] {
        for session in [&gone, &stays] {
            storage(&bus).publish(Message::new(prefix.subject(session, channel), "{}")).await.unwrap();
        }
    }
    let ends = streams::ends(&bus, &prefix).await.unwrap();
    streams::purge(&bus, &prefix, &gone, &ends).await.unwrap();
    for (wish, channel) in [(streams::reports(&prefix), Channel::State), (streams::record(&prefix), Channel::Log)] {
        let last = async |session| storage(&bus).last(&wish.name, &prefix.subject(session, channel)).await.unwrap();
        assert_eq!(last(&gone).await, None);
        assert!(last(&stays).await.is_some());
    }
}

async fn a_stream_that_is_not_there_keeps_nothing_to_remove(bus: Bus, name: String) {
    let prefix = Prefix::new(&format!("plan.{name}")).unwrap();
    let (gone, reports) = (SessionId::new("gone").unwrap(), streams::reports(&prefix));
    storage(&bus).ensure(&reports).await.unwrap();
    let state = prefix.subject(&gone, Channel::State);
    storage(&bus).publish(Message::new(state.clone(), "{}")).await.unwrap();
    let ends = streams::ends(&bus, &prefix).await.unwrap();
    assert_eq!(ends, [(reports.name.clone(), 2)]);
    storage(&bus).publish(Message::new(state.clone(), "later")).await.unwrap();
    streams::purge(&bus, &prefix, &gone, &ends).await.unwrap();
    assert_eq!(storage(&bus).last(&reports.name, &state).await.unwrap().unwrap().message.body, "later");
    assert_eq!(storage(&bus).facts(&reports.name).await.unwrap().first, 2);
}

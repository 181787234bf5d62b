//! What every bus does, whatever carries it: each law runs on the bus in the process, on a real server, and on the one
//! of the simulation.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, future::join_all};
use pmp::bus::{Bus, Error, Message, Subscription};

use super::{DEADLINE, connected, next, next_body, options};
use crate::support::{shared_nats, unique};

/// Makes each law three tests.
macro_rules! laws {
    ($($law:ident)*) => {
        mod in_memory {
            use super::*;
            $(#[tokio::test] async fn $law() { super::$law(Bus::memory(), unique("law")).await; })*
        }
        mod over_nats {
            use super::*;
            $(#[tokio::test] async fn $law() {
                let server = shared_nats().await;
                super::$law(connected(options(server)).await, unique("law")).await;
            })*
        }
        mod in_the_simulation {
            use super::*;
            $(#[tokio::test] async fn $law() { super::$law(crate::sim::calm_bus(), unique("law")).await; })*
        }
    };
}

laws! {
    a_message_reaches_every_subscriber_with_headers_and_reply
    a_star_hears_one_token_and_an_arrow_the_rest
    messages_arrive_in_the_order_in_which_they_were_published
    one_member_of_a_queue_group_gets_each_message
    members_of_a_group_and_others_hear_apart
    a_request_is_answered
    many_requests_at_once_get_their_own_answers
    a_request_that_nobody_hears_fails_at_once
    a_request_that_nobody_answers_times_out
    a_dropped_subscription_hears_nothing_and_answers_for_nobody
    what_would_be_more_than_a_subject_is_refused
    a_message_past_the_limit_is_refused
    a_subscription_is_proved_and_loses_nothing_by_it
    a_member_of_a_queue_group_is_proved_too
    a_probe_is_nobodys_news
    a_reader_that_falls_behind_is_told
}

/// A subscription that is live on the server, too.
async fn live(bus: &Bus, pattern: &str, queue: Option<&str>) -> Subscription {
    let mut subscription = bus.subscribe(pattern, queue).await.unwrap();
    let concrete = pattern.replace(['*', '>'], "_probe");
    bus.prove(&mut subscription, &concrete, DEADLINE).await.unwrap();
    subscription
}

async fn a_message_reaches_every_subscriber_with_headers_and_reply(bus: Bus, at: String) {
    let mut first = live(&bus, &at, None).await;
    let mut second = live(&bus, &at, None).await;
    let mut message =
        Message::new(at.clone(), "hello").with_header("Pmp-Origin", "here").with_header("traceparent", "00-1");
    message.reply = Some(format!("{at}.answers"));
    bus.publish(message).await.unwrap();
    for subscription in [&mut first, &mut second] {
        let message = next(subscription).await;
        assert_eq!((message.subject.as_str(), message.body.as_ref()), (at.as_str(), b"hello".as_ref()));
        assert_eq!(message.headers.get("Pmp-Origin"), Some("here"));
        assert_eq!(message.headers.get("traceparent"), Some("00-1"));
        assert_eq!(message.reply, Some(format!("{at}.answers")));
    }
}

async fn a_star_hears_one_token_and_an_arrow_the_rest(bus: Bus, at: String) {
    let mut star = live(&bus, &format!("{at}.*.ack"), None).await;
    let mut arrow = live(&bus, &format!("{at}.>"), None).await;
    for subject in ["a.ack", "a.b.ack", "b.ack"] {
        bus.publish(Message::new(format!("{at}.{subject}"), subject)).await.unwrap();
    }
    assert_eq!([next_body(&mut star).await, next_body(&mut star).await], ["a.ack", "b.ack"]);
    for subject in ["a.ack", "a.b.ack", "b.ack"] {
        assert_eq!(next_body(&mut arrow).await, subject);
    }
}

async fn messages_arrive_in_the_order_in_which_they_were_published(bus: Bus, at: String) {
    let mut subscription = live(&bus, &format!("{at}.*"), None).await;
    for n in 0..2000 {
        bus.publish(Message::new(format!("{at}.{}", n % 7), n.to_string())).await.unwrap();
    }
    for n in 0..2000 {
        assert_eq!(next_body(&mut subscription).await, n.to_string());
    }
}

async fn one_member_of_a_queue_group_gets_each_message(bus: Bus, at: String) {
    let mut members = Vec::new();
    for _ in 0..3 {
        members.push(live(&bus, &at, Some("workers")).await);
    }
    for n in 0..300 {
        bus.publish(Message::new(at.clone(), n.to_string())).await.unwrap();
    }
    let mut heard = BTreeMap::new();
    let mut busy = futures::stream::select_all(members);
    while heard.len() < 300 {
        let message = tokio::time::timeout(DEADLINE, busy.next()).await.unwrap().unwrap();
        *heard.entry(message.body).or_insert(0) += 1;
    }
    // What is published last comes last, so nothing is on its way any more when it is here.
    bus.publish(Message::new(at, "last")).await.unwrap();
    assert_eq!(tokio::time::timeout(DEADLINE, busy.next()).await.unwrap().unwrap().body, "last");
    assert!(heard.values().all(|&times| times == 1), "{heard:?}");
}

async fn members_of_a_group_and_others_hear_apart(bus: Bus, at: String) {
    let mut blue = live(&bus, &at, Some("blue")).await;
    let mut red = live(&bus, &at, Some("red")).await;
    let mut plain = live(&bus, &at, None).await;
    bus.publish(Message::new(at, "all")).await.unwrap();
    for subscription in [&mut blue, &mut red, &mut plain] {
        assert_eq!(next_body(subscription).await, "all");
    }
}

/// Answers every message with its own body, as long as the task lives.
fn echo(bus: &Bus, mut subscription: Subscription) -> tokio::task::JoinHandle<()> {
    let bus = bus.clone();
    tokio::spawn(async move {
        while let Some(message) = subscription.next().await {
            if let Some(reply) = message.reply {
                bus.publish(Message::new(reply, message.body)).await.unwrap();
            }
        }
    })
}

async fn a_request_is_answered(bus: Bus, at: String) {
    let answering = echo(&bus, live(&bus, &at, None).await);
    let answer = bus.request(Message::new(at, "ping").with_header("A", "b"), DEADLINE).await.unwrap();
    assert_eq!(answer.body, "ping");
    answering.abort();
}

async fn many_requests_at_once_get_their_own_answers(bus: Bus, at: String) {
    let answering = echo(&bus, live(&bus, &at, Some("servers")).await);
    let requests = (0..200).map(|n| bus.request(Message::new(at.clone(), n.to_string()), DEADLINE));
    for (n, answer) in join_all(requests).await.into_iter().enumerate() {
        assert_eq!(answer.unwrap().body, n.to_string());
    }
    answering.abort();
}

async fn a_request_that_nobody_hears_fails_at_once(bus: Bus, at: String) {
    let error = bus.request(Message::new(at, ""), DEADLINE * 10).await.unwrap_err();
    assert_eq!(error.reason(), "NoResponders", "{error}");
}

async fn a_request_that_nobody_answers_times_out(bus: Bus, at: String) {
    let _silent = live(&bus, &at, None).await;
    let error = bus.request(Message::new(at, ""), Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

async fn a_dropped_subscription_hears_nothing_and_answers_for_nobody(bus: Bus, at: String) {
    drop(live(&bus, &at, None).await);
    // The order of the connection: by the time the second is live, the first is gone.
    let _other = live(&bus, &format!("{at}.other"), None).await;
    let error = bus.request(Message::new(at, ""), DEADLINE).await.unwrap_err();
    assert_eq!(error.reason(), "NoResponders", "{error}");
}

async fn what_would_be_more_than_a_subject_is_refused(bus: Bus, at: String) {
    for subject in ["", "*", ">", "a..b", "a b", "a.*.b", "a\r\nPUB b 0"] {
        let error = bus.publish(Message::new(subject, "")).await.unwrap_err();
        assert_eq!(error.reason(), "BadSubject", "{subject:?}");
        assert!(bus.request(Message::new(subject, ""), DEADLINE).await.is_err(), "{subject:?}");
    }
    for pattern in ["", "a..b", ">.a", "a b"] {
        assert!(bus.subscribe(pattern, None).await.is_err(), "{pattern:?}");
    }
    assert!(bus.subscribe(&at, Some("a b")).await.is_err());
    let forged = Message::new(at, "").with_header("A", "b\r\nC: d");
    assert!(matches!(bus.publish(forged).await.unwrap_err(), Error::Header { .. }));
}

async fn a_message_past_the_limit_is_refused(bus: Bus, at: String) {
    let limit = bus.payload_bytes_max();
    let mut subscription = live(&bus, &at, None).await;
    let error = bus.publish(Message::new(at.clone(), vec![b'a'; limit + 1])).await.unwrap_err();
    assert_eq!(error.reason(), "TooLarge");
    // Headers count, so a body at the limit fits alone but not with them.
    let body = vec![b'a'; limit];
    let error = bus.publish(Message::new(at.clone(), body.clone()).with_header("A", "b")).await.unwrap_err();
    assert_eq!(error.reason(), "TooLarge");
    bus.publish(Message::new(at, body)).await.unwrap();
    assert_eq!(next_body(&mut subscription).await.len(), limit);
}

async fn a_subscription_is_proved_and_loses_nothing_by_it(bus: Bus, at: String) {
    let mut subscription = bus.subscribe(&format!("{at}.*"), None).await.unwrap();
    bus.publish(Message::new(format!("{at}.a"), "before")).await.unwrap();
    bus.prove(&mut subscription, &format!("{at}._probe"), DEADLINE).await.unwrap();
    bus.publish(Message::new(format!("{at}.a"), "after")).await.unwrap();
    assert_eq!([next_body(&mut subscription).await, next_body(&mut subscription).await], ["before", "after"]);
    let elsewhere = bus.prove(&mut subscription, "elsewhere.a", DEADLINE).await.unwrap_err();
    assert!(matches!(elsewhere, Error::Pattern { .. }), "{elsewhere}");
}

async fn a_member_of_a_queue_group_is_proved_too(bus: Bus, at: String) {
    let _others = [live(&bus, &at, Some("workers")).await, live(&bus, &at, Some("workers")).await];
    let mut member = bus.subscribe(&at, Some("workers")).await.unwrap();
    bus.prove(&mut member, &at, DEADLINE).await.unwrap();
}

async fn a_probe_is_nobodys_news(bus: Bus, at: String) {
    let mut listener = live(&bus, &format!("{at}.>"), None).await;
    let _proved = live(&bus, &format!("{at}.*"), None).await;
    bus.publish(Message::new(format!("{at}.a"), "news")).await.unwrap();
    assert_eq!(next_body(&mut listener).await, "news");
}

async fn a_reader_that_falls_behind_is_told(bus: Bus, at: String) {
    let lazy = live(&bus, &at, None).await;
    let mut epochs = bus.link();
    let before = epochs.borrow_and_update().epoch;
    // The default queue holds 65,536; more than that without a reader is a loss.
    for _ in 0..70_000 {
        bus.publish(Message::new(at.clone(), "")).await.unwrap();
    }
    let told = tokio::time::timeout(DEADLINE, epochs.wait_for(|link| link.epoch > before)).await;
    assert!(told.is_ok_and(|link| link.is_ok()), "the epoch did not rise");
    drop(lazy);
}

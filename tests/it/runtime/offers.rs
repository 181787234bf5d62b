//! Offers that cannot run twice: each law on the bus in the process and on a real server.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use pmp::{
    bus::{Bus, Message},
    engine::ReportStatus,
    protocol::Prefix,
};
use serde_json::json;

use super::{Clerk, DEADLINE, Gated, listening, options};
use crate::{
    bus::{connected, options as connection},
    support::{eventually, shared_nats, unique},
};

/// Makes each law two tests.
macro_rules! laws {
    ($($law:ident)*) => {
        mod in_memory {
            use super::*;
            $(#[tokio::test] async fn $law() { super::$law(Bus::memory(), prefix()).await; })*
        }
        mod over_nats {
            use super::*;
            $(#[tokio::test] async fn $law() {
                super::$law(connected(connection(shared_nats().await)).await, prefix()).await;
            })*
        }
    };
}

laws! {
    any_number_of_runtimes_and_repeats_begins_an_attempt_once
    a_phase_goes_only_to_runtimes_that_carry_its_labels
    an_answer_that_got_lost_is_asked_for_again_until_it_comes
    a_question_without_an_answer_outlives_the_operator_and_the_target
    a_new_operator_may_refuse_what_the_old_one_was_asked_for
    an_offer_of_an_operator_that_is_gone_is_let_go
    an_expired_target_is_declined_with_the_time_here
    the_end_of_an_attempt_is_told_again_whenever_somebody_asks
    a_draining_runtime_leaves_offers_to_the_others_of_its_group
    a_cancel_between_question_and_answer_begins_nothing
}

fn prefix() -> Prefix {
    Prefix::new(&unique("runtime.offers")).unwrap()
}

async fn any_number_of_runtimes_and_repeats_begins_an_attempt_once(bus: Bus, prefix: Prefix) {
    const OFFERS: usize = 60;
    let mut clerk = Clerk::on(&bus, &prefix).await;
    let work = Gated::open();
    let mut runtimes = Vec::new();
    for (name, labels) in [("a", &["site=lab"][..]), ("b", &["site=lab"]), ("c", &["site=lab", "gpu=yes"]), ("d", &[])]
    {
        runtimes.push(listening(&bus, options(name, &prefix, labels), work.clone()).await);
    }
    for _ in 0..3 {
        for n in 0..OFFERS {
            clerk.offer(&format!("p{n}"), &format!("t{n}"), &json!({})).await;
        }
    }
    clerk.bind_until_ended(OFFERS).await;
    // Once more, when all is over.
    for n in 0..OFFERS {
        clerk.offer(&format!("p{n}"), &format!("t{n}"), &json!({})).await;
    }
    clerk.offer("last", "last", &json!({})).await;
    clerk.bind_until_ended(OFFERS + 1).await;
    let begun = work.begun();
    assert_eq!(begun.iter().collect::<BTreeSet<_>>().len(), begun.len(), "{begun:?}");
    assert_eq!(begun.len(), OFFERS + 1);
}

async fn a_phase_goes_only_to_runtimes_that_carry_its_labels(bus: Bus, prefix: Prefix) {
    let mut clerk = Clerk::on(&bus, &prefix).await;
    let mut runtimes = Vec::new();
    for (name, labels) in [("lab", &["site=lab"][..]), ("field", &["site=field", "gpu=yes"]), ("plain", &[])] {
        runtimes.push(listening(&bus, options(name, &prefix, labels), Gated::open()).await);
    }
    for (token, labels) in [
        ("lab", json!({"site": "lab"})),
        ("field", json!({"site": "field"})),
        ("field", json!({"gpu": "yes", "site": "field"})),
        // Nobody carries both.
        ("nobody", json!({"gpu": "yes", "site": "lab"})),
    ] {
        let selector = json!({"selector": {"matchLabels": labels}});
        clerk.offer("p", &format!("{token}-{}", labels.as_object().unwrap().len()), &selector).await;
    }
    let bound = clerk.bind_until_ended(3).await;
    for (token, runtime) in bound {
        assert!(token.starts_with(runtime), "{token} went to {runtime}");
    }
}

async fn an_answer_that_got_lost_is_asked_for_again_until_it_comes(bus: Bus, prefix: Prefix) {
    let mut clerk = Clerk::on(&bus, &prefix).await;
    let work = Gated::open();
    let _runtime = listening(&bus, options("a", &prefix, &[]), work.clone()).await;
    clerk.offer("p", "t", &json!({})).await;
    let (first, _) = clerk.ack().await;
    // A stream that answers in the operator's place grants nothing.
    let (second, reply) = clerk.ack().await;
    clerk.bus.publish(Message::new(reply.unwrap(), r#"{"stream":"S","seq":2}"#)).await.unwrap();
    assert!(work.begun().is_empty());
    let third = clerk.answer(true).await;
    assert!(first == second && second == third, "every question is the same");
    assert_eq!(clerk.end().await.status, ReportStatus::Complete);
    assert_eq!(work.begun(), ["t"]);
}

/// The operator bound the attempt and ended before its answer arrived; the next one knows that it is bound, and comes
/// when the target's time is over.
async fn a_question_without_an_answer_outlives_the_operator_and_the_target(bus: Bus, prefix: Prefix) {
    let mut clerk = Clerk::on(&bus, &prefix).await;
    let work = Gated::open();
    let runtime = listening(&bus, options("a", &prefix, &[]), work.clone()).await;
    let not_after = Timestamp::now() + Duration::from_secs(1);
    clerk.offer_until("p", "t", &json!({}), not_after).await;
    clerk.ack().await;
    drop(clerk);
    eventually(DEADLINE, "the target's time is over", async || (Timestamp::now() > not_after).then_some(())).await;
    let mut next = Clerk::on(&bus, &prefix).await;
    assert_eq!(next.answer(true).await.attempt.unwrap().as_str(), "t");
    assert_eq!(next.end().await.status, ReportStatus::Complete);
    assert_eq!(work.begun(), ["t"]);
    runtime.drain(DEADLINE).await;
}

/// The next operator knows of no grant and listens first: it refuses, and offers later.
async fn a_new_operator_may_refuse_what_the_old_one_was_asked_for(bus: Bus, prefix: Prefix) {
    let mut clerk = Clerk::on(&bus, &prefix).await;
    let work = Gated::open();
    let _one = listening(&bus, options("a", &prefix, &[]), work.clone()).await;
    let _two = listening(&bus, options("b", &prefix, &["site=lab"]), work.clone()).await;
    clerk.offer("p", "t", &json!({})).await;
    // Both were offered it, and both wait for an answer.
    let asked: BTreeSet<_> = [clerk.ack().await.0.runtime, clerk.ack().await.0.runtime].into();
    assert_eq!(asked.len(), 2);
    drop(clerk);
    let mut next = Clerk::on(&bus, &prefix).await;
    next.control(&json!({"command": "x-report"})).await;
    let asked: BTreeSet<_> = [next.answer(false).await.runtime, next.answer(false).await.runtime].into();
    assert_eq!(asked.len(), 2);
    assert!(work.begun().is_empty(), "nobody holds it, so nobody answers x-report");
    // Offered again and again, as an operator does: the first may find the question still open.
    let taken = async || {
        next.offer("p", "t", &json!({})).await;
        tokio::time::timeout(Duration::from_millis(300), next.bind_until_ended(1)).await.ok().map(drop)
    };
    eventually(DEADLINE, "one of them has it", taken).await;
    assert_eq!(work.begun(), ["t"]);
}

async fn an_offer_of_an_operator_that_is_gone_is_let_go(bus: Bus, prefix: Prefix) {
    let mut options = options("a", &prefix, &[]);
    options.concurrency = std::num::NonZeroUsize::new(1);
    let work = Gated::open();
    let _runtime = listening(&bus, options, work.clone()).await;
    let mut stale = Clerk::on(&bus, &prefix).await;
    stale.acks = bus.subscribe(&unique("nowhere"), None).await.unwrap();
    stale.offer("p", "t1", &json!({})).await;
    // Its only slot is free again for whoever is there, however long the first one could still be started.
    let mut clerk = Clerk::on(&bus, &prefix).await;
    clerk.offer("p", "t2", &json!({})).await;
    let mut ended = 0;
    while !work.begun().contains(&"t2".to_owned()) {
        ended += 1;
        clerk.bind_until_ended(ended).await;
    }
}

async fn an_expired_target_is_declined_with_the_time_here(bus: Bus, prefix: Prefix) {
    let mut clerk = Clerk::on(&bus, &prefix).await;
    let work = Gated::open();
    let _runtime = listening(&bus, options("a", &prefix, &[]), work.clone()).await;
    clerk.offer_until("p", "t", &json!({}), Timestamp::now() - Duration::from_secs(1)).await;
    let (ack, reply) = clerk.ack().await;
    assert_eq!((ack.accepted, ack.reason.as_deref(), reply), (false, Some("Expired"), None));
    assert_eq!((ack.attempt.unwrap().as_str(), ack.runtime.as_deref()), ("t", Some("a")));
    let apart = Timestamp::now().duration_since(ack.now.unwrap());
    assert!(apart < jiff::SignedDuration::from_secs(60), "{apart:?}");
    assert!(work.begun().is_empty());
}

async fn the_end_of_an_attempt_is_told_again_whenever_somebody_asks(bus: Bus, prefix: Prefix) {
    let mut clerk = Clerk::on(&bus, &prefix).await;
    let work = Gated::closed();
    let _runtime = listening(&bus, options("a", &prefix, &[]), work.clone()).await;
    for token in ["t1", "t2"] {
        clerk.offer("p", token, &json!({})).await;
        clerk.answer(true).await;
        assert_eq!(clerk.state().await.status, ReportStatus::Running);
    }
    clerk.control(&json!({"command": "x-report"})).await;
    let held: BTreeSet<_> = [clerk.state().await, clerk.state().await]
        .map(|state| {
            assert_eq!((state.status, state.heartbeat.is_some()), (ReportStatus::Running, true));
            state.attempt.unwrap().to_string()
        })
        .into();
    assert_eq!(held, ["t1".to_owned(), "t2".to_owned()].into());
    work.let_go();
    for _ in 0..2 {
        clerk.end().await;
    }
    clerk.control(&json!({"command": "x-report", "x-phaseId": "p", "x-attempt": "t2"})).await;
    let state = clerk.state().await;
    assert_eq!((state.status, state.attempt.unwrap().as_str()), (ReportStatus::Complete, "t2"));
    clerk.offer("p", "t1", &json!({})).await;
    let state = clerk.state().await;
    assert_eq!((state.status, state.attempt.unwrap().as_str()), (ReportStatus::Complete, "t1"));
    assert_eq!(work.begun(), ["t1", "t2"]);
}

async fn a_draining_runtime_leaves_offers_to_the_others_of_its_group(bus: Bus, prefix: Prefix) {
    let mut clerk = Clerk::on(&bus, &prefix).await;
    let work = Gated::closed();
    let leaving = listening(&bus, options("leaving", &prefix, &[]), work.clone()).await;
    clerk.offer("p", "held", &json!({})).await;
    clerk.answer(true).await;
    let _staying = listening(&bus, options("staying", &prefix, &[]), work.clone()).await;
    let draining = tokio::spawn(leaving.drain(DEADLINE));
    // Until the other has left the group, offers may go to it and stay unanswered.
    for n in 0.. {
        clerk.offer("q", &format!("t{n}"), &json!({})).await;
        let ack = tokio::time::timeout(Duration::from_millis(300), clerk.ack()).await;
        if let Ok((ack, reply)) = ack {
            assert_eq!(ack.runtime, Some("staying".to_owned()));
            clerk.reply(reply, false).await;
            if n > 0 {
                break;
            }
        }
    }
    for n in 0..8 {
        clerk.offer("r", &format!("u{n}"), &json!({})).await;
        assert_eq!(clerk.answer(false).await.runtime.as_deref(), Some("staying"));
    }
    work.let_go();
    let drained = draining.await.unwrap();
    assert_eq!((drained.stopped, drained.unsaid), (0, 0));
    assert_eq!(clerk.end().await.attempt.unwrap().as_str(), "held");
}

async fn a_cancel_between_question_and_answer_begins_nothing(bus: Bus, prefix: Prefix) {
    let mut clerk = Clerk::on(&bus, &prefix).await;
    let work = Gated::open();
    let _runtime = listening(&bus, options("a", &prefix, &[]), work.clone()).await;
    clerk.offer("p", "t", &json!({})).await;
    let (_, reply) = clerk.ack().await;
    clerk.control(&json!({"command": "x-cancel", "x-phaseId": "p", "x-attempt": "t"})).await;
    // Commands are heard apart from answers: what is said behind the cancel tells that it was obeyed.
    clerk.offer("q", "other", &json!({"x-foreign": true})).await;
    assert_eq!(clerk.ack().await.0.reason.as_deref(), Some("Foreign"));
    clerk.reply(reply, true).await;
    let state = clerk.end().await;
    assert_eq!((state.status, state.message.as_deref()), (ReportStatus::Failed, Some("cancelled")));
    assert!(work.begun().is_empty());
}

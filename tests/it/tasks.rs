//! The real session task on a bus in memory: two that hold one session, and what an order changes together.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures::StreamExt as _;
use pmp::{
    bus::{self, Bus, Inbound, InboundMessage, Message},
    engine::{Edit, Keep, Output, PhaseState, Record, Session, Settings, Shutdown, Strategy, Verdict},
    manifest::{OtherKinds, Plan, from_values},
    protocol::{Prefix, SessionId, headers},
    sessions::{self, Clock, Listener, LocalStore, Order, Origin, Pacing, Past, Picture, Start, Store, StoreError},
};
use serde_json::{Value, json};
use tokio::sync::watch;

const SOON: Duration = Duration::from_secs(30);

/// A store that shows what it is given, and has stored it when it is let.
struct Dam {
    given: watch::Sender<Option<Arc<Record>>>,
    is_open: watch::Receiver<bool>,
}

impl Store for Dam {
    fn save(&mut self, picture: Picture) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
        self.given.send_replace(Some(picture.record));
        Box::pin(async {
            self.is_open.wait_for(|is_open| *is_open).await.expect("the test has the other end");
            Ok(())
        })
    }

    fn pacing(&self) -> Pacing {
        Pacing { least: Duration::from_millis(10), times_last: 1, most: Duration::from_millis(10) }
    }
}

/// Whoever listens to a task for nothing.
pub struct Deaf;

impl Listener for Deaf {
    fn hear(&mut self, _: &Output, _: &Session) {}

    fn pass_on(&mut self, _: InboundMessage) {}
}

fn plan(id: &str) -> Arc<Plan> {
    Arc::new(from_values(&[json!({"kind": "Phase", "id": id, "spec": {}})], OtherKinds::Refuse).unwrap().0)
}

fn start(session: Session, past: Past, clock: Clock) -> Start {
    Start {
        session,
        id: SessionId::new("s").unwrap(),
        prefix: Prefix::default(),
        origin: Origin("here".to_owned()),
        generation: 1,
        orders: Vec::new(),
        past,
        position: None,
        clock,
    }
}

/// Asks for the attempt as a runtime does.
async fn ask(bus: &Bus, token: &str, wait: Duration) -> Result<Value, bus::Error> {
    let ack = json!({"phaseId": "a", "accepted": true, "queued": false, "x-attempt": token, "x-runtime": "r"});
    let answer = bus.request(Message::new("plan.session.s.ack", ack.to_string()), wait).await?;
    Ok(serde_json::from_slice(&answer.body).expect("a grant is JSON"))
}

#[tokio::test]
async fn who_hears_another_holder_answers_nothing_until_the_store_has_said_who_it_is() {
    let bus = Bus::memory();
    let mut targets = bus.subscribe("plan.session.*.target", None).await.unwrap();
    let inbound = Inbound::run(bus.clone(), Prefix::default(), "here").await.unwrap();
    let clock = Clock::System;
    let session = Session::start("uid", plan("a"), 1, Strategy::Hybrid, Settings::default(), clock.now());
    let start = start(session, Past::None, clock);
    let (given_to, mut given) = watch::channel(None);
    let (dam, is_open) = watch::channel(true);
    let _session = sessions::spawn(bus.clone(), &inbound, start, Dam { given: given_to, is_open }, Deaf);
    let target = tokio::time::timeout(SOON, targets.next()).await.unwrap().unwrap();
    let target: Value = serde_json::from_slice(&target.body).unwrap();
    let token = target["x-attempt"].as_str().unwrap();
    // All there is to store is given; what comes next is because of the other holder.
    let is_offered = |record: &Option<Arc<Record>>| {
        record.as_ref().is_some_and(|record| record.phases.iter().any(|row| row.state == PhaseState::Offered))
    };
    tokio::time::timeout(SOON, given.wait_for(is_offered)).await.unwrap().unwrap();
    given.mark_unchanged();
    dam.send_replace(false);

    let report = Message::new("plan.session.s.control", r#"{"command":"x-report"}"#)
        .with_header(headers::ORIGIN, "here")
        .with_header(headers::HOLDER, "another");
    bus.publish(report).await.unwrap();
    tokio::time::timeout(SOON, given.changed()).await.unwrap().unwrap();
    let answer = ask(&bus, token, Duration::from_millis(300)).await;
    assert!(answer.is_err(), "an answer before it was known whose it is to give: {answer:?}");

    dam.send_replace(true);
    let began = std::time::Instant::now();
    let answer = loop {
        // What was asked a moment too early is asked again, as runtimes do.
        match ask(&bus, token, Duration::from_millis(300)).await {
            Ok(answer) => break answer,
            Err(error) => assert!(began.elapsed() < SOON, "no answer: {error}"),
        }
    };
    assert_eq!(answer, json!({"x-granted": true}));
}

#[tokio::test]
async fn an_edit_that_clears_a_shutdown_is_not_shut_down_as_it_starts() {
    let bus = Bus::memory();
    let inbound = Inbound::run(bus.clone(), Prefix::default(), "here").await.unwrap();
    let cancelled = Settings { shutdown: Some(Shutdown::Cancel), ..Settings::default() };
    let clock = Clock::System;
    let session = Session::start("uid", plan("a"), 1, Strategy::Hybrid, cancelled, clock.now());
    assert_eq!(session.verdict(), Some(Verdict::Cancelled));
    let (picture, mut stored) = watch::channel(Arc::new(session.record()));
    let edit = Edit { plan: plan("b"), revision: 2, strategy: Strategy::Hybrid, keep: Keep::Unchanged };
    let order =
        Order::Obey { generation: 2, settings: Box::new(Settings::default()), requests: Vec::new(), edit: Some(edit) };
    let start = Start { orders: vec![order], ..start(session, Past::Stored, clock) };
    let _task = sessions::spawn(bus, &inbound, start, LocalStore(picture), Deaf);
    let goes_on = stored.wait_for(|record| record.revision == 2);
    let record = tokio::time::timeout(SOON, goes_on).await.expect("it is stored").unwrap().clone();
    assert_eq!(record.verdict, None, "{record:?}");
}

//! The real session task on a bus in memory: two that hold one session, what an order changes together, how it ends.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures::StreamExt as _;
use pmp::{
    bus::{self, Bus, Inbound, InboundMessage, Message},
    engine::{
        AttemptToken, Edit, Input, Keep, OffersGate, Output, Pace, PhaseState, Record, Session, Settings, Shutdown,
        Strategy, Verdict,
    },
    manifest::{OtherKinds, PhaseId, Plan, from_values},
    protocol::{Prefix, SessionId, headers},
    sessions::{
        self, Clock, End, Listener, LocalStore, Order, Origin, Pacing, Past, Picture, Start, Store, StoreError,
    },
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
    let mut controls = bus.subscribe("plan.session.*.control", None).await.unwrap();
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

    // Whose it is, for the other one, and asks no runtime.
    let mut claimed = async || loop {
        let said = controls.next().await.unwrap();
        let holder = said.headers.get(headers::HOLDER).map(str::to_owned);
        if holder.as_deref() != Some("another") {
            break (holder, serde_json::from_slice::<Value>(&said.body).unwrap());
        }
    };
    let (holder, said) = tokio::time::timeout(SOON, claimed()).await.unwrap();
    assert_eq!((said["command"].as_str(), said["x-runtime"].as_str()), (Some("x-report"), holder.as_deref()));
}

/// A rival that took it meanwhile may have offered what is accepted here.
#[tokio::test]
async fn a_session_of_which_nothing_is_stored_yet_answers_nobody() {
    let bus = Bus::memory();
    let mut targets = bus.subscribe("plan.session.*.target", None).await.unwrap();
    let (given_to, mut given) = watch::channel(None);
    let (dam, is_open) = watch::channel(false);
    let store = Dam { given: given_to, is_open };
    let (_inbound, _handle) = started(&bus, fresh(plan("a"), Settings::default()), store).await;
    tokio::time::timeout(SOON, given.changed()).await.unwrap().unwrap();
    let token = AttemptToken::new("uid", &PhaseId::new("a").unwrap(), 1, 1);
    let answer = ask(&bus, token.as_str(), Duration::from_millis(300)).await;
    assert!(answer.is_err(), "neither yes nor no is ours to say: {answer:?}");
    dam.send_replace(true);
    tokio::time::timeout(SOON, targets.next()).await.unwrap().unwrap();
    assert_eq!(ask(&bus, token.as_str(), SOON).await.unwrap(), json!({"x-granted": true}));
}

#[tokio::test]
async fn whoever_cannot_see_whose_the_session_is_answers_nobody_until_it_can() {
    let bus = Bus::memory();
    let mut targets = bus.subscribe("plan.session.*.target", None).await.unwrap();
    let (doubt, in_doubt) = watch::channel(false);
    let (given_to, mut given) = watch::channel(());
    let store = Judge(move |_| {
        given_to.send_replace(());
        if *in_doubt.borrow() { Err(StoreError::InDoubt("as a test wants it".into())) } else { Ok(()) }
    });
    let (_inbound, _handle) = started(&bus, fresh(plan("a"), Settings::default()), store).await;
    tokio::time::timeout(SOON, targets.next()).await.unwrap().unwrap();
    doubt.send_replace(true);
    given.mark_unchanged();
    let token = AttemptToken::new("uid", &PhaseId::new("a").unwrap(), 1, 1);
    assert_eq!(ask(&bus, token.as_str(), SOON).await.unwrap(), json!({"x-granted": true}));
    // The write of that is refused; what its holder asks meanwhile may be another's to answer.
    for _ in 0..2 {
        tokio::time::timeout(SOON, given.changed()).await.unwrap().unwrap();
    }
    let answer = ask(&bus, token.as_str(), Duration::from_millis(300)).await;
    assert!(answer.is_err(), "{answer:?}");
    doubt.send_replace(false);
    let began = std::time::Instant::now();
    while ask(&bus, token.as_str(), Duration::from_millis(300)).await.is_err() {
        assert!(began.elapsed() < SOON, "no answer");
    }
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

/// A store that answers what it is told to.
struct Judge<F>(F);

impl<F: FnMut(Picture) -> Result<(), StoreError> + Send + 'static> Store for Judge<F> {
    fn save(&mut self, picture: Picture) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
        Box::pin(std::future::ready((self.0)(picture)))
    }

    fn pacing(&self) -> Pacing {
        Pacing { least: Duration::from_millis(10), times_last: 1, most: Duration::from_millis(10) }
    }
}

async fn started(bus: &Bus, session: Session, store: impl Store) -> (bus::InboundHandle, sessions::Handle) {
    let inbound = Inbound::run(bus.clone(), Prefix::default(), "here").await.unwrap();
    let start = start(session, Past::None, Clock::System);
    let handle = sessions::spawn(bus.clone(), &inbound, start, store, Deaf);
    (inbound, handle)
}

fn fresh(plan: Arc<Plan>, settings: Settings) -> Session {
    Session::start("uid", plan, 1, Strategy::Hybrid, settings, Clock::System.now())
}

#[tokio::test]
async fn a_session_whose_id_another_takes_stores_what_it_knows_and_ends() {
    let bus = Bus::memory();
    let (inbound, handle) = started(&bus, fresh(plan("a"), Settings::default()), Judge(|_| Ok(()))).await;
    let _other = inbound.register(&SessionId::new("s").unwrap());
    let end = tokio::time::timeout(SOON, handle.watch().end()).await.expect("it does not go on deaf").unwrap();
    assert_eq!(end, End::Deaf);
}

#[tokio::test]
async fn a_store_that_panics_takes_its_session_with_it() {
    let bus = Bus::memory();
    let store = Judge(|_| panic!("as a test wants it"));
    let (_inbound, handle) = started(&bus, fresh(plan("a"), Settings::default()), store).await;
    let end = tokio::time::timeout(SOON, handle.watch().end()).await.expect("it does not wait for ever");
    assert_eq!(end, None);
}

#[tokio::test]
async fn a_verdict_that_does_not_fit_is_not_taken_for_one_that_is_stored() {
    let bus = Bus::memory();
    let cancelled = Settings { shutdown: Some(Shutdown::Cancel), ..Settings::default() };
    let (given_to, mut given) = watch::channel(0);
    let store = Judge(move |_| {
        given_to.send_modify(|given| *given += 1);
        Err(StoreError::TooLarge("as a test wants it".to_owned()))
    });
    let (_inbound, handle) = started(&bus, fresh(plan("a"), cancelled), store).await;
    // The verdict, and that it does not fit.
    tokio::time::timeout(SOON, given.wait_for(|given| *given >= 2)).await.unwrap().unwrap();
    let end = tokio::time::timeout(Duration::from_millis(300), handle.watch().end()).await;
    assert!(end.is_err(), "it ended as {end:?}");
}

#[tokio::test]
async fn a_staged_target_that_the_plan_lacks_widens_nothing() {
    let bus = Bus::memory();
    let mut targets = bus.subscribe("plan.session.*.target", None).await.unwrap();
    let phases = ["a", "b"].map(|id| json!({"kind": "Phase", "id": id, "spec": {}}));
    let both = Arc::new(from_values(&phases, OtherKinds::Refuse).unwrap().0);
    let target = |id: &str| Settings { target_phase: PhaseId::new(id).ok(), ..Settings::default() };
    let (_inbound, handle) = started(&bus, fresh(both, target("a")), Judge(|_| Ok(()))).await;
    let offered = async |targets: &mut bus::Subscription| {
        let target = targets.next().await.expect("the bus is there");
        serde_json::from_slice::<Value>(&target.body).unwrap()["phaseId"].as_str().unwrap().to_owned()
    };
    assert_eq!(tokio::time::timeout(SOON, offered(&mut targets)).await.unwrap(), "a");
    for staged in ["of another plan", "b"] {
        let settings = Box::new(target(staged));
        handle.order(Order::Stage { generation: 2, settings, requests: Vec::new() }).unwrap();
    }
    let more = tokio::time::timeout(Duration::from_millis(500), offered(&mut targets)).await;
    assert!(more.as_deref().map_or(true, |phase| phase == "a"), "{more:?}");
}

fn said(session: &mut Session, input: Input, at: jiff::Timestamp) -> Vec<String> {
    session.handle(input, at);
    let outputs = std::iter::from_fn(|| session.poll_output());
    let control = |output: Output| match output {
        Output::Control(control) => Some(format!("{control:?}").split(' ').next().unwrap_or_default().to_owned()),
        Output::Target(_) => Some("Target".to_owned()),
        _ => None,
    };
    outputs.filter_map(control).collect()
}

#[test]
fn whoever_was_away_hears_of_a_pause_and_a_cancel_once_more() {
    let now = Clock::System.now();
    let mut session = fresh(plan("a"), Settings::default());
    while session.poll_output().is_some() {}
    said(&mut session, Input::Stored, now);
    assert_eq!(said(&mut session, Input::Offers(OffersGate::Open), now), ["Target"]);
    let accepted = pmp::protocol::AckMessage::parse(br#"{"phaseId":"a","accepted":true,"queued":false}"#).unwrap();
    said(&mut session, Input::Ack(accepted.into_input(None)), now);
    let suspended = Settings { pace: Pace::Suspended, ..Settings::default() };
    assert_eq!(said(&mut session, Input::Settings(Box::new(suspended.clone())), now), ["Pause"]);
    assert_eq!(said(&mut session, Input::Resync, now), ["Report", "Pause"]);
    let cancelled = Settings { shutdown: Some(Shutdown::Cancel), ..suspended };
    assert_eq!(said(&mut session, Input::Settings(Box::new(cancelled)), now), ["CancelSession"]);
    assert_eq!(said(&mut session, Input::Resync, now), ["Report", "Pause", "CancelSession"]);
}

#[test]
fn however_soon_offers_are_repeated_runtimes_have_two_seconds_to_say_what_they_hold() {
    let now = Clock::System.now();
    let mut quick = Settings::default();
    quick.timeouts.offer = Duration::from_millis(1);
    let first = fresh(plan("a"), quick.clone());
    let mut session = Session::restore("uid", plan("a"), first.record(), quick, now);
    assert_eq!(said(&mut session, Input::Resync, now), ["Report"]);
    assert!(said(&mut session, Input::Offers(OffersGate::Open), now).is_empty());
    let after = |millis| now + jiff::SignedDuration::from_millis(millis);
    assert!(said(&mut session, Input::Tick, after(1900)).is_empty());
    assert_eq!(said(&mut session, Input::Tick, after(2000)), ["Target"]);
}

/// It is offered nothing that it would answer, so what it said while its link was down would never be known.
#[test]
fn a_runtime_that_walks_the_phases_is_asked_when_none_has_moved_for_long() {
    let now = Clock::System.now();
    let both = ["a", "b"].map(|id| json!({"kind": "Phase", "id": id, "spec": {}}));
    let both = Arc::new(from_values(&both, OtherKinds::Refuse).unwrap().0);
    let mut session = Session::start("uid", both, 1, Strategy::Runtime, Settings::default(), now);
    while session.poll_output().is_some() {}
    said(&mut session, Input::Stored, now);
    assert!(said(&mut session, Input::Offers(OffersGate::Open), now).is_empty());
    let complete = |id: &str| {
        let state = json!({"phaseId": id, "status": "complete"}).to_string();
        Input::Report(pmp::protocol::StateMessage::parse(state.as_bytes()).unwrap().into_input())
    };
    assert!(said(&mut session, complete("a"), now).is_empty());
    let mut gaps = Vec::new();
    let mut last = now;
    for _ in 0..8 {
        let due = session.poll_timeout().expect("it is asked for as long as a phase is open");
        assert_eq!(said(&mut session, Input::Tick, due), ["Report"]);
        gaps.push(due.duration_since(last).as_secs());
        last = due;
    }
    assert!((30..=60).contains(&gaps[0]) && (450..=900).contains(&gaps[7]), "{gaps:?}");
    said(&mut session, complete("b"), last);
    assert_eq!(session.verdict(), Some(Verdict::Succeeded));
    assert_eq!(session.poll_timeout(), None);
}

//! The runtime over the in-process bus, against an operator that says what the test tells it to.

mod exec;

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use super::{
    Decline, Exec, Handle, Job, LINES_BURST, LINES_PER_SECOND, Labels, Options, Outcome, Runtime, Standing,
    TEXT_BYTES_MAX, Trial, Work, exec::Commands, start,
};
use crate::{
    bus::{Answer, Bus, Link, Message, Source, Subscription, Transport},
    engine::ReportStatus,
    protocol::{AckMessage, Channel, GrantMessage, LogMessage, Prefix, SessionId, StateMessage},
};

/// Nothing here takes a tenth of this.
const DEADLINE: Duration = Duration::from_secs(20);

fn session() -> SessionId {
    SessionId::new("s1").unwrap()
}

fn options(name: &str) -> Options {
    Options { name: name.to_owned(), labels: Labels::Everything, ..Options::new(name) }
}

/// An operator that does nothing by itself.
struct Operator {
    bus: Bus,
    acks: Subscription,
    states: Subscription,
    logs: Subscription,
}

impl Operator {
    async fn on(bus: &Bus) -> Self {
        let listen = async |channel| bus.subscribe(&Prefix::default().pattern(channel), None).await.unwrap();
        Self {
            bus: bus.clone(),
            acks: listen(Channel::Ack).await,
            states: listen(Channel::State).await,
            logs: listen(Channel::Log).await,
        }
    }

    async fn publish(&self, channel: Channel, body: &Value) {
        let subject = Prefix::default().subject(&session(), channel);
        self.bus.publish(Message::new(subject, body.to_string())).await.unwrap();
    }

    async fn offer(&self, phase: &str, token: &str, spec: &Value) {
        self.offer_until(phase, token, spec, Timestamp::now() + Duration::from_mins(1)).await;
    }

    async fn offer_until(&self, phase: &str, token: &str, spec: &Value, not_after: Timestamp) {
        let target = json!({
            "phaseId": phase,
            "reason": "dependencies satisfied",
            "x-attempt": token,
            "x-notAfter": not_after,
            "x-phase": {"kind": "Phase", "id": phase, "spec": spec},
        });
        self.publish(Channel::Target, &target).await;
    }

    async fn control(&self, body: &Value) {
        self.publish(Channel::Control, body).await;
    }

    /// The next ack, unanswered.
    async fn ack(&mut self) -> (AckMessage, Option<String>) {
        let message = timeout(DEADLINE, self.acks.next()).await.expect("an ack comes").unwrap();
        (AckMessage::parse(&message.body).unwrap(), message.reply)
    }

    async fn answer(&mut self, granted: bool) -> AckMessage {
        let (ack, reply) = self.ack().await;
        let reply = reply.expect("the ack is a request");
        self.bus.publish(Message::new(reply, GrantMessage { granted }.to_bytes())).await.unwrap();
        ack
    }

    async fn state(&mut self) -> StateMessage {
        let message = timeout(DEADLINE, self.states.next()).await.expect("a report comes").unwrap();
        StateMessage::parse(&message.body).unwrap()
    }

    /// Grants one attempt and sees it begin.
    async fn grant(&mut self) {
        self.answer(true).await;
        assert_eq!(self.state().await.status, ReportStatus::Running);
    }

    async fn log_line(&mut self) -> String {
        let message = timeout(DEADLINE, self.logs.next()).await.expect("a line comes").unwrap();
        LogMessage::parse(&message.body).unwrap().message
    }
}

/// Work that waits until it is let go, and counts how often it was begun.
#[derive(Clone, Default)]
struct Held {
    begun: Arc<AtomicUsize>,
    go: Arc<Notify>,
}

impl Work for Held {
    fn kind(&self) -> std::borrow::Cow<'static, str> {
        "test".into()
    }

    fn judge(&self, job: &Job) -> Result<(), Decline> {
        assert!(!job.spec.contains_key("x-panic-early"), "told to panic early");
        if job.spec.contains_key("x-foreign") { Err(Decline("Foreign")) } else { Ok(()) }
    }

    async fn run(&self, job: &Job, handle: &Handle) -> Outcome {
        self.begun.fetch_add(1, Ordering::SeqCst);
        handle.progress(if job.spec.contains_key("x-long") { "é".repeat(1 << 20) } else { "1/2".to_owned() });
        if job.spec.contains_key("x-long") {
            return Outcome::failed("é".repeat(1 << 20));
        }
        assert!(!job.spec.contains_key("x-panic"), "told to panic");
        tokio::select! {
            () = self.go.notified() => Outcome::Complete { message: "let go".to_owned() },
            () = handle.cancelled() => Outcome::Cancelled,
        }
    }
}

async fn held(options: Options) -> (Operator, Held, Runtime) {
    let bus = Bus::memory();
    let operator = Operator::on(&bus).await;
    let work = Held::default();
    let runtime = start(bus, options, work.clone()).await.unwrap();
    (operator, work, runtime)
}

#[tokio::test]
async fn nothing_begins_before_the_grant_and_a_refused_attempt_never() {
    let (mut operator, work, _runtime) = held(options("a")).await;
    operator.offer("p", "t1", &json!({})).await;
    let ack = operator.answer(false).await;
    assert_eq!((ack.accepted, ack.runtime.as_deref()), (true, Some("a")));
    assert_eq!(ack.heartbeat, Some(Options::HEARTBEAT));
    operator.offer("p", "t2", &json!({})).await;
    operator.grant().await;
    assert_eq!(work.begun.load(Ordering::SeqCst), 1);
    work.go.notify_one();
    loop {
        let state = operator.state().await;
        if state.status == ReportStatus::Complete {
            assert_eq!((state.attempt.unwrap().as_str(), state.message.as_deref()), ("t2", Some("let go")));
            break;
        }
    }
}

#[tokio::test]
async fn an_attempt_offered_again_and_again_runs_once_and_is_told_each_time() {
    let (mut operator, work, _runtime) = held(options("a")).await;
    for _ in 0..3 {
        operator.offer("p", "t", &json!({})).await;
    }
    operator.grant().await;
    operator.offer("p", "t", &json!({})).await;
    assert_eq!(operator.state().await.status, ReportStatus::Running);
    work.go.notify_one();
    while operator.state().await.status != ReportStatus::Complete {}
    operator.offer("p", "t", &json!({})).await;
    assert_eq!(operator.state().await.status, ReportStatus::Complete);
    assert_eq!(work.begun.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_answer_to_an_ack_that_got_lost_is_asked_for_again() {
    let (mut operator, work, _runtime) = held(options("a")).await;
    operator.offer("p", "t", &json!({})).await;
    let (first, _) = operator.ack().await;
    let second = operator.answer(true).await;
    assert_eq!(first.attempt, second.attempt);
    assert_eq!(operator.state().await.status, ReportStatus::Running);
    assert_eq!(work.begun.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_expired_target_and_a_phase_for_others_are_declined() {
    let (mut operator, _, _runtime) = held(options("a")).await;
    operator.offer_until("p", "t1", &json!({}), Timestamp::now() - Duration::from_secs(1)).await;
    let (ack, reply) = operator.ack().await;
    assert_eq!((ack.accepted, ack.reason.as_deref(), reply), (false, Some("Expired"), None));
    assert!(ack.now.is_some());
    operator.offer("p", "t2", &json!({"x-foreign": true})).await;
    let (ack, _) = operator.ack().await;
    assert_eq!((ack.accepted, ack.reason.as_deref()), (false, Some("Foreign")));
}

#[tokio::test]
async fn a_phase_with_other_labels_is_not_answered() {
    let labels = Labels::of_texts(["site=lab"]).unwrap();
    let (mut operator, _, _runtime) = held(Options { labels, ..options("a") }).await;
    operator.offer("far", "t1", &json!({"selector": {"matchLabels": {"site": "field"}}})).await;
    operator.offer("near", "t2", &json!({"selector": {"matchLabels": {"site": "lab"}}})).await;
    // In order: an answer to the first would come before.
    assert_eq!(operator.answer(true).await.phase.as_str(), "near");
}

#[tokio::test]
async fn one_of_two_runtimes_answers_an_offer_and_both_hear_commands() {
    let (mut operator, work, _first) = held(options("a")).await;
    let _second = start(operator.bus.clone(), options("b"), work.clone()).await.unwrap();
    for token in ["t1", "t2", "t3", "t4"] {
        operator.offer("p", token, &json!({})).await;
        operator.answer(true).await;
    }
    operator.control(&json!({"command": "cancel"})).await;
    let mut ended = BTreeMap::new();
    while ended.len() < 4 {
        let state = operator.state().await;
        if state.status == ReportStatus::Failed {
            assert_eq!(state.message.as_deref(), Some("cancelled"));
            ended.insert(state.attempt.unwrap(), state.runtime);
        }
    }
    assert_eq!(work.begun.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_cancel_for_another_runtime_or_attempt_stops_nothing() {
    let (mut operator, work, _runtime) = held(options("a")).await;
    operator.offer("p", "t", &json!({})).await;
    operator.grant().await;
    operator.control(&json!({"command": "cancel", "x-runtime": "b"})).await;
    operator.control(&json!({"command": "cancel", "x-attempt": "other"})).await;
    operator.control(&json!({"command": "pause"})).await;
    operator.control(&json!({"command": "x-report"})).await;
    // The report that answers the last command says that the earlier ones changed nothing.
    assert_eq!(operator.state().await.status, ReportStatus::Running);
    work.go.notify_one();
    while operator.state().await.status != ReportStatus::Complete {}
    operator.control(&json!({"command": "x-report", "x-phaseId": "p", "x-attempt": "t"})).await;
    assert_eq!(operator.state().await.status, ReportStatus::Complete);
}

#[tokio::test]
async fn running_is_repeated_at_the_heartbeat_and_carries_progress() {
    let (mut operator, _, _runtime) = held(Options { heartbeat: Duration::from_millis(50), ..options("a") }).await;
    operator.offer("p", "t", &json!({})).await;
    operator.grant().await;
    for _ in 0..3 {
        let state = operator.state().await;
        assert_eq!((state.status, state.progress.as_deref()), (ReportStatus::Running, Some("1/2")));
        assert_eq!(state.heartbeat, Some(Duration::from_millis(50)));
    }
}

#[tokio::test]
async fn past_its_limit_a_runtime_leaves_offers_unanswered_until_a_slot_is_free() {
    let (mut operator, work, _runtime) = held(Options { concurrency: NonZeroUsize::new(1), ..options("a") }).await;
    operator.offer("p", "t1", &json!({})).await;
    operator.offer("q", "t2", &json!({})).await;
    operator.grant().await;
    assert!(timeout(Duration::from_millis(100), operator.acks.next()).await.is_err());
    work.go.notify_one();
    assert_eq!(operator.answer(true).await.phase.as_str(), "q");
}

#[tokio::test]
async fn work_that_panics_is_a_failed_attempt_and_the_runtime_goes_on() {
    let (mut operator, _, _runtime) = held(options("a")).await;
    operator.offer("p", "t1", &json!({"x-panic": true})).await;
    operator.grant().await;
    let state = operator.state().await;
    assert_eq!(
        (state.status, state.message.as_deref()),
        (ReportStatus::Failed, Some("the runtime's work panicked: told to panic"))
    );
    operator.offer("p", "t2", &json!({})).await;
    operator.grant().await;
}

#[tokio::test]
async fn a_judgment_that_panics_is_a_no_and_the_runtime_listens_on() {
    let (mut operator, _, runtime) = held(options("a")).await;
    operator.offer("p", "t1", &json!({"x-panic-early": true})).await;
    let (ack, reply) = operator.ack().await;
    assert_eq!((ack.accepted, ack.reason.as_deref(), reply), (false, Some("Panicked"), None));
    operator.offer("p", "t2", &json!({})).await;
    operator.grant().await;
    assert_eq!(*runtime.standing().borrow(), Standing::Listening);
}

#[tokio::test]
async fn what_work_says_without_end_is_cut_before_it_is_kept_or_sent() {
    let (mut operator, _, _runtime) = held(options("a")).await;
    operator.offer("p", "t", &json!({"x-long": true})).await;
    operator.grant().await;
    for _ in 0..2 {
        let state = operator.state().await;
        assert_eq!(state.message.map(|text| text.len()), Some(TEXT_BYTES_MAX));
        operator.control(&json!({"command": "x-report"})).await;
    }
}

#[tokio::test]
async fn progress_that_does_not_fit_into_a_message_ends_no_attempt() {
    let trial = Trial::of(json!({}));
    trial.handle.progress("é".repeat(1 << 20));
    assert_eq!(trial.progress().map(|text| text.len()), Some(TEXT_BYTES_MAX));
}

#[tokio::test]
async fn options_that_no_operator_understands_start_nothing() {
    for options in [options(""), Options { heartbeat: Duration::ZERO, ..options("a") }] {
        let refused = start(Bus::memory(), options, Held::default()).await;
        assert!(matches!(refused, Err(crate::bus::Error::Option { .. })), "{refused:?}");
    }
}

/// The in-process bus, on which every subscription ends at once.
struct Closed(Bus);

impl Transport for Closed {
    fn publish(&self, message: Message) -> Answer<'_, ()> {
        Box::pin(self.0.publish(message))
    }

    fn subscribe<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> Answer<'a, Source> {
        let ended: Source = Box::pin(futures::stream::empty());
        Box::pin(std::future::ready(Ok(ended)))
    }

    fn request(&self, message: Message, timeout: Duration) -> Answer<'_, Message> {
        Box::pin(self.0.request(message, timeout))
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.0.link()
    }

    fn payload_bytes_max(&self) -> usize {
        self.0.payload_bytes_max()
    }

    fn inbox(&self) -> String {
        "inbox".to_owned()
    }
}

#[tokio::test]
async fn a_runtime_that_hears_nothing_any_more_says_so() {
    let runtime = start(Bus::over(Closed(Bus::memory())), options("a"), Held::default()).await.unwrap();
    let mut standing = runtime.standing();
    timeout(DEADLINE, async { while standing.changed().await.is_ok() {} })
        .await
        .expect("it tells that it is the last word");
    assert_eq!(*standing.borrow(), Standing::Away { reason: "the bus is closed".to_owned() });
}

/// Work that tells when it is dropped, and never stops by itself.
struct Stubborn(Arc<Notify>);

impl Work for Stubborn {
    async fn run(&self, _: &Job, _: &Handle) -> Outcome {
        struct Guard(Arc<Notify>);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }
        let _guard = Guard(Arc::clone(&self.0));
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn work_that_does_not_stop_is_dropped_when_the_drain_is_over() {
    let (bus, dropped) = (Bus::memory(), Arc::new(Notify::new()));
    let mut operator = Operator::on(&bus).await;
    let runtime = start(bus, options("a"), Stubborn(Arc::clone(&dropped))).await.unwrap();
    operator.offer("p", "t", &json!({})).await;
    operator.grant().await;
    let drained = runtime.drain(Duration::ZERO).await;
    assert_eq!((drained.stopped, drained.unsaid), (1, 1));
    timeout(Duration::from_secs(1), dropped.notified()).await.expect("it is dropped");
}

#[tokio::test]
async fn a_runtime_that_is_dropped_drops_its_work_and_says_nothing() {
    let (mut operator, _work, runtime) = held(options("a")).await;
    operator.offer("p", "t", &json!({})).await;
    operator.grant().await;
    assert_eq!(operator.state().await.progress.as_deref(), Some("1/2"));
    let attempts = runtime.attempts();
    drop(runtime);
    attempts.close();
    timeout(DEADLINE, attempts.wait()).await.expect("nothing is left of it");
    assert!(timeout(Duration::from_millis(100), operator.states.next()).await.is_err());
}

#[tokio::test]
async fn a_thread_of_the_work_has_a_handle_of_its_own() {
    let trial = Trial::of(json!({}));
    let handle = trial.handle.clone();
    let thread = tokio::task::spawn_blocking(move || {
        while !handle.is_cancelled() {
            std::thread::sleep(Duration::from_millis(1));
        }
        handle.progress("stopped");
    });
    trial.cancel();
    thread.await.unwrap();
    assert_eq!(trial.progress().as_deref(), Some("stopped"));
}

#[tokio::test]
async fn a_drained_runtime_takes_nothing_new_and_reports_what_it_stopped() {
    let (mut operator, _, runtime) = held(options("a")).await;
    operator.offer("p", "t1", &json!({})).await;
    operator.grant().await;
    runtime.drain(Duration::ZERO).await;
    while operator.state().await.status != ReportStatus::Failed {}
    operator.offer("p", "t2", &json!({})).await;
    assert!(timeout(Duration::from_millis(100), operator.acks.next()).await.is_err());
}

#[tokio::test]
async fn what_cannot_be_read_is_passed_over() {
    let (mut operator, _, _runtime) = held(options("a")).await;
    for body in [json!("text"), json!({}), json!({"phaseId": "p"}), json!({"phaseId": "p", "x-attempt": "t"})] {
        operator.publish(Channel::Target, &body).await;
        operator.publish(Channel::Control, &body).await;
    }
    operator.offer("p", "t", &json!({"selector": {"matchLabels": ["no", "map"]}})).await;
    operator.offer("good", "t2", &json!({})).await;
    assert_eq!(operator.answer(true).await.phase.as_str(), "good");
}

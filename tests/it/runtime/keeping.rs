//! Final reports through a bus that keeps messages: what is confirmed, what is published plainly, what is repeated.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::stream::{Config, DiscardPolicy};
use futures::StreamExt as _;
use pmp::{
    bus::{
        Answer, Begin, Bus, Error, Link, Message, Reading, Source, Storage, Stored, StreamFacts, StreamWish, Transport,
    },
    engine::ReportStatus,
    protocol::{Channel, Prefix, SessionId, StateMessage, headers},
    runtime::start,
};
use serde_json::json;
use tokio::sync::watch;

use super::{Clerk, DEADLINE, Gated, listening, options};
use crate::{
    bus::{connected, options as connection},
    support::{shared_nats, unique},
};

/// What a stream does with what is published through it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    Keeps,
    /// Says so once, and times out that often.
    TimesOut(usize),
    Full,
    KeepsNothing,
    IsDenied,
}

/// The in-process bus, with a stream of one mood over it.
#[derive(Clone)]
struct Keeper {
    bus: Bus,
    mood: Mood,
    kept: Arc<Mutex<Vec<Message>>>,
    asked: Arc<AtomicUsize>,
    tried: Arc<AtomicUsize>,
}

impl Keeper {
    fn new(mood: Mood) -> Self {
        Self { bus: Bus::memory(), mood, kept: Arc::default(), asked: Arc::default(), tried: Arc::default() }
    }
}

/// What probes are called on the bus beneath, which would keep its own to itself.
const CARRIED: &str = "Carried-Probe";

fn renamed(mut message: Message, from: &str, to: &str) -> Message {
    if let Some(value) = message.headers.get(from) {
        message.headers = [(to, value.to_owned())].into_iter().collect();
    }
    message
}

fn no_storage<T>() -> Answer<'static, T>
where
    T: Send + 'static,
{
    Box::pin(std::future::ready(Err(Error::NoStorage { detail: "not in this test".to_owned() })))
}

impl Storage for Keeper {
    fn ensure<'a>(&'a self, _: &'a StreamWish) -> Answer<'a, StreamFacts> {
        no_storage()
    }

    fn facts<'a>(&'a self, _: &'a str) -> Answer<'a, StreamFacts> {
        no_storage()
    }

    fn read<'a>(&'a self, _: &'a str, _: &'a [String], _: Begin) -> Answer<'a, Reading> {
        no_storage()
    }

    fn publish(&self, message: Message) -> Answer<'_, u64> {
        let tried = self.tried.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let subject = message.subject.clone();
            // Heard by whoever is subscribed, whatever becomes of it.
            self.bus.publish(message.clone()).await?;
            match self.mood {
                Mood::TimesOut(times) if tried < times => Err(Error::Timeout { subject }),
                Mood::Full => Err(Error::Stream { stream: "reports".to_owned(), detail: "it is full".to_owned() }),
                _ => {
                    let mut kept = self.kept.lock().unwrap();
                    kept.push(message);
                    Ok(kept.len() as u64)
                }
            }
        })
    }

    fn keeps<'a>(&'a self, subject: &'a str) -> Answer<'a, bool> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::ready(match self.mood {
            Mood::IsDenied => Err(Error::Denied { subject: "$JS.API.STREAM.NAMES".to_owned() }),
            Mood::KeepsNothing => Ok(false),
            _ => Ok(subject.rsplit('.').next() == Some("state")),
        }))
    }

    fn subjects<'a>(&'a self, _: &'a str, _: &'a str, _: usize) -> Answer<'a, Vec<String>> {
        no_storage()
    }

    fn last<'a>(&'a self, _: &'a str, _: &'a str) -> Answer<'a, Option<Stored>> {
        no_storage()
    }

    fn purge<'a>(&'a self, _: &'a str, _: &'a str, _: u64) -> Answer<'a, ()> {
        no_storage()
    }
}

impl Transport for Keeper {
    fn publish(&self, message: Message) -> Answer<'_, ()> {
        Box::pin(self.bus.publish(renamed(message, headers::PROBE, CARRIED)))
    }

    fn subscribe<'a>(&'a self, pattern: &'a str, queue: Option<&'a str>) -> Answer<'a, Source> {
        Box::pin(async move {
            let subscription = self.bus.subscribe(pattern, queue).await?;
            let source: Source = Box::pin(subscription.map(|message| renamed(message, CARRIED, headers::PROBE)));
            Ok(source)
        })
    }

    fn request(&self, message: Message, timeout: Duration) -> Answer<'_, Message> {
        Box::pin(self.bus.request(message, timeout))
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.bus.link()
    }

    fn payload_bytes_max(&self) -> usize {
        self.bus.payload_bytes_max()
    }

    fn inbox(&self) -> String {
        unique("_INBOX_keeper")
    }

    fn storage(&self) -> Option<&dyn Storage> {
        Some(self)
    }
}

/// Runs `count` attempts to their end on a stream of this mood; answers with how often their ends were heard.
async fn ends_heard(keeper: &Keeper, count: usize) -> usize {
    let prefix = Prefix::new(&unique("runtime.keeping")).unwrap();
    let mut clerk = Clerk::on(&keeper.bus, &prefix).await;
    let bus = Bus::over(keeper.clone());
    let runtime = start(bus, options("a", &prefix, &[]), Gated::open()).await.unwrap();
    for n in 0..count {
        clerk.offer("p", &format!("t{n}"), &json!({})).await;
        clerk.answer(true).await;
        assert_eq!(clerk.end().await.status, ReportStatus::Complete);
    }
    // Its end says that nothing more is on its way.
    let drained = runtime.drain(DEADLINE).await;
    assert_eq!(drained.unsaid, 0, "{:?}", keeper.mood);
    let mut heard = count;
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(50), clerk.states.next()).await {
        heard += 1;
    }
    heard
}

#[tokio::test]
async fn an_end_is_said_once_and_kept_where_a_stream_keeps_reports() {
    let keeper = Keeper::new(Mood::Keeps);
    assert_eq!(ends_heard(&keeper, 4).await, 4);
    let kept: BTreeSet<_> = keeper.kept.lock().unwrap().iter().map(|message| message.body.clone()).collect();
    assert_eq!(kept.len(), 4, "ends and nothing else");
    assert_eq!(keeper.asked.load(Ordering::SeqCst), 1, "once a connection");
}

#[tokio::test]
async fn an_end_that_a_stream_did_not_confirm_is_said_until_it_does() {
    let keeper = Keeper::new(Mood::TimesOut(1));
    ends_heard(&keeper, 1).await;
    assert_eq!(keeper.tried.load(Ordering::SeqCst), 2);
    assert_eq!(keeper.kept.lock().unwrap().len(), 1);
    assert_eq!(keeper.asked.load(Ordering::SeqCst), 2, "a stream that does not answer may be gone");
}

#[tokio::test]
async fn a_stream_that_never_answers_does_not_keep_an_end_open() {
    let keeper = Keeper::new(Mood::TimesOut(usize::MAX));
    // Heard at each try, and then said plainly.
    assert_eq!(ends_heard(&keeper, 1).await, 3);
    assert_eq!((keeper.tried.load(Ordering::SeqCst), keeper.kept.lock().unwrap().len()), (2, 0));
}

#[tokio::test]
async fn without_a_stream_that_takes_it_an_end_is_published_plainly() {
    for (mood, tries) in [(Mood::Full, 1), (Mood::KeepsNothing, 0), (Mood::IsDenied, 0)] {
        let keeper = Keeper::new(mood);
        ends_heard(&keeper, 3).await;
        // Not asked again for a while.
        assert_eq!((keeper.asked.load(Ordering::SeqCst), keeper.tried.load(Ordering::SeqCst)), (1, tries), "{mood:?}");
        assert!(keeper.kept.lock().unwrap().is_empty());
    }
}

/// Runs five attempts under a stream of this kind on a real server; answers with every report that was heard.
async fn reports_under(wish: impl FnOnce(Config) -> Config) -> Vec<(StateMessage, Option<String>)> {
    let server = shared_nats().await;
    let name = unique("runtime-keeping");
    let prefix = Prefix::new(&name.replace('-', "_")).unwrap();
    let client = async_nats::connect(&server.url).await.unwrap();
    let subjects = vec![format!("{prefix}.*.state")];
    let at = prefix.subject(&SessionId::new("s1").unwrap(), Channel::State);
    let mut heard = client.subscribe(at.clone()).await.unwrap();
    let config = wish(Config { name, subjects, ..Config::default() });
    async_nats::jetstream::new(client.clone()).create_stream(config).await.unwrap();
    let mut clerk = Clerk::on(&connected(connection(server)).await, &prefix).await;
    let runtime = listening(&connected(connection(server)).await, options("a", &prefix, &[]), Gated::open()).await;
    for n in 0..5 {
        clerk.offer("p", &format!("t{n}"), &json!({})).await;
    }
    clerk.bind_until_ended(5).await;
    assert_eq!(runtime.drain(DEADLINE).await.unsaid, 0);
    // Behind everything that the runtime said.
    client.publish(at, "over".into()).await.unwrap();
    let mut reports = Vec::new();
    loop {
        let message = tokio::time::timeout(DEADLINE, heard.next()).await.expect("a report").unwrap();
        match StateMessage::parse(&message.payload) {
            Ok(report) => reports.push((report, message.reply.map(|reply| reply.to_string()))),
            Err(_) if message.payload == "over" => break,
            // Probes have no body.
            Err(_) => {}
        }
    }
    reports
}

#[tokio::test]
async fn on_a_real_server_ends_are_confirmed_by_the_stream_and_other_reports_are_not() {
    for (report, reply) in reports_under(|config| config).await {
        assert_eq!(reply.is_some(), report.status == ReportStatus::Complete, "{report:?}");
    }
}

#[tokio::test]
async fn on_a_real_server_whose_stream_is_full_ends_are_heard_all_the_same() {
    let full = |config| Config { max_messages: 1, discard: DiscardPolicy::New, ..config };
    let ends = |(report, _): &(StateMessage, _)| report.status == ReportStatus::Complete;
    let reports: Vec<_> = reports_under(full).await.into_iter().filter(ends).collect();
    let heard = |is_plain: bool| -> BTreeSet<_> {
        let such = reports.iter().filter(|(_, reply)| reply.is_none() == is_plain);
        such.map(|(report, _)| report.attempt.clone().unwrap().to_string()).collect()
    };
    assert_eq!(heard(true).len(), 5, "{reports:?}");
    assert!(!heard(false).is_empty(), "it was tried first: {reports:?}");
}

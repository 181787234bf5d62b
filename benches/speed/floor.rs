//! The floor under a hop: what one question and its answer take on the same server, in the same run.
//!
//! Asker and answerer have a connection each, as the operator and a runtime have.

use std::time::{Duration, Instant};

use async_nats::{Client, jetstream};
use futures::StreamExt as _;
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::{stats::median_and_p99, support::eventually};

/// Some 512 bytes: what a target has.
const BODY: &[u8] = &[b'x'; 512];
/// Round trips before any is counted.
const WARM_UP: usize = 200;
const DEADLINE: Duration = Duration::from_secs(30);
const STREAM: &str = "bench-floor";
const REPORTS: &str = "bench.floor.report";

/// Milliseconds of one round trip.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Floor {
    pub median_ms: f64,
    pub p99_ms: f64,
}

/// A NATS request and its reply.
pub async fn request_reply(url: &str, rounds: usize) -> Floor {
    let (asker, answerer) = (connected(url).await, connected(url).await);
    let answering = answer(answerer, "bench.floor.ask").await;
    heard(&asker, "bench.floor.ask").await;
    let mut took = Vec::with_capacity(rounds);
    for round in 0..WARM_UP + rounds {
        let began = Instant::now();
        timely(asker.request("bench.floor.ask", BODY.into())).await.expect("somebody answers");
        if round >= WARM_UP {
            took.push(began.elapsed());
        }
    }
    answering.abort();
    floor(&took)
}

/// A request whose reply is published onto a stream and read through an ordered consumer without acks.
pub async fn reply_through_stream(url: &str, rounds: usize) -> Floor {
    let (asker, answerer) = (connected(url).await, connected(url).await);
    let streams = jetstream::new(asker.clone());
    let config =
        jetstream::stream::Config { name: STREAM.to_owned(), subjects: vec![REPORTS.to_owned()], ..Default::default() };
    let stream = timely(streams.create_stream(config)).await.expect("the server has JetStream");
    let consumer = timely(stream.create_consumer(jetstream::consumer::push::OrderedConfig {
        deliver_subject: asker.new_inbox(),
        ..Default::default()
    }))
    .await
    .expect("a consumer is made");
    let mut reports = timely(consumer.messages()).await.expect("the consumer delivers");
    let answering = answer(answerer, "bench.floor.tell").await;
    heard(&asker, "bench.floor.tell").await;
    let mut took = Vec::with_capacity(rounds);
    for round in 0..WARM_UP + rounds {
        let began = Instant::now();
        asker.publish("bench.floor.tell", BODY.into()).await.expect("the server is there");
        timely(async { reports.next().await.transpose() }).await.expect("the stream delivers");
        if round >= WARM_UP {
            took.push(began.elapsed());
        }
    }
    answering.abort();
    timely(streams.delete_stream(STREAM)).await.expect("our own stream can be taken away");
    floor(&took)
}

/// Answers whoever asks, and reports to the stream what it was only told.
async fn answer(answerer: Client, subject: &'static str) -> JoinHandle<()> {
    let mut questions = answerer.subscribe(subject).await.expect("the server is open");
    tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            let to = question.reply.unwrap_or_else(|| REPORTS.into());
            answerer.publish(to, BODY.into()).await.expect("the server is there");
        }
    })
}

/// Returns when the answerer is heard: a client's own word that it has subscribed proves nothing.
async fn heard(asker: &Client, subject: &'static str) {
    eventually(DEADLINE, "somebody answers", async || asker.request(subject, BODY.into()).await.ok()).await;
}

fn floor(took: &[Duration]) -> Floor {
    let (median_ms, p99_ms) = median_and_p99(took);
    Floor { median_ms, p99_ms }
}

async fn connected(url: &str) -> Client {
    timely(async_nats::connect(url)).await.expect("the server takes connections")
}

async fn timely<T>(call: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, call.into_future()).await.expect("the server answers in time")
}

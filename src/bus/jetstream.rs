//! Streams on NATS: JetStream's own API, asked the way everything here is asked.
//!
//! Its types are the client's; its calls are not, because the client's keep an entry for ever for each call that nobody
//! answers, and hear nothing of a denial. Its ordered consumer is not used either: it begins anew by itself on whatever
//! has the stream's name by then, while here a gap, another stream or silence must be told.

use std::{collections::HashMap, time::Duration};

use async_nats::{
    StatusCode,
    jetstream::{
        self, ErrorCode,
        consumer::{self, AckPolicy, DeliverPolicy},
        response::Response,
        stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType},
    },
};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    Answer, Begin, CALL_TIMEOUT, Error, Message, Reading, Storage, Stored, StreamFacts, StreamWish, Transport,
    nats::{Connection, message_in},
    proof,
};

/// On our streams: whose they are, as [`StreamWish::owner`] says.
const OWNER: &str = "pmp.dev/owner";

/// A consumer without messages says so this often; three times silence is a loss.
const HEARTBEAT: Duration = Duration::from_secs(2);
const SILENCE_MAX: Duration = Duration::from_secs(6);

/// A consumer that nobody listens to any more is removed by the server.
const INACTIVE_MAX: Duration = Duration::from_secs(30);

/// How long a stream may take to say that it has a message.
const KEEP_TIMEOUT: Duration = Duration::from_secs(2);

/// A server with less storage is asked for a quarter, and again; below this it is too little to be of use.
const BYTES_LEAST: u64 = 1 << 20;

impl Connection {
    /// One call to JetStream's API; `stream` is for the error.
    async fn api<T: DeserializeOwned>(&self, call: &str, body: &Value, stream: &str) -> Result<T, Failure> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let reply = match self.request(Message::new(format!("$JS.API.{call}"), body), CALL_TIMEOUT).await {
            Ok(reply) => reply,
            Err(Error::NoResponders { .. }) => {
                return Err(Failure::Bus(Error::NoStorage { detail: "JetStream is off on this server".to_owned() }));
            }
            Err(error) => return Err(Failure::Bus(error)),
        };
        match serde_json::from_slice(&reply.body) {
            Ok(Response::Ok(answer)) => Ok(answer),
            Ok(Response::Err { error }) => Err(Failure::of(&error, stream)),
            Err(error) => Err(Failure::Bus(refused(stream, &error))),
        }
    }

    async fn info(&self, stream: &str) -> Result<Info, Failure> {
        self.api(&format!("STREAM.INFO.{stream}"), &Value::Null, stream).await
    }

    async fn make(&self, wish: &StreamWish) -> Result<Info, Error> {
        let mut config = Config {
            name: wish.name.clone(),
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            storage: StorageType::File,
            num_replicas: 1,
            max_consumers: -1,
            max_messages: -1,
            allow_direct: true,
            metadata: HashMap::from([(OWNER.to_owned(), wish.owner.clone())]),
            ..Config::default()
        };
        wish.apply(&mut config);
        loop {
            let body = serde_json::to_value(&config).map_err(|error| refused(&wish.name, &error))?;
            match self.api(&format!("STREAM.CREATE.{}", wish.name), &body, &wish.name).await {
                Err(Failure::TooLittleRoom(_)) if config.max_bytes / 4 >= BYTES_LEAST.cast_signed() => {
                    config.max_bytes /= 4;
                    wish.fit(&mut config);
                }
                Ok(info) => return Ok(info),
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// Brings a stream of ours in line; one that is somebody else's is taken as it is, if it has the subjects.
    async fn align(&self, wish: &StreamWish, info: Info) -> Result<Info, Error> {
        let has_subjects = wish.subjects.iter().all(|subject| info.config.subjects.contains(subject));
        if info.config.metadata.get(OWNER) != Some(&wish.owner) {
            let detail = format!("a stream of this name listens to {}", info.config.subjects.join(", "));
            let foreign = Error::ForeignStream { stream: wish.name.clone(), detail };
            return if has_subjects { Ok(info) } else { Err(foreign) };
        }
        let mut config = info.config.clone();
        wish.apply(&mut config);
        // What the server gave is what it had.
        config.max_bytes = info.config.max_bytes;
        wish.fit(&mut config);
        if config == info.config {
            return Ok(info);
        }
        let body = serde_json::to_value(&config).map_err(|error| refused(&wish.name, &error))?;
        match self.api(&format!("STREAM.UPDATE.{}", wish.name), &body, &wish.name).await {
            Ok(info) => Ok(info),
            Err(failure) if has_subjects => {
                let error = Error::from(failure);
                tracing::warn!(stream = wish.name, %error, "a stream is not as it should be, and is used all the same");
                Ok(info)
            }
            Err(failure) => Err(failure.into()),
        }
    }

    async fn ensure_stream(&self, wish: &StreamWish) -> Result<StreamFacts, Error> {
        let info = match self.info(&wish.name).await {
            Ok(info) => self.align(wish, info).await?,
            Err(Failure::NotFound(_)) => self.make(wish).await?,
            Err(failure) => return Err(failure.into()),
        };
        Ok(facts_of(&info))
    }

    async fn read_from(&self, stream: &str, patterns: &[String], begin: Begin) -> Result<Reading, Error> {
        let inbox = self.inbox();
        let messages = self.raw(&inbox).await?;
        let name = proof::nonce();
        let (deliver_policy, at) = match begin {
            Begin::Sequence(sequence) => (DeliverPolicy::ByStartSequence { start_sequence: sequence.max(1) }, None),
            Begin::New => (DeliverPolicy::New, None),
            // The client's time type is another one; JSON is what both agree on.
            Begin::Time(at) => (DeliverPolicy::New, Some(at)),
        };
        let config = consumer::Config {
            name: Some(name.clone()),
            deliver_subject: Some(inbox),
            deliver_policy,
            ack_policy: AckPolicy::None,
            max_deliver: 1,
            flow_control: true,
            idle_heartbeat: HEARTBEAT,
            inactive_threshold: INACTIVE_MAX,
            memory_storage: true,
            num_replicas: 1,
            filter_subjects: patterns.to_vec(),
            ..consumer::Config::default()
        };
        let mut config = serde_json::to_value(config).map_err(|error| refused(stream, &error))?;
        if let Some(at) = at {
            config["deliver_policy"] = "by_start_time".into();
            config["opt_start_time"] = at.to_string().into();
        }
        let call = json!({"stream_name": stream, "config": config, "action": "create"});
        let info: ConsumerInfo = self.api(&format!("CONSUMER.CREATE.{stream}.{name}"), &call, stream).await?;
        let reader = Reader {
            connection: self.clone(),
            context: self.jetstream(),
            messages,
            stream: stream.to_owned(),
            consumer: name,
            delivered: 0,
            is_over: false,
        };
        let messages = stream::unfold(reader, |mut reader| async move {
            if reader.is_over {
                return None;
            }
            let next = reader.next().await;
            reader.is_over = next.is_err();
            Some((next, reader))
        });
        Ok(Reading { pending: info.num_pending, messages: Box::pin(messages) })
    }

    async fn keep(&self, message: Message) -> Result<u64, Error> {
        let subject = message.subject.clone();
        let reply = self.request(message, KEEP_TIMEOUT).await?;
        match serde_json::from_slice(&reply.body) {
            Ok(Response::Ok(Kept { seq, stream })) if !stream.is_empty() => Ok(seq),
            Ok(Response::Err { error }) => Err(Failure::of(&error, &subject).into()),
            Ok(Response::Ok(_)) => Err(refused(&subject, &"an answer that is no word of a stream")),
            Err(error) => Err(refused(&subject, &error)),
        }
    }

    async fn list_subjects(&self, stream: &str, pattern: &str, count_max: usize) -> Result<Vec<String>, Error> {
        let mut found = Vec::new();
        loop {
            let ask = json!({"subjects_filter": pattern, "offset": found.len()});
            let page: SubjectsPage = self.api(&format!("STREAM.INFO.{stream}"), &ask, stream).await?;
            let names = page.state.subjects.unwrap_or_default();
            if names.is_empty() {
                return Ok(found);
            }
            found.extend(names.into_keys());
            if found.len() >= count_max {
                found.truncate(count_max);
                return Ok(found);
            }
        }
    }

    async fn newest(&self, stream: &str, subject: &str) -> Result<Option<Stored>, Error> {
        // A direct get answers with the message itself, headers and all.
        let call = format!("$JS.API.DIRECT.GET.{stream}.{subject}");
        let reply = self.request_raw(Message::new(call, ""), CALL_TIMEOUT).await?;
        match reply.status {
            None => {}
            Some(StatusCode::NOT_FOUND) => return Ok(None),
            Some(StatusCode::NO_RESPONDERS) => {
                return Err(Error::NoStorage { detail: "JetStream is off on this server".to_owned() });
            }
            Some(status) => return Err(refused(stream, &status)),
        }
        let headers = reply.headers.clone().unwrap_or_default();
        let text = |name| headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default();
        let sequence = text("Nats-Sequence").parse().map_err(|error| refused(stream, &error))?;
        let at = text("Nats-Time-Stamp").parse().map_err(|error| refused(stream, &error))?;
        let message = Message { subject: subject.to_owned(), reply: None, ..message_in(reply) };
        Ok(Some(Stored { sequence, at, message }))
    }
}

impl Storage for Connection {
    fn ensure<'a>(&'a self, wish: &'a StreamWish) -> Answer<'a, StreamFacts> {
        Box::pin(self.ensure_stream(wish))
    }

    fn facts<'a>(&'a self, stream: &'a str) -> Answer<'a, StreamFacts> {
        Box::pin(async move { Ok(facts_of(&self.info(stream).await?)) })
    }

    fn read<'a>(&'a self, stream: &'a str, patterns: &'a [String], begin: Begin) -> Answer<'a, Reading> {
        Box::pin(self.read_from(stream, patterns, begin))
    }

    fn publish(&self, message: Message) -> Answer<'_, u64> {
        Box::pin(self.keep(message))
    }

    fn keeps<'a>(&'a self, subject: &'a str) -> Answer<'a, bool> {
        Box::pin(async move {
            let names: StreamNames = self.api("STREAM.NAMES", &json!({"subject": subject}), subject).await?;
            Ok(names.streams.is_some_and(|names| !names.is_empty()))
        })
    }

    fn subjects<'a>(&'a self, stream: &'a str, pattern: &'a str, count_max: usize) -> Answer<'a, Vec<String>> {
        Box::pin(self.list_subjects(stream, pattern, count_max))
    }

    fn last<'a>(&'a self, stream: &'a str, subject: &'a str) -> Answer<'a, Option<Stored>> {
        Box::pin(self.newest(stream, subject))
    }

    fn purge<'a>(&'a self, stream: &'a str, pattern: &'a str, before: u64) -> Answer<'a, ()> {
        Box::pin(async move {
            let ask = json!({"filter": pattern, "seq": before});
            let done: Value = self.api(&format!("STREAM.PURGE.{stream}"), &ask, stream).await?;
            if done["success"] == true { Ok(()) } else { Err(refused(stream, &done)) }
        })
    }
}

impl StreamWish {
    /// Puts into a configuration what this wish is about, and leaves the rest.
    fn apply(&self, config: &mut Config) {
        let signed = |limit: Option<u64>| limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
        config.description = Some(self.description.clone());
        config.subjects.clone_from(&self.subjects);
        config.max_age = self.age_max.unwrap_or_default();
        config.max_bytes = signed(self.bytes_max);
        config.max_messages_per_subject = signed(self.messages_per_subject_max);
        config.max_message_size = self.message_bytes_max.map_or(-1, |limit| i32::try_from(limit).unwrap_or(i32::MAX));
        config.duplicate_window = self.duplicate_window;
    }

    /// Of less room a subject's share is less.
    fn fit(&self, config: &mut Config) {
        let (Some(wished), Ok(given)) = (self.bytes_max, u64::try_from(config.max_bytes)) else { return };
        if let Some(share) = self.messages_per_subject_max.filter(|_| given < wished) {
            let share = u128::from(share) * u128::from(given) / u128::from(wished.max(1));
            config.max_messages_per_subject = i64::try_from(share).unwrap_or(i64::MAX).max(1);
        }
    }
}

/// One consumer's messages, checked for gaps.
struct Reader {
    connection: Connection,
    /// Only to read what the server writes beside a message.
    context: jetstream::Context,
    messages: async_nats::Subscriber,
    stream: String,
    consumer: String,
    /// By the consumer's own count.
    delivered: u64,
    is_over: bool,
}

impl Reader {
    async fn next(&mut self) -> Result<Stored, Error> {
        loop {
            let Ok(message) = timeout(SILENCE_MAX, self.messages.next()).await else {
                return Err(refused(&self.stream, &"silence of a consumer"));
            };
            let Some(message) = message else { return Err(Error::Closed) };
            match message.status {
                None => return self.stored(message),
                Some(StatusCode::IDLE_HEARTBEAT) => self.attend(&message).await?,
                // The consumer was deleted, or its server is going down.
                Some(status) => return Err(refused(&self.stream, &status)),
            }
        }
    }

    fn stored(&mut self, message: async_nats::Message) -> Result<Stored, Error> {
        let (sequence, at) = {
            let acked = jetstream::Message { context: self.context.clone(), message: message.clone() };
            let info = acked.info().map_err(|error| refused(&self.stream, &error))?;
            if info.consumer_sequence != self.delivered + 1 {
                return Err(refused(&self.stream, &"a message was lost on its way from the stream"));
            }
            self.delivered = info.consumer_sequence;
            let at = Timestamp::from_nanosecond(info.published.unix_timestamp_nanos());
            (info.stream_sequence, at.map_err(|error| refused(&self.stream, &error))?)
        };
        Ok(Stored { sequence, at, message: Message { reply: None, ..message_in(message) } })
    }

    /// A sign of life, or the question whether we keep up.
    async fn attend(&mut self, message: &async_nats::Message) -> Result<(), Error> {
        let header = |name| message.headers.as_ref().and_then(|headers| headers.get(name)).map(ToString::to_string);
        let delivered = header("Nats-Last-Consumer").and_then(|count| count.parse::<u64>().ok());
        if delivered.is_some_and(|delivered| delivered > self.delivered) {
            return Err(refused(&self.stream, &"messages were lost on their way from the stream"));
        }
        let answer_to = message.reply.as_ref().map(ToString::to_string).or_else(|| header("Nats-Consumer-Stalled"));
        match answer_to {
            Some(subject) => Transport::publish(&self.connection, Message::new(subject, "")).await,
            None => Ok(()),
        }
    }
}

impl Drop for Reader {
    /// The server would notice by itself after a while; thousands of readings at a start should not wait for that.
    fn drop(&mut self) {
        let (connection, stream, consumer) = (self.connection.clone(), self.stream.clone(), self.consumer.clone());
        if let Ok(tokio) = tokio::runtime::Handle::try_current() {
            tokio.spawn(async move {
                let call = format!("$JS.API.CONSUMER.DELETE.{stream}.{consumer}");
                // Gone already, with its server or its stream.
                let _ = Transport::publish(&connection, Message::new(call, "")).await;
            });
        }
    }
}

/// How a call to the API failed, as far as it matters here.
enum Failure {
    NotFound(Error),
    TooLittleRoom(Error),
    Bus(Error),
}

impl Failure {
    fn of(error: &jetstream::Error, stream: &str) -> Self {
        let detail = error.to_string();
        let failed = |detail| Error::Stream { stream: stream.to_owned(), detail };
        match error.error_code() {
            ErrorCode::STREAM_NOT_FOUND => Self::NotFound(Error::NoStream { stream: stream.to_owned() }),
            ErrorCode::STORAGE_RESOURCES_EXCEEDED | ErrorCode::INSUFFICIENT_RESOURCES => {
                Self::TooLittleRoom(failed(detail))
            }
            ErrorCode::STREAM_SUBJECT_OVERLAP => Self::Bus(Error::ForeignStream { stream: stream.to_owned(), detail }),
            ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
                Self::Bus(Error::NoStorage { detail })
            }
            _ => Self::Bus(failed(detail)),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotFound(error) | Failure::TooLittleRoom(error) | Failure::Bus(error) => error,
        }
    }
}

fn refused(stream: &str, detail: &impl ToString) -> Error {
    Error::Stream { stream: stream.to_owned(), detail: detail.to_string() }
}

fn facts_of(info: &Info) -> StreamFacts {
    let millis = i64::try_from(info.created.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MIN);
    let created = Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MIN);
    let last = info.state.last_sequence;
    let first = if info.state.messages == 0 { last + 1 } else { info.state.first_sequence };
    StreamFacts { name: info.config.name.clone(), created, first, last }
}

#[derive(Deserialize)]
struct ConsumerInfo {
    #[serde(default)]
    num_pending: u64,
}

#[derive(Deserialize)]
struct Kept {
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
}

#[derive(Deserialize)]
struct StreamNames {
    streams: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct SubjectsPage {
    state: SubjectsState,
}

#[derive(Deserialize)]
struct SubjectsState {
    subjects: Option<HashMap<String, u64>>,
}

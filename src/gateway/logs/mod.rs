//! GET /logs: what was said on the log channel of a session.
//!
//! Where the bus keeps messages, the record stream is read, which outlives processes. Where it keeps none, or does not
//! answer, there is a ring in memory that a plain subscription fills. Lines are shown as they were said: nobody here
//! believes them.

mod ring;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json,
    extract::{Request, State},
    http::request::Parts,
    response::{IntoResponse, Response, sse::Event},
};
use futures::{
    Stream, StreamExt,
    stream::{BoxStream, unfold},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{sync::broadcast, time::timeout};
use tokio_util::sync::CancellationToken;

use self::ring::Ring;
use super::{
    Gateway,
    fault::Fault,
    media,
    query::{Query, bad},
    sessions::session_of,
    stream::{self, last_event_id},
    submit::name_version,
};
use crate::{
    bus::{self, Begin, Bus, Reading, Stored, streams},
    manifest::{PhaseId, parse_duration},
    protocol::{Channel, LogMessage, Prefix, SessionId},
    resource::PhaseManifest,
};

/// Lines of one answer: by default, and at most.
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 1000;

/// Lines on their way to those who follow, who are told when they were too slow.
const NEWS_MAX: usize = 1024;

/// How long an answer reads stored lines; the call that begins is in it.
const READ_TIMEOUT: Duration = Duration::from_secs(4);

/// One line, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// In the stream, or in this process since its start.
    pub sequence: u64,
    /// When it was kept.
    pub at: Timestamp,
    pub message: LogMessage,
}

/// The lines of all sessions on a connection. Cloning is a reference count.
#[derive(Clone)]
pub struct Logs(Arc<Inner>);

struct Inner {
    bus: Bus,
    prefix: Prefix,
    /// The name of the stream that keeps lines, where the bus keeps any.
    record: String,
    ring: Mutex<Ring>,
    news: broadcast::Sender<(SessionId, Line)>,
    /// Tells the sequences of this process from those of another.
    epoch: i64,
}

impl Logs {
    /// Listens to the log channel of all sessions until `stop`.
    pub async fn start(bus: Bus, prefix: Prefix, stop: CancellationToken) -> Result<Self, bus::Error> {
        let heard = bus.subscribe(&prefix.pattern(Channel::Log), None).await?;
        let news = broadcast::Sender::new(NEWS_MAX);
        let epoch = Timestamp::now().as_millisecond();
        let record = streams::record(&prefix).name;
        let logs = Self(Arc::new(Inner { bus, prefix, record, ring: Mutex::default(), news, epoch }));
        let pump = logs.clone();
        tokio::spawn(async move {
            let mut heard = heard.enumerate();
            while let Some(Some((count, message))) = stop.run_until_cancelled(heard.next()).await {
                pump.hear(count as u64 + 1, &message);
            }
        });
        Ok(logs)
    }

    fn hear(&self, sequence: u64, message: &bus::Message) {
        let Some((session, Channel::Log)) = self.0.prefix.parse(&message.subject) else { return };
        let Ok(said) = LogMessage::parse(&message.body) else { return };
        let line = Line { sequence, at: Timestamp::now(), message: said };
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner).push(&session, line.clone());
        // Nobody follows: nothing to tell.
        drop(self.0.news.send((session, line)));
    }

    /// From the stream, if it can be read now.
    async fn stored(&self, session: &SessionId, begin: Begin) -> Option<Reading> {
        let subject = [self.0.prefix.subject(session, Channel::Log)];
        let storage = self.0.bus.storage()?;
        storage.read(&self.0.record, &subject, begin).await.ok()
    }
}

/// Which lines.
#[derive(Debug, Clone)]
struct Wanted {
    session: SessionId,
    phase: Option<PhaseId>,
    limit: usize,
    since: Option<Timestamp>,
}

impl Wanted {
    fn is_it(&self, line: &Line) -> bool {
        self.phase.as_ref().is_none_or(|phase| line.message.phase.as_ref() == Some(phase))
            && self.since.is_none_or(|since| line.at >= since)
    }
}

/// GET /logs.
pub(super) async fn get_logs(State(gateway): State<Gateway>, request: Request) -> Result<Response, Fault> {
    let (parts, _) = request.into_parts();
    let known = ["session", "namespace", "phaseId", "limit", "since", "follow"];
    let query = Query::of(parts.uri.query(), &known)?;
    let follows = query.flag("follow")?;
    let offered: &[&'static str] = if follows { &[media::EVENTS] } else { &[media::JSON] };
    media::preferred(&parts.headers, offered)?;
    let phase = query.text("phaseId")?.map(PhaseId::new).transpose();
    let phase = phase.map_err(|error| bad("phaseId", error.to_string()))?;
    let limit = query.number("limit", LIMIT, LIMIT_MAX)?;
    let since = query.text("since")?.map(since).transpose()?;
    let Some(logs) = gateway.logs.clone() else {
        let detail = "this gateway is not connected to NATS, where logs are: start it with --nats";
        return Err(Fault::unavailable("NoLogs", detail));
    };
    gateway
        .in_time(async {
            let object = gateway.sessions.of(&query).await?;
            let Some(session) = session_of(&object) else {
                return Err(Fault::not_found("NoSuchSession", "the resource names no session"));
            };
            let wanted = Wanted { session, phase, limit, since };
            if follows {
                return follow(&gateway, &logs, wanted, &object, &parts).await;
            }
            let lines = match logs.read(&wanted).await? {
                Some(lines) => lines,
                None => logs.remembered(&wanted),
            };
            let lines: Vec<Value> = lines.iter().map(shown).collect();
            let mut response = Json(json!({"sessionId": wanted.session.as_str(), "lines": lines})).into_response();
            name_version(response.headers_mut(), &object);
            Ok(response)
        })
        .await
}

/// A time, or how long ago: `2026-01-01T00:00:00Z`, `5m`.
fn since(text: &str) -> Result<Timestamp, Fault> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let ago = parse_duration(text).ok().and_then(|ago| Timestamp::now().checked_sub(ago).ok());
    ago.ok_or_else(|| bad("since", "since is a time as in RFC 3339, or how long ago: 30s, 5m, 1h".to_owned()))
}

impl Logs {
    /// The newest stored lines, oldest first; nothing where there is no stream. 503 where they are not read to their end
    /// in time: the oldest of them are no answer.
    async fn read(&self, wanted: &Wanted) -> Result<Option<Vec<Line>>, Fault> {
        let begin = wanted.since.map_or(Begin::Sequence(1), Begin::Time);
        let all = async {
            let Some(Reading { pending, mut messages }) = self.stored(&wanted.session, begin).await else {
                return Ok(None);
            };
            let mut newest = VecDeque::new();
            for _ in 0..pending {
                let Some(Ok(stored)) = messages.next().await else { return Err(unread("the bus broke off")) };
                let Some(line) = line(&stored).filter(|line| wanted.is_it(line)) else { continue };
                if newest.len() >= wanted.limit {
                    newest.pop_front();
                }
                newest.push_back(line);
            }
            Ok(Some(newest.into()))
        };
        timeout(READ_TIMEOUT, all).await.unwrap_or_else(|_| Err(unread("the bus is too slow")))
    }

    /// The newest lines that this process has heard.
    fn remembered(&self, wanted: &Wanted) -> Vec<Line> {
        let ring = self.0.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.newest(&wanted.session, wanted.limit, |line| wanted.is_it(line))
    }
}

fn unread(why: &str) -> Fault {
    Fault::unavailable("LogsUnreadable", format!("the stored lines were not read to their end: {why}; ask again"))
}

fn line(stored: &Stored) -> Option<Line> {
    let message = LogMessage::parse(&stored.message.body).ok()?;
    Some(Line { sequence: stored.sequence, at: stored.at, message })
}

/// `{phaseId?, level, message, timestamp}`: when it was kept, where whoever said it named no time.
fn shown(line: &Line) -> Value {
    let mut said = line.message.clone();
    said.timestamp.get_or_insert(line.at);
    serde_json::to_value(said).unwrap_or_default()
}

/// Where a line stands: the id of its event, `<epoch>-<sequence>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// When the stream was made, or the process began to listen.
    epoch: i64,
    sequence: u64,
}

impl Place {
    fn parse(id: &str) -> Option<Self> {
        let (epoch, sequence) = id.split_once('-')?;
        Some(Self { epoch: epoch.parse().ok()?, sequence: sequence.parse().ok()? })
    }
}

/// Behind this line; no line stands at the highest number there is.
fn after(sequence: u64) -> Begin {
    Begin::Sequence(sequence.saturating_add(1))
}

/// The newest lines and then every further one, as server-sent events.
async fn follow(
    gateway: &Gateway,
    logs: &Logs,
    wanted: Wanted,
    object: &PhaseManifest,
    request: &Parts,
) -> Result<Response, Fault> {
    let place = stream::place(gateway)?;
    let seen = last_event_id(&request.headers).and_then(Place::parse);
    let events = logs.clone().events(wanted, seen).await?;
    let events = events.map(move |event| {
        // Held as long as the stream is.
        let _ = &place;
        event
    });
    let mut response = stream::respond(gateway, request, events);
    name_version(response.headers_mut(), object);
    Ok(response)
}

impl Logs {
    /// Lines behind the one that was seen last; else the newest and what follows.
    async fn events(self, wanted: Wanted, seen: Option<Place>) -> Result<BoxStream<'static, Event>, Fault> {
        let facts = match self.0.bus.storage() {
            Some(storage) => storage.facts(&self.0.record).await.ok(),
            None => None,
        };
        if let Some(facts) = facts {
            let epoch = facts.created.as_millisecond();
            let (past, next) = if let Some(seen) = seen.filter(|seen| seen.epoch == epoch) {
                (Vec::new(), after(seen.sequence))
            } else {
                let past = self.read(&wanted).await?.unwrap_or_default();
                // Where nothing was read, what came since the stream was asked is read all the same.
                let last = past.last().map_or(facts.last, |line| line.sequence);
                (past, after(last))
            };
            if let Some(reading) = self.stored(&wanted.session, next).await {
                let past = futures::stream::iter(past);
                let lines = reading.messages.take_while(|stored| std::future::ready(stored.is_ok()));
                let lines = lines.filter_map(|stored| std::future::ready(stored.ok().as_ref().and_then(line)));
                let lines = past.chain(lines.filter(move |line| std::future::ready(wanted.is_it(line))));
                return Ok(lines.map(move |line| event(epoch, &line)).boxed());
            }
        }
        Ok(self.news(wanted, seen).boxed())
    }

    /// The same from memory.
    fn news(self, wanted: Wanted, seen: Option<Place>) -> impl Stream<Item = Event> + Send {
        let news = self.0.news.subscribe();
        let epoch = self.0.epoch;
        let after = seen.filter(|seen| seen.epoch == epoch).map_or(0, |seen| seen.sequence);
        let past: VecDeque<Line> = match after {
            0 => self.remembered(&wanted).into(),
            _ => self.since(&wanted, after),
        };
        let state = (self, wanted, news, past, after);
        unfold(state, move |(logs, wanted, mut news, mut past, mut last)| async move {
            loop {
                if let Some(line) = past.pop_front() {
                    last = last.max(line.sequence);
                    return Some((event(epoch, &line), (logs, wanted, news, past, last)));
                }
                match news.recv().await {
                    Ok((session, line)) => {
                        if session == wanted.session && line.sequence > last && wanted.is_it(&line) {
                            past.push_back(line);
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => past = logs.since(&wanted, last),
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
    }

    fn since(&self, wanted: &Wanted, after: u64) -> VecDeque<Line> {
        let ring = self.0.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.newest(&wanted.session, LIMIT_MAX, |line| line.sequence > after && wanted.is_it(line)).into()
    }
}

fn event(epoch: i64, line: &Line) -> Event {
    Event::default().event("log").id(format!("{epoch}-{}", line.sequence)).data(shown(line).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_behind_the_last_one_there_can_be_is_no_overflow() {
        let id = format!("5-{}", u64::MAX);
        let place = Place::parse(&id).unwrap();
        assert_eq!(after(place.sequence), Begin::Sequence(u64::MAX));
        assert_eq!(after(7), Begin::Sequence(8));
        assert_eq!(Place::parse("5"), None);
        assert_eq!(Place::parse("-1-2"), None, "no process began before 1970");
    }
}

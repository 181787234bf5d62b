//! The bus over NATS: the one place that knows async-nats and what it leaves unsaid.
//!
//! The client's event channel holds 128 events and drops the rest, so events here only wake a task (the keeper) that
//! reads what is true: the client's state and its count of connections. Losses in full queues come as events too; as long
//! as one of a burst gets through the epoch rises once more after it.

use std::{
    collections::BTreeSet,
    str::FromStr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, Event, HeaderMap, HeaderName, HeaderValue, StatusCode, connection::State};
use futures::StreamExt;
use rand::RngExt;
use tokio::{
    sync::{Notify, OnceCell, watch},
    task::JoinHandle,
    time::Instant,
};

use super::{
    Answer, CALL_TIMEOUT, ConnectOptions, Error, Headers, Link, LinkState, Message, Source, Storage, Transport, proof,
    replies::Replies,
};

/// How often the keeper looks without being woken, and how often losses raise the epoch at most.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The client raises its count a moment before its state; look again after this.
const SETTLE_INTERVAL: Duration = Duration::from_millis(2);

/// First and longest delay between two tries to connect.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Denied subjects that are remembered; a user denied more than this has other worries.
const DENIED_MAX: usize = 256;

/// Pings after which a silent connection is given up for dead at the latest: three, and what it takes to notice.
const UNNOTICED_PINGS: u32 = 6;

/// Servers whose last error is in a reason.
const REASON_SERVERS_MAX: usize = 3;

/// A connection that is kept up until the last clone is dropped.
#[derive(Clone)]
pub(super) struct Connection {
    client: Client,
    notes: Arc<Notes>,
    inbox_prefix: Arc<str>,
    /// Subscribed to by the first request.
    replies: Arc<OnceCell<Replies>>,
    _keeper: Arc<Keeper>,
}

/// What the client's callbacks leave behind.
struct Notes {
    wake: Notify,
    link: watch::Sender<Link>,
    /// Losses in full queues seen so far.
    losses: AtomicU64,
    /// Why the last try to connect failed, or the connection ended.
    reason: Mutex<String>,
    /// Subjects and patterns that the server denied on this connection.
    denied: watch::Sender<BTreeSet<String>>,
    unnoticed_max: Duration,
}

impl Connection {
    pub(super) async fn open(options: ConnectOptions) -> Result<Self, Error> {
        let servers = options.check()?;
        let shown: Vec<_> = options.servers.iter().take(REASON_SERVERS_MAX).map(String::as_str).collect();
        let reason = format!("connecting to {}", shown.join(", "));
        let notes = Arc::new(Notes {
            wake: Notify::new(),
            link: watch::Sender::new(Link { state: LinkState::Disconnected { reason: reason.clone() }, epoch: 0 }),
            losses: AtomicU64::new(0),
            reason: Mutex::new(reason),
            denied: watch::Sender::default(),
            unnoticed_max: options.ping_interval.saturating_mul(UNNOTICED_PINGS),
        });
        let inbox_prefix = options.inbox_prefix.as_str().into();
        let client = client_options(options, &notes)
            .connect(servers)
            .await
            .map_err(|error| Error::Option { what: "servers", detail: error.to_string() })?;
        let keeper = Keeper(tokio::spawn(keep(client.clone(), notes.clone())));
        Ok(Self { client, notes, inbox_prefix, replies: Arc::default(), _keeper: Arc::new(keeper) })
    }

    async fn send(&self, message: Message) -> Result<(), Error> {
        let subject = message.subject.clone();
        self.check_up_and_size(&message)?;
        let headers = headers_out(&message.headers);
        let Message { subject: to, body, reply, .. } = message;
        let publish = async {
            match (headers, reply) {
                (None, None) => self.client.publish(to, body).await,
                (None, Some(reply)) => self.client.publish_with_reply(to, reply, body).await,
                (Some(headers), None) => self.client.publish_with_headers(to, headers, body).await,
                (Some(headers), Some(reply)) => {
                    self.client.publish_with_reply_and_headers(to, reply, headers, body).await
                }
            }
        };
        match tokio::time::timeout(CALL_TIMEOUT, publish).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(match error.kind() {
                async_nats::PublishErrorKind::Send => Error::Closed,
                _ => Error::Subject { subject },
            }),
            Err(_) => Err(Error::Timeout { subject }),
        }
    }

    async fn listen(&self, pattern: &str, queue: Option<&str>) -> Result<async_nats::Subscriber, Error> {
        let subscribe = async {
            match queue {
                None => self.client.subscribe(pattern.to_owned()).await,
                Some(queue) => self.client.queue_subscribe(pattern.to_owned(), queue.to_owned()).await,
            }
        };
        match tokio::time::timeout(CALL_TIMEOUT, subscribe).await {
            Ok(Ok(subscriber)) => Ok(subscriber),
            Ok(Err(error)) => Err(match error.kind() {
                async_nats::SubscribeErrorKind::Other => Error::Closed,
                _ => Error::Pattern { pattern: pattern.to_owned() },
            }),
            Err(_) => Err(Error::Timeout { subject: pattern.to_owned() }),
        }
    }

    /// Messages as the client hands them over, those of the server itself among them.
    pub(super) async fn raw(&self, subject: &str) -> Result<async_nats::Subscriber, Error> {
        self.listen(subject, None).await
    }

    /// To read what JetStream writes beside a message.
    pub(super) fn jetstream(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(self.client.clone())
    }

    async fn ask(&self, message: Message, timeout: Duration) -> Result<Message, Error> {
        let subject = message.subject.clone();
        let reply = self.request_raw(message, timeout).await?;
        match reply.status {
            Some(StatusCode::NO_RESPONDERS) => Err(Error::NoResponders { subject }),
            _ => Ok(message_in(reply)),
        }
    }

    /// The answer as the client hands it over: also one of the server itself, which says in its status that there is none.
    pub(super) async fn request_raw(
        &self,
        mut message: Message,
        timeout: Duration,
    ) -> Result<async_nats::Message, Error> {
        let subject = message.subject.clone();
        let deadline = Instant::now() + timeout;
        self.check_up_and_size(&message)?;
        let open = self.replies.get_or_try_init(|| Replies::open(&self.client, &self.inbox_prefix));
        let replies = tokio::time::timeout_at(deadline, open)
            .await
            .map_err(|_| Error::Timeout { subject: subject.clone() })??;
        let mut expected = replies.expect();
        message.reply = Some(expected.inbox.clone());
        let watched = [subject.clone(), replies.pattern()];
        // Denied before, and perhaps granted since.
        Transport::forgive(self, &subject);
        self.send(message).await?;
        let reply = tokio::select! {
            biased;
            reply = tokio::time::timeout_at(deadline, expected.reply()) => reply,
            subject = proof::denial(Some(self.notes.denied.subscribe()), &watched) => return Err(Error::Denied { subject }),
        };
        match reply {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(Error::Closed),
            Err(_) => Err(Error::Timeout { subject }),
        }
    }

    /// The client's own state is asked, not the link: it is the first to know.
    fn check_up_and_size(&self, message: &Message) -> Result<(), Error> {
        if self.client.connection_state() != State::Connected {
            return Err(Error::Disconnected { reason: self.notes.reason().clone() });
        }
        let (size_bytes, bytes_max) = (message.size_bytes(), self.client.max_payload());
        if size_bytes > bytes_max {
            return Err(Error::TooLarge { subject: message.subject.clone(), size_bytes, bytes_max });
        }
        Ok(())
    }
}

impl Transport for Connection {
    fn publish(&self, message: Message) -> Answer<'_, ()> {
        Box::pin(self.send(message))
    }

    fn subscribe<'a>(&'a self, pattern: &'a str, queue: Option<&'a str>) -> Answer<'a, Source> {
        Box::pin(async move {
            let messages: Source = Box::pin(self.listen(pattern, queue).await?.map(message_in));
            Ok(messages)
        })
    }

    fn request(&self, message: Message, timeout: Duration) -> Answer<'_, Message> {
        Box::pin(self.ask(message, timeout))
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.notes.link.subscribe()
    }

    fn payload_bytes_max(&self) -> usize {
        self.client.max_payload()
    }

    fn inbox(&self) -> String {
        format!("{}.{}", self.inbox_prefix, proof::nonce())
    }

    fn unnoticed_max(&self) -> Duration {
        self.notes.unnoticed_max
    }

    fn denied(&self) -> Option<watch::Receiver<BTreeSet<String>>> {
        Some(self.notes.denied.subscribe())
    }

    fn forgive(&self, subject: &str) {
        self.notes.denied.send_if_modified(|denied| denied.remove(subject));
    }

    fn storage(&self) -> Option<&dyn Storage> {
        Some(self)
    }
}

pub(super) fn message_in(message: async_nats::Message) -> Message {
    let mut headers: Vec<(String, String)> = message
        .headers
        .iter()
        .flat_map(HeaderMap::iter)
        .filter_map(|(name, values)| Some((name.to_string(), values.first()?.as_str().to_owned())))
        .collect();
    headers.sort_unstable();
    Message {
        subject: message.subject.into_string(),
        headers: Headers::from_iter(headers),
        body: message.payload,
        reply: message.reply.map(async_nats::Subject::into_string),
    }
}

/// `None` when there are none, so that the plain form of the wire is used.
fn headers_out(headers: &Headers) -> Option<HeaderMap> {
    if headers.is_empty() {
        return None;
    }
    let mut map = HeaderMap::new();
    for (name, value) in headers.iter() {
        // Checked by `Headers::check`, whose rules are stricter than these.
        if let (Ok(name), Ok(value)) = (HeaderName::from_str(name), HeaderValue::from_str(value)) {
            map.insert(name, value);
        }
    }
    Some(map)
}

fn client_options(options: ConnectOptions, notes: &Arc<Notes>) -> async_nats::ConnectOptions {
    let auth = Arc::new(options.auth);
    let (events, pool, delays) = (notes.clone(), notes.clone(), notes.clone());
    let mut client = async_nats::ConnectOptions::with_auth_callback(move |nonce| {
        let auth = auth.clone();
        async move { auth.answer(&nonce).map_err(async_nats::AuthError::new) }
    })
    .name(options.name)
    .custom_inbox_prefix(options.inbox_prefix)
    .ping_interval(options.ping_interval)
    .connection_timeout(options.connect_timeout)
    .subscription_capacity(options.queue_messages_max)
    .require_tls(options.tls.required)
    .retry_on_initial_connect()
    .reconnect_delay_callback(move |tries| retry_delay(tries, delays.link.borrow().epoch))
    // Chooses nothing: it is called before each round of tries with the last error of every server, which events lack.
    .reconnect_to_server_callback(move |servers, _| {
        pool.note_errors(&servers);
        async { None }
    })
    .event_callback(move |event| {
        events.note_event(event);
        async {}
    });
    if let Some(ca) = options.tls.ca {
        client = client.add_root_certificates(ca);
    }
    if let (Some(cert), Some(key)) = (options.tls.cert, options.tls.key) {
        client = client.add_client_certificate(cert, key);
    }
    if options.tls.first {
        client = client.tls_first();
    }
    client
}

/// Exponential, and random in its upper half: thousands of clients come back from one broken server. The very first try
/// of a process waits for nothing.
fn retry_delay(tries: usize, epoch: u64) -> Duration {
    if tries <= 1 && epoch == 0 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(tries.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let longest = RETRY_FIRST.saturating_mul(1 << doublings).min(RETRY_MAX);
    longest.mul_f64(rand::rng().random_range(0.5..=1.0))
}

impl Notes {
    fn reason(&self) -> MutexGuard<'_, String> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_errors(&self, servers: &[async_nats::Server]) {
        let errors: Vec<_> = servers
            .iter()
            .filter_map(|server| Some(format!("{}: {}", server.addr.as_url_str(), server.last_error.as_ref()?)))
            .take(REASON_SERVERS_MAX)
            .collect();
        if !errors.is_empty() {
            *self.reason() = errors.join("; ");
            self.wake.notify_one();
        }
    }

    fn note_event(&self, event: Event) {
        match event {
            // Denials of this connection come after this event, so that none is forgotten here.
            Event::Connected => {
                self.denied.send_replace(BTreeSet::new());
                self.reason().clear();
            }
            Event::Disconnected => {
                let mut reason = self.reason();
                if reason.is_empty() {
                    "the connection was lost".clone_into(&mut reason);
                }
            }
            Event::SlowConsumer(_) => {
                self.losses.fetch_add(1, Ordering::Relaxed);
            }
            Event::ServerError(async_nats::ServerError::Other(text)) => match denied_subject(&text) {
                Some(subject) => drop(self.denied.send_if_modified(|denied| {
                    // Thousands of messages that may not be said shall not hide that nothing is heard.
                    let denied_max = if is_of_subscription(&text) { 2 * DENIED_MAX } else { DENIED_MAX };
                    denied.len() < denied_max && denied.insert(subject.to_owned())
                })),
                None => *self.reason() = text,
            },
            Event::ServerError(error) => *self.reason() = error.to_string(),
            // No more than a kind; said only where the pool did not say it better.
            Event::ClientError(error) => {
                let (mut reason, kind) = (self.reason(), error.to_string());
                if !reason.contains(kind.trim_start_matches("nats: ")) {
                    *reason = kind;
                }
            }
            _ => {}
        }
        self.wake.notify_one();
    }
}

/// The subject in `Permissions Violation for Publish to "a.b"` or `... for Subscription to "a.*" using queue "q"`.
fn denied_subject(text: &str) -> Option<&str> {
    text.to_ascii_lowercase().contains("permissions violation").then(|| text.split('"').nth(1))?
}

fn is_of_subscription(denial: &str) -> bool {
    denial.to_ascii_lowercase().contains("for subscription")
}

/// Ends the keeper with the connection.
struct Keeper(JoinHandle<()>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps the link true.
async fn keep(client: Client, notes: Arc<Notes>) {
    let connects = || client.statistics().connects.load(Ordering::Relaxed);
    let (mut seen_connects, mut seen_losses) = (0, 0);
    let mut raised: Option<Instant> = None;
    loop {
        let connected = client.connection_state() == State::Connected;
        let (now_connects, now_losses) = (connects(), notes.losses.load(Ordering::Relaxed));
        let reconnected = connected && now_connects != seen_connects;
        let rested = raised.is_none_or(|at| at.elapsed() >= LOOK_INTERVAL);
        let lost = connected && now_losses != seen_losses && rested;
        if reconnected {
            seen_connects = now_connects;
        }
        if lost {
            raised = Some(Instant::now());
        }
        if reconnected || lost {
            seen_losses = now_losses;
        }
        let state =
            if connected { LinkState::Connected } else { LinkState::Disconnected { reason: notes.reason().clone() } };
        notes.link.send_if_modified(|link| {
            let changed = reconnected || lost || link.state != state;
            link.epoch += u64::from(reconnected || lost);
            link.state = state;
            changed
        });
        let settling = !connected && now_connects != seen_connects;
        let wait = if settling { SETTLE_INTERVAL } else { LOOK_INTERVAL };
        // Elapsing is the other way to be woken.
        let _ = tokio::time::timeout(wait, notes.wake.notified()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_words_for_a_denial_name_the_subject() {
        assert_eq!(denied_subject(r#"Permissions Violation for Publish to "a.b""#), Some("a.b"));
        assert_eq!(denied_subject(r#"Permissions Violation for Subscription to "a.*" using queue "q""#), Some("a.*"));
        assert_eq!(denied_subject("Maximum Connections Exceeded"), None);
        assert!(is_of_subscription(r#"Permissions Violation for Subscription to "a.*""#));
        assert!(!is_of_subscription(r#"Permissions Violation for Publish to "a.b""#));
    }

    #[test]
    fn tries_spread_and_stay_below_the_cap() {
        assert_eq!(retry_delay(1, 0), Duration::ZERO);
        for tries in 1..200 {
            let delay = retry_delay(tries, 1);
            assert!(delay <= RETRY_MAX && delay >= RETRY_FIRST / 2, "{delay:?}");
        }
        assert!((0..50).map(|_| retry_delay(9, 1)).collect::<BTreeSet<_>>().len() > 1);
    }
}

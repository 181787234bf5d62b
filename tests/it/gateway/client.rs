//! An HTTP client over raw sockets: what is sent is exactly what a test says, also where that is no good HTTP.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// For one answer of a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// One answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub code: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {} {}", self.code, self.text()))
    }

    /// The body, of an answer with this code.
    #[track_caller]
    pub fn expect(&self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.text());
        self.json()
    }

    /// The `reason` of a problem with this code.
    #[track_caller]
    pub fn problem(&self, code: u16) -> String {
        assert_eq!(self.code, code, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", self.text());
        let body = self.json();
        assert_eq!(body["status"], code, "{body}");
        body["reason"].as_str().unwrap_or_else(|| panic!("no reason: {body}")).to_owned()
    }
}

/// A request about to be sent.
#[derive(Debug, Clone)]
pub struct Call {
    address: SocketAddr,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Call {
    pub fn new(address: SocketAddr, method: &str, target: &str) -> Self {
        let host = ("Host".to_owned(), address.to_string());
        Self { address, method: method.to_owned(), target: target.to_owned(), headers: vec![host], body: Vec::new() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, kind: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.header("Content-Type", kind)
    }

    pub fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string())
    }

    /// The bytes on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            write!(text, "{name}: {value}\r\n").expect("a string takes every text");
        }
        if !self.body.is_empty() || self.method == "POST" {
            write!(text, "Content-Length: {}\r\n", self.body.len()).expect("a string takes every text");
        }
        text.push_str("Connection: close\r\n\r\n");
        [text.into_bytes(), self.body.clone()].concat()
    }

    /// Sends it and reads the answer to its end.
    pub async fn send(self) -> Answer {
        let head = format!("{} {}", self.method, self.target);
        self.try_send().await.unwrap_or_else(|| panic!("{head} was not answered"))
    }

    /// The same; nothing where the connection was closed instead.
    pub async fn try_send(&self) -> Option<Answer> {
        raw(self.address, &self.bytes()).await
    }

    /// Sends it and leaves the answer to come.
    pub async fn open(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.expect("the gateway listens");
        stream.write_all(&self.bytes()).await.expect("the gateway reads");
        stream
    }

    /// Server-sent events from now on.
    pub async fn events(self) -> Events {
        let mut events = Events { stream: self.open().await, raw: Vec::new(), text: String::new() };
        let head = timeout(PATIENCE, events.head()).await.expect("the stream begins");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.to_ascii_lowercase().contains("content-type: text/event-stream"), "{head}");
        events
    }
}

/// What came of sending some bytes.
#[derive(Debug)]
pub enum Outcome {
    Answer(Answer),
    /// The other side closed the connection and said nothing.
    Closed,
    /// Nobody listens.
    Unreachable(std::io::Error),
    /// The connection was still open after a long time, or closed in the middle of an answer; with what was said.
    Broken(String),
}

/// Sends these bytes and reads what comes until the other side closes; nothing where that is no answer.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> Option<Answer> {
    match exchange(address, bytes).await {
        Outcome::Answer(answer) => Some(answer),
        _ => None,
    }
}

/// The same, with why there is no answer.
pub async fn exchange(address: SocketAddr, bytes: &[u8]) -> Outcome {
    let mut stream = match TcpStream::connect(address).await {
        Ok(stream) => stream,
        Err(error) => return Outcome::Unreachable(error),
    };
    // Refused early, the rest cannot be written; the answer may be there all the same.
    let _ = timeout(PATIENCE, stream.write_all(bytes)).await;
    let mut all = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut all)).await;
    match (parse(&all), ended) {
        (Some(answer), Ok(_)) => Outcome::Answer(answer),
        (None, Ok(_)) if all.is_empty() => Outcome::Closed,
        _ => Outcome::Broken(String::from_utf8_lossy(&all).into_owned()),
    }
}

fn parse(all: &[u8]) -> Option<Answer> {
    let end = all.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let code = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    if code == 100 {
        return parse(&all[end + 4..]);
    }
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut body = all[end + 4..].to_vec();
    let is_chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    if is_chunked {
        let mut whole = Vec::new();
        while let Some(chunk) = chunk(&mut body) {
            whole.extend(chunk);
        }
        body = whole;
    }
    Some(Answer { code, headers, body })
}

/// Takes the first whole chunk away.
fn chunk(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = bytes.windows(2).position(|window| window == b"\r\n")?;
    let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).ok()?.trim(), 16).ok()?;
    if size == 0 || bytes.len() < end + 2 + size + 2 {
        return None;
    }
    let chunk = bytes[end + 2..end + 2 + size].to_vec();
    bytes.drain(..end + 2 + size + 2);
    Some(chunk)
}

/// One server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub id: Option<String>,
    pub kind: String,
    pub data: Value,
}

/// A stream of them. Dropping it closes the connection.
pub struct Events {
    stream: TcpStream,
    raw: Vec<u8>,
    text: String,
}

impl Events {
    async fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.raw.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.raw[..end]).into_owned();
                self.raw.drain(..end + 4);
                return head;
            }
            assert!(self.more().await, "closed before the head: {}", String::from_utf8_lossy(&self.raw));
        }
    }

    async fn more(&mut self) -> bool {
        let mut buffer = vec![0; 16 << 10];
        let read = self.stream.read(&mut buffer).await.unwrap_or(0);
        self.raw.extend_from_slice(&buffer[..read]);
        read > 0
    }

    /// The next event with data; nothing at the end of the stream.
    pub async fn next(&mut self) -> Option<Event> {
        timeout(PATIENCE, self.read()).await.expect("an event comes in time")
    }

    async fn read(&mut self) -> Option<Event> {
        loop {
            while let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                if let Some(event) = event(&block) {
                    return Some(event);
                }
            }
            match chunk(&mut self.raw) {
                Some(chunk) => self.text.push_str(&String::from_utf8_lossy(&chunk)),
                None if self.more().await => {}
                None => return None,
            }
        }
    }
}

fn event(block: &str) -> Option<Event> {
    let field = |name: &str| {
        let mut lines =
            block.lines().rev().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim_start));
        lines.next().map(str::to_owned)
    };
    let data = serde_json::from_str(&field("data")?).expect("data is JSON");
    Some(Event { id: field("id"), kind: field("event").unwrap_or_default(), data })
}

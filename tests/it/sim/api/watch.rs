//! Watches: the history from a version on, as lines of JSON, as late as the schedule wants.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};

use super::{
    ApiServer,
    http::Filter,
    store::{Failure, Kind},
};
use crate::sim::world::Door;

/// The body of an answer: whole, or a watch.
pub enum Answer {
    Whole(Option<Bytes>),
    Watch(mpsc::UnboundedReceiver<Bytes>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Watch(lines) => lines.poll_recv(cx).map(|line| line.map(|line| Ok(Frame::data(line)))),
        }
    }
}

/// What a watch was asked for.
pub struct Wish {
    pub kind: Kind,
    pub namespace: Option<String>,
    pub filter: Filter,
    pub from: u64,
    pub bookmarks: bool,
    pub timeout: Duration,
}

/// Starts the watch; it ends by its timeout, with an expired history, or when nobody reads it any more.
pub fn start(server: ApiServer, door: Door, wish: Wish) -> Answer {
    let (lines, lines_out) = mpsc::unbounded_channel();
    tokio::spawn(tell(server, door, wish, lines));
    Answer::Watch(lines_out)
}

async fn tell(server: ApiServer, door: Door, wish: Wish, lines: mpsc::UnboundedSender<Bytes>) {
    let until = Instant::now() + wish.timeout;
    let mut seen = wish.from;
    loop {
        let changed = server.0.changed.notified();
        let news = server.store().changes_after(seen).map(<[_]>::to_vec);
        match news {
            Err(failure) => return drop(lines.send(line("ERROR", &failure.status().to_string()))),
            Ok(news) => {
                for change in news {
                    seen = change.version;
                    let is_wanted = change.key.kind == wish.kind
                        && wish.namespace.as_ref().is_none_or(|namespace| *namespace == change.key.namespace);
                    if !is_wanted {
                        continue;
                    }
                    let lag = server.0.shared.fates.watch_lag(&door);
                    if !lag.is_zero() {
                        sleep(lag).await;
                        if server.store().changes_after(seen).is_err() {
                            return drop(lines.send(line("ERROR", &Failure::expired().status().to_string())));
                        }
                    }
                    if lines.send(line(filtered_word(&wish.filter, &change), &change.object.text)).is_err() {
                        return;
                    }
                }
            }
        }
        tokio::select! {
            biased;
            () = lines.closed() => return,
            changed = timeout_at(until, changed) => if changed.is_err() {
                break;
            },
        }
    }
    if wish.bookmarks {
        let (api_version, kind, _) = wish.kind.names();
        let object =
            json!({"apiVersion": api_version, "kind": kind, "metadata": {"resourceVersion": seen.to_string()}});
        let _ = lines.send(line("BOOKMARK", &object.to_string()));
    }
}

/// An object that no longer matches a selector is told as deleted, one that does only now as added.
fn filtered_word(filter: &Filter, change: &super::Change) -> &'static str {
    let was = change.before.as_ref().is_some_and(|before| filter.takes(before));
    match (was, change.word != "DELETED" && filter.takes(&change.object)) {
        (_, false) => "DELETED",
        (false, true) => "ADDED",
        (true, true) => "MODIFIED",
    }
}

fn line(word: &str, object: &str) -> Bytes {
    Bytes::from(format!("{{\"type\":\"{word}\",\"object\":{object}}}\n"))
}

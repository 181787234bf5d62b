//! Serves a router over HTTP/1.1 with limits on everything that a peer can hold on to.
//!
//! `axum::serve` installs no timer, so a silent connection, or half a header, stays open for ever. This goes through
//! hyper, with a timer, and with an end for every connection. It knows nothing of what is served; a handler that needs
//! its connection for longer asks the [`Lease`] in the request's extensions.

mod patience;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::Router;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::patience::Patience;

/// Pause after an accept that failed: out of file descriptors, mostly, and no cure but waiting.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Of a request's line and headers together; hyper's own bound is six times that.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// What a peer may hold on to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the connection, or the last answer, to the end of the next header.
    pub header: Duration,
    /// After this no further request is read from a connection; see [`Lease`].
    pub lifetime: Duration,
    /// For the answer that is under way then.
    pub last_answer: Duration,
    /// An answer of which the peer takes nothing for so long ends the connection.
    pub stalled: Duration,
    /// Open at a time; the next ones wait to be accepted.
    pub connections_max: usize,
    /// For what is open when the server stops.
    pub drain: Duration,
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}: choose a free one")]
    Bind { address: SocketAddr, source: io::Error },
}

/// Who is at the other end of the connection; in the extensions of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// Until when the connection may stay open; in the extensions of every request.
#[derive(Debug, Clone)]
pub struct Lease(Arc<Mutex<Instant>>);

impl Lease {
    fn until(end: Instant) -> Self {
        Self(Arc::new(Mutex::new(end)))
    }

    /// For this long from now, if that is longer than it was.
    pub fn extend(&self, length: Duration) {
        let mut end = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *end = (*end).max(Instant::now() + length);
    }

    fn end(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens; with port 0 on a free one, which [`TcpListener::local_addr`] tells.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Bind { address, source })
}

/// Serves until `stop`, then lets open requests end for at most [`Limits::drain`].
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            next = next => next,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let talk = converse(stream, Peer(peer), router.clone(), limits, stop.clone());
        let cut = cut.clone();
        connections.spawn(async move {
            cut.run_until_cancelled(talk).await;
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    if timeout(limits.drain, connections.wait()).await.is_err() {
        tracing::warn!("open requests were cut off at the end");
    }
    cut.cancel();
}

/// One connection, from its first byte to its end.
async fn converse(stream: TcpStream, peer: Peer, router: Router, limits: Limits, stop: CancellationToken) {
    let lease = Lease::until(Instant::now() + limits.lifetime);
    let service = Conversation { inner: TowerToHyperService::new(router), peer, lease: lease.clone() };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(Patience::new(stream, limits.stalled)), service);
    let mut connection = std::pin::pin!(connection);
    // Until the lease is over or the server stops it goes on; then it ends with the answer that is under way.
    let mut last: Option<Instant> = None;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended badly");
                }
                return;
            }
            () = stop.cancelled(), if last.is_none() => {
                connection.as_mut().graceful_shutdown();
                last = Some(Instant::now() + limits.drain);
            }
            () = sleep_until(last.unwrap_or_else(|| lease.end())) => {
                if last.is_some() {
                    tracing::debug!("a connection was open for too long");
                    return;
                }
                // It may have been extended since this began to wait.
                if lease.end() <= Instant::now() {
                    connection.as_mut().graceful_shutdown();
                    last = Some(Instant::now() + limits.last_answer);
                }
            }
        }
    }
}

/// The router, told about the connection with each request.
struct Conversation {
    inner: TowerToHyperService<Router>,
    peer: Peer,
    lease: Lease,
}

impl Service<Request<Incoming>> for Conversation {
    type Response = Response<axum::body::Body>;
    type Error = Infallible;
    type Future = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        request.extensions_mut().insert(self.lease.clone());
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LIMITS: Limits = Limits {
        header: Duration::from_secs(20),
        lifetime: Duration::from_mins(1),
        last_answer: Duration::from_secs(1),
        stalled: Duration::from_secs(1),
        connections_max: 2,
        drain: Duration::from_secs(1),
    };

    async fn answer(stream: &mut TcpStream) -> String {
        let mut buffer = [0; 1024];
        let count = stream.read(&mut buffer).await.unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    #[tokio::test]
    async fn connections_past_the_bound_wait_until_another_ends() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, Router::new(), LIMITS, stop.clone()));
        let mut streams = Vec::new();
        for _ in 0..3 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
            streams.push(stream);
        }
        let mut last = streams.pop().unwrap();
        for stream in &mut streams {
            assert!(answer(stream).await.starts_with("HTTP/1.1 404"));
        }
        let early = timeout(Duration::from_millis(200), answer(&mut last)).await;
        assert!(early.is_err(), "two are open: {early:?}");
        drop(streams.pop());
        assert!(answer(&mut last).await.starts_with("HTTP/1.1 404"));
        stop.cancel();
        server.await.unwrap();
    }
}

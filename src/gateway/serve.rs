//! Serves a router over HTTP/1.1 with limits on everything that a peer can hold on to.
//!
//! `axum::serve` installs no timer, so a silent connection, or half a header, stays open for ever. This goes through
//! hyper, with a timer. It knows nothing of what is served.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Pause after an accept that failed: out of file descriptors, mostly, and no cure but waiting.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a peer may hold on to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the connection, or the last answer, to the end of the next header.
    pub header: Duration,
    /// Of one connection, answers included.
    pub lifetime: Duration,
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

/// Listens; with port 0 on a free one, which [`TcpListener::local_addr`] tells.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Bind { address, source })
}

/// Serves until `stop`, then lets open requests end for at most [`Limits::drain`].
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, stop: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(limits.connections_max));
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
        let stream: TcpStream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            match timeout(limits.lifetime, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a connection ended badly"),
                Err(_) => tracing::debug!("a connection was open for too long"),
            }
            drop(slot);
        });
    }
    drop(listener);
    if timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("open requests were cut off at the end");
    }
}

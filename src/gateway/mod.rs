//! HTTP: what other programs may ask of this process, and the endpoints of the protocol (design, section 9).
//!
//! It reads from the cache of resources and writes through the API server, so it answers alike wherever it runs: in the
//! operator or alone. It decides nothing about sessions: a plan becomes a resource, a command becomes a change of its
//! spec, and the operator that watches does the rest. It must never speak to a session task, and never claim more than
//! the API server has confirmed.
//!
//! | file | is |
//! |---|---|
//! | [`serve`] | connections, with a limit on everything that a peer can hold on to |
//! | [`health`] | the probes, on an address of their own |
//! | `routes` | which path is answered by what |
//! | `guard` | what every request goes through first: whose it is, how many there are, what it counts as |
//! | `body`, `media`, `query`, `path`, `throttle` | reading a request, in bounds |
//! | [`fault`] | every answer that is not what was asked for |
//! | `sessions` | finding a session in the cache, one's own writes |
//! | `plans`, `parsers` | the plans of sessions, and the places where manifests are read |
//! | `submit` | POST /plan and POST /apply |
//! | `steer` | POST /control and requests about single phases |
//! | `show` | GET /plan, /status, /diff, /phases and /sessions |
//! | `stream` | the status as it changes |
//! | [`logs`] | the lines of `.log` |
//! | `metrics` | figures for Prometheus |
//! | [`openapi`] | the same for machines |

mod body;
pub mod fault;
mod guard;
pub mod health;
pub mod logs;
mod media;
mod metrics;
pub mod openapi;
mod parsers;
mod path;
mod plans;
mod query;
mod routes;
pub mod serve;
mod sessions;
mod show;
mod steer;
mod stream;
mod submit;
mod throttle;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use kube::Client;
use tokio::{net::TcpListener, sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

pub use throttle::Rates;

use self::{
    body::Bodies, fault::Fault, logs::Logs, metrics::Meters, plans::Plans, sessions::Sessions, stream::States,
    throttle::Throttle,
};
use crate::{
    bus::Bus,
    controller::{Scope, Selector, View, heart::Heart},
    protocol::SessionId,
};

/// An answer is made within this, or is 503: whoever asks is told within 5 s that the API server is away.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(4_700);

/// Everything that the gateway needs.
#[derive(Clone)]
pub struct Options {
    /// Without retries of its own.
    pub client: Client,
    /// Filled by the operator of this process, or by a watch of the gateway's own.
    pub view: View,
    pub heart: Heart,
    /// Whose resources it serves.
    pub scope: Scope,
    /// Only resources with these labels, which new ones get as far as they are named there.
    pub selector: Option<Selector>,
    /// The one session that the flat paths mean, for a gateway beside one.
    pub bound: Option<Bound>,
    /// Where the lines of sessions are kept; nowhere without NATS.
    pub logs: Option<Logs>,
    /// For figures about the connection.
    pub bus: Option<Bus>,
    pub role: Role,
    pub bounds: Bounds,
}

/// A session, and where its resource is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    pub session: SessionId,
    pub namespace: String,
}

/// What else runs in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The operator, whose sessions are counted here.
    Operator,
    Alone,
}

/// What clients may use up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Of a manifest.
    pub body_bytes_max: usize,
    pub rates: Rates,
    pub connections_max: usize,
    /// Followers of statuses and logs at a time.
    pub streams_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { body_bytes_max: 1 << 20, rates: Rates { peer: 200, all: 1000 }, connections_max: 1024, streams_max: 256 }
    }
}

/// There is no authentication yet, so nobody else may reach it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the gateway cannot listen on {0}: without authentication it listens on loopback only; use 127.0.0.1, and a sidecar or `kubectl port-forward` to reach it"
)]
pub struct NotLoopback(SocketAddr);

/// Refuses an address that other machines can reach.
pub fn check_address(address: SocketAddr) -> Result<SocketAddr, NotLoopback> {
    if address.ip().is_loopback() { Ok(address) } else { Err(NotLoopback(address)) }
}

/// Answers until `stop`.
pub async fn run(listener: TcpListener, options: Options, stop: CancellationToken) {
    let limits = serve::Limits {
        header: Duration::from_secs(5),
        lifetime: Duration::from_mins(10),
        last_answer: Duration::from_secs(30),
        stalled: Duration::from_secs(30),
        connections_max: options.bounds.connections_max,
        drain: Duration::from_secs(2),
    };
    let gateway = Gateway::new(options, stop.clone());
    serve::serve(listener, routes::router(gateway), limits, stop).await;
}

/// What every handler has at hand. Cloning is a reference count.
#[derive(Clone)]
pub(crate) struct Gateway(Arc<Inner>);

pub(crate) struct Inner {
    sessions: Sessions,
    plans: Plans,
    states: States,
    bodies: Bodies,
    client: Client,
    heart: Heart,
    logs: Option<Logs>,
    bounds: Bounds,
    meters: Meters,
    throttle: Throttle,
    streams: Arc<Semaphore>,
    stop: CancellationToken,
}

impl std::ops::Deref for Gateway {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Gateway {
    fn new(options: Options, stop: CancellationToken) -> Self {
        let meters = Meters::new(options.view.clone(), options.role, options.bus);
        Self(Arc::new(Inner {
            sessions: Sessions::new(
                options.client.clone(),
                options.view,
                options.scope,
                options.selector.as_ref(),
                options.bound,
            ),
            plans: Plans::new(options.client.clone()),
            states: States::default(),
            bodies: Bodies::new(options.bounds.body_bytes_max),
            client: options.client,
            heart: options.heart,
            logs: options.logs,
            bounds: options.bounds,
            meters,
            throttle: Throttle::new(options.bounds.rates, Instant::now()),
            streams: Arc::new(Semaphore::new(options.bounds.streams_max)),
            stop,
        }))
    }

    /// What it comes to within [`ANSWER_TIMEOUT`], or 503. A write that was cut off so may have happened.
    async fn in_time<T>(&self, answer: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        tokio::time::timeout(ANSWER_TIMEOUT, answer).await.unwrap_or_else(|_| {
            let detail = "the API server did not answer in time: ask again; a write may have happened, and one with an \
                          Idempotency-Key happens once";
            Err(Fault::unavailable("ApiTimeout", detail))
        })
    }
}

//! A slow way to the API server: every write of a status takes a second longer.
//!
//! It exists because a real API server on loopback stores a status within milliseconds, so that a crash would forget
//! next to nothing; in front of one that is slow, a session runs far ahead of what is stored of it. The real server is
//! behind it and decides everything: this only waits. Half of the time passes before the server hears of the write, half
//! after it has answered, so that a writer may be killed both with a write that will still come and with one whose answer
//! it never reads. A write that was sent is made although its sender is dead.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{Cluster, cluster, scratch};

/// Of a request; the API server itself takes 3 MiB.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Plain HTTP on loopback, with an administrator's rights. Dropping it ends it.
pub struct SlowApi {
    /// Leads here and needs no credentials.
    pub kubeconfig: PathBuf,
    stored: Stored,
    task: JoinHandle<()>,
}

/// When the API server said that it had stored a status.
type Stored = Arc<Mutex<Vec<Instant>>>;

#[derive(Clone)]
struct Way {
    client: kube::Client,
    delay: Duration,
    stored: Stored,
}

impl SlowApi {
    /// In front of this cluster; a status write takes `delay` longer.
    pub async fn to(cluster: &Cluster, delay: Duration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let stored = Stored::default();
        let way = Way { client: cluster.client.clone(), delay, stored: Arc::clone(&stored) };
        let routes = Router::new().fallback(pass).with_state(way);
        let task = tokio::spawn(async move {
            axum::serve(listener, routes).await.expect("serving ends with its task");
        });
        let kubeconfig = scratch("slow-api").join("kubeconfig");
        let server = json!({"server": format!("http://{address}")});
        cluster::write_kubeconfig(&kubeconfig, &server, "default", &json!({}));
        Self { kubeconfig, stored, task }
    }

    /// The longest time between two status writes that the API server took.
    pub fn longest_gap(&self) -> Duration {
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}

impl Drop for SlowApi {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(State(way): State<Way>, request: Request) -> Response {
    let (mut head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else { return broken() };
    drop_hops(&mut head.headers);
    let is_status = head.method == Method::PATCH && head.uri.path().ends_with("/status");
    let pause = if is_status { way.delay / 2 } else { Duration::ZERO };
    // In a task of its own: whoever asked may be killed, and the write is on its way.
    let answer = tokio::spawn(async move {
        tokio::time::sleep(pause).await;
        let answer = way.client.send(axum::http::Request::from_parts(head, body.to_vec().into())).await;
        if is_status && answer.as_ref().is_ok_and(|answer| answer.status().is_success()) {
            way.stored.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
        }
        tokio::time::sleep(pause).await;
        answer
    });
    let Ok(Ok(answer)) = answer.await else { return broken() };
    let (mut head, body) = answer.into_parts();
    drop_hops(&mut head.headers);
    Response::from_parts(head, Body::new(body))
}

/// What one connection says about itself is not true of the next.
fn drop_hops(headers: &mut HeaderMap) {
    for name in [CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING] {
        headers.remove(name);
    }
}

/// An answer that ends in the middle, as that of a server that died.
fn broken() -> Response {
    let reset = Err::<Vec<u8>, _>(io::Error::from(io::ErrorKind::ConnectionReset));
    (StatusCode::BAD_GATEWAY, Body::from_stream(stream::iter([reset]))).into_response()
}

//! `/livez` and `/readyz`: what [`Heart`] believes, as probes ask for it.

use std::{fmt::Write as _, time::Duration};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::{net::TcpListener, time::Instant};
use tokio_util::sync::CancellationToken;

use super::serve::{Limits, serve};
use crate::controller::heart::Heart;

/// Probes are small, come from one place and are over at once.
const LIMITS: Limits = Limits {
    header: Duration::from_secs(5),
    lifetime: Duration::from_secs(30),
    last_answer: Duration::from_secs(5),
    stalled: Duration::from_secs(5),
    connections_max: 128,
    drain: Duration::from_secs(2),
};

/// Answers `/livez` (and `/healthz`, its older name) and `/readyz` until `stop`: 200 `ok`, or 503 with what is amiss, one
/// a line.
pub async fn answer(listener: TcpListener, heart: Heart, stop: CancellationToken) {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/healthz", get(livez))
        .route("/readyz", get(readyz))
        .with_state(heart);
    serve(listener, router, LIMITS, stop).await;
}

async fn livez(State(heart): State<Heart>) -> (StatusCode, String) {
    verdict(
        heart
            .hanging(Instant::now())
            .into_iter()
            .map(|(name, silence)| format!("{name} has not ticked for {} s", silence.as_secs())),
    )
}

async fn readyz(State(heart): State<Heart>) -> (StatusCode, String) {
    verdict(heart.awaited().into_iter().map(|name| format!("waiting for {name}")))
}

fn verdict(amiss: impl Iterator<Item = String>) -> (StatusCode, String) {
    let mut text = String::new();
    for line in amiss {
        writeln!(text, "{line}").expect("a string takes every text");
    }
    if text.is_empty() { (StatusCode::OK, "ok\n".to_owned()) } else { (StatusCode::SERVICE_UNAVAILABLE, text) }
}

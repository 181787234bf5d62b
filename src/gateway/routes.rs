//! Which path is answered by what. `openapi` describes the same paths; a test holds the two against each other.

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{Method, StatusCode, Uri},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;
use tokio::time::Instant;

use super::{Gateway, fault::Fault, guard, logs, media, metrics, openapi, query::Query, show, steer, submit};

/// Every path of the gateway.
pub fn router(gateway: Gateway) -> Router {
    Router::new()
        .route("/plan", get(show::get_plan).post(submit::post_plan))
        .route("/apply", post(submit::post_apply))
        .route("/status", get(show::get_status))
        .route("/state", get(show::get_status))
        .route("/diff", get(show::get_diff))
        .route("/phases/{id}", get(show::get_phase))
        .route("/phases/{id}/retry", post(steer::post_retry))
        .route("/phases/{id}/skip", post(steer::post_skip))
        .route("/phases/{id}/use", post(steer::post_use))
        .route("/phases/{id}/complete", post(steer::post_complete))
        .route("/control", post(steer::post_control))
        .route("/sessions", get(show::get_sessions))
        .route("/logs", get(logs::get_logs))
        .route("/health", get(get_health))
        .route("/ready", get(get_ready))
        .route("/metrics", get(metrics::get_metrics))
        .route("/openapi.json", get(get_openapi))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(gateway.clone(), guard::guard))
        .with_state(gateway)
}

async fn not_found(uri: Uri) -> Fault {
    let path: String = uri.path().chars().take(200).collect();
    Fault::not_found("NoSuchPath", format!("there is nothing at {path}: GET /openapi.json lists what there is"))
}

async fn method_not_allowed(method: Method) -> Fault {
    let method: String = method.as_str().chars().take(40).collect();
    let detail = format!("{method} is not answered here; Allow names the methods that are");
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", detail)
}

/// GET /health: whether restarting helps.
async fn get_health(State(gateway): State<Gateway>, request: Request) -> Result<Response, Fault> {
    Query::of(request.uri().query(), &[])?;
    media::preferred(request.headers(), &[media::JSON])?;
    let hanging = gateway.heart.hanging(Instant::now());
    let Some((name, silence)) = hanging.first() else { return Ok(Json(json!({"status": "ok"})).into_response()) };
    Err(Fault::unavailable("Hanging", format!("{name} has not ticked for {} s", silence.as_secs())))
}

/// GET /ready: whether requests are answered from a full cache.
async fn get_ready(State(gateway): State<Gateway>, request: Request) -> Result<Response, Fault> {
    Query::of(request.uri().query(), &[])?;
    media::preferred(request.headers(), &[media::JSON])?;
    let awaited = gateway.heart.awaited();
    let Some(name) = awaited.first() else { return Ok(Json(json!({"status": "ok"})).into_response()) };
    Err(Fault::unavailable("NotReady", format!("waiting for {name}")))
}

/// GET /openapi.json.
async fn get_openapi(request: Request) -> Result<Response, Fault> {
    Query::of(request.uri().query(), &[])?;
    media::preferred(request.headers(), &[media::JSON])?;
    Ok(Json(openapi::document()).into_response())
}

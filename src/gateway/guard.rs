//! What every request goes through first: whose it is, how many there are, and what it counts as.
//!
//! A gateway on loopback is reached by every program of the machine, a browser among them; so a request that a web page
//! sent, or that came by a name that somebody else's DNS resolves to us, is refused before anything reads it.

use std::{net::IpAddr, panic::AssertUnwindSafe};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use tokio::time::Instant;

use super::{Gateway, fault::Fault, serve::Peer};

/// Around every handler.
pub async fn guard(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let _in_flight = gateway.meters.begin();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route.unwrap_or_else(|| "unknown".to_owned());
    let method = request.method().clone();
    let answer = match admit(&gateway, &request) {
        Err(fault) => fault.into_response(),
        Ok(()) => AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(route, "answering a request panicked");
            let detail = "this is a defect of the gateway; its log says more";
            Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "Defect", detail).into_response()
        }),
    };
    let mut answer = allowed(&method, answer);
    answer.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    gateway.meters.answered(&route, &method, answer.status(), began.elapsed());
    answer
}

fn admit(gateway: &Gateway, request: &Request) -> Result<(), Fault> {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
    if peer.is_some_and(|peer| !gateway.throttle.admits(peer, Instant::now())) {
        let detail = "too many requests: ask more slowly";
        return Err(Fault::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", detail).retry_after(1));
    }
    let headers = request.headers();
    if let Some(host) = host(headers, request.uri())
        && !is_ours(&host)
    {
        let detail = "the Host of the request is not this machine: use localhost or 127.0.0.1";
        return Err(Fault::new(StatusCode::MISDIRECTED_REQUEST, "WrongHost", detail));
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let host = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
        if !host.as_ref().and_then(Uri::host).is_some_and(is_ours) {
            let detail = "requests of web pages are not answered";
            return Err(Fault::new(StatusCode::FORBIDDEN, "CrossOrigin", detail));
        }
    }
    Ok(())
}

/// Without its port; empty where it cannot be read.
fn host(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    if let Some(host) = uri.host() {
        return Some(host.to_owned());
    }
    let value = headers.get(header::HOST)?;
    let authority = value.to_str().ok().and_then(|text| text.parse::<axum::http::uri::Authority>().ok());
    Some(authority.map_or_else(String::new, |authority| authority.host().to_owned()))
}

fn is_ours(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    is_loopback || host.eq_ignore_ascii_case("localhost")
}

/// OPTIONS is answered with the methods that the router knows for the path.
fn allowed(method: &Method, answer: Response) -> Response {
    if method != Method::OPTIONS || answer.status() != StatusCode::METHOD_NOT_ALLOWED {
        return answer;
    }
    let allow = answer.headers().get(header::ALLOW).cloned();
    let mut answer = StatusCode::NO_CONTENT.into_response();
    if let Some(allow) = allow {
        answer.headers_mut().insert(header::ALLOW, allow);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_ours() {
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "[::1]"] {
            assert!(is_ours(host), "{host}");
        }
        for host in ["", "example.com", "localhost.example.com", "10.0.0.1", "0.0.0.0", "127.0.0.1.nip.io"] {
            assert!(!is_ours(host), "{host}");
        }
    }
}

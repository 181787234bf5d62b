//! The phase that a path names: any printable text, percent-encoded.

use axum::{
    extract::{FromRequestParts, RawPathParams},
    http::request::Parts,
};

use super::fault::Fault;
use crate::manifest::PhaseId;

/// `{id}` of the path.
pub struct Named(pub PhaseId);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let bad = |detail: String| Fault::bad_request("BadId", detail);
        let parameters = RawPathParams::from_request_parts(parts, state).await;
        let parameters = parameters.map_err(|_| bad("the phase id in the path is not UTF-8".to_owned()))?;
        let text = parameters.iter().find(|(name, _)| *name == "id").map(|(_, text)| text.to_owned());
        let id = PhaseId::new(&text.unwrap_or_default());
        id.map(Self).map_err(|error| bad(format!("the path names no phase: {error}")))
    }
}

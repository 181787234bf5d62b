//! Where a session's picture is kept.

use std::{future::Future, pin::Pin, sync::Arc};

use jiff::Timestamp;

use crate::{
    engine::{Counts, Record, Settings},
    manifest::Plan,
    resource::Refusal,
};

use super::pace::Pacing;

/// A session at one moment, as much of it as a store may want.
#[derive(Debug, Clone)]
pub struct Picture {
    pub at: Timestamp,
    pub record: Arc<Record>,
    pub plan: Arc<Plan>,
    pub settings: Arc<Settings>,
    pub counts: Counts,
    /// Of the resource, as far as its spec is obeyed or refused.
    pub generation: i64,
    /// The spec of that generation is not acted on; the last revision goes on.
    pub refused: Option<Refused>,
    /// An edit waits for its word to go.
    pub staged: bool,
    /// Another cluster speaks on this session.
    pub contested: bool,
}

/// Why a spec is not acted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub refusal: Refusal,
    pub message: String,
}

/// Why a picture is not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the session, or the object is another one by now: nothing more may be said.
    #[error("another process holds the session")]
    Deposed,
    #[error("the resource is gone")]
    Gone,
    /// It does not fit; nothing that starts now could be stored.
    #[error("{0}")]
    TooLarge(String),
    /// To be tried again.
    #[error("the store does not answer")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Keeps pictures. One save at a time; a save that was begun is seen to its end.
pub trait Store: Send + 'static {
    fn save(&mut self, picture: Picture) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>>;

    /// How often it wants to be asked.
    fn pacing(&self) -> Pacing;
}

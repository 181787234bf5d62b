//! Where a session's picture is kept.

use std::{future::Future, pin::Pin, sync::Arc};

use jiff::Timestamp;

use crate::{
    bus::{Keeping, Position, Ready},
    engine::{Counts, Record, Settings},
    manifest::Plan,
    resource::{BusStanding, ConditionReason, Refusal},
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
    /// Up to here the stream of reports is folded into this picture.
    pub position: Option<Position>,
    pub bus: BusStanding,
    /// Another cluster speaks on this session.
    pub contested: bool,
    pub hold: Hold,
}

/// What a picture says of who has the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    Ours,
    /// Another process of our cluster asked: this picture is to differ from the last, so that it sees that we live.
    Asked,
    /// The last picture of this process: who comes next need not ask.
    Released,
}

impl From<Ready> for BusStanding {
    fn from(ready: Ready) -> Self {
        let reason = |reason: &str| ConditionReason::ALL.into_iter().find(|known| known.as_str() == reason);
        match ready {
            Ready::Yes { keeping: Keeping::Unknown, .. } => Self::Unknown,
            Ready::Yes { keeping: Keeping::Reports, .. } => {
                let message = "reports are heard, and kept in a stream".to_owned();
                Self::Ready { reason: ConditionReason::JetStream, message }
            }
            Ready::Yes { keeping: Keeping::Nothing { reason: why, message }, .. } => {
                let reason = reason(why).unwrap_or(ConditionReason::StreamFailed);
                Self::Ready { reason, message: format!("reports are heard, and not kept: {message}") }
            }
            Ready::No { reason: why, message } => {
                Self::Down { reason: reason(why).unwrap_or(ConditionReason::BusDisconnected), message }
            }
        }
    }
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

//! Where a session's picture is kept.

use std::{future::Future, pin::Pin, sync::Arc};

use jiff::Timestamp;

use crate::{
    bus::{Keeping, Position, Ready, Trouble},
    engine::{Counts, Record, Settings},
    manifest::Plan,
    protocol::SessionId,
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

/// How the bus stands for a session.
pub fn standing(ready: Ready, session: &SessionId) -> BusStanding {
    let known = |reason: &str| ConditionReason::ALL.into_iter().find(|known| known.as_str() == reason);
    let (keeping, troubles) = match ready {
        Ready::Yes { keeping, troubles, .. } => (keeping, troubles),
        Ready::No { reason, message } => {
            return BusStanding::Down { reason: known(reason).unwrap_or(ConditionReason::BusDisconnected), message };
        }
    };
    if let Some(trouble) = troubles.iter().find(|trouble| trouble.hinders(session)) {
        let reason = known(trouble.reason()).unwrap_or(ConditionReason::PermissionDenied);
        return BusStanding::Down { reason, message: trouble.message().to_owned() };
    }
    match (keeping, troubles.iter().find(|trouble| matches!(trouble, Trouble::Unrecorded { .. }))) {
        (Keeping::Unknown, _) => BusStanding::Unknown,
        (Keeping::Reports, Some(trouble)) => {
            let reason = known(trouble.reason()).unwrap_or(ConditionReason::StreamFailed);
            BusStanding::Ready { reason, message: format!("reports are heard, and kept; {}", trouble.message()) }
        }
        (Keeping::Reports, None) => {
            let message = "reports are heard, and kept in a stream".to_owned();
            BusStanding::Ready { reason: ConditionReason::JetStream, message }
        }
        (Keeping::Nothing { reason, message }, _) => {
            let reason = known(reason).unwrap_or(ConditionReason::StreamFailed);
            BusStanding::Ready { reason, message: format!("reports are heard, and not kept: {message}") }
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
    /// Somebody wrote, and whether the session is still ours could not be read. To be tried again; until then it may be
    /// another's.
    #[error("it cannot be seen who has the session")]
    InDoubt(#[source] Box<dyn std::error::Error + Send + Sync>),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_to_the_sessions_that_it_hinders_and_a_record_that_is_not_kept_to_all() {
        let (one, other) = (SessionId::new("one").unwrap(), SessionId::new("other").unwrap());
        let denied = Trouble::Denied { session: Some(one.clone()), message: "no right".to_owned() };
        let unrecorded = Trouble::Unrecorded { message: "no room".to_owned() };
        let ready =
            |troubles: &[Trouble]| Ready::Yes { epoch: 1, keeping: Keeping::Reports, troubles: troubles.into() };
        let reason = |troubles: &[Trouble], session| match standing(ready(troubles), session) {
            BusStanding::Ready { reason, .. } => (reason, true),
            BusStanding::Down { reason, .. } => (reason, false),
            BusStanding::Unknown => panic!("it is known"),
        };
        assert_eq!(reason(std::slice::from_ref(&denied), &one), (ConditionReason::PermissionDenied, false));
        assert_eq!(reason(std::slice::from_ref(&denied), &other), (ConditionReason::JetStream, true));
        assert_eq!(reason(&[denied, unrecorded], &other), (ConditionReason::ForeignStream, true));
        let answered = Trouble::Answered { message: "a stream answers".to_owned() };
        assert_eq!(reason(&[answered], &one), (ConditionReason::ForeignStream, false));
    }
}

//! What is wrong with the bus though everything that comes is heard: messages that it does not take from us, and streams
//! that stand in the way.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, interval, sleep},
};

use super::{CHANNELS, Keeping, Ready};
use crate::{
    bus::{Bus, Error, streams},
    protocol::{Channel, Prefix, SessionId},
};

/// Between two looks at the streams: one that is in the way may be made at any time.
const LOOK_INTERVAL: Duration = Duration::from_mins(1);

/// Denials are told of at this pace, however many there are.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// For so long a denied message counts: by then the right may have been granted, or what is still denied is so again.
const DENIED_FOR: Duration = Duration::from_mins(5);

/// Something that is wrong, for the conditions of the sessions that it concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The server takes no messages to a subject: of one session, or of any.
    Denied { session: Option<SessionId>, message: String },
    /// A stream answers what is ours to answer: whoever asks takes its word for ours.
    Answered { message: String },
    /// Targets, logs and events are not kept.
    Unrecorded { message: String },
}

impl Trouble {
    /// The one word that conditions share with [`Error::reason`].
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Denied { .. } => "PermissionDenied",
            Self::Answered { .. } | Self::Unrecorded { .. } => "ForeignStream",
        }
    }

    pub fn message(&self) -> &str {
        let (Self::Denied { message, .. } | Self::Answered { message } | Self::Unrecorded { message }) = self;
        message
    }

    /// Whether the session cannot do its work.
    pub fn hinders(&self, session: &SessionId) -> bool {
        match self {
            Self::Denied { session: one, .. } => one.as_ref().is_none_or(|one| one == session),
            Self::Answered { .. } => true,
            Self::Unrecorded { .. } => false,
        }
    }
}

/// What is known to be wrong.
#[derive(Default)]
pub(super) struct Troubles {
    /// When each denial was first seen.
    denied: BTreeMap<String, (Instant, Trouble)>,
    streams: Vec<Trouble>,
}

impl Troubles {
    pub(super) fn all(&self) -> Arc<[Trouble]> {
        self.denied.values().map(|(_, trouble)| trouble).chain(&self.streams).cloned().collect()
    }

    /// Tells of every change, for as long as it is let.
    pub(super) async fn tell(
        &mut self,
        bus: &Bus,
        prefix: &Prefix,
        keeping: &watch::Receiver<(u64, Keeping)>,
        ready: &watch::Sender<Ready>,
    ) {
        let mut denied = bus.denied();
        let mut looks = interval(LOOK_INTERVAL);
        loop {
            tokio::select! {
                // In a fixed order, so that a simulation can be replayed.
                biased;
                _ = looks.tick() => {
                    let keeping = keeping.borrow().1.clone();
                    self.streams = of_streams(bus, prefix, &keeping).await;
                    self.forgive(bus);
                }
                () = change(&mut denied) => {}
            }
            self.note_denied(bus, prefix);
            let now = self.all();
            ready.send_if_modified(|ready| match ready {
                Ready::Yes { troubles, .. } if *troubles != now => {
                    *troubles = now;
                    true
                }
                _ => false,
            });
            sleep(TELL_INTERVAL).await;
        }
    }

    fn note_denied(&mut self, bus: &Bus, prefix: &Prefix) {
        let Some(denied) = bus.denied() else { return };
        let denied = denied.borrow();
        self.denied.retain(|subject, _| denied.contains(subject));
        for subject in &*denied {
            let session = match whose(prefix, subject) {
                Whose::Session(session) => Some(session),
                Whose::Everybody => None,
                Whose::Nobody => continue,
            };
            if !self.denied.contains_key(subject) {
                tracing::error!(subject, "the bus denies a subject: grant this user the permission");
                let message = Error::Denied { subject: subject.clone() }.to_string();
                let trouble = Trouble::Denied { session, message };
                self.denied.insert(subject.clone(), (Instant::now(), trouble));
            }
        }
    }

    fn forgive(&self, bus: &Bus) {
        for (subject, (since, _)) in &self.denied {
            if since.elapsed() >= DENIED_FOR {
                bus.forgive(subject);
            }
        }
    }
}

async fn change<T>(of: &mut Option<watch::Receiver<T>>) {
    if let Some(of) = of
        && of.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// Whom a denied subject is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Whose {
    Session(SessionId),
    Everybody,
    /// Not ours; or proved, which says it better.
    Nobody,
}

fn whose(prefix: &Prefix, subject: &str) -> Whose {
    let is_proved = |channel| subject == prefix.pattern(channel) || subject == prefix.probe_subject(channel);
    let below = subject.strip_prefix(prefix.as_str()).and_then(|rest| rest.strip_prefix('.'));
    match below.and_then(|rest| rest.split_once('.')) {
        Some(_) if CHANNELS.into_iter().any(is_proved) => Whose::Nobody,
        Some((session, _)) => SessionId::new(session).map_or(Whose::Everybody, Whose::Session),
        None => Whose::Nobody,
    }
}

/// Streams that stand in the way. Where nothing is kept at all, that is said elsewhere.
async fn of_streams(bus: &Bus, prefix: &Prefix, keeping: &Keeping) -> Vec<Trouble> {
    let answers = matches!(keeping, Keeping::Reports | Keeping::Nothing { reason: "ForeignStream", .. });
    let Some(storage) = bus.storage().filter(|_| answers) else { return Vec::new() };
    let mut found = Vec::new();
    for channel in [Channel::Ack, Channel::GetState, Channel::Diff] {
        let pattern = prefix.pattern(channel);
        if matches!(storage.keeps(&pattern).await, Ok(true)) {
            let message = format!(
                "a stream keeps `{pattern}` and answers whoever asks there in our place, so that no grant is heard: take \
                 this subject out of it"
            );
            found.push(Trouble::Answered { message });
        }
    }
    if *keeping == Keeping::Reports
        && let Err(error @ Error::ForeignStream { .. }) = storage.ensure(&streams::record(prefix)).await
    {
        found.push(Trouble::Unrecorded { message: format!("targets, logs and events are not kept: {error}") });
    }
    for trouble in &found {
        tracing::warn!(reason = trouble.reason(), "{}", trouble.message());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_subject_is_its_session_s_or_everybody_s_or_none_of_ours() {
        let prefix = Prefix::default();
        let session = SessionId::new("lab_boot").unwrap();
        assert_eq!(whose(&prefix, "plan.session.lab_boot.target"), Whose::Session(session.clone()));
        assert_eq!(whose(&prefix, "plan.session.*.log"), Whose::Everybody);
        assert_eq!(whose(&prefix, "plan.session.*.state"), Whose::Nobody, "it is proved");
        assert_eq!(whose(&prefix, "plan.session._pmp_probe.ack"), Whose::Nobody, "it proves");
        assert_eq!(whose(&prefix, "$JS.API.STREAM.NAMES"), Whose::Nobody);
        let of = |session| Trouble::Denied { session, message: String::new() };
        assert!(of(Some(session.clone())).hinders(&session) && of(None).hinders(&session));
        assert!(!of(Some(SessionId::new("lab_other").unwrap())).hinders(&session));
    }
}

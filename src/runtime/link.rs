//! The connection as a runtime sees it: whether offers are heard, and what to say again after it was lost.
//!
//! A dead connection takes messages for a while before anyone notices. So whenever the link's epoch rises, the runtime
//! says again what it may have said into the void; the operator knows repeats for what they are.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::sleep};

use super::{ledger::Ledger, options::Standing, serve::lock, wire::Wire};
use crate::{
    bus::{self, LinkState},
    protocol::Channel,
};

/// How long a connection may have been dead before that was noticed: three pings of five seconds, and some.
const UNNOTICED_MAX: Duration = Duration::from_secs(30);
/// How long a proof may take, and how long to wait before the next try.
const PROOF_MAX: Duration = Duration::from_secs(5);
const PROOF_RETRY: Duration = Duration::from_secs(2);

/// What a runtime listens to.
#[derive(Debug, Clone)]
pub(super) struct Ears {
    pub(super) patterns: [String; 2],
    pub(super) group: String,
}

/// Keeps `standing` true for as long as the bus lives, and says again what a lost connection may have swallowed.
pub(super) async fn watch(wire: Wire, ledger: Arc<Mutex<Ledger>>, ears: Ears, standing: watch::Sender<Standing>) {
    let mut link = wire.bus.link();
    let mut refusals = wire.bus.denied();
    let (mut epoch, mut lost_at) = (None, None);
    loop {
        let seen = link.borrow_and_update().clone();
        let now = match seen.state {
            LinkState::Disconnected { reason } => {
                lost_at.get_or_insert_with(Instant::now);
                Standing::Away { reason }
            }
            LinkState::Connected => {
                let lost = lost_at.take().unwrap_or_else(Instant::now);
                if epoch.replace(seen.epoch).is_some_and(|last| last != seen.epoch) {
                    say_again(&wire, &ledger, lost).await;
                }
                match prove_order(&wire, PROOF_MAX).await {
                    Ok(()) => refused(&wire, &ears),
                    Err(error) => Standing::Away { reason: error.to_string() },
                }
            }
        };
        tell(&standing, now, &wire, &ears);
        let refusal = async {
            match &mut refusals {
                Some(refusals) => refusals.changed().await,
                None => std::future::pending().await,
            }
        };
        let must_retry = !matches!(*standing.borrow(), Standing::Listening);
        let changed = tokio::select! {
            changed = link.changed() => changed,
            changed = refusal => changed,
            () = sleep(PROOF_RETRY), if must_retry => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

/// What runs, and every end that was given to the last connection shortly before it was known to be lost.
async fn say_again(wire: &Wire, ledger: &Mutex<Ledger>, lost_at: Instant) {
    let since = lost_at.checked_sub(UNNOTICED_MAX).unwrap_or(lost_at);
    let doubtful = lock(ledger).in_doubt(since);
    if !doubtful.is_empty() {
        tracing::info!(attempts = doubtful.len(), "the connection is another one: what is known is said again");
    }
    for known in doubtful {
        wire.say(&known).await;
    }
}

/// Waits until the server has answered something that was asked after everything else on this connection: what was
/// subscribed to is live by then, and what was published has arrived.
///
/// A refusal is an answer too, so this needs no rights.
pub(super) async fn prove_order(wire: &Wire, limit: Duration) -> Result<(), bus::Error> {
    let subject = wire.prefix.probe_subject(Channel::Target);
    // Of a queue group, because that is proved through the connection's own inbox.
    let mut later = wire.bus.subscribe(&subject, Some("proof")).await?;
    match wire.bus.prove(&mut later, &subject, limit).await {
        Err(bus::Error::Denied { .. }) => Ok(()),
        other => other,
    }
}

/// Whether the server refused one of our subscriptions.
fn refused(wire: &Wire, ears: &Ears) -> Standing {
    let denied = wire.bus.denied().map(|denied| denied.borrow().clone()).unwrap_or_default();
    let subjects: Vec<String> = ears.patterns.iter().filter(|pattern| denied.contains(*pattern)).cloned().collect();
    if subjects.is_empty() { Standing::Listening } else { Standing::Denied { subjects } }
}

fn tell(standing: &watch::Sender<Standing>, now: Standing, wire: &Wire, ears: &Ears) {
    let is_news = standing.send_if_modified(|was| {
        let is_news = *was != now;
        if is_news {
            was.clone_from(&now);
        }
        is_news
    });
    if !is_news {
        return;
    }
    match now {
        Standing::Listening => tracing::info!(runtime = &*wire.name, group = ears.group, "waits for phases"),
        Standing::Away { reason } => tracing::warn!(reason, "not connected to the bus; what runs goes on"),
        Standing::Denied { subjects } => {
            tracing::error!(subjects = subjects.join(", "), "the bus denies these: grant this user the subscription");
        }
    }
}

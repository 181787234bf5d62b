//! The connection as a runtime sees it: whether offers are heard, and what to say again after it was lost.
//!
//! A dead connection takes messages for a while before anyone notices. So whenever the link's epoch rises, the runtime
//! says again what it may have said into the void; the operator knows repeats for what they are.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use tokio::{sync::watch, time::sleep};

use super::{ledger::Ledger, options::Standing, serve::lock, wire::Wire};
use crate::{
    bus::{self, LinkState, Message},
    protocol::{Channel, headers},
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
                match prove_replies(&wire).await {
                    Ok(()) => refused(&wire, &ears),
                    // Without its replies it would be granted attempts and never hear of it.
                    Err(bus::Error::Denied { subject }) => Standing::Denied { subjects: vec![subject] },
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

/// Waits until the server has answered, and finds out whether it lets replies through.
///
/// The question goes to the session that nobody runs. Whoever hears it does not answer; a refusal is there by the time
/// that something later is answered.
async fn prove_replies(wire: &Wire) -> Result<(), bus::Error> {
    let to = wire.prefix.probe_subject(Channel::Ack);
    let question = Message::new(to.clone(), "").with_header(headers::PROBE, "replies");
    let question = wire.bus.request(question, PROOF_MAX).fuse();
    let order = prove_order(wire, PROOF_MAX).fuse();
    tokio::pin!(question, order);
    let (mut answer, mut proved) = (None, None);
    while proved.is_none() {
        tokio::select! {
            biased;
            answered = &mut question, if answer.is_none() => answer = Some(answered),
            in_order = &mut order => proved = Some(in_order),
        }
    }
    match answer.or_else(|| (&mut question).now_or_never()) {
        // Its user may not publish there: no loss, since nobody is there.
        Some(Err(bus::Error::Denied { subject })) if subject != to => Err(bus::Error::Denied { subject }),
        _ => proved.unwrap_or(Ok(())),
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
            tracing::error!(
                subjects = subjects.join(", "),
                "the bus denies these: grant this user the subscription; until then no offer is taken"
            );
        }
    }
}

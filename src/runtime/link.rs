//! The connection as a runtime sees it: whether offers are heard, and what to say again after it was lost.
//!
//! A dead connection takes messages for a while before anyone notices. So whenever the link's epoch rises, the runtime
//! says again what it may have said into the void; the operator knows repeats for what they are.

use std::{
    collections::BTreeSet,
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

/// How long a proof may take, and how long to wait before the next try.
const PROOF_MAX: Duration = Duration::from_secs(5);
const PROOF_RETRY: Duration = Duration::from_secs(2);
/// The same of a farewell, which has less time.
const FAREWELL_PROOF_MAX: Duration = Duration::from_secs(2);
const FAREWELL_RETRY: Duration = Duration::from_millis(200);

/// What a runtime listens to.
#[derive(Debug, Clone)]
pub(super) struct Ears {
    pub(super) patterns: [String; 2],
    pub(super) group: String,
}

/// Keeps `standing` true for as long as the bus lives, and says again what a lost connection may have swallowed.
pub(super) async fn watch(wire: Wire, ledger: Arc<Mutex<Ledger>>, ears: Ears, standing: &watch::Sender<Standing>) {
    let mut link = wire.bus.link();
    let mut refusals = wire.bus.denied();
    let (mut epoch, mut lost_at, mut named) = (None, None, BTreeSet::new());
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
                    say_again(&wire, &ledger, before(&wire, lost)).await;
                }
                match prove_replies(&wire).await {
                    Ok(()) => refused(&wire, &ears),
                    // Without its replies it would be granted attempts and never hear of it.
                    Err(bus::Error::Denied { subject }) => Standing::Denied { subjects: vec![subject] },
                    Err(error) => Standing::Away { reason: error.to_string() },
                }
            }
        };
        tell(standing, now, &wire, &ears);
        name_refusals(&wire, &mut named);
        let known = of_ours(&wire, &ears, &denied(&wire));
        let refusal = async {
            match &mut refusals {
                // Of the proofs' own subjects, each of which is used once, there is nothing to learn.
                Some(refusals) => refusals.wait_for(|now| of_ours(&wire, &ears, now) != known).await.map(drop),
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
async fn say_again(wire: &Wire, ledger: &Mutex<Ledger>, since: Instant) {
    let doubtful = lock(ledger).in_doubt(since);
    if !doubtful.is_empty() {
        tracing::info!(attempts = doubtful.len(), "the connection may have been dead: what is known is said again");
    }
    for known in doubtful {
        wire.say(&known).await;
    }
}

/// The moment before which a connection that is lost now was well.
fn before(wire: &Wire, lost_at: Instant) -> Instant {
    lost_at.checked_sub(wire.bus.unnoticed_max()).unwrap_or(lost_at)
}

/// Waits until the server has what was said, and says again what it may not have; answers how many ends may have been
/// said to nobody when the time is over.
///
/// Published is not sent: an answer to something later says that the server has all of it.
pub(super) async fn farewell(
    wire: &Wire,
    ledger: &Mutex<Ledger>,
    standing: &watch::Receiver<Standing>,
    until: tokio::time::Instant,
) -> usize {
    let since = before(wire, Instant::now());
    // Once the other task calls it well again, it has said again whatever the connection before may have swallowed.
    let mut is_well = !matches!(*standing.borrow(), Standing::Away { .. });
    loop {
        if !is_well {
            say_again(wire, ledger, since).await;
        }
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        match prove_order(wire, FAREWELL_PROOF_MAX.min(left)).await {
            // Heard and thrown away.
            Ok(()) if denied_reports(wire).is_empty() => return 0,
            Ok(()) => return lock(ledger).ends_in_doubt(since),
            Err(error) if left.is_zero() || lock(ledger).ends_in_doubt(since) == 0 => {
                tracing::warn!(%error, "whether the last reports arrived is not known");
                return lock(ledger).ends_in_doubt(since);
            }
            Err(_) => is_well = false,
        }
        sleep(FAREWELL_RETRY.min(left)).await;
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

/// Whether the server refused one of our subscriptions, or a report: whoever is granted an attempt must be able to say how
/// it ended.
fn refused(wire: &Wire, ears: &Ears) -> Standing {
    let denied = denied(wire);
    let mut subjects: Vec<String> = ears.patterns.iter().filter(|pattern| denied.contains(*pattern)).cloned().collect();
    subjects.extend(denied_reports(wire));
    if subjects.is_empty() { Standing::Listening } else { Standing::Denied { subjects } }
}

/// What a runtime listens to or publishes, of what was refused.
fn of_ours(wire: &Wire, ears: &Ears, denied: &BTreeSet<String>) -> BTreeSet<String> {
    let is_it = |subject: &&String| {
        ears.patterns.contains(*subject) || is_ours(wire, subject, &[Channel::State, Channel::Ack, Channel::Log])
    };
    denied.iter().filter(is_it).cloned().collect()
}

fn denied(wire: &Wire) -> BTreeSet<String> {
    wire.bus.denied().map(|denied| denied.borrow().clone()).unwrap_or_default()
}

fn denied_reports(wire: &Wire) -> Vec<String> {
    denied(wire).into_iter().filter(|subject| is_ours(wire, subject, &[Channel::State])).collect()
}

/// Whether a runtime publishes there. Nobody but us may ask for a denial of a session that does not exist.
fn is_ours(wire: &Wire, subject: &str, channels: &[Channel]) -> bool {
    let of_ours =
        |(_, channel): &(_, Channel)| channels.contains(channel) && subject != wire.prefix.probe_subject(*channel);
    wire.prefix.parse(subject).as_ref().is_some_and(of_ours)
}

/// A denied publish is an error of nobody's call, so it is named here; once a connection.
fn name_refusals(wire: &Wire, named: &mut BTreeSet<String>) {
    let denied = denied(wire);
    named.retain(|subject| denied.contains(subject));
    for subject in denied {
        if is_ours(wire, &subject, &[Channel::State, Channel::Ack, Channel::Log]) && named.insert(subject.clone()) {
            tracing::error!(subject, "the bus denies what a runtime publishes: grant this user the subject");
        }
    }
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
                "the bus denies these: grant them to this user; until then no offer is taken"
            );
        }
    }
}

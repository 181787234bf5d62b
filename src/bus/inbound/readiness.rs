//! Whether what the operator listens to is heard: every subscription proved, after every rise of the link's epoch.

use std::{sync::Arc, time::Duration};

use rand::RngExt;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout},
};

use super::{CHANNELS, Keeping, Ready, renewal::Renewals, routes::Routes, trouble::Troubles};
use crate::{
    bus::{Bus, Error, LinkState, proof},
    protocol::Channel,
};

/// How long one subscription may take to be proved, and how often its probe is sent: a burst may crowd one out.
const PROOF_TIMEOUT: Duration = Duration::from_secs(5);
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// How long a session may wait to hear how reports are kept: two calls to a server that answers neither.
const KEEPING_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait before the next try.
const PROOF_RETRY: Duration = Duration::from_secs(2);

/// Proves all subscriptions after every rise of the epoch, and says how it stands.
pub(super) async fn prove(
    bus: Bus,
    routes: Arc<Routes>,
    mut keeping: watch::Receiver<(u64, Keeping)>,
    ready: watch::Sender<Ready>,
    mut renewals: Renewals,
) {
    let mut link = bus.link();
    let mut troubles = Troubles::default();
    let patterns = CHANNELS.map(|channel| routes.prefix.pattern(channel));
    loop {
        let seen = link.borrow_and_update().clone();
        let proved = match &seen.state {
            LinkState::Disconnected { reason } => Err(Error::Disconnected { reason: reason.clone() }),
            LinkState::Connected => tokio::select! {
                // What was proved in an epoch that is over is proved again before anyone relies on it.
                biased;
                changed = link.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                proved = async {
                    renewals.renew(&bus, &routes.prefix).await?;
                    prove_all(&bus, &routes, &mut keeping, seen.epoch).await
                } => proved,
            },
        };
        let now = match &proved {
            Ok(keeping) => Ready::Yes { epoch: seen.epoch, keeping: keeping.clone(), troubles: troubles.all() },
            Err(error) => not_ready(error),
        };
        say(&ready, now);
        let retry = PROOF_RETRY.mul_f64(rand::rng().random_range(0.5..=1.0));
        let waited = match proved {
            Ok(_) => {
                let kept = keeping.clone();
                let news = say_how_it_is_kept(&mut keeping, &ready);
                tokio::select! {
                    biased;
                    changed = link.changed() => changed,
                    () = news => return,
                    () = troubles.tell(&bus, &routes.prefix, &kept, &ready) => return,
                    subject = proof::denial(bus.denied(), &patterns) => {
                        // Said before it is proved anew: what came meanwhile may be missed, so that sessions have to ask.
                        let error = Error::Denied { subject };
                        tracing::error!(%error, "a subscription was revoked");
                        say(&ready, not_ready(&error));
                        Ok(())
                    }
                }
            }
            Err(_) => tokio::time::timeout(retry, link.changed()).await.unwrap_or(Ok(())),
        };
        if waited.is_err() {
            return;
        }
    }
}

fn not_ready(error: &Error) -> Ready {
    Ready::No { reason: error.reason(), message: error.to_string() }
}

fn say(ready: &watch::Sender<Ready>, now: Ready) {
    ready.send_if_modified(|ready| {
        let changed = *ready != now;
        match (&*ready, &now) {
            (_, Ready::No { reason, message }) if changed => {
                tracing::warn!(reason, "{message}; nothing is offered until the bus is heard");
            }
            (Ready::No { .. }, Ready::Yes { .. }) => tracing::info!("the bus is heard"),
            _ => {}
        }
        *ready = now;
        changed
    });
}

/// Tells of every change, for as long as the link stands; ends with the reader of the stream, if that has more to say.
async fn say_how_it_is_kept(keeping: &mut watch::Receiver<(u64, Keeping)>, ready: &watch::Sender<Ready>) {
    while keeping.changed().await.is_ok() {
        let now = keeping.borrow_and_update().1.clone();
        ready.send_if_modified(|ready| match ready {
            Ready::Yes { keeping, .. } if *keeping != now && now != Keeping::Unknown => {
                *keeping = now;
                true
            }
            _ => false,
        });
    }
    std::future::pending::<()>().await;
}

/// One probe a channel, all at once; and how reports are kept, as far as that is known soon.
async fn prove_all(
    bus: &Bus,
    routes: &Routes,
    keeping: &mut watch::Receiver<(u64, Keeping)>,
    epoch: u64,
) -> Result<Keeping, Error> {
    let probes = CHANNELS.map(|channel| prove_one(bus, routes, channel));
    futures::future::try_join_all(probes).await?;
    let known = keeping.wait_for(|(at, keeping)| *at >= epoch && *keeping != Keeping::Unknown);
    match timeout(KEEPING_TIMEOUT, known).await {
        Ok(Ok(known)) => Ok(known.1.clone()),
        Ok(Err(_)) | Err(_) => Ok(Keeping::Unknown),
    }
}

async fn prove_one(bus: &Bus, routes: &Routes, channel: Channel) -> Result<(), Error> {
    let (subject, pattern) = (routes.prefix.probe_subject(channel), routes.prefix.pattern(channel));
    let nonce = proof::nonce();
    let (sender, mut heard) = oneshot::channel();
    routes.probes().insert(nonce.clone(), sender);
    let _forget = Forget { routes, nonce: nonce.clone() };
    let deadline = Instant::now() + PROOF_TIMEOUT;
    let watched = [pattern.clone(), subject.clone()];
    // Denied at the last try; whether it still is the next message tells.
    bus.forgive(&subject);
    while Instant::now() < deadline {
        bus.publish(proof::probe(&subject, &nonce)).await?;
        tokio::select! {
            biased;
            Ok(()) = &mut heard => return Ok(()),
            subject = proof::denial(bus.denied(), &watched) => return Err(Error::Denied { subject }),
            () = tokio::time::sleep(PROBE_INTERVAL) => {}
        }
    }
    Err(Error::Unproven { pattern })
}

/// Takes a probe off the list however its proof ends.
struct Forget<'a> {
    routes: &'a Routes,
    nonce: String,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.routes.probes().remove(&self.nonce);
    }
}

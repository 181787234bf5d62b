//! What a session hears: how the bus stands, the past, messages, and others who believe that it is theirs.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Task, UNSTORED_MAX};
use crate::{
    bus::{Arrival, Hearing, InboundBody, InboundMessage, Keeping, Origin as From, Ready},
    engine::{AskId, Input, OffersGate, Settings, Shutdown},
    protocol::Command,
    resource::BusStanding,
    sessions::{pace::Urgency, store::standing},
};

/// Between two tries to read what the stream has and nobody heard, doubling. Soon at first, because what is heard meanwhile
/// is read again, too.
pub(super) const PAST_RETRY: Duration = Duration::from_secs(1);
const PAST_RETRY_MAX: Duration = Duration::from_mins(1);

/// A session that nobody spoke of before does not ask who holds what, if it can be heard so soon.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// A try beside what else is to be done: shorter than [`super::LATE_MAX`], or it would look as if the process had stood still.
const PAST_TRY_MAX: Duration = Duration::from_secs(2);

impl Task {
    /// The bus is proved, in a new epoch or for the first time; or it is not.
    pub(super) async fn heard_of_bus(&mut self, ready: Ready) {
        self.proved = ready.epoch();
        self.is_kept = matches!(ready, Ready::Yes { keeping: Keeping::Reports, .. });
        self.note_standing(standing(ready, &self.speech.session));
        if self.proved.is_none() {
            return self.link(None).await;
        }
        if self.is_kept {
            // The past first: what it says is true whatever anybody answers.
            self.past_pause = PAST_RETRY;
            self.read_past().await;
        } else {
            self.past_at = None;
        }
        if !self.sink.is_catching_up() {
            self.link(self.proved).await;
        }
    }

    /// Begins to read what the stream has and nobody heard; where that fails, again after a while. Whoever holds anything is
    /// asked in any case.
    pub(super) async fn read_past(&mut self) {
        self.past_at = None;
        if self.sink.is_catching_up() {
            return;
        }
        match timeout(PAST_TRY_MAX, self.sink.catch_up()).await {
            Ok(Ok(0)) => {}
            Ok(Ok(messages)) => tracing::debug!(session = %self.speech.session, messages, "reading what was missed"),
            Ok(Err(error)) => {
                tracing::warn!(session = %self.speech.session, %error, "what was missed cannot be read now");
            }
            Err(_) => tracing::debug!(session = %self.speech.session, "what was missed cannot be read in time"),
        }
        self.read_past_later();
    }

    fn read_past_later(&mut self) {
        if self.sink.is_behind() && self.is_kept {
            self.past_at = Some(Instant::now() + self.past_pause);
            self.past_pause = (self.past_pause * 2).min(PAST_RETRY_MAX);
        } else {
            self.past_pause = PAST_RETRY;
        }
    }

    fn note_standing(&mut self, standing: BusStanding) {
        if self.standing != standing {
            self.standing = standing;
            self.frame.changes += 1;
        }
    }

    async fn link(&mut self, epoch: Option<u64>) {
        if epoch == self.epoch {
            return;
        }
        self.epoch = epoch;
        // From the second time on, something may have been missed in between; and who was not heard for so long at first may
        // have been taken for dead.
        let is_late = self.began.elapsed() >= HEARD_WITHIN;
        if epoch.is_some() && (std::mem::replace(&mut self.must_ask, true) || is_late) {
            self.feed(Input::Resync).await;
        }
        self.set_gate().await;
    }

    pub(super) async fn set_gate(&mut self) {
        if self.contest.lapse() {
            self.frame.changes += 1;
        }
        let is_stale = self.unsaved_since.is_some_and(|since| since.elapsed() >= UNSTORED_MAX);
        let is_ours = !self.contest.is_on() && self.challenged.is_none();
        let gate = match () {
            () if self.epoch.is_none() => OffersGate::Deaf,
            () if is_stale || !is_ours || self.is_too_large => OffersGate::Closed,
            () => OffersGate::Open,
        };
        self.feed(Input::Offers(gate)).await;
    }

    pub(super) async fn arrived(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Missed => {
                self.feed(Input::Resync).await;
                self.read_past_later();
            }
            Arrival::CaughtUp => {
                self.read_past_later();
                // Stored at once, or a process that is killed soon again leaves as much to read to the next, and more.
                self.urgency = Urgency::Now;
                self.link(self.proved).await;
            }
            Arrival::Message(message) => self.heard(*message).await,
        }
    }

    async fn heard(&mut self, message: InboundMessage) {
        match message.origin {
            From::Own => return,
            From::Holder(ref name) => return self.challenge(name).await,
            From::Foreign(_) => return self.contested().await,
            From::None => {}
        }
        match message.body {
            // Whoever holds the session answers, and if it is us, we are asked again.
            InboundBody::Ack(_) if message.reply.is_some() && self.may_be_deposed() => {}
            InboundBody::Ack(ack) => {
                let ask = message.reply.map(|reply| {
                    self.asked += 1;
                    self.asks.insert(AskId(self.asked), reply);
                    AskId(self.asked)
                });
                self.feed(Input::Ack(ack.into_input(ask))).await;
            }
            InboundBody::State(state) => self.feed(Input::Report(state.into_input())).await,
            InboundBody::Control(ref control) => {
                // Meant for what ran before the last edit, by whoever could not know of it.
                let is_news = message.place.as_ref().is_none_or(|place| match place.hearing {
                    Hearing::Live => true,
                    Hearing::Late => place.at >= self.session.started_at(),
                    Hearing::Before => false,
                });
                if control.command == Command::Cancel && control.phase.is_none() && is_news {
                    // Runtimes heard it too and are stopping: what they report next is no failure. Spec follows.
                    let settings = Settings { shutdown: Some(Shutdown::Cancel), ..self.session.settings().clone() };
                    self.feed(Input::Settings(Box::new(settings))).await;
                }
                self.listener.pass_on(message);
            }
            InboundBody::GetState | InboundBody::Diff => self.listener.pass_on(message),
        }
    }

    async fn contested(&mut self) {
        if !self.contest.is_on() {
            self.frame.changes += 1;
        }
        self.contest.heard();
        self.set_gate().await;
    }

    /// Another process of our cluster says that it has the session; or it may have offered what is accepted, since we did not
    /// before our first write.
    fn may_be_deposed(&self) -> bool {
        self.challenged.is_some() || (self.saved.is_none() && self.store_at.is_some())
    }

    /// A process of our own cluster speaks as the holder. The store knows which of us is it; until that is known we
    /// offer and answer nothing: of two answers a runtime takes the first, and the other one of us would wait for an
    /// attempt that nobody runs.
    async fn challenge(&mut self, by: &str) {
        if by == self.speech.holder {
            return;
        }
        // At the usual pace of writes, since anyone on the bus could claim it again and again.
        self.frame.changes += 1;
        self.challenged = Some(self.frame.changes);
        self.set_gate().await;
    }
}

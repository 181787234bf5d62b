//! What clients ask of sessions over the bus is answered from the status; commands go on to their queue.
//!
//! One task for all sessions, finished ones included, so that a flood of requests delays nobody's phases.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures::{FutureExt as _, future::join};
use kube::Client;
use tokio::sync::mpsc;

use super::{answers, call::name, listener::PassedOn, revision, view::View};
use crate::{
    bus::{Arrival, Bus, InboundBody, InboundMessage, Message, Origin, Sink},
    manifest::Plan,
    protocol::headers,
    resource::PhaseManifest,
};

/// Longest time for one answer; whoever asked has given up by then.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything that answering needs.
pub struct Responder {
    pub client: Client,
    pub bus: Bus,
    /// `Pmp-Origin` of answers.
    pub origin: String,
    pub view: View,
    pub passed_on: PassedOn,
}

impl Responder {
    /// Answers until both ways in have ended: from session tasks, and for sessions that do not run.
    pub async fn run(self, mut requests: mpsc::Receiver<InboundMessage>, mut rest: Sink) {
        let sorting = async {
            while let Some(arrival) = rest.next().await {
                if let Arrival::Message(message) = arrival {
                    self.sort(*message);
                }
            }
        };
        let answering = async {
            while let Some(message) = requests.recv().await {
                let session = message.session.clone();
                let answered = tokio::time::timeout(ANSWER_TIMEOUT, self.respond(message));
                match AssertUnwindSafe(answered).catch_unwind().await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => tracing::warn!(%session, "a request took too long and was given up"),
                    // One message takes nobody else's answer away.
                    Err(_) => tracing::error!(%session, "answering a message hit a defect of the operator"),
                }
            }
        };
        // Side by side: no command waits for an answer.
        join(sorting, answering).await;
    }

    /// Of a session that does not run. Late reports of one that has ended come by the hundred, and change nothing any more.
    fn sort(&self, message: InboundMessage) {
        if !matches!(message.body, InboundBody::Ack(_) | InboundBody::State(_)) {
            self.passed_on.pass(message);
        }
    }

    async fn respond(&self, message: InboundMessage) {
        // No reply for sessions that are not ours: another operator may have them.
        let Some(object) = self.view.find(&message.session, None) else { return };
        match &message.body {
            InboundBody::GetState if message.origin == Origin::None => {
                let plan = self.revision_plan(&object).await;
                self.reply(&message, answers::state(&object, plan.as_ref())).await;
            }
            InboundBody::Diff if message.origin == Origin::None => {
                if let (Some(last), Some(spec)) =
                    (self.revision_plan(&object).await, revision::live(&self.client, &object).await.ok().flatten())
                {
                    self.reply(&message, answers::diff(&object, &last, &spec)).await;
                }
            }
            _ => {}
        }
    }

    async fn revision_plan(&self, object: &PhaseManifest) -> Option<Plan> {
        revision::started(&self.client, object)
            .await
            .inspect_err(|error| tracing::warn!(resource = name(object), %error, "a revision cannot be read"))
            .ok()?
    }

    async fn reply(&self, message: &InboundMessage, answer: serde_json::Value) {
        let Some(reply) = message.reply.clone() else { return };
        let body = answers::within(answer, self.bus.payload_bytes_max() / 2);
        let answer = Message::new(reply, body).with_header(headers::ORIGIN, &self.origin);
        if let Err(error) = self.bus.publish(answer).await {
            tracing::debug!(session = %message.session, %error, "an answer was not sent");
        }
    }
}

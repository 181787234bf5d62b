//! What clients ask of sessions over the bus: commands become spec, requests are answered from the status.
//!
//! One task for all sessions, finished ones included, so that a flood of requests delays nobody's phases.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use kube::{Client, runtime::reflector::Store};
use tokio::sync::mpsc;

use super::{
    answers,
    call::name,
    claim::Claim,
    commands::{self, CommandId, Obeyed},
    revision,
};
use crate::{
    bus::{Arrival, Bus, InboundBody, InboundMessage, Message, Origin, Sink},
    manifest::Plan,
    protocol::{SessionId, headers},
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
    /// Of each watched scope.
    pub objects: Vec<Store<PhaseManifest>>,
    /// The actor of commands.
    pub connection: String,
}

impl Responder {
    /// Answers until both ways in have ended: from session tasks, and for sessions that do not run.
    pub async fn run(self, mut passed_on: mpsc::Receiver<InboundMessage>, mut rest: Sink) {
        loop {
            let message = tokio::select! {
                Some(message) = passed_on.recv() => message,
                Some(arrival) = rest.next() => match arrival {
                    Arrival::Message(message) => *message,
                    Arrival::Missed | Arrival::CaughtUp => continue,
                },
                else => return,
            };
            let session = message.session.clone();
            let answered = tokio::time::timeout(ANSWER_TIMEOUT, self.respond(message));
            match AssertUnwindSafe(answered).catch_unwind().await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => tracing::warn!(%session, "a request took too long and was given up"),
                // One message takes nobody else's answer away.
                Err(_) => tracing::error!(%session, "answering a message hit a defect of the operator"),
            }
        }
    }

    async fn respond(&self, message: InboundMessage) {
        // Late reports of a session that has ended come by the hundred, and change nothing any more.
        if matches!(message.body, InboundBody::Ack(_) | InboundBody::State(_)) {
            return;
        }
        // No reply for sessions that are not ours: another operator may have them.
        let Some(object) = self.object_of(&message.session) else { return };
        match &message.body {
            InboundBody::Control(_) => self.obey(&object, &message).await,
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

    fn object_of(&self, session: &SessionId) -> Option<Arc<PhaseManifest>> {
        let is_it = |object: &PhaseManifest| {
            Claim::may_be_to(object, session) && Claim::of(object).is_some_and(|claim| claim.session_id == *session)
        };
        self.objects.iter().find_map(|objects| objects.find(is_it))
    }

    async fn obey(&self, object: &PhaseManifest, message: &InboundMessage) {
        let Some(control) = commands::command(message) else { return };
        match commands::obey(&self.client, object, control, &CommandId::of_message(message), &self.connection).await {
            Ok(Obeyed::Refused(why)) => tracing::warn!(resource = name(object), why, "a command was refused"),
            Ok(_) => {}
            Err(error) => tracing::warn!(resource = name(object), %error, "a command was not carried out"),
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

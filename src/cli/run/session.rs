//! A session on a bus without a cluster: the operator's own session task, with a store that only shows.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};

use super::input::Task;
use crate::{
    bus::{self, Bus, Inbound, InboundHandle, InboundMessage},
    engine::{Output, Record, Session, Settings},
    protocol::Prefix,
    sessions::{self, Clock, Handle, Listener, LocalStore, Order, Origin, Past, Start},
};

/// A session under way.
pub struct Local {
    pub picture: watch::Receiver<Arc<Record>>,
    task: Handle,
    /// What the session hears comes through here; it ends with this.
    _inbound: InboundHandle,
}

impl Local {
    /// Runs on under other settings.
    pub fn settle(&self, settings: Settings) {
        let order = Order::Obey { generation: 1, settings: Box::new(settings), requests: Vec::new(), edit: None };
        // One that has ended, or has a dozen orders waiting, needs no other.
        drop(self.task.order(order));
    }
}

/// What the engine puts out, in order. Unbounded, because it holds a few entries for each phase at most, and the engine
/// must never wait for a terminal.
pub type Outputs = mpsc::UnboundedReceiver<Output>;

/// Starts the session; its first targets go out once it hears.
pub async fn start(bus: Bus, prefix: &Prefix, work: &Task) -> Result<(Local, Outputs), bus::Error> {
    // Unique on the bus of this process; the pid and the time keep tokens of two runs apart in their logs.
    let now = Timestamp::now();
    let origin = format!("laptop-{}-{}", std::process::id(), now.as_nanosecond());
    let clock = Clock::System;
    let session = Session::start(&origin, Arc::clone(&work.plan), 1, work.strategy, work.settings.clone(), clock.now());
    let (picture_to, picture) = watch::channel(Arc::new(session.record()));
    let (outputs_to, outputs) = mpsc::unbounded_channel();
    let inbound = Inbound::run(bus.clone(), prefix.clone(), origin.clone()).await?;
    let start = Start {
        session,
        id: work.session.clone(),
        prefix: prefix.clone(),
        origin: Origin(origin),
        generation: 1,
        orders: Vec::new(),
        past: Past::None,
        position: None,
        clock,
    };
    let task = sessions::spawn(bus, &inbound, start, LocalStore(picture_to), Viewer(outputs_to));
    Ok((Local { picture, task, _inbound: inbound }, outputs))
}

/// Hands on what there is to see.
struct Viewer(mpsc::UnboundedSender<Output>);

impl Listener for Viewer {
    fn hear(&mut self, output: &Output, _: &Session) {
        // Nobody looks on any more: the work goes on all the same.
        drop(self.0.send(output.clone()));
    }

    /// Nobody but this process is on the bus.
    fn pass_on(&mut self, _: InboundMessage) {}
}

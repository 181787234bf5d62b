//! The pump: everything that is heard, plainly and from the stream, one after the other to where it belongs.
//!
//! One task, so that a place in the stream is never noted before the messages up to it stand in their queues.

use futures::{StreamExt, stream};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{
    Hearing, Keeping, Place,
    reports::FromStream,
    routes::{Kind, Routes},
    twins::{Copy, Twins},
};
use crate::bus::{Message, Position, Stored, Subscription};

/// Pumps until the bus is gone.
pub(super) async fn run(
    subscriptions: Vec<Subscription>,
    mut stored: mpsc::Receiver<FromStream>,
    routes: std::sync::Arc<Routes>,
    keeping: watch::Receiver<(u64, Keeping)>,
) {
    let _end = EndOfSinks(&routes);
    let plain = stream::select_all(subscriptions.into_iter().map(raw));
    let plain = plain.map(|message| Some(Heard::Plainly(message))).chain(stream::iter([None]));
    let stored = stream::poll_fn(move |cx| stored.poll_recv(cx)).map(|said| Some(Heard::FromStream(said)));
    let stored = stored.chain(stream::iter([Some(Heard::NoStream)]));
    // In turn and not by chance: neither can crowd out the other, and a simulation can be replayed.
    let mut heard = stream::select(plain, stored);
    let mut pump = Pump { routes: &routes, keeping, twins: Twins::new(Instant::now()), has_stream: true, kept: 0 };
    loop {
        let due = pump.twins.due();
        tokio::select! {
            biased;
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                while let Some(command) = pump.twins.release(Some(Instant::now())) {
                    pump.routes.route(command, None);
                }
            }
            heard = heard.next() => match heard.flatten() {
                Some(Heard::Plainly(message)) => pump.hear(message),
                Some(Heard::FromStream(said)) => pump.told(said),
                Some(Heard::NoStream) => pump.has_stream = false,
                None => return,
            },
        }
    }
}

/// What the pump is given.
enum Heard {
    Plainly(Message),
    FromStream(FromStream),
    /// Nothing comes from a stream any more.
    NoStream,
}

struct Pump<'a> {
    routes: &'a Routes,
    keeping: watch::Receiver<(u64, Keeping)>,
    twins: Twins,
    /// There may be a stream at some time.
    has_stream: bool,
    /// What the stream had when its reading began.
    kept: u64,
}

impl Pump<'_> {
    fn told(&mut self, said: FromStream) {
        match said {
            FromStream::Message(stored) => self.read(stored),
            FromStream::At { position, kept } => {
                self.kept = kept;
                self.routes.reach(position);
            }
            FromStream::Gap => self.routes.miss_all(),
        }
    }

    fn hear(&mut self, message: Message) {
        // Commands wait only while the stream is read. Prints are kept in any case: the stream may have the message
        // before we are told that there is one.
        let is_kept = self.keeping.borrow().1 == Keeping::Reports;
        match self.routes.kind(&message) {
            Kind::Command if is_kept => {
                if let Some(command) = self.twins.hold(message, Instant::now()) {
                    self.routes.route(command, None);
                }
            }
            Kind::Report | Kind::Command if self.has_stream && !self.twins.hear(&message, Instant::now()) => {}
            Kind::Report | Kind::Command | Kind::Other => self.routes.route(message, None),
        }
    }

    fn read(&mut self, stored: Stored) {
        let Stored { sequence, at, message } = stored;
        let kind = self.routes.kind(&message);
        if matches!(kind, Kind::Report | Kind::Command) {
            let copy = self.twins.read(&message, at, Instant::now());
            // A command is not worth that doubt: heard twice it would be obeyed twice.
            if copy == Copy::News && (sequence > self.kept || kind == Kind::Command) {
                self.twins.expect(&message, Instant::now());
            }
            let hearing = match copy {
                Copy::News => Hearing::Late,
                Copy::Held => Hearing::Live,
                Copy::Repeat => Hearing::Before,
            };
            let place = self.routes.reached().filter(|_| kind == Kind::Command);
            let place = place.map(|reached| Place { position: Position { sequence, ..reached }, at, hearing });
            match copy {
                Copy::News => self.routes.make_good(message, place),
                Copy::Held => self.routes.route(message, place),
                // Of a report there is nothing to tell; of a command its place.
                Copy::Repeat if place.is_some() => self.routes.route(message, place),
                Copy::Repeat => {}
            }
        }
        self.routes.reach_on(sequence);
    }
}

/// Messages with their probes, as a stream.
fn raw(mut subscription: Subscription) -> impl stream::Stream<Item = Message> + Unpin {
    stream::poll_fn(move |cx| subscription.poll_raw(cx))
}

/// Lets every sink read its end, however the pump ends.
struct EndOfSinks<'a>(&'a Routes);

impl Drop for EndOfSinks<'_> {
    fn drop(&mut self) {
        self.0.forget_all();
    }
}

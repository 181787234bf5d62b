//! The pump: everything that is heard, plainly and from the stream, one after the other to where it belongs.
//!
//! One task, so that a place in the stream is never noted before the messages up to it stand in their queues.

use futures::{StreamExt, stream};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{
    Keeping, Place,
    reports::FromStream,
    routes::{Kind, Routes},
    twins::Twins,
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
    let mut pump = Pump { routes: &routes, keeping, twins: Twins::default(), has_stream: true };
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
                Some(Heard::FromStream(FromStream::Message(stored))) => pump.read(stored),
                Some(Heard::FromStream(FromStream::At(position))) => pump.routes.reach(position),
                Some(Heard::FromStream(FromStream::Gap)) => pump.routes.miss_all(),
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
}

impl Pump<'_> {
    fn hear(&mut self, message: Message) {
        let kind = self.routes.kind(&message);
        // Commands wait only while the stream is read. A report's print is kept in any case: the stream may have it before
        // we are told that there is one.
        let is_kept = self.keeping.borrow().1 == Keeping::Reports;
        match kind {
            Kind::Command if is_kept => {
                if let Some(command) = self.twins.hold(message, Instant::now()) {
                    self.routes.route(command, None);
                }
            }
            Kind::Report if self.has_stream && !self.twins.hear(&message, is_kept, Instant::now()) => {}
            Kind::Report | Kind::Command | Kind::Other => self.routes.route(message, None),
        }
    }

    fn read(&mut self, stored: Stored) {
        let Stored { sequence, at, message } = stored;
        let kind = self.routes.kind(&message);
        if matches!(kind, Kind::Report | Kind::Command) && self.twins.read(&message, Instant::now()) {
            let place = self.routes.reached().map(|reached| Place { position: Position { sequence, ..reached }, at });
            self.routes.make_good(message, place.filter(|_| kind == Kind::Command));
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

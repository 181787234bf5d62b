//! What goes wrong around a schedule in a storm, beside what befalls each call: links, servers, streams and processes.

use std::time::Duration;

use pmp::controller;
use rand::RngExt;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        fates::Sky,
        worker::hire,
        world::{Door, Role},
    },
    Inner, Stage,
};

impl Stage {
    /// The storm that was announced begins.
    pub fn brew(&self) {
        if let Sky::Storm(_) = self.0.sky {
            self.0.shared.fates.brew(self.0.sky);
        }
    }

    /// Links that go, an API server that is away, watches that end.
    pub(super) async fn storm(self) {
        let Inner { shared, api, .. } = &*self.0;
        loop {
            let (pause, what, length) = shared
                .fates
                .throw(|dice| (dice.random_range(100..8000), dice.random_range(0..14), dice.random_range(50..8000)));
            sleep(Duration::from_millis(pause)).await;
            let length = Duration::from_millis(length);
            match what {
                0..=2 => {
                    let door = self.operator();
                    self.blink(door, length);
                }
                3..=4 if !shared.fates.is_silence() => {
                    let doors = self.runtimes();
                    let at = shared.fates.throw(|dice| dice.random_range(0..doors.len()));
                    self.blink(doors[at].clone(), length);
                }
                5 => {
                    shared.trace.note(format_args!("the history is cut"));
                    api.compact();
                }
                6..=7 => {
                    shared.trace.note(format_args!("the API server is away for {} ms", length.as_millis() * 3));
                    shared.fates.outage(length * 3);
                }
                8 => {
                    shared.trace.note(format_args!("all links go at once"));
                    let doors = self.runtimes().into_iter().filter(|_| !shared.fates.is_silence());
                    for door in doors.chain([self.operator()]) {
                        self.blink(door, length);
                    }
                }
                9 => {
                    // Whoever is stopped in time stores what it knows, and the next one has less to ask.
                    shared.trace.note(format_args!("the operator is asked to stop"));
                    self.0.stop.lock().expect("nobody panics while holding it").cancel();
                }
                10..=11 if self.0.wipes => self.spoil_streams(length),
                12..=13 => self.clone().bury(),
                _ => {}
            }
        }
    }

    /// Streams are emptied by a server that restarts without its disk, deleted by somebody, or too full to take more.
    fn spoil_streams(&self, length: Duration) {
        let Inner { shared, nats, .. } = &*self.0;
        match shared.fates.throw(|dice| dice.random_range(0..3)) {
            0 => {
                shared.trace.note(format_args!("the bus restarts without what it kept"));
                nats.wipe();
                let doors = self.runtimes().into_iter().filter(|_| !shared.fates.is_silence());
                for door in doors.chain([self.operator()]) {
                    self.blink(door, length);
                }
            }
            1 => {
                shared.trace.note(format_args!("the streams are deleted"));
                nats.wipe();
            }
            _ => {
                shared.trace.note(format_args!("streams take nothing for {} ms", length.as_millis() * 3));
                nats.fill_up(length * 3);
            }
        }
    }

    /// A runtime dies, where that may be, and after a while another one comes in its place, which knows nothing.
    fn bury(self) {
        let Inner { shared, nats, .. } = &*self.0;
        let Some(script) = self.0.deaths else { return };
        let doors = self.runtimes();
        let (at, pause) = shared.fates.throw(|dice| (dice.random_range(0..doors.len()), dice.random_range(100..3000)));
        if doors[at].is_shut() {
            return;
        }
        shared.trace.note(format_args!("{} dies", doors[at]));
        shared.checks.died(doors[at].name());
        doors[at].shut();
        nats.forget(&doors[at]);
        tokio::spawn(async move {
            sleep(Duration::from_millis(pause)).await;
            let Inner { shared, nats, prefix, .. } = &*self.0;
            let name = format!("{}-again", doors[at]);
            shared.trace.note(format_args!("{name} is hired"));
            let door = hire(&name, nats, shared, prefix, script).await;
            self.0.runtimes.lock().expect("nobody panics while holding it")[at] = door;
        });
    }

    fn blink(&self, door: Door, length: Duration) {
        self.0.shared.trace.note(format_args!("the link of {door} goes for {} ms", length.as_millis()));
        self.0.nats.cut(&door);
        let nats = self.0.nats.clone();
        tokio::spawn(async move {
            sleep(length).await;
            nats.mend(&door);
        });
    }

    /// Somebody starts a second operator by mistake, again and again; each is killed after a while.
    pub(super) async fn rivals(self) {
        for number in 1.. {
            let (pause, life) = self.0.shared.fates.throw(|dice| (dice.random_range(0..20), dice.random_range(1..30)));
            sleep(Duration::from_secs(pause)).await;
            let door = Door::new(&format!("rival-{number}"), Role::Operator);
            self.0.shared.trace.note(format_args!("{door} starts"));
            let process = tokio::spawn(controller::run(self.options(&door), CancellationToken::new()));
            let _ = timeout(Duration::from_secs(life), door.shut_down()).await;
            door.shut();
            process.abort();
            self.0.nats.forget(&door);
            self.0.shared.trace.note(format_args!("{door} is dead"));
        }
    }
}

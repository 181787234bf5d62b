//! Runtimes: whatever executes phases. The SDK with which they are written, and the exec runtime made with it.
//!
//! A runtime hears offers on the bus, is granted attempts, does the work and reports. The rules of that (design, section
//! 7; `docs/runtimes.md` for other languages) are kept by [`start`] for the author of a [`Work`]: nothing begins before
//! the operator has granted it, nothing runs twice, silence is never mistaken for work, a report is said until somebody
//! has it, and what ended is known for an hour. The same code serves `pmp run` over the in-process bus, `pmp runtime`
//! and a runtime of your own on NATS.
//!
//! A runtime knows no Kubernetes and no engine state: only the messages. It must not decide order, retry or give up a
//! phase: that is the operator's.
//!
//! # Write your own
//!
//! One method does it, [`Work::run`]: it gets the phase as a [`Job`], a [`Handle`] to say what it is doing and to hear that it is
//! to stop, and answers with an [`Outcome`].
//!
//! ```
//! use std::borrow::Cow;
//!
//! use pmp::runtime::{Decline, Handle, Job, LogLevel, Outcome, Work};
//!
//! struct Greeter;
//!
//! impl Work for Greeter {
//!     fn kind(&self) -> Cow<'static, str> {
//!         "greeter".into()
//!     }
//!
//!     fn judge(&self, job: &Job) -> Result<(), Decline> {
//!         // A phase of somebody else's work, which nobody would do if it were taken here.
//!         if job.spec.contains_key("x-greet") { Ok(()) } else { Err(Decline("NoGreeting")) }
//!     }
//!
//!     async fn run(&self, job: &Job, handle: &Handle) -> Outcome {
//!         let Some(whom) = job.spec.get("x-greet").and_then(|value| value.as_str()) else {
//!             return Outcome::failed_for_good("x-greet is not a text"); // another attempt would be of no use
//!         };
//!         handle.progress("1/1");
//!         tokio::select! {
//!             () = tokio::time::sleep(std::time::Duration::from_millis(10)) => {} // the work
//!             () = handle.cancelled() => return Outcome::Cancelled,
//!         }
//!         handle.log(LogLevel::Info, &format!("hello {whom}")).await;
//!         Outcome::complete()
//!     }
//! }
//!
//! # use std::{sync::Arc, time::Duration};
//! # use pmp::{bus::{Bus, Inbound, InboundMessage}, engine::{Output, Session, Settings, Strategy, Verdict}, manifest,
//! #     protocol::{Prefix, SessionId}, runtime::{Options, start}, sessions};
//! # struct Nobody;
//! # impl sessions::Listener for Nobody {
//! #     fn hear(&mut self, _: &Output, _: &Session) {}
//! #     fn pass_on(&mut self, _: InboundMessage) {}
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bus = Bus::memory(); // or Bus::connect(ConnectOptions::new(["nats://localhost:4222"])).await?
//! let runtime = start(bus.clone(), Options::new("greeter"), Greeter).await?;
//! # // What an operator does with a manifest of two phases, to the verdict.
//! # let text = br#"[{"kind": "Phase", "id": "a", "spec": {"x-greet": "world"}},
//! #     {"kind": "Phase", "id": "b", "spec": {"waitFor": ["a"], "x-greet": "moon"}}]"#;
//! # let document = manifest::parse(text, manifest::Format::Json, manifest::OtherKinds::Refuse).expect("it is valid");
//! # let (prefix, clock) = (Prefix::default(), sessions::Clock::System);
//! # let session = Session::start("uid", Arc::new(document.plan), 1, Strategy::Hybrid, Settings::default(), clock.now());
//! # let (picture, mut seen) = tokio::sync::watch::channel(Arc::new(session.record()));
//! # let inbound = Inbound::run(bus.clone(), prefix.clone(), "here".to_owned()).await?;
//! # let start = sessions::Start { session, id: SessionId::new("s1")?, prefix, origin: sessions::Origin("here".to_owned()),
//! #     generation: 1, orders: Vec::new(), past: sessions::Past::None, position: None, clock };
//! # let task = sessions::spawn(bus, &inbound, start, sessions::LocalStore(picture), Nobody);
//! # let verdict = seen.wait_for(|record| record.verdict.is_some()).await?.verdict;
//! # assert_eq!(verdict, Some(Verdict::Succeeded));
//! // ... until a signal says so:
//! let drained = runtime.drain(Duration::from_secs(20)).await;
//! assert_eq!(drained.unsaid, 0); // every end was reported
//! # Ok(())
//! # }
//! ```
//!
//! Heartbeats, grants, repeated offers, cancels, reconnects and lost reports need nothing from it. What it should know:
//!
//! - **An attempt is begun at most once by any number of runtimes, but it may be cut off anywhere**: a machine ends, and
//!   the next attempt begins elsewhere if the phase has tries left. Work whose effect must not happen twice keeps
//!   [`Job::token`], which is another for each attempt, beside [`Job::phase`], which is not.
//! - **[`Handle::cancelled`] is not optional for long work.** A phase is taken back when somebody cancels it, when it
//!   runs out of its time, and when this process drains. Work that does not stop keeps its slot.
//! - **Work that panics is a failed attempt**, with the text of the panic as its message. The runtime goes on.
//! - **Blocking work belongs on a thread of its own** (`tokio::task::spawn_blocking`), or heartbeats stop and the attempt
//!   is lost. It may have a clone of the [`Handle`], and should look at [`Handle::is_cancelled`].
//! - **A phase for others is declined by [`Work::judge`]**, which is asked before the operator is; a runtime whose judgment
//!   differs from that of its peers gives a [`Work::kind`] of its own.
//!
//! # How it stands
//!
//! [`Runtime::standing`] tells whether offers are heard. [`Runtime::drain`] is how it ends. Dropping a [`Runtime`] is a
//! crash, as far as the operator is concerned: what runs is dropped where it stands, nothing is said of it, and the
//! operator notices the silence.
//!
//! # Test it
//!
//! [`Trial`] is an attempt without a bus: a [`Job`] and a [`Handle`] for [`Work::run`] alone.
//!
//! # Inside
//!
//! ```text
//! target -> ledger: seen before? -> a free slot -> ack (request) -> granted -> Work::run -> state, until it is taken
//! ```
//!
//! `ledger` is the book of what is held and what ended, `wire` the only file that knows messages, `attempt` one attempt
//! from offer to report, `keeping` whether a stream confirms reports, `link` what to do when the connection changes.

mod attempt;
pub mod exec;
mod keeping;
mod labels;
mod ledger;
mod link;
mod options;
mod serve;
#[cfg(test)]
mod tests;
mod trial;
mod wire;
mod work;

pub use exec::{Exec, NOTHING_TO_RUN};
pub use labels::{LabelError, Labels};
pub use options::{Drained, Options, Standing};
pub use serve::{Runtime, start};
pub use trial::Trial;
pub use work::{Decline, Handle, Job, LINE_BYTES_MAX, LINES_BURST, LINES_PER_SECOND, Outcome, TEXT_BYTES_MAX, Work};

/// What the words of a [`Work`] are made of.
pub use crate::{
    engine::{AttemptToken, RetryAdvice},
    manifest::PhaseId,
    protocol::{LogLevel, Prefix, SessionId},
};

/// Runs the Rust of the document as tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/runtimes.md")]
struct Document;

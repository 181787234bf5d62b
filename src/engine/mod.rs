//! What happens next: a session as a pure state machine.
//!
//! PURE: no IO, no clock, no async, no randomness but a seed it is given. [`Session::handle`] takes an [`Input`] and the
//! time; [`Session::poll_output`] says what to do; [`Session::poll_timeout`] says when to call again. One contract:
//! **after every `handle` the outputs are drained before the next**. Stale, duplicate, out-of-order, unknown and
//! malformed inputs become notes: never a panic, never another verdict.
//!
//! The invariants that the model test holds against random schedules (`tests/it/model`): no phase is offered before its
//! waits are satisfied; at most one open attempt a phase; attempts never exceed `maxAttempts` within a run; a finished
//! phase is never offered again within its run; all targets of one token say the same; handlers once per (phase, run);
//! the verdict is reached if runtimes answer in the end; `restore(record(s))` behaves as `s`.
//!
//! `make guards` breaks one guard of this module at a time and shows that the model test catches each.

#![deny(clippy::disallowed_methods)]

mod edit;
mod graph;
mod io;
mod offers;
mod outcome;
mod phase;
mod record;
mod reports;
mod session;
mod settings;
mod steering;
mod timing;

pub use graph::{critical_path, waves};
pub use io::*;
pub use phase::*;
pub use record::*;
pub use session::Session;
pub use settings::*;

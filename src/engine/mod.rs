//! What happens next: a session as a pure state machine.
//!
//! PURE: no IO, no clock, no async, no randomness but a seed it is given. [`Session::handle`] takes an [`Input`] and the
//! time; [`Session::poll_output`] says what to do; [`Session::poll_timeout`] says when to call again. One contract:
//! **after every `handle` the outputs are drained before the next**. Stale, duplicate, out-of-order, unknown and
//! malformed inputs become notes: never a panic, never another verdict.

mod io;
mod phase;
mod record;
mod settings;

pub use io::*;
pub use phase::*;
pub use record::*;
pub use settings::*;

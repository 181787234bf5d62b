//! Runtimes: whatever executes phases. The SDK, and the exec runtime made with it.
//!
//! [`start`] listens for targets and commands on a [`crate::bus::Bus`] and keeps the rules of design section 7 for the
//! author of a [`Work`]: nothing begins before the operator has granted it, nothing runs twice, silence is never
//! mistaken for work, what ended is known for an hour. The same code serves `pmp run` over the in-process bus and a
//! runtime on NATS.
//!
//! A runtime knows no Kubernetes and no engine state: only the messages. It must not decide order, retry or give up a
//! phase: that is the operator's.
//!
//! ```text
//! target -> ledger: seen before? -> a free slot -> ack (request) -> granted -> Work::run -> state
//! ```

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
mod wire;
mod work;

pub use exec::{Exec, NOTHING_TO_RUN};
pub use labels::{LabelError, Labels};
pub use options::{Drained, Options, Standing};
pub use serve::{Runtime, start};
pub use work::{Decline, Handle, Job, LINES_BURST, LINES_PER_SECOND, Outcome, Work};

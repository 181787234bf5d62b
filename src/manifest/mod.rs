//! The document: what people write, made into a [`Plan`] or into a list of everything that is wrong with it.
//!
//! PURE: no IO, no clock, no async, nothing of the rest of the product. [`dialect`] is the only forgiving code there is.

mod canonical;
mod dialect;
mod diff;
mod digest;
mod duration;
mod phase;
mod plan;
mod problem;
mod source;
mod validate;

pub use digest::Digest;
pub use phase::*;
pub use plan::{GraphError, PhaseIx, Plan};
pub use problem::{Place, Problem, Reason};

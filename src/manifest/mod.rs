//! The document: what people write, made into a [`Plan`] or into a list of everything that is wrong with it.
//!
//! PURE: no IO, no clock, no async, nothing of the rest of the product. In the order in which data flows:
//!
//! | file | is |
//! |---|---|
//! | `source` | JSON, YAML or stored values as one tree that forgets nothing; limits on size and nesting |
//! | `places` | where in the text the n-th value stands, looked up only for problems |
//! | `spelling`, `fields` | which field a key means; taking objects apart; what is wrong with a value |
//! | `dialect`, `handler` | a tree as a [`Phase`]: the only forgiving code in the product |
//! | `duration`, `label` | the two small syntaxes inside |
//! | `plan` | phases that fit together: the graph, its order, its cycles |
//! | `validate` | the way in: [`parse`] and [`from_values`], which put the above together |
//! | `problem` | what is answered when it does not work out |
//! | `canonical`, `digest` | the one spelling of a phase, and when two are the same |
//! | `diff` | what an edit changes |
//! | [`limits`] | every bound, with its estimate |
#![deny(clippy::disallowed_methods)]

mod canonical;
mod canonical_text;
mod dialect;
mod diff;
mod digest;
mod duration;
mod fields;
mod handler;
mod label;
pub mod limits;
mod phase;
mod places;
mod plan;
mod problem;
mod source;
mod spelling;
#[cfg(test)]
mod tests;
mod validate;

pub use diff::{ChangedPhase, Diff, Edge, diff};
pub use digest::{Digest, DigestError};
pub use duration::{DURATION_MAX, DurationError, format_duration, parse_duration};
pub use phase::*;
pub use plan::{GraphError, PhaseIx, Plan};
pub use problem::{Place, Problem, Reason};
pub use source::Format;
pub use validate::{Document, Ignored, OtherKinds, Resource, from_values, parse, parse_judging};
pub(crate) use {fields::escaped, spelling::nearest_field};

//! What the operator does with resources.

pub mod accept;
pub mod answers;
pub mod call;
pub mod claim;
pub mod commands;
pub mod events;
pub mod labels;
mod options;
pub mod revision;

pub use options::{Options, Scope, Selector, SelectorError};

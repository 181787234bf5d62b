//! What the operator does with resources.

pub mod accept;
pub mod call;
pub mod claim;
pub mod revision;

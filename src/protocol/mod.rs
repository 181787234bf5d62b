//! Everything that crosses NATS, written once: subjects, messages, header names.
//!
//! DATA: shapes, their bounds and their spelling. No connection, no clock, no decision about what a message means for a
//! session: [`crate::bus`] carries these, [`crate::engine`] judges them. Tolerant of what the protocol leaves open
//! (unknown fields are ignored), strict about what it does not: what cannot be read is a typed [`MessageError`], which
//! the caller counts and drops.

pub mod headers;
mod messages;
mod subjects;
mod wire;

pub use messages::*;
pub use subjects::{Channel, Prefix, PrefixError, SESSION_ID_BYTES_MAX, SessionId, SessionIdError};
pub use wire::{BODY_BYTES_MAX, MessageError, NAME_BYTES_MAX, TEXT_BYTES_MAX};

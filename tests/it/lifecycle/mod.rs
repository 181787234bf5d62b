//! What becomes of sessions when processes, servers and people interfere: the real operator, runtime and servers.
//!
//! Every phase that ends writes its id into one file, so that "nothing ran twice" is counted where the work is done.

pub(crate) mod bed;
mod crash;
mod edits;
mod outages;
mod scope;
mod steering;
mod streams;

//! A session task: the engine, the bus, the clock and a store, tied together. The operator and `pmp run` run the same
//! one over different buses and stores.
//!
//! In the order in which things flow: [`Order`]s and bus messages come in, `task` feeds the engine, `speech` turns what
//! it says into messages, a [`Store`] keeps the [`Picture`]. A task lives as long as its session runs: it ends when the
//! verdict is stored, when another process took the session over, or when it is told to.
//!
//! No decision is made here: what to offer, whom to believe and when a session is over is the engine's word.

mod clock;
mod contest;
mod kubernetes;
mod local;
mod pace;
mod speech;
mod store;
mod task;

pub use clock::Clock;
pub use kubernetes::{Keeper, KubernetesStore};
pub use local::LocalStore;
pub use pace::Pacing;
pub use store::{Hold, Picture, Refused, Store, StoreError};
pub use task::{End, EndWatch, Handle, Listener, Order, Origin, Past, Start, spawn};

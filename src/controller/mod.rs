//! The operator: resources in, sessions run, status and Events out.
//!
//! Reconcile is a pipeline, one file a stage: `accept` judges the spec, `claim` decides who has the session id,
//! `revision` keeps the plan, `reconcile` hands it to its session task or writes with `standing` why not. Beside it
//! `listener` makes Events and labels of what sessions say, `responder` answers requests from the bus, and `command_queue`
//! writes `commands` into the spec (each once, by its `identity`). `roster` is the only state that they share. `view` is
//! what the rest of the process may see of the cluster.

pub mod accept;
pub mod answers;
pub mod call;
pub mod claim;
mod command_queue;
pub mod commands;
pub mod events;
pub mod heart;
mod identity;
pub mod labels;
mod listener;
mod options;
mod reconcile;
mod remains;
mod responder;
pub mod revision;
mod rivals;
mod roster;
mod run;
mod standing;
mod sweep;
mod trigger;
mod view;

pub use options::{Options, Scope, Selector, SelectorError};
pub use run::{Error, run};
pub use view::{Change, View};

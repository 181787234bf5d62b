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

use tokio_util::sync::CancellationToken;

pub use options::{Options, Scope, Selector, SelectorError};

use crate::bus::{self, Bus};

/// Why the operator cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the NATS connection")]
    Bus(#[source] bus::Error),
}

/// Runs the operator until `stop`.
pub async fn run(options: Options, stop: CancellationToken) -> Result<(), Error> {
    let _resources = options.heart.gate("resources");
    let _bus = Bus::connect(options.bus).await.map_err(Error::Bus)?;
    stop.cancelled().await;
    Ok(())
}

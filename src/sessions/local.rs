//! The store of `pmp run`: whoever watches. Nothing outlives the process, so everything is stored as soon as it is seen.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    pace::Pacing,
    store::{Picture, Store, StoreError},
};
use crate::engine::Record;

/// Shows each picture to a watcher.
#[derive(Debug)]
pub struct LocalStore(pub watch::Sender<Arc<Record>>);

impl Store for LocalStore {
    fn save(&mut self, picture: Picture) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
        self.0.send_replace(picture.record);
        Box::pin(std::future::ready(Ok(())))
    }

    /// A picture is a copy of every row: 20 a second are as many as a person sees.
    fn pacing(&self) -> Pacing {
        Pacing { least: Duration::from_millis(50), times_last: 10, most: Duration::from_millis(500) }
    }
}

//! Work on whole manifests: a few at a time, and off the threads that answer others.

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::fault::Fault;

/// At a time: a manifest of 1 MiB may take a second of a core and 100 MiB.
const PARSERS_MAX: usize = 2;

/// How long one may wait for others.
const PATIENCE: Duration = Duration::from_secs(10);

/// The places where manifests are read and written out.
pub struct Parsers(Arc<Semaphore>);

impl Default for Parsers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(PARSERS_MAX)))
    }
}

impl Parsers {
    /// 503 where none comes free for long.
    pub async fn place(&self) -> Result<Place, Fault> {
        match timeout(PATIENCE, Arc::clone(&self.0).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Place { _permit: permit }),
            _ => Err(Fault::unavailable("Busy", "too many manifests are being read: ask again")),
        }
    }
}

/// One of them.
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// Holds the place until the work is done, also where nobody waits for it any more.
    pub async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(self);
            done
        });
        done.await.map_err(|error| {
            tracing::error!(%error, "work on a manifest panicked");
            let detail = "the manifest cannot be read; this is a defect of the gateway";
            Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "Defect", detail)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_that_nobody_waits_for_keeps_its_place() {
        let parsers = Parsers::default();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let work = parsers.place().await.unwrap().run(move || wait.recv().ok());
        // Asked for, and given up at once.
        assert!(futures::poll!(std::pin::pin!(work)).is_pending());
        assert_eq!(parsers.0.available_permits(), PARSERS_MAX - 1);
        drop(go);
        let both = [parsers.place().await.unwrap(), parsers.place().await.unwrap()];
        drop(both);
    }
}

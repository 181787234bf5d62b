//! Reading a body: so many bytes, in so much time, and of all bodies together never more than there is room for.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use futures::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::fault::Fault;

/// From the first byte of a body to its last: 1 MiB at 70 kB/s.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// Of all bodies that were taken and not worked through yet: 32 of the largest, by default.
const ROOM_BYTES: usize = 32 << 20;

/// At least so many of the largest, where larger ones are allowed.
const LARGEST_MIN: usize = 4;

/// What one place in the room stands for.
const PLACE_BYTES: usize = 1 << 10;

/// How long a body may wait for room.
const ROOM_TIMEOUT: Duration = Duration::from_secs(3);

/// For requests that have no body to speak of.
const IGNORED_BYTES_MAX: usize = 1024;

/// The room for bodies. It is taken as bytes arrive, so a client that only announces many takes none.
pub struct Bodies(Arc<Semaphore>);

/// A body, and its place in the room until it is dropped.
pub struct Taken {
    bytes: Vec<u8>,
    place: Option<OwnedSemaphorePermit>,
}

impl Taken {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn places(&self) -> usize {
        self.place.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }
}

impl Bodies {
    /// With room for some of the largest that are allowed.
    pub fn new(bytes_max: usize) -> Self {
        let room = ROOM_BYTES.max(bytes_max.saturating_mul(LARGEST_MIN));
        Self(Arc::new(Semaphore::new((room / PLACE_BYTES).min(Semaphore::MAX_PERMITS))))
    }

    /// All of it, or why not: 413 past the bound, 408 when it comes too slowly, 400 when it breaks off, 503 where there is
    /// no room.
    pub async fn read(&self, headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Taken, Fault> {
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|size| size > bytes_max as u64) {
            return Err(too_large(bytes_max));
        }
        let all = async {
            let mut stream = body.into_data_stream();
            let mut taken = Taken { bytes: Vec::new(), place: None };
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.map_err(|_| Fault::bad_request("BodyBroken", "the body broke off"))?;
                let length = taken.bytes.len() + chunk.len();
                if length > bytes_max {
                    return Err(too_large(bytes_max));
                }
                self.make_room(&mut taken, length).await?;
                taken.bytes.extend_from_slice(&chunk);
            }
            Ok(taken)
        };
        timeout(READ_TIMEOUT, all).await.unwrap_or_else(|_| {
            let detail = format!("the body did not arrive within {} s", READ_TIMEOUT.as_secs());
            Err(Fault::new(StatusCode::REQUEST_TIMEOUT, "BodyTimeout", detail))
        })
    }

    /// For requests that have no body to speak of: small ones are read and passed over.
    pub async fn ignore(&self, headers: &HeaderMap, body: Body) -> Result<(), Fault> {
        self.read(headers, body, IGNORED_BYTES_MAX).await.map(drop)
    }

    /// For so many bytes together.
    async fn make_room(&self, taken: &mut Taken, length: usize) -> Result<(), Fault> {
        let more = length.div_ceil(PLACE_BYTES).saturating_sub(taken.places());
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more).map_err(|_| too_large(length))?;
        let Ok(Ok(more)) = timeout(ROOM_TIMEOUT, Arc::clone(&self.0).acquire_many_owned(more)).await else {
            return Err(Fault::unavailable("Busy", "too many bodies are being read: ask again"));
        };
        match &mut taken.place {
            Some(place) => place.merge(more),
            place => *place = Some(more),
        }
        Ok(())
    }
}

fn too_large(bytes_max: usize) -> Fault {
    let detail = format!("the body is larger than {bytes_max} bytes: put a larger manifest into a ConfigMap");
    Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bodies_together_take_no_more_room_than_there_is() {
        let bodies = Bodies(Arc::new(Semaphore::new(3)));
        let headers = HeaderMap::new();
        let read = |bytes: usize| bodies.read(&headers, Body::from(vec![b' '; bytes]), 10_000);
        let one = read(2_000).await.unwrap();
        assert_eq!(one.places(), 2);
        let fault = read(2_000).await.err().unwrap();
        assert_eq!((fault.status(), fault.reason()), (StatusCode::SERVICE_UNAVAILABLE, "Busy"));
        read(1_000).await.unwrap();
        drop(one);
        assert_eq!(read(3_000).await.unwrap().bytes().len(), 3_000);
        assert_eq!(bodies.0.available_permits(), 3);
    }
}

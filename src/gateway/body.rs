//! Reading a body: so many bytes, in so much time, and never more than that in memory.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use futures::StreamExt;

use super::fault::Fault;

/// From the first byte of a body to its last: 1 MiB at 70 kB/s.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// All of it, or why not: 413 past the bound, 408 when it comes too slowly, 400 when it breaks off.
pub async fn read(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Vec<u8>, Fault> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|size| size > bytes_max as u64) {
        return Err(too_large(bytes_max));
    }
    let all = async {
        let mut stream = body.into_data_stream();
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|_| Fault::bad_request("BodyBroken", "the body broke off"))?;
            if bytes.len() + chunk.len() > bytes_max {
                return Err(too_large(bytes_max));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    tokio::time::timeout(READ_TIMEOUT, all).await.unwrap_or_else(|_| {
        let detail = format!("the body did not arrive within {} s", READ_TIMEOUT.as_secs());
        Err(Fault::new(StatusCode::REQUEST_TIMEOUT, "BodyTimeout", detail))
    })
}

fn too_large(bytes_max: usize) -> Fault {
    let detail = format!("the body is larger than {bytes_max} bytes: put a larger manifest into a ConfigMap");
    Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", detail)
}

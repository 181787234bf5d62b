//! What one client can use up: bytes, time, requests, connections.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{Front, SOON, client::raw, phase};

#[tokio::test]
async fn a_body_past_the_bound_is_refused_whether_announced_or_not() {
    let front = Front::with("body", &["--gateway-body-bytes-max", "10000"]).await;
    let large = json!([{"kind": "Phase", "id": "a", "spec": {"x-data": "x".repeat(20_000)}}]);
    assert_eq!(front.submit("s", &large).await.problem(413), "TooLarge");
    let announced = b"POST /plan HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n";
    assert_eq!(raw(front.address, announced).await.unwrap().problem(413), "TooLarge");
    let mut chunked =
        b"POST /plan HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    // The tenth is too much, and nothing more is sent that might cut the answer off.
    for _ in 0..10 {
        chunked.extend_from_slice(format!("400\r\n{}\r\n", " ".repeat(0x400)).as_bytes());
    }
    assert_eq!(raw(front.address, &chunked).await.unwrap().problem(413), "TooLarge");
    front.submit("s", &json!([phase("a", &[])])).await.expect(200);
}

#[tokio::test]
async fn a_slow_body_is_given_up_and_the_others_are_answered_meanwhile() {
    let front = Front::new("slow").await;
    let mut slow = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(front.address).await.unwrap();
        stream
            .write_all(b"POST /plan HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n[")
            .await
            .unwrap();
        slow.push(stream);
    }
    let began = Instant::now();
    front.submit("s", &json!([phase("a", &[])])).await.expect(200);
    assert!(began.elapsed() < Duration::from_secs(5), "a good request took {:?}", began.elapsed());
    for stream in &mut slow {
        let mut text = Vec::new();
        timeout(SOON, stream.read_to_end(&mut text)).await.expect("the gateway hangs up").ok();
        assert!(text.is_empty() || text.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&text));
    }
}

#[tokio::test]
async fn silent_and_half_open_connections_are_hung_up_on() {
    let front = Front::new("silent").await;
    let mut streams = Vec::new();
    for text in ["", "G", "GET /status HTTP/1.1\r\nHost: lo", "POST /plan HTTP/1.1\r\nHost: localhost\r\n"] {
        for _ in 0..25 {
            let mut stream = TcpStream::connect(front.address).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            streams.push(stream);
        }
    }
    for stream in &mut streams {
        let mut text = Vec::new();
        timeout(SOON, stream.read_to_end(&mut text)).await.expect("the gateway hangs up").ok();
    }
    assert_eq!(front.get("/health").await.code, 200);
}

#[tokio::test]
async fn a_flood_is_told_to_slow_down_and_is_answered_later() {
    let front = Front::with("flood", &["--gateway-peer-rate", "5"]).await;
    let mut refused = None;
    for _ in 0..200 {
        let answer = front.get("/health").await;
        if answer.code == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("a flood is refused");
    assert_eq!(refused.problem(429), "TooManyRequests");
    assert_eq!(refused.header("retry-after"), Some("1"));
    crate::support::eventually(SOON, "it is answered again", async || {
        (front.call("GET", "/health").try_send().await?.code == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_client_that_asks_and_never_reads_is_hung_up_on_and_one_that_reads_is_not() {
    let front = Front::new("unread").await;
    let large = json!([{"kind": "Phase", "id": "a", "spec": {"x-data": "x".repeat(900_000)}}]);
    front.submit("s", &large).await.expect(200);
    // More than sockets hold for somebody who does not read.
    let asked = 40;
    let request = b"GET /plan?session=s HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(asked);
    let mut silent = TcpStream::connect(front.address).await.unwrap();
    silent.write_all(&request).await.unwrap();
    let mut reader = TcpStream::connect(front.address).await.unwrap();
    reader.write_all(&request).await.unwrap();
    let mut events = front.call("GET", "/status?session=s").header("Accept", "text/event-stream").events().await;
    assert_eq!(events.next().await.unwrap().kind, "state");
    let mut read = 0;
    let mut buffer = vec![0; 1 << 20];
    while read < asked * 900_000 {
        let count = timeout(SOON, reader.read(&mut buffer)).await.expect("it is answered").unwrap();
        assert!(count > 0, "who reads is answered to the end: {read} bytes");
        read += count;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(Duration::from_secs(35)).await;
    let mut left = Vec::new();
    timeout(SOON, silent.read_to_end(&mut left)).await.expect("the gateway has hung up").ok();
    assert!(left.len() < asked * 900_000, "{} bytes were kept for nobody", left.len());
    // The stream of events was silent and is open.
    front.post("/phases/a/skip?session=s").await.expect(202);
    assert_eq!(events.next().await.unwrap().kind, "change");
}

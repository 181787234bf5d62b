//! Two thousand bad inputs, written by hand and generated from a seed: every one is a 4xx problem or a closed connection,
//! and none leaves anything behind.

mod inputs;

use std::fs;

use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use self::inputs::inputs;
use super::{
    Front,
    client::{Answer, raw},
    phase,
};

/// What the process may have grown by at the end: allocators keep what was used once.
const GROWTH_KIB_MAX: u64 = 64 << 10;
/// What it may have had at any moment.
const PEAK_KIB_MAX: u64 = 500 << 10;

fn is_refused(answer: Option<&Answer>) -> bool {
    let Some(answer) = answer else { return true };
    // What is no HTTP is answered by the parser, which knows no problems.
    let is_problem = answer.header("content-type") == Some("application/problem+json") || answer.body.is_empty();
    (400..500).contains(&answer.code) && is_problem
}

fn memory_kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn two_thousand_bad_inputs_are_each_refused_and_leave_nothing_behind() {
    let front = Front::with("bad", &["--gateway-peer-rate", "100000", "--gateway-rate", "100000"]).await;
    let inputs = inputs(&front);
    assert!(inputs.len() >= 2_000, "{}", inputs.len());
    let pid = front.operator.pid();
    // What any load leaves in an allocator is no leak: measured from after the worst of them.
    for input in inputs.iter().filter(|input| input.what.contains("bomb") || input.what.contains("many")) {
        raw(front.address, &input.bytes).await;
    }
    let before = memory_kib(pid, "VmRSS");
    let mut open = Vec::new();
    for (n, input) in inputs.iter().enumerate() {
        if n % 20 == 0 {
            // Half a request, held open meanwhile.
            let mut half = TcpStream::connect(front.address).await.unwrap();
            half.write_all(&input.bytes[..input.bytes.len() / 2]).await.ok();
            open.push(half);
        }
        let answer = raw(front.address, &input.bytes).await;
        assert!(is_refused(answer.as_ref()), "{}: {answer:?}", input.what);
    }
    drop(open);
    assert_eq!(front.get("/health").await.code, 200);
    front.submit("good", &json!([phase("a", &[])])).await.expect(200);
    assert_eq!(front.all().await.len(), 1, "no bad input became a resource");
    let (after, peak) = (memory_kib(pid, "VmRSS"), memory_kib(pid, "VmHWM"));
    println!("{} bad inputs: {before} KiB before, {after} KiB after, {peak} KiB at most", inputs.len());
    assert!(after < before + GROWTH_KIB_MAX, "{before} KiB became {after} KiB");
    assert!(peak < PEAK_KIB_MAX, "{peak} KiB at most");
    let log = front.operator.stderr();
    assert!(!log.contains("panicked"), "{}", front.operator.tail());
}

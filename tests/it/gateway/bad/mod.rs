//! Two thousand bad inputs, written by hand and generated from a seed, one after the other and sixty-four at a time: every
//! one is a 4xx problem or a closed connection, and none leaves anything behind.

mod inputs;

use std::{fs, net::SocketAddr};

use futures::{StreamExt, stream};
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use self::inputs::{Input, inputs};
use super::{
    Front,
    client::{Outcome, exchange},
    phase,
};

/// What the process may have grown by at the end. Allocators keep what was used once, in an arena a thread: over seven waves
/// the process had 97 to 235 MiB, up and down; a leak of bodies alone would add more in three than this.
const GROWTH_KIB_MAX: u64 = 160 << 10;
/// What it may have had at any moment.
const PEAK_KIB_MAX: u64 = 500 << 10;

/// Sent together.
const AT_ONCE: usize = 64;

/// Or what came instead.
fn refused(outcome: &Outcome) -> Result<(), String> {
    let is_refused = match outcome {
        Outcome::Answer(answer) => {
            let is_problem = answer.header("content-type") == Some("application/problem+json")
                && answer.json()["status"] == answer.code;
            // What is no HTTP is answered by the parser, which knows no problems.
            let is_the_parser_s = answer.body.is_empty() && matches!(answer.code, 400 | 414 | 431);
            (400..500).contains(&answer.code) && (is_problem || is_the_parser_s)
        }
        Outcome::Closed => true,
        Outcome::Unreachable(error) => return Err(format!("nobody listens: {error}")),
        Outcome::Broken(said) => return Err(format!("it is neither answered nor closed: {said}")),
    };
    if is_refused { Ok(()) } else { Err(format!("{outcome:?}")) }
}

fn memory_kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn all_at_once(address: SocketAddr, inputs: &[Input]) {
    let wave = stream::iter(inputs).map(async |input| (input, exchange(address, &input.bytes).await));
    let mut wave = std::pin::pin!(wave.buffer_unordered(AT_ONCE));
    while let Some((input, outcome)) = wave.next().await {
        // Where so many are read already, one is told to come again.
        let is_busy =
            matches!(&outcome, Outcome::Answer(answer) if answer.code == 503 && answer.problem(503) == "Busy");
        if !is_busy {
            refused(&outcome).unwrap_or_else(|instead| panic!("{} among others: {instead}", input.what));
        }
    }
}

#[tokio::test]
async fn two_thousand_bad_inputs_are_each_refused_and_leave_nothing_behind() {
    let front = Front::with("bad", &["--gateway-peer-rate", "100000", "--gateway-rate", "100000"]).await;
    let inputs = inputs(&front);
    assert!(inputs.len() >= 2_000, "{}", inputs.len());
    let pid = front.operator.pid();
    // What any load leaves in an allocator is no leak: measured from after the worst there is.
    for _ in 0..2 {
        all_at_once(front.address, &inputs).await;
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
        let outcome = exchange(front.address, &input.bytes).await;
        refused(&outcome).unwrap_or_else(|instead| panic!("{}: {instead}", input.what));
    }
    for _ in 0..3 {
        all_at_once(front.address, &inputs).await;
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

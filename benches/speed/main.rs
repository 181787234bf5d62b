//! `make bench`: how fast manifests are walked, on real servers, beside what they could be at best.
//!
//! Everything is real: etcd that writes to its disk, the API server, nats-server with JetStream and without, the release
//! build of `pmp operator` as a process of its own, and Argo Workflows' controller where it was built. Only the work is
//! nothing: a runtime, made with our SDK, that is done as soon as it may begin. Figures are medians of several runs with
//! the least and the most, beside the floor of the same run and the part of the machine that others used.
//!
//! It judges nothing: what is good enough stands in docs/speed.md.

mod argo;
mod bed;
mod core;
mod floor;
mod idle;
mod load;
mod meter;
mod ours;
mod post;
mod report;
mod run;
mod stats;
#[allow(dead_code, unused_imports, reason = "the tests need more of the servers than the bench does")]
#[path = "../../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use clap::Parser;

use argo::Argo;
use bed::BusMode;
use idle::Rest;
use load::{LOADS, Load};
use report::{FloorRow, NOISE_MAX, Report, WalkRow};
use support::Cluster;

/// Like-for-like with a peer that loses steps which are done at once.
const PEER_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, Parser)]
struct Args {
    /// What to measure: floor, core, walk, peers, post, idle; default is all of it
    parts: Vec<String>,
    /// Only workloads whose name holds this
    #[arg(long, default_value = "")]
    load: String,
    /// Runs of each workload
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Runs of each workload under the peer, some of which take a minute
    #[arg(long, default_value_t = 3)]
    peer_runs: usize,
    /// Resources that are idle
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Seconds for which idle resources are watched
    #[arg(long, default_value_t = 30)]
    idle_seconds: u64,
    /// Seconds to wait for a quiet machine before each run
    #[arg(long, default_value_t = 60)]
    quiet_seconds: u64,
    /// One run of everything, and few idle resources: to see that the bench works, not how fast we are
    #[arg(long)]
    quick: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }

    fn loads(&self) -> impl Iterator<Item = &'static Load> {
        LOADS.iter().filter(|load| load.name.contains(&self.load))
    }
}

fn main() {
    let mut args = Args::parse();
    if args.quick {
        (args.runs, args.peer_runs, args.idle, args.idle_seconds, args.quiet_seconds) = (1, 1, 100, 5, 1);
    }
    let mut report = Report::new();
    if args.wants("core") {
        for phases in [1_000, 10_000, 100_000] {
            eprintln!("core alone, {phases} phases");
            report.core.push(core::measure(phases, args.runs));
        }
    }
    let tokio = tokio::runtime::Runtime::new().expect("the async runtime starts");
    if ["floor", "walk", "peers", "post", "idle"].iter().any(|part| args.wants(part)) {
        tokio.block_on(on_servers(&args, &mut report));
    }
    println!("{}", report.table());
    println!("as JSON: {}", report.write().display());
}

async fn on_servers(args: &Args, report: &mut Report) {
    let cluster = bed::cluster().await;
    if args.wants("floor") {
        let plain = BusMode::Plain.server().await;
        let floor = floor::request_reply(&plain.url, 3_000).await;
        report.floors.push(FloorRow { name: "NATS request and reply", floor });
        let streams = BusMode::Jetstream.server().await;
        let floor = floor::reply_through_stream(&streams.url, 3_000).await;
        report.floors.push(FloorRow { name: "NATS request, reply read through a stream", floor });
    }
    if args.wants("walk") {
        for mode in BusMode::ALL {
            let nats = mode.server().await;
            for load in args.loads() {
                let row = walk(args, &cluster, &nats, mode, load, Duration::ZERO, args.runs).await;
                report.walks.push(row);
            }
        }
    }
    if args.wants("peers") {
        peers(args, &cluster, report).await;
    }
    if args.wants("post") {
        match post::measure(&cluster, if args.quick { 20 } else { 300 }).await {
            Ok(rows) => report.posts.extend(rows),
            Err(why) => report.left_out.push(format!("POST /plan: {why}")),
        }
    }
    if args.wants("idle") {
        let nats = BusMode::Plain.server().await;
        for rest in [Rest::Finished, Rest::Suspended] {
            eprintln!("{} resources, {rest:?}", args.idle);
            let watch = Duration::from_secs(args.idle_seconds);
            report.idle.push(idle::measure(&cluster, &nats, rest, args.idle, watch).await);
        }
    }
}

/// Ours and Argo's runs by turns, so that a change of the machine's mood meets both.
async fn peers(args: &Args, cluster: &Cluster, report: &mut Report) {
    let peer = match Argo::set_up(cluster).await {
        Ok(peer) => peer,
        Err(why) => return report.left_out.push(format!("Argo Workflows: {why}")),
    };
    report.versions.push(("argo".to_owned(), peer.version.trim_start_matches('v').to_owned()));
    let nats = BusMode::Plain.server().await;
    for load in args.loads() {
        let mut ours = row("pmp", BusMode::Plain.as_str(), load, PEER_PAUSE);
        let mut theirs = row("argo", "tuned", load, PEER_PAUSE);
        for _ in 0..args.peer_runs {
            let one = walk(args, cluster, &nats, BusMode::Plain, load, PEER_PAUSE, 1).await;
            ours.runs.extend(one.runs);
            settle(args, &format!("{} under Argo", load.name)).await;
            theirs.runs.push(Box::pin(peer.measure(cluster, load, PEER_PAUSE)).await);
        }
        report.walks.extend([ours, theirs]);
    }
}

async fn walk(
    args: &Args,
    cluster: &Cluster,
    nats: &support::Nats,
    mode: BusMode,
    load: &Load,
    pause: Duration,
    runs: usize,
) -> WalkRow {
    let mut row = row("pmp", mode.as_str(), load, pause);
    for _ in 0..runs {
        settle(args, &format!("{} over {} NATS", load.name, mode.as_str())).await;
        row.runs.push(Box::pin(ours::measure(cluster, nats, mode, load, pause)).await);
    }
    row
}

fn row(system: &str, mode: &str, load: &Load, pause: Duration) -> WalkRow {
    WalkRow {
        system: system.to_owned(),
        mode: mode.to_owned(),
        load: load.name.to_owned(),
        steps: load.steps_total(),
        pause_ms: stats::millis(pause),
        runs: Vec::new(),
    }
}

/// Waits for a quiet machine, and says what comes.
async fn settle(args: &Args, what: &str) {
    let noise = meter::quiet(NOISE_MAX, Duration::from_secs(args.quiet_seconds)).await;
    eprintln!("{what}: others use {:.0} % of the machine", noise * 100.0);
}

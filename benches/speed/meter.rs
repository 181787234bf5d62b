//! What a run costs: CPU and memory of every process of it, what others used of the machine meanwhile, and the writes
//! that the API server counted.
//!
//! Linux only: it reads `/proc`. The servers are found as descendants of this process, so that nothing has to hand its
//! process id around.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

use kube::Client;
use serde::Serialize;

/// Of the clock in which `/proc` counts CPU time; Linux has shown 100 to user space for as long as it exists.
const TICKS_PER_SECOND: f64 = 100.0;

/// Resources whose writes belong to a run; the API server's own housekeeping does not.
const COUNTED: [&str; 7] =
    ["phasemanifests", "controllerrevisions", "events", "workflows", "workflowtaskresults", "workflowtasksets", "pods"];

/// CPU seconds used so far.
#[derive(Clone)]
pub struct CpuReading {
    at: Instant,
    /// By the program's name.
    ours: BTreeMap<String, f64>,
    everybody: f64,
}

/// CPU between two readings.
#[derive(Debug, Clone, Serialize)]
pub struct CpuUse {
    pub seconds: BTreeMap<String, f64>,
    /// The part of the whole machine that processes used which are no part of the run, from 0 to 1.
    pub noise: f64,
}

impl CpuReading {
    pub fn now() -> Self {
        let mut ours: BTreeMap<String, f64> = BTreeMap::new();
        for (pid, name) in family() {
            *ours.entry(name).or_default() += cpu_of(pid).unwrap_or_default();
        }
        Self { at: Instant::now(), ours, everybody: cpu_of_machine() }
    }

    /// What was used since `before`.
    pub fn since(&self, before: &Self) -> CpuUse {
        let mut seconds = self.ours.clone();
        for (name, earlier) in &before.ours {
            *seconds.entry(name.clone()).or_default() -= earlier;
        }
        seconds.retain(|_, used| *used > 0.0);
        let all = self.everybody - before.everybody;
        let capacity = (self.at - before.at).as_secs_f64() * cpus();
        let noise = ((all - seconds.values().sum::<f64>()) / capacity).clamp(0.0, 1.0);
        CpuUse { seconds, noise }
    }
}

/// So many processors as this process may use.
#[expect(clippy::cast_precision_loss, reason = "no machine has 2^52 processors")]
pub fn cpus() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64)
}

/// Memory of a process in MiB: resident now, and the most it ever was.
pub fn memory_mib(pid: u32) -> (f64, f64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_end_matches("kB").trim().parse::<f64>().unwrap_or(f64::NAN)
    };
    (kib("VmRSS:") / 1024.0, kib("VmHWM:") / 1024.0)
}

/// CPU seconds of one process, its threads included.
pub fn cpu_of(pid: u32) -> Option<f64> {
    let (fields, _) = stat(pid)?;
    // utime and stime are fields 14 and 15 of the line; the third is the first behind the name.
    let ticks = |n: usize| fields.get(n - 3)?.parse::<f64>().ok();
    Some((ticks(14)? + ticks(15)?) / TICKS_PER_SECOND)
}

/// This process and everything that it has started, by process id and name.
fn family() -> Vec<(u32, String)> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Some((fields, name)) = stat(pid) else { continue };
        let parent = fields.get(1).and_then(|text| text.parse::<u32>().ok()).unwrap_or_default();
        parents.insert(pid, (parent, name));
    }
    let own = std::process::id();
    let is_ours = |mut pid: u32| {
        while let Some((parent, _)) = parents.get(&pid) {
            if pid == own {
                return true;
            }
            pid = *parent;
        }
        false
    };
    parents.iter().filter(|(pid, _)| is_ours(**pid)).map(|(pid, (_, name))| (*pid, name.clone())).collect()
}

/// The fields of `/proc/<pid>/stat` behind the name, and the name.
fn stat(pid: u32) -> Option<(Vec<String>, String)> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, fields) = line.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    Some((fields.split_whitespace().map(str::to_owned).collect(), name.to_owned()))
}

/// CPU seconds that everybody used: user, nice, system, and interrupts; not idle, waiting for disks, or stolen.
fn cpu_of_machine() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<f64> =
        text.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    [0, 1, 2, 5, 6].into_iter().filter_map(|n| ticks.get(n)).sum::<f64>() / TICKS_PER_SECOND
}

/// Writes by verb and resource, as the API server counts them since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Writes(pub BTreeMap<String, u64>);

impl Writes {
    pub async fn read(client: &Client) -> Self {
        let request = axum::http::Request::get("/metrics").body(Vec::new()).expect("the request is a constant");
        let text = client.request_text(request).await.expect("the API server tells its metrics to an administrator");
        Self::in_metrics(&text)
    }

    fn in_metrics(text: &str) -> Self {
        let mut writes: BTreeMap<String, u64> = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
            let Some((labels, count)) = line.rsplit_once("} ") else { continue };
            let label = |name: &str| {
                let found = labels.split("\",").find_map(|pair| pair.strip_prefix(name)?.strip_prefix("=\""));
                found.unwrap_or_default().trim_end_matches('"')
            };
            let (verb, resource) = (label("verb"), label("resource"));
            if !["POST", "PUT", "PATCH", "APPLY", "DELETE"].contains(&verb) || !COUNTED.contains(&resource) {
                continue;
            }
            let name = match label("subresource") {
                "" => format!("{verb} {resource}"),
                sub => format!("{verb} {resource}/{sub}"),
            };
            *writes.entry(name).or_default() += count.trim().parse::<u64>().unwrap_or_default();
        }
        Self(writes)
    }

    pub fn since(&self, before: &Self) -> Self {
        let grown = self.0.iter().map(|(name, count)| (name.clone(), count - before.0.get(name).unwrap_or(&0)));
        Self(grown.filter(|(_, count)| *count > 0).collect())
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Without what the bench wrote itself, such as the objects that it created.
    pub fn without(mut self, name: &str, count: u64) -> Self {
        if let Some(counted) = self.0.get_mut(name) {
            *counted = counted.saturating_sub(count);
        }
        self.0.retain(|_, count| *count > 0);
        self
    }
}

/// Waits until others use less than this part of the machine, at most so long; says how much it was at the end.
pub async fn quiet(noise_max: f64, patience: Duration) -> f64 {
    let began = Instant::now();
    loop {
        let before = CpuReading::now();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let noise = CpuReading::now().since(&before).noise;
        if noise <= noise_max || began.elapsed() >= patience {
            return noise;
        }
    }
}

/// Whether this machine's network is nobody else's: a network namespace with nothing but loopback.
pub fn is_alone() -> bool {
    let devices = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let names: BTreeSet<&str> =
        devices.lines().filter_map(|line| line.split_once(':')).map(|(n, _)| n.trim()).collect();
    names == BTreeSet::from(["lo"])
}

//! What was measured, as a table for people and as JSON for machines.

use std::{fmt::Write as _, fs, path::PathBuf, process::Command};

use serde::Serialize;

use crate::{
    core::CoreRow, floor::Floor, idle::IdleRow, meter::cpus, post::PostRow, run::Figures, stats::Spread, support::tool,
};

/// Runs above this are marked in the table: strangers used so much of the machine.
pub const NOISE_MAX: f64 = 0.15;

/// Everything of one call of the bench.
#[derive(Serialize)]
pub struct Report {
    pub at: String,
    pub machine: Machine,
    pub versions: Vec<(String, String)>,
    pub floors: Vec<FloorRow>,
    pub core: Vec<CoreRow>,
    pub walks: Vec<WalkRow>,
    pub posts: Vec<PostRow>,
    pub idle: Vec<IdleRow>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
}

/// The class of the machine, and nothing by which it could be told from others of its class.
#[derive(Serialize)]
pub struct Machine {
    pub processors: f64,
    pub processor: String,
    pub memory_gib: f64,
    pub kernel: String,
}

#[derive(Serialize)]
pub struct FloorRow {
    pub name: &'static str,
    pub floor: Floor,
}

/// One workload under one system, over several runs.
#[derive(Serialize)]
pub struct WalkRow {
    pub system: String,
    pub mode: String,
    pub load: String,
    pub steps: usize,
    /// How long the runtime takes for a step.
    pub pause_ms: f64,
    pub runs: Vec<Figures>,
}

impl Report {
    pub fn new() -> Self {
        Self {
            at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%SZ").to_string(),
            machine: Machine::this(),
            versions: versions(),
            floors: Vec::new(),
            core: Vec::new(),
            walks: Vec::new(),
            posts: Vec::new(),
            idle: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Writes it below `target/bench` and gives the path from the checkout.
    pub fn write(&self) -> PathBuf {
        let path = PathBuf::from("target/bench").join(format!("{}.json", self.at));
        let whole = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(&path);
        let text = serde_json::to_string_pretty(self).expect("the report is JSON");
        fs::create_dir_all(whole.parent().expect("it stands in a folder")).expect("target/ is writable");
        fs::write(&whole, text).expect("target/ is writable");
        path
    }

    /// The tables, in Markdown.
    pub fn table(&self) -> String {
        let mut text = String::new();
        self.head(&mut text);
        self.floor_and_core(&mut text);
        self.walk_table(&mut text);
        self.post_table(&mut text);
        self.idle_table(&mut text);
        for line in &self.left_out {
            let _ = writeln!(text, "\nLeft out: {line}");
        }
        text
    }

    fn head(&self, text: &mut String) {
        let Machine { processors, processor, memory_gib, kernel } = &self.machine;
        let versions = self.versions.iter().map(|(name, version)| format!("{name} {version}"));
        let versions = versions.collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "{processors} x {processor}, {memory_gib:.0} GiB, Linux {kernel}\n{versions}");
    }

    fn floor_and_core(&self, text: &mut String) {
        if !self.floors.is_empty() {
            let _ = writeln!(text, "\n| floor | median ms | p99 ms |\n|---|---|---|");
        }
        for FloorRow { name, floor } in &self.floors {
            let _ = writeln!(text, "| {name} | {:.3} | {:.3} |", floor.median_ms, floor.p99_ms);
        }
        if !self.core.is_empty() {
            let _ = writeln!(
                text,
                "\n| core alone | parse CPU ms | walk CPU ms | together | us a phase |\n|---|---|---|---|---|"
            );
        }
        for row in &self.core {
            let [parse, walk, total] = [row.parse_ms, row.walk_ms, row.total_ms].map(|spread| shown(spread, 0));
            let each = row.total_ms.median * 1e3 / count(row.phases);
            let _ = writeln!(text, "| {} phases | {parse} | {walk} | {total} | {each:.1} |", row.phases);
        }
    }

    fn walk_table(&self, text: &mut String) {
        if self.walks.is_empty() {
            return;
        }
        let _ = writeln!(
            text,
            "\n| workload | system | step | runs (ok) | makespan ms | from the answer ms | hop ms (p99) | over floor | \
             controller CPU s | peak MiB | API writes | rows at start | noise |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
        );
        for row in &self.walks {
            let _ = writeln!(text, "{}", row.line());
        }
        let _ = writeln!(text, "\n| workload | system | writes, middle run |\n|---|---|---|");
        for row in &self.walks {
            let Some(run) = row.runs.get(row.runs.len() / 2) else { continue };
            let writes =
                run.writes.0.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, "| {} | {} {} | {writes} |", row.load, row.system, row.mode);
        }
    }

    fn post_table(&self, text: &mut String) {
        if !self.posts.is_empty() {
            let _ = writeln!(text, "\n| a manifest of 10 comes in | median ms | p99 ms |\n|---|---|---|");
        }
        for PostRow { what, median_ms, p99_ms } in &self.posts {
            let _ = writeln!(text, "| {what} | {median_ms:.1} | {p99_ms:.1} |");
        }
    }

    fn idle_table(&self, text: &mut String) {
        if !self.idle.is_empty() {
            let _ = writeln!(
                text,
                "\n| idle resources | settled after s | empty MiB | resident MiB | peak MiB | CPU s in s |\n|---|---|---|---|---|---|"
            );
        }
        for row in &self.idle {
            let rest = format!("{:?}", row.rest).to_lowercase();
            let _ = writeln!(
                text,
                "| {} {rest} | {:.0} | {:.0} | {:.0} | {:.0} | {:.2} in {:.0} |",
                row.resources, row.settle_s, row.empty_mib, row.resident_mib, row.peak_mib, row.cpu_s, row.watched_s
            );
        }
    }
}

impl WalkRow {
    fn line(&self) -> String {
        let good: Vec<&Figures> = self.runs.iter().filter(|run| run.ok).collect();
        let spread =
            |value: &dyn Fn(&Figures) -> f64| Spread::of(&good.iter().map(|run| value(run)).collect::<Vec<_>>());
        let hops: Vec<_> = good.iter().filter_map(|run| run.hop).collect();
        let hop = Spread::of(&hops.iter().map(|hop| hop.median_ms).collect::<Vec<_>>());
        let p99 = Spread::of(&hops.iter().map(|hop| hop.p99_ms).collect::<Vec<_>>()).median;
        let over = Spread::of(&hops.iter().filter_map(crate::run::Hop::over_floor).collect::<Vec<_>>());
        let hop = if hops.is_empty() { "-".to_owned() } else { format!("{} ({p99:.2})", shown(hop, 2)) };
        let over = if over.median.is_nan() { "-".to_owned() } else { shown(over, 1) };
        let rows =
            good.iter().filter_map(|run| run.rows_at_start).max().map_or("-".to_owned(), |rows| rows.to_string());
        let noise = good.iter().map(|run| run.noise).fold(0.0, f64::max);
        let mark = if noise > NOISE_MAX { " !" } else { "" };
        format!(
            "| {} | {} {} | {:.0} ms | {} ({}) | {} | {} | {hop} | {over} | {} | {} | {} | {rows} | {:.0} %{mark} |",
            self.load,
            self.system,
            self.mode,
            self.pause_ms,
            self.runs.len(),
            good.len(),
            shown(spread(&|run| run.makespan_ms), 0),
            shown(spread(&|run| run.after_answer_ms), 0),
            shown(spread(&|run| run.controller_cpu_s()), 2),
            shown(spread(&|run| run.controller_peak_mib), 0),
            shown(spread(&|run| run.writes_total()), 0),
            noise * 100.0,
        )
    }
}

impl Figures {
    /// Of the operator, or of its peer. Linux cuts names at 15 bytes.
    fn controller_cpu_s(&self) -> f64 {
        ["pmp", "workflow-contro"].iter().filter_map(|name| self.cpu_s.get(*name)).sum()
    }

    #[expect(clippy::cast_precision_loss, reason = "no run makes 2^52 writes")]
    fn writes_total(&self) -> f64 {
        self.writes.total() as f64
    }
}

/// `least / median / most`, or one figure where there was one run.
fn shown(spread: Spread, digits: usize) -> String {
    let Spread { min, median, max } = spread;
    if min.to_bits() == max.to_bits() {
        return format!("{median:.digits$}");
    }
    format!("{min:.digits$} / **{median:.digits$}** / {max:.digits$}")
}

#[expect(clippy::cast_precision_loss, reason = "no manifest has 2^52 phases")]
fn count(phases: usize) -> f64 {
    phases as f64
}

impl Machine {
    fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim_start_matches([' ', '\t', ':']).trim().to_owned()
        };
        let memory = after(&read("/proc/meminfo"), "MemTotal");
        let kib = memory.trim_end_matches("kB").trim().parse::<f64>().unwrap_or(f64::NAN);
        Self {
            processors: cpus(),
            processor: after(&read("/proc/cpuinfo"), "model name"),
            memory_gib: kib / 1024.0 / 1024.0,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// Of everything that takes part, as it says itself.
fn versions() -> Vec<(String, String)> {
    let mut versions = vec![("pmp".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
    for name in ["kube-apiserver", "etcd", "nats-server"] {
        let said = Command::new(tool(name)).arg("--version").output().map(|ran| ran.stdout).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let mut words = said.split_whitespace().map(|word| word.trim_start_matches('v'));
        let version = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        versions.push((name.to_owned(), version.unwrap_or("unknown").to_owned()));
    }
    versions
}

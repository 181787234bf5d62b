//! The real servers of the test bed, and what every test needs around them.
//!
//! It exists so that a test talks to the software that production talks to: one etcd, kube-apiserver and nats-server
//! a test binary, started when first asked for, a namespace or a subject prefix a test. A missing binary is a failure
//! that names `make testbed`, never a skipped test. It must not know anything of the product but where its binary is.
//!
//! Every process hangs on a leash (`testbed/leash`) and ends with the test binary, however that ends. Logs and data
//! stay in `<target>/tmp/run-<pid>` until the next run, for whoever has to find out what happened.

mod authority;
mod cluster;
mod nats;
mod passage;
mod ports;
mod process;
pub mod rust_paths;
mod slow_api;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub use authority::{Authority, Identity};
#[allow(unused_imports, reason = "tests have no use for it, the bench has")]
pub use cluster::keep_on_disk;
pub use cluster::{Cluster, cluster, own_cluster};
pub use nats::{Nats, NatsConfig, Tls, nats, shared_nats};
pub use passage::Passage;
pub use process::{Process, Signal, alive};
pub use slow_api::SlowApi;

/// How long a server may take from its start to its first answer. The API server needs 5 s on two idle cores; the rest
/// is for a machine that compiles something else meanwhile.
pub const START_DEADLINE: Duration = Duration::from_mins(2);

/// The product's binary, built by the same `cargo test`.
pub fn bin() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_pmp"))
}

/// The Python of the tests' own virtual environment, which can `import nats`.
pub fn python() -> PathBuf {
    existing(testbed().join("venv/bin/python"))
}

/// A binary of the test bed by its name. `KUBEBUILDER_ASSETS` goes first, as everywhere in the Kubernetes world.
pub fn tool(name: &str) -> PathBuf {
    if let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS") {
        let given = Path::new(&assets).join(name);
        if given.exists() {
            return given;
        }
    }
    existing(testbed().join("bin").join(name))
}

/// An empty directory of this run, below `<target>/tmp`.
pub fn scratch(name: &str) -> PathBuf {
    let dir = run_dir().join(unique(name));
    fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("cannot create {}: {error}", dir.display()));
    dir
}

/// `prefix-1`, `prefix-2`, ...: a name that no other test of this run gets.
pub fn unique(prefix: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(1);
    format!("{prefix}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Asks until the answer is `Some`, and fails the test when `deadline` has passed without one.
pub async fn eventually<T>(deadline: Duration, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        let left = deadline.saturating_sub(began.elapsed());
        match tokio::time::timeout(left, ask()).await {
            Ok(Some(answer)) => return answer,
            Ok(None) if began.elapsed() + pause < deadline => tokio::time::sleep(pause).await,
            Ok(None) | Err(_) => panic!("not within {deadline:?}: {what}"),
        }
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

fn testbed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/testbed")
}

fn existing(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing: run `make testbed` first, or `make test` for everything", path.display());
    path
}

/// The directory of this run. Runs whose process is gone are cleared away first, so that at most the last one stays.
fn run_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        for entry in fs::read_dir(tmp).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.strip_prefix("run-")).and_then(|pid| pid.parse().ok());
            if pid.is_some_and(|pid| !alive(pid)) {
                // Another run may be clearing the same directory; what stays is cleared next time.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        tmp.join(format!("run-{}", std::process::id()))
    })
}

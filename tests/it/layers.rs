//! Who may import whom: the table of the design, enforced on every source file.
//!
//! The compiler cannot say that the pure core stays pure, since one package shares its dependencies; so this reads the
//! paths in each file. It knows no types and no macros: what it sees is `crate::`, `super::` and the names of crates.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::rust_paths::{Mention, mentions};

/// What one folder of `src/` must never mention.
struct Rule {
    folder: &'static str,
    /// Our own folders that it may use; `None` is all but `cli`.
    ours: Option<&'static [&'static str]>,
    /// Paths from other crates, by their beginning.
    never: &'static [&'static str],
}

/// The crates that do input, output or scheduling; nothing pure has a use for them.
const WORLD: [&str; 10] = [
    "tokio",
    "tokio_util",
    "futures",
    "kube",
    "k8s_openapi",
    "async_nats",
    "axum",
    "hyper",
    "std::net",
    "std::process",
];
const CLOCKS: [&str; 5] =
    ["std::time::Instant", "std::time::SystemTime", "Instant::now", "SystemTime::now", "jiff::Timestamp::now"];
const KUBE_CLIENTS: [&str; 8] = [
    "kube::Client",
    "kube::client",
    "kube::Api",
    "kube::api::Api",
    "kube::Config",
    "kube::config",
    "kube::runtime",
    "kube::Discovery",
];

const RULES: [Rule; 11] = [
    Rule { folder: "manifest", ours: Some(&[]), never: &[] },
    Rule { folder: "engine", ours: Some(&["manifest"]), never: &[] },
    Rule { folder: "protocol", ours: None, never: &["tokio", "tokio_util", "async_nats", "axum"] },
    Rule { folder: "resource", ours: None, never: &["tokio", "tokio_util", "async_nats", "axum"] },
    Rule { folder: "bus", ours: None, never: &["kube", "axum"] },
    Rule { folder: "sessions", ours: None, never: &["axum"] },
    Rule { folder: "controller", ours: None, never: &["axum"] },
    Rule { folder: "gateway", ours: None, never: &["async_nats"] },
    Rule { folder: "runtime", ours: None, never: &[] },
    Rule { folder: "notify", ours: None, never: &[] },
    Rule { folder: "cli", ours: None, never: &[] },
];

#[test]
fn every_folder_imports_only_what_the_design_allows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut breaches = Vec::new();
    for path in rust_files(&src) {
        let text = fs::read_to_string(&path).unwrap();
        let place = path.strip_prefix(&src).unwrap();
        breaches.extend(breaches_in(place, &text));
    }
    assert!(breaches.is_empty(), "the layers of the design are broken:\n{}", breaches.join("\n"));
}

#[test]
fn every_folder_has_a_row_in_the_table() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let known: BTreeSet<_> = RULES.iter().map(|rule| rule.folder).collect();
    for entry in fs::read_dir(src).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            assert!(known.contains(name.as_str()), "src/{name}/ is new: say in tests/it/layers.rs what it may import");
        } else {
            assert!(["lib.rs", "main.rs"].contains(&name.as_str()), "src/{name} belongs into one of the folders");
        }
    }
}

#[test]
fn one_tls_provider_is_linked() {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    for banned in ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls"] {
        assert!(!lock.contains(&format!("name = \"{banned}\"\n")), "{banned} is in Cargo.lock: rustls with ring only");
    }
}

#[test]
fn table_catches_every_way_to_write_an_import() {
    let caught = |file: &str, text: &str| breaches_in(Path::new(file), text).len();
    assert_eq!(caught("engine/io.rs", "use crate::bus::Message;"), 1);
    assert_eq!(caught("engine/io.rs", "use crate::{manifest::Plan, sessions::{Task, Store}};"), 2);
    assert_eq!(caught("engine/io.rs", "use super::super::protocol;"), 1);
    assert_eq!(caught("engine/mod.rs", "use super::protocol;"), 1);
    assert_eq!(caught("engine/mod.rs", "mod tests { use super::*; fn f() { super::super::bus::go() } }"), 1);
    assert_eq!(caught("engine/io.rs", "fn f() -> tokio::time::Sleep { tokio::time::sleep(x) }"), 2);
    assert_eq!(caught("engine/io.rs", "use tokio as t;"), 1);
    assert_eq!(caught("engine/io.rs", "extern crate tokio;"), 1);
    assert_eq!(caught("engine/io.rs", "use std::{fmt, time::{Duration, Instant}};"), 1);
    assert_eq!(caught("manifest/plan.rs", "use crate::engine::Settings;"), 1);
    assert_eq!(caught("manifest/plan.rs", "fn f() { let t = jiff::Timestamp::now(); }"), 1);
    assert_eq!(caught("resource/spec.rs", "use kube::{Api, CustomResource, runtime::watcher};"), 2);
    assert_eq!(caught("bus/mod.rs", "use kube::Resource;"), 1);
    assert_eq!(caught("gateway/mod.rs", "use crate::cli::Args;"), 1);
}

#[test]
fn table_lets_everything_else_pass() {
    let caught = |file: &str, text: &str| breaches_in(Path::new(file), text);
    let none: Vec<String> = Vec::new();
    assert_eq!(caught("engine/io.rs", "//! like tokio::time\nuse crate::manifest::Plan; /* crate::bus */"), none);
    assert_eq!(caught("engine/io.rs", "use super::phase::Phase; use crate::engine::io;"), none);
    assert_eq!(caught("engine/io.rs", r##"const A: &str = "crate::bus"; const B: &str = r#"tokio::x"#;"##), none);
    assert_eq!(caught("engine/io.rs", "fn f<'a>(bus: &'a str, c: char) { bus.len(); c == '\"'; } // tokio::x"), none);
    assert_eq!(caught("engine/io.rs", "use std::time::Duration; fn f(now: Duration) { g(now) }"), none);
    assert_eq!(caught("sessions/a.rs", "mod runtime; use super::a::runtime; use crate::runtime::Handle;"), none);
    assert_eq!(caught("resource/spec.rs", "use kube::{CustomResource, CustomResourceExt};"), none);
    assert_eq!(caught("cli/run.rs", "use crate::cli::Args; use crate::gateway;"), none);
}

/// One line a breach: the file, the line, what is mentioned and what the table says.
fn breaches_in(place: &Path, text: &str) -> Vec<String> {
    let parts: Vec<_> = place.iter().filter_map(|part| part.to_str()).collect();
    let [folder, inside @ ..] = parts.as_slice() else { return Vec::new() };
    let Some(rule) = RULES.iter().find(|rule| rule.folder == *folder && !inside.is_empty()) else { return Vec::new() };
    // `engine/io.rs` is the module engine::io, `engine/mod.rs` is engine: so many supers lead to the crate.
    let depth = parts.len() - usize::from(place.file_name().is_some_and(|name| name == "mod.rs"));
    let broken = mentions(text, depth).into_iter().filter_map(|mention| {
        let reason = forbidden(rule, &mention)?;
        Some(format!("src/{}:{}: {}: {reason}", place.display(), mention.line, mention.path.join("::")))
    });
    broken.collect()
}

fn forbidden(rule: &Rule, mention: &Mention) -> Option<String> {
    let folder = rule.folder;
    if let ["crate", ours, ..] = mention.segments().as_slice() {
        let known = RULES.iter().any(|other| other.folder == *ours);
        let allowed = match rule.ours {
            Some(list) => list.contains(ours),
            None => *ours != "cli",
        };
        let breach = known && *ours != folder && !allowed;
        return breach.then(|| format!("{folder} must not use {ours}"));
    }
    let pure = rule.ours.is_some();
    let data = ["protocol", "resource"].contains(&folder);
    let mut never: Vec<&str> = rule.never.to_vec();
    never.extend(WORLD.iter().chain(&CLOCKS).filter(|_| pure));
    never.extend(KUBE_CLIENTS.iter().filter(|_| data));
    let hit = never.into_iter().find(|banned| {
        let banned: Vec<_> = banned.split("::").collect();
        mention.segments().starts_with(&banned)
    })?;
    Some(format!("{folder} must never see {hit}"))
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

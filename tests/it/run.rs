//! `pmp run` as people use it: the binary, its exit status, what it prints and what it leaves running.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// The examples take seconds.
const DEADLINE: Duration = Duration::from_mins(1);

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// `pmp run`, with a directory for temporary files of its own. Tests that are run by nohup would hand on that a closed
/// terminal is nothing.
fn pmp_run(temporary: &Path) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP", env!("CARGO_BIN_EXE_pmp"), "run"]);
    command.env("TMPDIR", temporary).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    let temporary = tempfile::tempdir().unwrap();
    pmp_run(temporary.path()).args(arguments).output().unwrap()
}

/// Runs a manifest given on standard input.
fn run_text(manifest: &str, arguments: &[&str]) -> Output {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = pmp_run(temporary.path());
    command.arg("-").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stderr(output)))
}

/// `{state, attempt}` by phase.
fn state_of<'a>(document: &'a Value, phase: &str) -> (&'a str, u64) {
    let row = document["phases"].as_array().unwrap().iter().find(|row| row["id"] == phase).unwrap();
    (row["state"].as_str().unwrap(), row["attempt"].as_u64().unwrap())
}

#[test]
fn the_boot_example_succeeds_with_its_retry_its_ignored_failure_and_its_unwanted_phase() {
    let boot = example("boot.yaml");
    let output = run(&[boot.to_str().unwrap(), "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let document = document(&output);
    assert_eq!((&document["verdict"], &document["exitCode"]), (&json!("Succeeded"), &json!(0)));
    assert_eq!(state_of(&document, "filesystems"), ("Complete", 2));
    assert_eq!(state_of(&document, "clock"), ("Failed", 1));
    assert_eq!(state_of(&document, "swap"), ("Complete", 1));
    assert_eq!(state_of(&document, "rescue"), ("Idle", 0));
    let told = stderr(&output);
    for part in
        ["sdb does not answer yet", "exit status 32, will try again", "ignored, the others go on", "The machine is up"]
    {
        assert!(told.contains(part), "{part} is missing in:\n{told}");
    }
    assert!(!told.contains('\x1b'), "no escape sequences where there is no terminal:\n{told}");
}

#[test]
fn a_target_runs_what_it_waits_for_and_nothing_else() {
    let boot = example("boot.yaml");
    let output = run(&[boot.to_str().unwrap(), "--target", "rescue"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let told = stdout(&output);
    assert!(told.contains("Succeeded") && told.contains("2 complete, 9 not wanted"), "{told}");
    assert!(stderr(&output).contains("a shell on tty0"));
}

#[test]
fn an_unknown_target_is_refused_with_the_nearest_one() {
    let boot = example("boot.yaml");
    let output = run(&[boot.to_str().unwrap(), "--target", "resuce"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("did you mean 'rescue'?"), "{}", stderr(&output));
}

#[test]
fn a_dry_run_shows_waves_and_the_critical_path_and_runs_nothing() {
    let boot = example("boot.yaml");
    let output = run(&[boot.to_str().unwrap(), "--dry-run", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stderr(&output), "");
    let document = document(&output);
    assert_eq!(document["verdict"], "Planned");
    assert_eq!(document["waves"][0], json!(["devices"]));
    assert_eq!(document["criticalPath"], json!(["devices", "filesystems", "database", "web", "multi-user"]));
    assert_eq!(document["idle"], json!(["rescue"]));
}

#[test]
fn the_protocols_own_examples_run_in_both_spellings() {
    let digests: Vec<Value> = ["protocol-pascal.json", "protocol-camel.json"]
        .into_iter()
        .map(|name| {
            let path = example(name);
            let output = run(&[path.to_str().unwrap(), "-o", "json"]);
            assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
            document(&output)["digest"].clone()
        })
        .collect();
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn a_phase_without_x_exec_is_complete_at_once_and_named() {
    let output = run_text(r#"[{"kind": "Phase", "id": "milestone", "spec": {}}]"#, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("without x-exec, complete at once: milestone"), "{}", stdout(&output));
}

#[test]
fn an_empty_manifest_succeeds_at_once() {
    let output = run_text("[]", &["-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(document(&output)["verdict"], "Succeeded");
}

#[test]
fn a_raised_failure_is_exit_status_one_and_names_what_it_stopped() {
    let manifest = "
- {kind: Phase, id: broken, spec: {x-exec: {command: [sh, -c, 'exit 3']}}}
- {kind: Phase, id: after, spec: {waitFor: [broken]}}
";
    let output = run_text(manifest, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let told = stdout(&output);
    assert!(told.contains("exit status 3") && told.contains("because of broken"), "{told}");
}

#[test]
fn an_invalid_manifest_is_exit_status_two_with_every_problem_beside_its_line() {
    let manifest =
        "- kind: Phase\n  id: web\n  spec:\n    waitFor: [netwrk]\n    retries: 3\n- kind: Phase\n  id: network\n";
    let output = run_text(manifest, &["-o", "json"]);
    assert_eq!(output.status.code(), Some(2));
    let reasons: Vec<Value> =
        document(&output)["problems"].as_array().unwrap().iter().map(|problem| problem["reason"].clone()).collect();
    assert!(reasons.contains(&json!("UnknownDependency")) && reasons.contains(&json!("UnknownField")), "{reasons:?}");
    let told = stderr(&output);
    for part in ["waitFor: [netwrk]", "retries: 3", "network", "standard input:4:"] {
        assert!(told.contains(part), "{part} is missing in:\n{told}");
    }
}

#[test]
fn a_file_that_is_not_there_is_exit_status_two_with_its_name() {
    let output = run(&["/no/such/manifest.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("/no/such/manifest.yaml"));
}

#[test]
fn parallelism_bounds_what_runs_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    // mkdir is atomic: a second phase inside fails.
    let script = format!("mkdir {0}/in && sleep 0.05 && rmdir {0}/in", dir.path().display());
    let phases: Vec<Value> = (0..6)
        .map(|i| json!({"kind": "Phase", "id": format!("p{i}"), "spec": {"x-exec": {"command": ["sh", "-c", script]}}}))
        .collect();
    let output = run_text(&Value::from(phases).to_string(), &["--parallelism", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn a_phase_for_labels_that_nobody_carries_is_refused_unless_it_is_not_wanted() {
    let manifest = r#"[
        {"kind": "Phase", "id": "near", "spec": {"selector": {"matchLabels": {"site": "lab"}}}},
        {"kind": "Phase", "id": "far", "spec": {"selector": {"matchLabels": {"site": "field"}}}}
    ]"#;
    let output = run_text(manifest, &["--runtime-label", "site=lab"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("phase 'far' selects labels that no runtime here carries"), "{}", stderr(&output));
    let output = run_text(manifest, &["--runtime-label", "site=lab", "--target", "near"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn commands_that_could_only_fail_are_refused_all_at_once_before_anything_runs() {
    let manifest = r#"[
        {"kind": "Phase", "id": "text", "spec": {"x-exec": {"command": "echo hi"}}},
        {"kind": "Phase", "id": "named", "spec": {"x-exec": {"name": "backup"}}},
        {"kind": "Phase", "id": "good", "spec": {"x-exec": {"command": ["true"]}}}
    ]"#;
    let output = run_text(manifest, &[]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("phase 'text' cannot be executed: x-exec.command is not an array of strings"));
    assert!(stderr(&output).contains("phase 'named' cannot be executed: x-exec has no command"));
    assert!(!stderr(&output).contains("good"), "{}", stderr(&output));
    let output = run_text(manifest, &["--target", "good"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn mistakes_around_the_phases_are_told_with_those_in_them() {
    let manifest = "apiVersion: pmp.dev/v1alpha1\nkind: PhaseManifest\nmetadata: {name: x}\nspec:\n  paralelism: 3\n  \
                    failurePolicy: isolate\n  phases:\n    - {kind: Phase, id: a, spec: {waitFor: [b]}}\n";
    let output = run_text(manifest, &[]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    for part in ["/spec/paralelism", "did you mean `parallelism`?", "/spec/failurePolicy", "there is no phase `b`"] {
        assert!(stderr(&output).contains(part), "{part}: {}", stderr(&output));
    }
}

#[test]
fn ctrl_c_stops_the_children_and_is_exit_status_130() {
    assert_eq!(interrupted_by(rustix::process::Signal::INT), Some(130));
}

#[test]
fn sigterm_stops_the_children_too() {
    assert_eq!(interrupted_by(rustix::process::Signal::TERM), Some(143));
}

#[test]
fn a_terminal_that_is_closed_stops_the_children_and_is_exit_status_129() {
    assert_eq!(interrupted_by(rustix::process::Signal::HUP), Some(129));
}

#[test]
fn under_nohup_a_closed_terminal_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    let manifest = dir.path().join("manifest.json");
    let script = format!("echo ready; until [ -e {} ]; do sleep 0.05; done", gate.display());
    let phases = json!([{"kind": "Phase", "id": "long", "spec": {"x-exec": {"command": ["sh", "-c", script]}}}]);
    fs::write(&manifest, phases.to_string()).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" run \"$1\"", env!("CARGO_BIN_EXE_pmp")]).arg(&manifest);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    read_until(&mut child, "| ready");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::HUP).unwrap();
    fs::write(gate, "").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_could_only_wait_for_ever_is_refused_and_can_still_be_planned() {
    let waits = r#"[
        {"kind": "Phase", "id": "near", "spec": {}},
        {"kind": "Phase", "id": "far", "spec": {"x-waitFor": [{"manifest": "base", "phase": "done"}]}}
    ]"#;
    let follows = "{apiVersion: pmp.dev/v1alpha1, kind: PhaseManifest, metadata: {name: m}, \
        spec: {strategy: Runtime, phases: [{kind: Phase, id: a}]}}";
    for (manifest, word) in [(waits, "'far' waits for a phase of base"), (follows, "strategy Runtime")] {
        let output = run_text(manifest, &["-o", "json"]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        let problems = document(&output)["problems"].to_string();
        assert!(problems.contains(word), "{problems}");
        assert_eq!(run_text(manifest, &["--dry-run"]).status.code(), Some(0));
    }
    assert_eq!(run_text(waits, &["--target", "near"]).status.code(), Some(0), "nobody wants the other one");
}

#[test]
fn a_phase_that_is_held_for_a_person_fails_when_nothing_else_can_go_on() {
    let manifest = "
- {kind: Phase, id: broken, spec: {x-onExhausted: Hold, x-exec: {command: [sh, -c, 'exit 3']}}}
- {kind: Phase, id: after, spec: {waitFor: [broken]}}
- {kind: Phase, id: beside, spec: {x-exec: {command: [sleep, 0.5]}}}
- {kind: Phase, id: last, spec: {waitFor: [beside], x-exec: {command: [echo, the last one ran]}}}
";
    let output = run_text(manifest, &["-o", "json"]);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("nobody can decide here: broken"), "{told}");
    assert!(told.contains("the last one ran"), "{told}");
    let document = document(&output);
    assert_eq!((state_of(&document, "broken"), state_of(&document, "after")), (("Failed", 1), ("Cancelled", 0)));
}

/// The exit status of a run that was sent this signal while a child ran; the child says when it has been stopped.
fn interrupted_by(signal: rustix::process::Signal) -> Option<i32> {
    let dir = tempfile::tempdir().unwrap();
    let stopped = dir.path().join("stopped");
    let script = format!("trap 'touch {}; exit 1' TERM; echo ready; sleep 600 & wait", stopped.display());
    let manifest = dir.path().join("manifest.json");
    let phases = json!([
        {"kind": "Phase", "id": "long", "spec": {"x-exec": {"command": ["sh", "-c", script]}}},
        {"kind": "Phase", "id": "next", "spec": {"waitFor": ["long"]}},
    ]);
    fs::write(&manifest, phases.to_string()).unwrap();
    let mut child = pmp_run(dir.path()).arg(&manifest).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    read_until(&mut child, "| ready");
    let code = stop(&mut child, signal);
    assert!(stopped.exists(), "the child was told to stop");
    let mut told = String::new();
    child.stdout.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(told.contains("Cancelled in"), "{told}");
    code
}

/// Reads standard error until this text has come.
fn read_until(child: &mut Child, text: &str) -> String {
    let from = child.stderr.as_mut().unwrap();
    let mut told = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&told).replace("  ", " ").contains(text) {
        assert_eq!(from.read(&mut byte).unwrap(), 1, "it ended after: {}", String::from_utf8_lossy(&told));
        told.push(byte[0]);
    }
    String::from_utf8(told).unwrap()
}

/// Sends the signal and waits for the end.
fn stop(child: &mut Child, signal: rustix::process::Signal) -> Option<i32> {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

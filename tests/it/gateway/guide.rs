//! docs/http.md: its sessions run as they are printed, with a real curl against a real operator and runtime.

use std::process::{Command, Stdio};

use super::{Front, SOON};
use crate::{
    docs::{blocks, text},
    support::{Process, eventually, python},
};

/// A command of a console block, and what is printed below it.
struct Step {
    command: String,
    output: String,
}

fn steps(document: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in blocks(document, "console").iter().flat_map(|block| block.lines()) {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { command: command.to_owned(), output: String::new() });
            continue;
        }
        let step = steps.last_mut().expect("a block begins with a command");
        let (text, line) = match line.strip_prefix("> ").filter(|_| step.output.is_empty()) {
            Some(more) => (&mut step.command, format!("\n{more}")),
            None => (&mut step.output, format!("{line}\n")),
        };
        text.push_str(&line);
    }
    steps
}

/// Whether the text is what is printed, where `...` stands for anything.
fn fits(printed: &str, text: &str) -> bool {
    let mut rest = text.trim_end();
    let parts: Vec<&str> = printed.trim_end().split("...").collect();
    for (n, part) in parts.iter().enumerate() {
        let part = if n == 0 { *part } else { part.trim_start_matches('\n') };
        let found = if n == 0 {
            rest.starts_with(part).then_some(0)
        } else if n + 1 == parts.len() {
            rest.ends_with(part).then(|| rest.len() - part.len())
        } else {
            rest.find(part)
        };
        let Some(at) = found else { return false };
        rest = &rest[at + part.len()..];
    }
    parts.len() > 1 || rest.is_empty()
}

#[test]
fn dots_stand_for_anything() {
    assert!(fits("{...,\"b\":1}\n", "{\"a\":2,\"b\":1}"));
    assert!(!fits("{...,\"b\":1}\n", "{\"a\":2,\"b\":1,\"c\":3}"));
    assert!(fits("a\n...\nb\n...\n", "a\nx\nb\ny\n"));
    assert!(fits("", "") && !fits("", "x") && !fits("a", "ab"));
}

#[tokio::test]
async fn sessions_of_the_guide_run_as_they_are_printed() {
    let front = Front::new("guide").await;
    let mut runtime = Command::new(python());
    runtime.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/runtime.py")).current_dir(&front.dir);
    runtime.args(["--nats", &front.nats_url, "--prefix", &front.prefix, "--name", "guide", "--allow-exec"]);
    let runtime = Process::start("runtime", &runtime);
    eventually(SOON, "the runtime listens", async || runtime.stderr().contains("waits for phases").then_some(())).await;
    let run = async |step: &Step| {
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", &step.command]).env("PMP", format!("http://{}", front.address)).current_dir(&front.dir);
        let ran = command.stdin(Stdio::null()).output().await.expect("there is a shell");
        assert_ne!(ran.status.code(), Some(127), "curl is missing: install it");
        String::from_utf8_lossy(&ran.stdout).replace('\r', "")
    };
    let steps = steps(&text("docs/http.md"));
    assert!(steps.len() > 20, "only {} commands were found", steps.len());
    for step in &steps {
        let is_reading = step.command.starts_with("curl")
            && !step.command.contains(" -d")
            && !step.command.contains("POST")
            && !step.command.contains("--data");
        let mut last = run(step).await;
        if is_reading && !fits(&step.output, &last) {
            // What was asked for takes its time.
            let what = format!("{} prints {}", step.command, step.output);
            last =
                eventually(SOON, &what, async || Some(run(step).await).filter(|text| fits(&step.output, text))).await;
        }
        assert!(fits(&step.output, &last), "{}\nprints\n{last}\nnot\n{}", step.command, step.output);
    }
}

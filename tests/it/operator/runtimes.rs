//! Several runtimes at once: one dies, one is late, some share, and no phase is executed twice.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{SOON, Scene, Worker, path, row, times};
use crate::support::{Signal, eventually};

const HEARTBEAT: Duration = Duration::from_secs(2);

#[tokio::test]
async fn when_a_runtime_dies_in_mid_phase_another_takes_over_within_three_heartbeats() {
    let scene = Scene::set("death").await;
    let heartbeat = HEARTBEAT.as_secs().to_string();
    let arguments = ["--allow-exec", "--heartbeat", &heartbeat];
    let mut workers = Vec::new();
    for name in ["one", "two"] {
        workers.push((name, scene.runtime(name, Worker { arguments: &arguments, env: &[("USER", name)] }).await));
    }
    // The first attempt lasts until the test lets go of it: a killed runtime leaves its child behind.
    let (first, let_go) = (scene.dir.join("first"), scene.dir.join("let-go"));
    let then = format!(
        "if [ ! -e '{first}' ]; then : > '{first}'; while [ ! -e '{let_go}' ]; do sleep 0.1; done; fi",
        first = first.display(),
        let_go = let_go.display()
    );
    let mut phase = scene.tracing_phase("work", &[], &then);
    phase["spec"]["retry"] = json!({"maxAttempts": 2});
    scene.apply("plan", &json!({"phases": [phase], "backoff": {"initial": "100ms"}})).await;
    let name = eventually(SOON, "the phase runs", async || {
        let status = scene.get("plan").await["status"].take();
        let is_running = status["phases"].get(0).is_some_and(|row| row["state"] == "Running");
        let name = status["phases"][0]["runtime"].as_str()?.to_owned();
        (is_running && first.exists()).then_some(name)
    })
    .await;
    let (_, victim) = workers.iter_mut().find(|(worker, _)| *worker == name).expect("one of the two has it");
    victim.signal(Signal::KILL);
    let killed = Instant::now();
    eventually(SOON, "the other one began", async || (scene.traces().len() == 2).then_some(())).await;
    let took = killed.elapsed();
    fs::write(&let_go, "").expect("the scratch directory is writable");
    // The pause before the second try, and a machine that does other things meanwhile.
    assert!(took < HEARTBEAT * 3 + Duration::from_secs(2), "it took {took:?}");
    let status = scene.finished("plan").await;
    assert_eq!(status["state"], "Succeeded", "{status}");
    let work = row(&status, "work");
    let other = if name == "one" { "two" } else { "one" };
    assert_eq!((&work["attempt"], &work["runtime"]), (&2.into(), &other.into()));
    assert_eq!(scene.traces(), [format!("work {name}"), format!("work {other}")]);
}

#[tokio::test]
async fn a_runtime_that_joins_late_finds_its_work() {
    let scene = Scene::set("late").await;
    let phases = [scene.tracing_phase("a", &[], ""), scene.tracing_phase("b", &["a".to_owned()], "")];
    scene.apply("plan", &json!({"phases": phases, "timeouts": {"offer": "500ms"}})).await;
    scene.wait("plan", "condition=RuntimeAvailable=False").await;
    assert_eq!(scene.traces(), Vec::<String>::new());
    let _late = scene.runtime("late", Worker { arguments: &["--allow-exec"], env: &[("USER", "late")] }).await;
    let status = scene.finished("plan").await;
    assert_eq!(status["state"], "Succeeded", "{status}");
    assert_eq!(row(&status, "a")["attempt"], 1, "an offer that nobody took is no attempt");
    assert_eq!(scene.traces(), ["a late", "b late"]);
}

/// 24 phases, half of which wait for another, for two workers that can do two at a time.
async fn share(scene: &Scene, labels: [&str; 2]) -> BTreeSet<String> {
    let mut workers = Vec::new();
    for (name, label) in ["one", "two"].iter().zip(labels) {
        let arguments = ["--allow-exec", "--concurrency", "2", "--label", label];
        workers.push(scene.runtime(name, Worker { arguments: &arguments, env: &[("USER", name)] }).await);
    }
    let id = |n: usize| format!("p{n}");
    let phases: Vec<Value> = (0..24)
        .map(|n| scene.tracing_phase(&id(n), &n.checked_sub(12).map(id).into_iter().collect::<Vec<_>>(), "sleep 0.2"))
        .collect();
    scene.apply("plan", &json!({"phases": phases, "timeouts": {"offer": "1s"}})).await;
    let status = scene.finished("plan").await;
    assert_eq!(status["state"], "Succeeded", "{status}");
    let traces = scene.traces();
    let times = times(&traces);
    assert_eq!(times.len(), 24);
    assert!(times.values().all(|&count| count == 1), "a phase was executed twice: {traces:?}");
    traces.iter().filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect()
}

#[tokio::test]
async fn two_runtimes_of_one_label_set_share_the_work_and_repeat_none() {
    let scene = Scene::set("shared").await;
    let did_something = share(&scene, ["site=lab", "site=lab"]).await;
    assert_eq!(did_something, ["one".to_owned(), "two".to_owned()].into(), "in {}", path(&scene.dir));
}

#[tokio::test]
async fn two_runtimes_of_different_label_sets_that_both_match_execute_nothing_twice() {
    let scene = Scene::set("both-match").await;
    share(&scene, ["site=lab", "site=field"]).await;
}

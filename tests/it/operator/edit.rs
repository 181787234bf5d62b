//! An edit reruns what it concerns.

use std::fs;

use serde_json::{Value, json};

use super::{Scene, Worker, times};

#[tokio::test]
async fn editing_one_phase_of_fifty_reruns_it_and_what_hangs_on_it_and_nothing_else() {
    let scene = Scene::set("edit").await;
    let _worker = scene.runtime("worker", Worker { arguments: &["--allow-exec"], ..Worker::default() }).await;
    // Ten chains of five: p14 is followed by p24, p34 and p44.
    let id = |n: usize| format!("p{n}");
    let waits = |n: usize| n.checked_sub(10).map(id).into_iter().collect::<Vec<_>>();
    let mut phases: Vec<Value> = (0..50).map(|n| scene.tracing_phase(&id(n), &waits(n), "")).collect();
    scene.apply("plan", &json!({"phases": phases})).await;
    let status = scene.finished("plan").await;
    assert_eq!((&status["state"], &status["progress"]), (&"Succeeded".into(), &"50/50".into()), "{status}");
    let traces = scene.traces();
    assert_eq!(times(&traces).len(), 50);
    assert_eq!(traces.len(), 50, "each ran once: {traces:?}");

    fs::remove_file(scene.trace()).expect("the phases wrote it");
    phases[14] = scene.tracing_phase(&id(14), &waits(14), ": edited");
    scene.apply("plan", &json!({"phases": phases})).await;
    let status = scene.until("plan", 2, "Succeeded").await;
    assert_eq!(status["progress"], "50/50", "{status}");
    assert_eq!(times(&scene.traces()), [("p14", 1), ("p24", 1), ("p34", 1), ("p44", 1)].into());
}

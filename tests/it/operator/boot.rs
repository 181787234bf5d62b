//! The boot example, as the README's tour has it.

use super::{SOON, Scene, Worker, condition, examples, path, row};
use crate::support::eventually;

#[tokio::test]
async fn boot_runs_to_its_verdict_and_kubectl_tells_the_story() {
    let scene = Scene::set("boot").await;
    let env = [("TMPDIR", path(&scene.dir))];
    let _worker = scene.shipped_runtime("worker", Worker { arguments: &["--allow-exec"], env: &env }).await;
    scene.kubectl(&["apply", "-f", path(&examples("boot.yaml"))]).await;
    let status = scene.finished("boot").await;
    assert_eq!(status["state"], "Succeeded", "{status}");
    assert_eq!(condition(&status, "Ready")["status"], "True");
    assert_eq!(condition(&status, "Succeeded")["status"], "True");
    let filesystems = row(&status, "filesystems");
    assert_eq!((&filesystems["state"], &filesystems["attempt"]), (&"Complete".into(), &2.into()));
    let clock = row(&status, "clock");
    assert_eq!((&clock["state"], &clock["ignored"]), (&"Failed".into(), &true.into()));
    assert_eq!(row(&status, "swap")["state"], "Complete");
    assert_eq!(row(&status, "multi-user")["state"], "Complete");
    assert_eq!(status["counts"]["idle"], 1, "rescue is Idle: {}", status["counts"]);
    assert_eq!(status["progress"], "10/10");

    eventually(SOON, "the handler's label is on the resource", async || {
        let label = scene.get("boot").await["metadata"]["labels"]["boot-stage"].take();
        (label == "multi-user").then_some(())
    })
    .await;
    let table = scene.kubectl(&["get", "pm"]).await;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "READY", "STATE", "PROGRESS", "AGE"]);
    assert_eq!(lines[1][..4], ["boot", "True", "Succeeded", "10/10"]);

    let story = eventually(SOON, "the whole story is told", async || {
        let text = scene.kubectl(&["describe", "pm", "boot"]).await;
        let (_, events) = text.split_once("\nEvents:")?;
        events.contains("10 of 10 phases are done").then(|| events.to_owned())
    })
    .await;
    // One thing after the other, as they happened.
    let told = [
        "revision 1 has started",
        "phase devices runs on worker-",
        "phase devices is complete",
        "phase filesystems runs on worker-",
        "phase filesystems failed at attempt 1 and is tried again",
        "phase filesystems runs on worker-",
        ", attempt 2",
        "phase filesystems is complete",
        "phase database is complete",
        "phase web is complete",
        "phase multi-user is complete",
        "The machine is up",
        "10 of 10 phases are done; failures were ignored at clock",
    ];
    let mut rest = story.as_str();
    for line in told {
        rest = rest.split_once(line).unwrap_or_else(|| panic!("`{line}` is not where it belongs in:\n{story}")).1;
    }
}

//! Small stories, each with one thing that matters, and how each has to end.

use std::time::Duration;

use futures::future::LocalBoxFuture;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{
    checks::state_of,
    peer::Habit,
    stage::Stage,
    worker::{Act, Script},
};

/// Who executes.
#[derive(Clone, Copy)]
pub enum Runtimes {
    /// Two that obey grants.
    Workers(Script),
    /// One that knows no tokens.
    EarlyPeer(Habit),
}

/// How a scenario ends, whatever went wrong on the way.
#[derive(Debug)]
pub struct Expected {
    pub verdict: &'static str,
    /// Where there are two words, either is right: which of two phases came first is nobody's promise.
    pub states: &'static [(&'static str, &'static str)],
    /// The same after a storm, where that can be otherwise.
    pub in_storms: Option<&'static [(&'static str, &'static str)]>,
}

/// Least and most times that a phase is begun.
pub type Times = (&'static str, usize, usize);

pub struct Scenario {
    pub name: &'static str,
    pub runtimes: Runtimes,
    /// What a person does.
    pub script: for<'a> fn(&'a Stage) -> LocalBoxFuture<'a, ()>,
    pub expected: Expected,
    /// How often each phase is begun, whatever single mishap there is.
    pub executions: &'static [Times],
    /// Which storms it can take.
    pub bears: Bears,
}

/// What may befall a scenario in a storm, beyond what befalls all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bears {
    /// Streams that are emptied or full.
    Loss,
    /// That, and runtimes that die: whatever its phases lose by it they may try again, and that is not what it is about.
    Deaths,
    /// Nothing: it ends well only because a stream keeps every report. It begins its storm by itself.
    Nothing,
}

const SECOND: Duration = Duration::from_secs(1);

fn phase(id: &str, waits: &[&str]) -> Value {
    json!({"kind": "Phase", "id": id, "spec": {"waitFor": {"phases": waits}}})
}

fn with(mut phase: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().expect("fields") {
        phase["spec"][name] = value.clone();
    }
    phase
}

fn chain() -> Vec<Value> {
    vec![phase("a", &[]), phase("b", &["a"]), phase("c", &["b"])]
}

/// Everything works, in a second.
fn well(_: &str, _: usize) -> Act {
    Act::Complete(SECOND)
}

/// Long enough to be edited, suspended or deleted meanwhile.
fn slowly(_: &str, _: usize) -> Act {
    Act::Complete(SECOND * 4)
}

fn quick_backoff() -> Value {
    json!({"initial": "1s", "factor": 1, "jitter": "None"})
}

pub const ALL: [Scenario; 18] = [
    Scenario {
        name: "chain",
        runtimes: Runtimes::Workers(well),
        script: |stage| Box::pin(async { stage.create(&json!({"phases": chain()})) }),
        expected: Expected {
            verdict: "Succeeded",
            states: &[("a", "Complete"), ("b", "Complete"), ("c", "Complete")],
            in_storms: None,
        },
        executions: &[("a", 1, 1), ("b", 1, 1), ("c", 1, 1)],
        bears: Bears::Deaths,
    },
    Scenario {
        name: "fan",
        runtimes: Runtimes::Workers(well),
        script: |stage| {
            Box::pin(async {
                let fan = [phase("a", &[]), phase("b", &["a"]), phase("c", &["a"]), phase("d", &["a"])];
                let mut phases = fan.to_vec();
                phases.push(phase("z", &["b", "c", "d"]));
                stage.create(&json!({"phases": phases}));
            })
        },
        expected: Expected { verdict: "Succeeded", states: &[("d", "Complete"), ("z", "Complete")], in_storms: None },
        executions: &[("a", 1, 1), ("b", 1, 1), ("c", 1, 1), ("d", 1, 1), ("z", 1, 1)],
        bears: Bears::Deaths,
    },
    Scenario {
        name: "retry",
        runtimes: Runtimes::Workers(|phase, before| match (phase, before) {
            ("a", 0 | 1) => Act::Fail(SECOND),
            _ => Act::Complete(SECOND),
        }),
        script: |stage| {
            Box::pin(async {
                let a = with(phase("a", &[]), &json!({"retry": {"maxAttempts": 9}}));
                stage.create(&json!({"phases": [a, phase("b", &["a"])], "backoff": quick_backoff()}));
            })
        },
        expected: Expected { verdict: "Succeeded", states: &[("a", "Complete"), ("b", "Complete")], in_storms: None },
        executions: &[("a", 3, 3), ("b", 1, 1)],
        bears: Bears::Deaths,
    },
    Scenario {
        name: "timeout",
        runtimes: Runtimes::Workers(|phase, before| match (phase, before) {
            ("a", 0) => Act::Hang,
            _ => Act::Complete(SECOND),
        }),
        script: |stage| {
            Box::pin(async {
                // A grant that gets lost may use up the clock of b as well.
                let phases = ["a", "b"].map(|id| with(phase(id, &[]), &json!({"retry": {"maxAttempts": 50}})));
                let timeouts = json!({"attempt": "12s", "cancel": "3s"});
                stage.create(&json!({"phases": phases, "backoff": quick_backoff(), "timeouts": timeouts}));
            })
        },
        expected: Expected { verdict: "Succeeded", states: &[("a", "Complete")], in_storms: None },
        executions: &[],
        bears: Bears::Deaths,
    },
    Scenario {
        name: "raise and stop",
        runtimes: Runtimes::Workers(|phase, _| match phase {
            "a" => Act::Fail(SECOND),
            "d" => Act::Complete(SECOND * 200),
            _ => Act::Complete(SECOND),
        }),
        script: |stage| {
            Box::pin(async {
                let phases = [phase("a", &[]), phase("b", &["a"]), phase("d", &[]), phase("e", &["d"])];
                stage.create(&json!({"phases": phases}));
            })
        },
        expected: Expected {
            verdict: "Failed",
            states: &[("a", "Failed"), ("b", "UpstreamFailed"), ("d", "Complete or Cancelled"), ("e", "Cancelled")],
            // An operator that dies before it stores why it cancels d leaves a failed d.
            in_storms: Some(&[
                ("a", "Failed or Cancelled"),
                ("b", "UpstreamFailed or Cancelled"),
                ("d", "Complete or Cancelled or Failed"),
                ("e", "Cancelled or UpstreamFailed"),
            ]),
        },
        executions: &[("a", 1, 1), ("b", 0, 0), ("d", 0, 1), ("e", 0, 0)],
        bears: Bears::Loss,
    },
    Scenario {
        name: "isolate and ignore",
        runtimes: Runtimes::Workers(|phase, _| match phase {
            "a" | "f" => Act::Fail(SECOND),
            _ => Act::Complete(SECOND),
        }),
        script: |stage| {
            Box::pin(async {
                let f = with(phase("f", &[]), &json!({"onFailure": {"action": "continue"}}));
                let phases = [phase("a", &[]), phase("b", &["a"]), f, phase("g", &["f"])];
                stage.create(&json!({"phases": phases, "failurePolicy": "Isolate"}));
            })
        },
        expected: Expected {
            verdict: "Failed",
            states: &[("a", "Failed"), ("b", "UpstreamFailed"), ("f", "Failed"), ("g", "Complete")],
            in_storms: None,
        },
        executions: &[("a", 1, 1), ("b", 0, 0), ("f", 1, 1), ("g", 1, 1)],
        bears: Bears::Loss,
    },
    Scenario {
        name: "suspend and resume",
        runtimes: Runtimes::Workers(slowly),
        script: |stage| {
            Box::pin(async {
                stage.create(&json!({"phases": chain()}));
                stage.until_begun("a", 1).await;
                stage.edit(&json!({"suspend": true}));
                let complete = stage.until_stored(|object| state_of(object, "a") == "Complete");
                // In vain where its attempt got lost in a storm: it is not offered again before the session goes on.
                let patience = if stage.is_stormy() { SECOND * 60 } else { SECOND * 3600 };
                let _ = timeout(patience, complete).await;
                sleep(SECOND * 20).await;
                stage.edit(&json!({"suspend": false}));
            })
        },
        expected: Expected { verdict: "Succeeded", states: &[("c", "Complete")], in_storms: None },
        executions: &[("a", 1, 1), ("b", 1, 1), ("c", 1, 1)],
        bears: Bears::Deaths,
    },
    Scenario {
        name: "edit",
        runtimes: Runtimes::Workers(slowly),
        script: |stage| {
            Box::pin(async {
                stage.create(&json!({"phases": chain()}));
                stage.until_begun("b", 1).await;
                let b = with(phase("b", &["a"]), &json!({"x-edit": 1}));
                stage.edit(&json!({"phases": [phase("a", &[]), b, phase("c", &["b"]), phase("d", &[])]}));
            })
        },
        expected: Expected {
            verdict: "Succeeded",
            states: &[("b", "Complete"), ("c", "Complete"), ("d", "Complete")],
            in_storms: None,
        },
        executions: &[("a", 1, 1), ("b", 2, 2), ("c", 1, 2), ("d", 1, 1)],
        bears: Bears::Deaths,
    },
    Scenario {
        name: "cancel",
        runtimes: Runtimes::Workers(|_, _| Act::Hang),
        script: |stage| {
            Box::pin(async {
                stage.create(&json!({"phases": chain(), "timeouts": {"cancel": "5s"}}));
                stage.until_begun("a", 1).await;
                stage.edit(&json!({"shutdown": "Cancel"}));
            })
        },
        expected: Expected { verdict: "Cancelled", states: &[("a", "Cancelled"), ("b", "Cancelled")], in_storms: None },
        executions: &[("a", 1, 1), ("b", 0, 0), ("c", 0, 0)],
        bears: Bears::Loss,
    },
    Scenario {
        name: "use",
        runtimes: Runtimes::Workers(slowly),
        script: |stage| {
            Box::pin(async {
                let on_use = |id: &str| with(phase(id, &["a"]), &json!({"instanceMode": "onUse"}));
                stage.create(&json!({"phases": [phase("a", &[]), on_use("u"), on_use("v")]}));
                stage.until_begun("a", 1).await;
                stage.request("first", "Use", Some("u"));
            })
        },
        expected: Expected { verdict: "Succeeded", states: &[("a", "Complete"), ("u", "Complete")], in_storms: None },
        executions: &[("a", 1, 1), ("u", 1, 1), ("v", 0, 0)],
        bears: Bears::Deaths,
    },
    Scenario {
        name: "restart",
        runtimes: Runtimes::Workers(well),
        script: |stage| {
            Box::pin(async {
                stage.create(&json!({"phases": [phase("a", &[]), phase("b", &["a"])]}));
                stage.until_stored(|object| object["status"]["verdict"] == "Succeeded").await;
                stage.request("again", "Restart", None);
                stage.until_begun("b", 2).await;
            })
        },
        expected: Expected { verdict: "Succeeded", states: &[("a", "Complete"), ("b", "Complete")], in_storms: None },
        executions: &[("a", 2, 2), ("b", 2, 2)],
        bears: Bears::Deaths,
    },
    Scenario {
        name: "delete and recreate",
        runtimes: Runtimes::Workers(slowly),
        script: |stage| {
            Box::pin(async {
                stage.create(&json!({"phases": chain()}));
                stage.until_begun("b", 1).await;
                stage.delete();
                stage.create(&json!({"phases": chain()}));
            })
        },
        expected: Expected { verdict: "Succeeded", states: &[("c", "Complete")], in_storms: None },
        executions: &[("a", 2, 2), ("b", 2, 2), ("c", 1, 1)],
        bears: Bears::Deaths,
    },
    Scenario {
        name: "early peer",
        runtimes: Runtimes::EarlyPeer(Habit::Targets),
        script: |stage| {
            Box::pin(async {
                let tough = json!({"retry": {"maxAttempts": 99}});
                let phases: Vec<Value> = chain().into_iter().map(|phase| with(phase, &tough)).collect();
                let timeouts = json!({"attempt": "8s", "cancel": "1s"});
                stage.create(&json!({"phases": phases, "timeouts": timeouts, "backoff": quick_backoff()}));
            })
        },
        expected: Expected { verdict: "Succeeded", states: &[("a", "Complete"), ("c", "Complete")], in_storms: None },
        executions: &[("a", 1, 1), ("b", 1, 1), ("c", 1, 1)],
        bears: Bears::Loss,
    },
    Scenario {
        name: "early peer, once",
        runtimes: Runtimes::EarlyPeer(Habit::Once),
        script: |stage| {
            Box::pin(async {
                // Until a place is stored, whoever comes next does not know where to read on; and the first status has
                // one only if the stream was open before the session began.
                sleep(SECOND * 20).await;
                // One attempt, no clock: a report that nobody hears is never made up for.
                stage.create(&json!({"phases": chain()}));
                stage.until_stored(|object| object["status"]["bus"].is_object()).await;
                stage.brew();
            })
        },
        expected: Expected { verdict: "Succeeded", states: &[("a", "Complete"), ("c", "Complete")], in_storms: None },
        executions: &[("a", 1, 1), ("b", 1, 1), ("c", 1, 1)],
        bears: Bears::Nothing,
    },
    Scenario {
        name: "runtime strategy",
        runtimes: Runtimes::EarlyPeer(Habit::Start),
        script: |stage| Box::pin(async { stage.create(&json!({"phases": chain(), "strategy": "Runtime"})) }),
        expected: Expected { verdict: "Succeeded", states: &[("a", "Complete"), ("c", "Complete")], in_storms: None },
        executions: &[("a", 1, 1), ("b", 1, 1), ("c", 1, 1)],
        bears: Bears::Loss,
    },
    Scenario {
        name: "parallelism",
        runtimes: Runtimes::Workers(well),
        script: |stage| {
            Box::pin(async {
                let phases = [phase("a", &[]), phase("b", &[]), phase("c", &[]), phase("d", &["a"])];
                stage.create(&json!({"phases": phases, "parallelism": 1}));
            })
        },
        expected: Expected { verdict: "Succeeded", states: &[("c", "Complete"), ("d", "Complete")], in_storms: None },
        executions: &[("a", 1, 1), ("b", 1, 1), ("c", 1, 1), ("d", 1, 1)],
        bears: Bears::Deaths,
    },
    Scenario {
        name: "hold and retry",
        runtimes: Runtimes::Workers(|phase, before| match (phase, before) {
            ("a", 0) => Act::Fail(SECOND),
            _ => Act::Complete(SECOND),
        }),
        script: |stage| {
            Box::pin(async {
                let a = with(phase("a", &[]), &json!({"x-onExhausted": "Hold"}));
                stage.create(&json!({"phases": [a, phase("b", &["a"])]}));
                // A run whose grant got lost is held without having been begun.
                for number in 1.. {
                    stage.until_stored(|object| ["Held", "Complete"].contains(&&*state_of(object, "a"))).await;
                    if stage.is_stored(|object| state_of(object, "a") == "Complete") {
                        break;
                    }
                    stage.request(&format!("again-{number}"), "Retry", Some("a"));
                    stage.until_stored(|object| state_of(object, "a") != "Held").await;
                }
            })
        },
        expected: Expected { verdict: "Succeeded", states: &[("a", "Complete"), ("b", "Complete")], in_storms: None },
        executions: &[("a", 2, 2), ("b", 1, 1)],
        bears: Bears::Loss,
    },
    Scenario {
        name: "commands",
        runtimes: Runtimes::Workers(slowly),
        script: |stage| {
            Box::pin(async {
                stage.create(&json!({"phases": chain()}));
                stage.until_begun("a", 1).await;
                // A command is said once and may be lost with whoever hears it, unless a stream has it: a client looks and
                // says it again.
                let patience = if stage.keeps_all() { SECOND * 600 } else { SECOND * 5 };
                for (command, is) in [("pause", true), ("resume", false)] {
                    loop {
                        stage.command(command).await;
                        let obeyed = stage.until_stored(|object| (object["spec"]["suspend"] == true) == is);
                        if timeout(patience, obeyed).await.is_ok() {
                            break;
                        }
                    }
                    sleep(SECOND * 10).await;
                }
            })
        },
        expected: Expected { verdict: "Succeeded", states: &[("c", "Complete")], in_storms: None },
        executions: &[("a", 1, 1), ("b", 1, 1), ("c", 1, 1)],
        bears: Bears::Deaths,
    },
];

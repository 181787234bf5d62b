//! The resource on the real API server: what it takes, what it keeps, what it shows, and what kstatus makes of it.

use std::{fs, io::Write as _, process::Stdio, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, Patch, PatchParams};
use pmp::{
    engine::{Availability, Session, Settings, Strategy},
    manifest::{OtherKinds, Plan, from_values},
    resource::{
        BusStanding, Frame, PhaseManifest, PhaseManifestStatus, Refusal, STATUS_BYTES_MAX, Situation, conditions,
        crd_yaml, project, restore, status_patch,
    },
};
use serde_json::{Value, json};

use crate::support::{self, Cluster};

/// `make generate` writes it, `pmp crd` prints it.
pub(crate) const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/phasemanifests.yaml");

#[test]
fn committed_crd_is_the_generated_one() {
    let committed = fs::read_to_string(COMMITTED).expect("crds/phasemanifests.yaml is committed");
    assert!(committed == crd_yaml(), "crds/phasemanifests.yaml is out of date: run `make generate`");
}

/// A cluster that knows the resource. Server-side, so that tests may do this at the same time.
pub(crate) async fn cluster() -> Cluster {
    let cluster = support::cluster().await;
    teach(&cluster).await;
    cluster
}

/// Gives a cluster the resource.
pub(crate) async fn teach(cluster: &Cluster) {
    let applied = cluster.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", COMMITTED]).await;
    assert!(applied.status.success(), "{applied:?}");
    assert_eq!(String::from_utf8_lossy(&applied.stderr), "", "the API server warns of the CRD");
    let name = "crd/phasemanifests.pmp.dev";
    let waited = cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", name]).await;
    assert!(waited.status.success(), "{waited:?}");
}

/// What kubectl apply says of a resource with this spec: Err is what it was refused with.
async fn apply(cluster: &Cluster, namespace: &str, name: &str, spec: &Value) -> Result<(), String> {
    let object = json!({
        "apiVersion": "pmp.dev/v1alpha1",
        "kind": "PhaseManifest",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    });
    let file = support::scratch("apply").join("object.json");
    fs::write(&file, object.to_string()).expect("the scratch directory is writable");
    let applied = cluster.kubectl(&["apply", "-f", file.to_str().expect("a readable path")]).await;
    let said = String::from_utf8_lossy(&applied.stderr).into_owned();
    if applied.status.success() && said.is_empty() { Ok(()) } else { Err(said) }
}

async fn output(cluster: &Cluster, arguments: &[&str]) -> String {
    let ran = cluster.kubectl(arguments).await;
    assert!(ran.status.success(), "{ran:?}");
    String::from_utf8(ran.stdout).expect("kubectl writes UTF-8")
}

async fn stored(cluster: &Cluster, namespace: &str, name: &str) -> Value {
    let json = output(cluster, &["get", "pm", name, "--namespace", namespace, "--output", "json"]).await;
    serde_json::from_str(&json).expect("kubectl writes JSON")
}

#[tokio::test]
async fn a_new_resource_is_unobserved_and_not_done() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("unobserved").await;
    apply(&cluster, &namespace, "boot", &json!({"phases": []})).await.expect("a legal resource");
    let object = stored(&cluster, &namespace, "boot").await;
    assert_eq!(object["status"], json!({"observedGeneration": -1}));
    assert_eq!(object["spec"], json!({"phases": []}), "nothing is written into it");
    assert_eq!(kstatus(&[object]), ["InProgress"]);
}

#[tokio::test]
async fn columns_tell_the_state_of_a_session() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("columns").await;
    apply(&cluster, &namespace, "boot", &json!({})).await.expect("a legal resource");
    let short = output(&cluster, &["get", "pmp", "--namespace", &namespace]).await;
    let columns = |text: &str| text.lines().next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let shown: Vec<String> = columns(&short);
    assert_eq!(shown, ["NAME", "READY", "STATE", "PROGRESS", "AGE"]);
    let wide: Vec<String> = columns(&output(&cluster, &["get", "pm", "--namespace", &namespace, "-o", "wide"]).await);
    let all = ["NAME", "READY", "STATE", "PROGRESS", "SESSION", "STRATEGY", "REVISION", "MESSAGE", "AGE"];
    assert_eq!(wide, all);
}

#[tokio::test]
async fn explain_teaches_the_fields_of_a_phase() {
    let cluster = cluster().await;
    let lesson = async |path: &str| output(&cluster, &["explain", path]).await;
    let spec = lesson("pm.spec.phases.spec").await;
    for field in ["waitFor", "selector", "retry", "onFailure", "onSuccess", "instanceMode", "x-timeouts", "x-waitFor"] {
        assert!(spec.contains(field), "{field} is not in {spec}");
    }
    let wait = lesson("pm.spec.phases.spec.waitFor").await;
    assert!(wait.contains("list of ids") && wait.contains("timeout") && wait.contains("WaitTimeout"), "{wait}");
    assert!(lesson("pm.spec").await.contains("enum: Hybrid, Directed, Runtime\n"), "null is shown as a word");
}

/// The same two phases in every spelling that the protocol and our design allow.
fn spellings() -> Vec<Value> {
    let canonical = json!([
        {"kind": "Phase", "id": "one", "spec": {
            "selector": {"matchLabels": {"tier": "db"}},
            "instanceMode": "immediate",
            "retry": {"maxAttempts": 3},
            "onFailure": {"action": "raise", "spec": {"message": ["it failed"], "notify": {"email": "ops@example.com"}}},
            "x-timeouts": {"attempt": "30s"},
            "x-anything": {"deep": [{"er": [1, {"q": "r"}]}]},
        }},
        {"kind": "Phase", "id": "two", "spec": {"waitFor": {"phases": ["one"]}}},
    ]);
    let protocol = json!([
        {"Kind": "Phase", "Id": "one", "Spec": {
            "selector": {"match_labels": {"tier": "db"}},
            "instance_mode": "immediate",
            "wait_for": {},
            "retry": {"max_attempts": 3},
            "on_failure": {"action": "raise", "spec": {"message": ["it failed"], "notify": {"email": "ops@example.com"}}},
            "on_success": {},
            "x-timeouts": {"attempt": 30},
            "x-anything": {"deep": [{"er": [1, {"q": "r"}]}]},
        }},
        {"Kind": "Phase", "Id": "two", "Spec": {"wait_for": {"phases": ["one"]}, "retry": {}}},
    ]);
    let mixed = json!([
        {"kind": "Phase", "Id": "one", "spec": {
            "Selector": {"MatchLabels": {"tier": "db"}},
            "InstanceMode": "immediate",
            "retry": {"MaxAttempts": "3"},
            "onFailure": {"Action": "raise", "Spec": {
                "Message": ["it failed"], "notify": {"Email": ["ops@example.com"]},
            }},
            "x-timeouts": {"attempt": "30"},
            "x-anything": {"deep": [{"er": [1, {"q": "r"}]}]},
        }},
        {"Kind": "Phase", "id": "two", "Spec": {"WaitFor": ["one"]}},
    ]);
    let with_wait = |wait: Value| {
        let mut phases = canonical.clone();
        phases[1]["spec"] = wait;
        phases
    };
    vec![
        with_wait(json!({"waitFor": ["one"]})),
        with_wait(json!({"waitFor": "one"})),
        with_wait(json!({"waitFor": {"phases": "one"}})),
        with_wait(json!({"wait_for": {"Phases": ["one"]}, "selector": {}, "retry": {"maxAttempts": "1"}})),
        with_wait(json!({"waitFor": {"depends_on": ["one"]}})),
        canonical,
        protocol,
        mixed,
    ]
}

fn plan_of(phases: &Value) -> Plan {
    let phases = phases.as_array().expect("phases are a list");
    from_values(phases, OtherKinds::Refuse).unwrap_or_else(|problems| panic!("{phases:?}: {problems:?}")).0
}

#[tokio::test]
async fn every_spelling_is_stored_whole_and_means_the_same() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("spellings").await;
    let digest = plan_of(&spellings()[5]).digest().to_string();
    for (i, phases) in spellings().into_iter().enumerate() {
        let name = format!("spelling-{i}");
        apply(&cluster, &namespace, &name, &json!({"phases": phases})).await.expect("every spelling is taken");
        let kept = stored(&cluster, &namespace, &name).await["spec"]["phases"].take();
        assert_eq!(kept, phases, "the API server changed what was written");
        assert_eq!(plan_of(&kept).digest().to_string(), digest, "{phases}");
    }
}

#[tokio::test]
async fn nulls_inside_phases_are_no_mistake() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("nulls").await;
    let phase = json!({"kind": "Phase", "id": "one", "spec": {"waitFor": null, "retry": {"maxAttempts": null},
        "selector": {"matchLabels": null}, "onFailure": null, "x-timeouts": {"attempt": null}, "instanceMode": null}});
    let bare = json!({"kind": "Phase", "id": "two", "spec": null});
    apply(&cluster, &namespace, "nulls", &json!({"phases": [phase, bare]})).await.expect("null is absent");
}

#[tokio::test]
async fn outside_phases_the_schema_is_strict() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("strict").await;
    let from = json!({"configMap": {"name": "a", "key": "b"}});
    let request = |token: &str, action: &str| json!({"token": token, "action": action});
    let refused = [
        (json!({"colour": "red"}), "unknown field"),
        (json!({"phases": [], "manifestFrom": from}), "not both"),
        (json!({"strategy": "Wild"}), "Unsupported value"),
        (json!({"parallelism": -1}), "greater than or equal to 0"),
        (json!({"timeouts": {"offer": "5 minutes"}}), "should match"),
        (json!({"timeouts": {"offer": -1}}), "greater than or equal to 0"),
        (json!({"timeouts": {"offre": "5s"}}), "unknown field"),
        (json!({"backoff": {"factor": 0}}), "greater than or equal to 1"),
        (json!({"backoff": {"factor": 1.5}}), "integer,string"),
        (json!({"sessionId": "a.b"}), "should match"),
        (json!({"sessionId": "a".repeat(129)}), "Too long"),
        (json!({"targetPhase": "a".repeat(254)}), "Too long"),
        (json!({"requests": [request("a", "Retry")]}), "Restart names none"),
        (json!({"requests": [{"token": "a", "action": "Restart", "phase": "x"}]}), "Restart names none"),
        (json!({"requests": [request("a", "Restart"), request("a", "Restart")]}), "Duplicate value"),
        (json!({"requests": (0..65).map(|i| request(&format!("t{i}"), "Restart")).collect::<Vec<_>>()}), "at most 64"),
    ];
    for (spec, why) in refused {
        let said = apply(&cluster, &namespace, "refused", &spec).await.expect_err(&spec.to_string());
        assert!(said.contains(why), "{spec}: {said}");
    }
    let taken = json!({
        "manifestFrom": from, "phases": null, "strategy": null, "shutdown": "", "targetPhase": "", "sessionId": "",
        "timeouts": {"offer": 5, "start": "", "attempt": "1h30m", "heartbeat": "1.5s", "cancel": "90"},
        "backoff": {"initial": "300ms", "factor": "1.5", "max": null}, "ttlAfterFinished": 0,
        "requests": [request("a", "Restart"), {"token": "b", "action": "Skip", "phase": "any text at all"}],
    });
    apply(&cluster, &namespace, "taken", &taken).await.expect("all of this is legal");
}

#[tokio::test]
async fn a_session_id_is_for_life() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("session-id").await;
    apply(&cluster, &namespace, "named", &json!({"sessionId": "s1"})).await.expect("a legal id");
    for changed in [json!({"sessionId": "s2"}), json!({"sessionId": ""}), json!({"sessionId": null}), json!({})] {
        let said = apply(&cluster, &namespace, "named", &changed).await.expect_err("immutable");
        assert!(said.contains("cannot be changed"), "{said}");
    }
    apply(&cluster, &namespace, "named", &json!({"sessionId": "s1", "suspend": true})).await.expect("the rest may");
    apply(&cluster, &namespace, "unnamed", &json!({})).await.expect("legal");
    apply(&cluster, &namespace, "unnamed", &json!({"sessionId": ""})).await.expect("empty is absent");
    apply(&cluster, &namespace, "unnamed", &json!({"sessionId": "s1"})).await.expect_err("it has one by default");
}

#[tokio::test]
async fn a_record_survives_the_real_api_server() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("record").await;
    let phases = spellings().remove(5);
    apply(&cluster, &namespace, "boot", &json!({"phases": phases})).await.expect("legal");
    let plan = Arc::new(plan_of(&phases));
    let now: Timestamp = "2026-01-02T12:00:00.123Z".parse().expect("a time");
    let session = Session::start("uid", Arc::clone(&plan), 1, Strategy::Hybrid, Settings::default(), now);
    let mut record = session.record();
    record.phases[0].message = "half \u{0} way 🙂".to_owned();
    record.phases[0].attempt = 3;
    let frame = Frame {
        conditions: conditions(&Situation::Running, Availability::Unknown, &BusStanding::Unknown, &[], 1, now),
        counts: session.counts(),
        ..Frame::default()
    };
    let status = project(&record, &plan, frame, STATUS_BYTES_MAX).expect("two phases fit");
    let manifests: Api<PhaseManifest> = Api::namespaced(cluster.client.clone(), &namespace);
    let patch = Patch::Merge(status_patch(&status));
    let written = manifests.patch_status("boot", &PatchParams::default(), &patch).await.expect("the schema takes it");
    assert_eq!(written.status.as_ref(), Some(&status));
    assert_eq!(restore(&status, &plan).as_ref(), Ok(&record));

    // And the next one leaves nothing of it behind.
    let empty = PhaseManifestStatus { observed_generation: Some(2), ..PhaseManifestStatus::default() };
    let patch = Patch::Merge(status_patch(&empty));
    let written = manifests.patch_status("boot", &PatchParams::default(), &patch).await.expect("the schema takes it");
    assert_eq!(written.status, Some(empty));
}

/// Every situation, and what Flux, Argo CD and `helm --wait` are to make of it.
fn situations() -> Vec<(Situation, &'static str)> {
    let phases = || vec!["gate".to_owned()];
    let mut situations = vec![
        (Situation::Staged, "InProgress"),
        (Situation::Running, "InProgress"),
        (Situation::Suspended, "InProgress"),
        (Situation::Stopping, "InProgress"),
        (Situation::HeldWithOthers { phases: phases() }, "InProgress"),
        (Situation::NoRuntime, "InProgress"),
        (Situation::Contested, "InProgress"),
        (Situation::HeldAlone { phases: phases() }, "Failed"),
        (Situation::Succeeded, "Current"),
        (Situation::SucceededWithIgnored { phases: phases() }, "Current"),
        (Situation::Planned, "Current"),
        (Situation::Failed { phases: phases() }, "Failed"),
        (Situation::Cancelled, "Failed"),
    ];
    let refused = |refusal| (Situation::Refused { refusal, message: "no".to_owned() }, "Failed");
    situations.extend(Refusal::ALL.into_iter().map(refused));
    situations
}

#[test]
fn kstatus_judges_every_situation_as_the_table_says() {
    let now: Timestamp = "2026-01-02T12:00:00Z".parse().expect("a time");
    let object = |conditions: &[Condition], observed: i64| {
        json!({
            "apiVersion": "pmp.dev/v1alpha1",
            "kind": "PhaseManifest",
            "metadata": {"name": "boot", "namespace": "default", "generation": 3},
            "status": {"observedGeneration": observed, "conditions": conditions},
        })
    };
    for availability in [Availability::Unknown, Availability::Available, Availability::Unavailable] {
        let made = |situation: &Situation| conditions(situation, availability, &BusStanding::Unknown, &[], 3, now);
        let objects: Vec<Value> = situations().iter().map(|(situation, _)| object(&made(situation), 3)).collect();
        let expected: Vec<&str> = situations().iter().map(|&(_, verdict)| verdict).collect();
        assert_eq!(kstatus(&objects), expected);
        // An edit that is not yet judged is in progress, whatever the last one came to.
        let stale: Vec<Value> = situations().iter().map(|(situation, _)| object(&made(situation), 2)).collect();
        assert!(kstatus(&stale).iter().all(|verdict| verdict == "InProgress"));
    }
}

/// What kstatus itself says of these objects.
fn kstatus(objects: &[Value]) -> Vec<String> {
    let mut judge = std::process::Command::new(support::tool("kstatus"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kstatus can be started");
    let objects = Value::Array(objects.to_vec()).to_string();
    judge.stdin.take().expect("piped").write_all(objects.as_bytes()).expect("kstatus reads");
    let judged = judge.wait_with_output().expect("kstatus ends");
    assert!(judged.status.success(), "kstatus refused its input");
    let said = String::from_utf8(judged.stdout).expect("kstatus writes UTF-8");
    let verdict = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["status"].as_str().map(str::to_owned);
    said.lines().map(|line| verdict(line).expect("a word")).collect()
}

//! The OpenAPI document: committed as it is generated, complete, and true, as schemathesis finds by trying.

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use pmp::gateway::openapi;
use serde_json::{Value, json};

use super::{Front, phase, shell};
use crate::support::{Process, python, scratch};

/// Beyond its own bound of 100 s.
const RUN_DEADLINE: Duration = Duration::from_mins(5);

fn operations() -> Vec<(String, String)> {
    let document = openapi::document();
    let paths = document["paths"].as_object().unwrap().clone();
    paths
        .into_iter()
        .flat_map(|(path, methods)| {
            let methods: Vec<String> = methods.as_object().unwrap().keys().cloned().collect();
            methods.into_iter().map(move |method| (path.clone(), method))
        })
        .collect()
}

#[test]
fn the_committed_document_is_the_generated_one() {
    let committed = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json")).unwrap();
    assert!(committed == openapi::text(), "docs/openapi.json is not up to date: run `make generate`");
}

#[tokio::test]
async fn document_and_router_name_the_same_paths_and_methods() {
    let front = Front::new("routes").await;
    assert_eq!(front.get("/openapi.json").await.expect(200), openapi::document());
    for (path, _) in operations() {
        let options = front.call("OPTIONS", &path.replace("{id}", "x")).send().await;
        assert_eq!(options.code, 204, "{path}");
        let allowed: BTreeSet<String> =
            options.header("allow").unwrap().split(',').map(|one| one.trim().to_ascii_lowercase()).collect();
        let mut described: BTreeSet<String> =
            operations().into_iter().filter(|(other, _)| *other == path).map(|(_, method)| method).collect();
        if described.contains("get") {
            described.insert("head".to_owned());
        }
        assert_eq!(allowed, described, "{path}");
    }
    let source = include_str!("../../../src/gateway/routes.rs");
    let routed: BTreeSet<&str> = source.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let described: BTreeSet<String> = operations().into_iter().map(|(path, _)| path).collect();
    assert_eq!(routed, described.iter().map(String::as_str).collect());
}

/// Without what answers for as long as somebody listens.
fn finite(mut document: Value, namespace: &str) -> Value {
    let parameters = document["paths"]["/logs"]["get"]["parameters"].as_array_mut().unwrap();
    parameters.retain(|parameter| parameter["$ref"] != "#/components/parameters/follow");
    // Ids that lead somewhere, so that more than 404 is seen; the illegal ones that it makes up are none of these.
    let parameters = &mut document["components"]["parameters"];
    for (name, values) in [("session", json!(["done", "open", "nobody"])), ("id", json!(["a", "b", "nobody"]))] {
        parameters[name]["schema"]["enum"] = values;
    }
    // Of whatever namespace it thinks, there is no session.
    parameters["namespace"]["schema"]["enum"] = json!([namespace]);
    document
}

#[tokio::test]
async fn schemathesis_finds_no_5xx_and_no_answer_that_is_not_described() {
    let front = Front::with("schema", &["--gateway-peer-rate", "100000", "--gateway-rate", "100000"]).await;
    let _runtime = front.runtime("worker").await;
    front.submit("done", &json!([shell("a", &[], "true")])).await.expect(200);
    front.submit("open", &json!([front.gated("a", &[]), phase("b", &["a"])])).await.expect(200);
    front.until_state("done", "Succeeded").await;
    let dir = scratch("schemathesis");
    let document = dir.join("openapi.json");
    fs::write(&document, finite(openapi::document(), &front.namespace).to_string()).unwrap();
    let mut command = Command::new(python());
    command.args(["-m", "schemathesis.cli", "run"]).arg(&document);
    command.args(["--url", &format!("http://{}", front.address), "--seed", "20260101", "--max-time", "100"]);
    command.args(["--phases", "examples,coverage,fuzzing", "--max-examples", "40", "--request-timeout", "20"]);
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
                  response_headers_conformance,unsupported_method,allow_header_conformance";
    // One worker: two threads that read syntax trees at once confuse each other in Python 3.11.
    command.args(["--checks", checks, "--workers", "1", "--suppress-health-check", "all", "--warnings", "off"]);
    command.args(["--continue-on-failure", "--no-color"]).current_dir(&dir);
    let mut run = Process::start("schemathesis", &command);
    let code = run.wait(RUN_DEADLINE).await;
    assert_eq!(code, 0, "{}\n{}", run.stdout(), run.tail());
    assert_eq!(front.get("/health").await.code, 200);
}

//! The same for every path: methods, errors, hosts, and what an operator without API server answers.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{Front, SOON, client::raw, phase};
use crate::support::{eventually, own_cluster, shared_nats};

#[tokio::test]
async fn methods_are_named_and_head_has_no_body() {
    let front = Front::new("methods").await;
    front.submit("s", &json!([phase("a", &[])])).await.expect(200);
    let wrong = front.call("DELETE", "/plan").send().await;
    assert_eq!(wrong.problem(405), "MethodNotAllowed");
    let allow = |answer: &super::client::Answer| {
        let mut methods: Vec<String> =
            answer.header("allow").unwrap_or_default().split(',').map(|one| one.trim().to_owned()).collect();
        methods.sort();
        methods
    };
    assert_eq!(allow(&wrong), ["GET", "HEAD", "POST"]);
    let options = front.call("OPTIONS", "/apply").send().await;
    assert_eq!((options.code, allow(&options)), (204, vec!["POST".to_owned()]));
    let head = front.call("HEAD", "/status?session=s").send().await;
    assert_eq!((head.code, head.body.len()), (200, 0));
    assert!(head.header("etag").is_some());
    assert_eq!(front.get("/nothing/here").await.problem(404), "NoSuchPath");
    assert_eq!(front.call("FOO", "/plan").send().await.problem(405), "MethodNotAllowed");
}

#[tokio::test]
async fn a_misspelled_parameter_is_not_passed_over() {
    let front = Front::new("spelling").await;
    for target in [
        "/plan?dryrun=true",
        "/plan?session=s&session=t",
        "/plan?session=a.b",
        "/plan?dryRun=maybe",
        "/plan?dryRun&stage",
        "/plan?namespace=UPPER",
        "/plan?namespace=elsewhere",
        "/plan?onConflict=panic",
        "/plan?session=",
        "/plan?namespace",
        "/plan?onConflict=",
        "/apply?session=s&digest=",
    ] {
        let answer = front.call("POST", target).json(&json!([])).send().await;
        assert_eq!(answer.problem(400), "BadParameter", "{target}");
    }
    for target in ["/status", "/status?sesion=s", "/diff?session=", "/health?x", "/sessions?session=s"] {
        assert_eq!(front.get(target).await.problem(400), "BadParameter", "{target}");
    }
    assert!(front.all().await.is_empty());
}

#[tokio::test]
async fn a_web_page_reaches_nothing() {
    let front = Front::new("pages-of-others").await;
    let call = |target| front.call("POST", target).json(&json!([phase("a", &[])]));
    let foreign = call("/plan").header("Origin", "https://example.com").send().await;
    assert_eq!(foreign.problem(403), "CrossOrigin");
    let rebound = call("/plan").header("Host", "attacker.example:8081").send().await;
    assert_eq!(rebound.problem(421), "WrongHost");
    assert!(front.all().await.is_empty());
    let own = call("/plan").header("Origin", "http://localhost:3000").header("Host", "localhost:1");
    own.send().await.expect(200);
}

#[tokio::test]
async fn figures_are_prometheus_text_without_names_of_sessions() {
    let front = Front::new("metrics").await;
    front.submit("very-special-session", &json!([phase("very-special-phase", &[])])).await.expect(200);
    front.until("very-special-session", "it runs", |state| state["revision"] == 1).await;
    front.get("/phases/very-special-phase?session=very-special-session").await.expect(200);
    let answer = front.get("/metrics").await;
    assert_eq!((answer.code, answer.header("content-type")), (200, Some("text/plain; version=0.0.4; charset=utf-8")));
    let text = answer.text();
    for wanted in [
        "pmp_http_requests_total{route=\"/plan\",method=\"POST\",code=\"200\"} 1",
        "pmp_http_request_duration_seconds_bucket{",
        "pmp_api_calls_total{what=\"create the resource\",outcome=\"done\"} 1",
        "pmp_sessions{state=",
        "pmp_bus_connected 1",
        "pmp_bus_messages_total{what=\"received\"}",
        "pmp_process_resident_memory_bytes",
        "pmp_http_requests_total{route=\"/phases/{id}\"",
    ] {
        assert!(text.contains(wanted), "{wanted} is missing:\n{text}");
    }
    assert!(!text.contains("very-special"), "{text}");
    let lines = text.lines().count();
    for n in 0..50 {
        front.get(&format!("/nothing/{n}")).await.problem(404);
    }
    let more = front.get("/metrics").await.text().lines().count();
    assert!(more < lines + 30, "{lines} lines became {more}");
}

#[tokio::test]
async fn without_an_api_server_reads_are_answered_and_writes_are_503_within_five_seconds() {
    let cluster = own_cluster().await;
    let applied = cluster.kubectl(&["apply", "--server-side", "-f", crate::resource::COMMITTED]).await;
    assert!(applied.status.success(), "{applied:?}");
    eventually(SOON, "the resource is known", async || {
        let waited = cluster.kubectl(&["get", "phasemanifests", "--all-namespaces"]).await;
        waited.status.success().then_some(())
    })
    .await;
    let nats = shared_nats().await.url.clone();
    let front = Front::on(&cluster, &nats, "away", &[]).await;
    front.submit("s", &json!([phase("a", &[])])).await.expect(200);
    front.until("s", "it runs", |state| state["revision"] == 1).await;
    for is_hanging in [true, false] {
        if is_hanging {
            cluster.signal_api_server(crate::support::Signal::STOP);
        } else {
            cluster.kill_api_server();
        }
        assert_eq!(front.get("/status?session=s").await.code, 200, "the cache answers");
        for target in ["/plan?session=t", "/control?session=s"] {
            let body = if target.starts_with("/plan") { json!([phase("a", &[])]) } else { json!({"command": "pause"}) };
            let began = Instant::now();
            let answer = front.call("POST", target).json(&body).send().await;
            let reason = answer.problem(503);
            assert!(["ApiTimeout", "ApiError"].contains(&reason.as_str()), "{reason}");
            assert!(answer.header("retry-after").is_some());
            assert!(began.elapsed() < Duration::from_millis(5500), "{target} took {:?}", began.elapsed());
        }
    }
    cluster.start_api_server().await;
    eventually(SOON, "plans are taken again", async || {
        let call = front.call("POST", "/plan?session=t").json(&json!([phase("a", &[])]));
        let answer = call.try_send().await?;
        (answer.code == 200 || answer.code == 409).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_old_client_and_one_that_keeps_its_connection_are_answered() {
    let front = Front::new("old").await;
    let old = raw(front.address, b"GET /health HTTP/1.0\r\n\r\n").await.unwrap();
    assert_eq!(old.expect(200), json!({"status": "ok"}));
    let twice = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = raw(front.address, twice).await.unwrap();
    assert_eq!(answer.text().matches("HTTP/1.1 200 OK").count(), 1, "the second follows the first: {}", answer.text());
}

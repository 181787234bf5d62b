//! GET /logs: from the record stream where the bus keeps messages, from memory where it keeps none.

use serde_json::{Value, json};

use super::{Front, SOON, phase};
use crate::support::{NatsConfig, eventually, nats, shared_nats};

async fn say(client: &async_nats::Client, front: &Front, session: &str, line: Value) {
    let subject = format!("{}.{session}.log", front.prefix);
    client.publish(subject, line.to_string().into()).await.unwrap();
    client.flush().await.unwrap();
}

async fn lines(front: &Front, target: &str, count: usize) -> Vec<Value> {
    eventually(SOON, &format!("{target} has {count} lines"), async || {
        let answer = front.get(target).await.expect(200);
        let lines = answer["lines"].as_array().unwrap().clone();
        (lines.len() == count).then_some(lines)
    })
    .await
}

async fn are_kept_and_chosen(front: &Front) {
    let client = async_nats::connect(&front.nats_url).await.unwrap();
    for session in ["s", "other"] {
        front.submit(session, &json!([phase("a", &[]), phase("b", &[])])).await.expect(200);
        front.until(session, "it has begun", |state| state["revision"] == 1).await;
    }
    for n in 0..150 {
        let id = if n % 3 == 0 { "a" } else { "b" };
        say(&client, front, "s", json!({"phaseId": id, "level": "info", "message": format!("line {n}")})).await;
    }
    say(&client, front, "other", json!({"level": "error", "message": "elsewhere"})).await;
    say(&client, front, "s", json!("no line")).await;
    let all = lines(front, "/logs?session=s&limit=1000", 150).await;
    assert_eq!(all[0]["message"], "line 0");
    assert!(all.iter().all(|line| line["timestamp"].is_string()), "{all:?}");
    let newest = lines(front, "/logs?session=s", 100).await;
    assert_eq!((&newest[0]["message"], &newest[99]["message"]), (&"line 50".into(), &"line 149".into()));
    let of_one = lines(front, "/logs?session=s&phaseId=a&limit=5", 5).await;
    assert_eq!(
        of_one[4],
        json!({"phaseId": "a", "level": "info", "message": "line 147", "timestamp": of_one[4]["timestamp"]})
    );
    lines(front, "/logs?session=s&since=1h&limit=1000", 150).await;
    lines(front, "/logs?session=s&since=2100-01-01T00:00:00Z", 0).await;
    for bad in ["limit=0", "limit=1001", "since=yesterday", "phaseId=%00"] {
        assert_eq!(front.get(&format!("/logs?session=s&{bad}")).await.problem(400), "BadParameter");
    }
    assert_eq!(front.get("/logs?session=nobody").await.problem(404), "NoSuchSession");
    let call = front.call("GET", "/logs?session=s&follow&limit=2").header("Accept", "text/event-stream");
    let mut stream = call.clone().events().await;
    let heard = [stream.next().await.unwrap(), stream.next().await.unwrap()];
    assert_eq!((heard[0].kind.as_str(), &heard[1].data["message"]), ("log", &"line 149".into()));
    drop(stream);
    for n in 150..153 {
        say(&client, front, "s", json!({"message": format!("line {n}")})).await;
    }
    lines(front, "/logs?session=s&limit=1000", 153).await;
    let mut again = call.header("Last-Event-ID", heard[1].id.as_deref().unwrap()).events().await;
    for n in 150..153 {
        assert_eq!(again.next().await.unwrap().data["message"], format!("line {n}"));
    }
    say(&client, front, "s", json!({"message": "live"})).await;
    assert_eq!(again.next().await.unwrap().data["message"], "live");
}

#[tokio::test]
async fn with_jetstream_lines_come_from_the_record_and_outlive_the_process() {
    let server = shared_nats().await;
    let front = Front::new("record").await;
    are_kept_and_chosen(&front).await;
    drop(front.operator);
    let mut command = std::process::Command::new(crate::support::bin());
    command.args(["gateway", "--namespace", &front.namespace, "--nats", &server.url]);
    command.args(["--subject-prefix", &front.prefix, "--kubeconfig"]).arg(&front.kubeconfig);
    let process = crate::support::Process::start("gateway", &command);
    let address = super::address(&process).await;
    eventually(SOON, "another process shows them", async || {
        let call = super::client::Call::new(address, "GET", "/logs?session=s&limit=1000");
        let answer = call.try_send().await.filter(|answer| answer.code == 200)?;
        (answer.json()["lines"].as_array()?.len() == 154).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_jetstream_lines_come_from_memory() {
    let server = nats(NatsConfig::default().without_jetstream()).await;
    let cluster = crate::resource::cluster().await;
    let front = Front::on(&cluster, &server.url, "ring", &[]).await;
    are_kept_and_chosen(&front).await;
}

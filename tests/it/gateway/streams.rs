//! The status as a stream: no change of state is missed, whenever the client was connected.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use futures::StreamExt;
use kube::api::{WatchEvent, WatchParams};
use pmp::resource::PhaseManifest;
use serde_json::{Value, json};

use super::{
    Front, SOON,
    client::{Event, Events},
    phase, shell,
};
use crate::support::eventually;

/// What a client makes of the events: the state, by merging.
#[derive(Default)]
struct Picture {
    fields: serde_json::Map<String, Value>,
    phases: BTreeMap<String, Value>,
    last: Option<String>,
    seen: Vec<u64>,
}

impl Picture {
    fn take(&mut self, event: &Event) {
        let fields = event.data.as_object().expect("an event is an object");
        if event.kind == "state" {
            self.fields.clear();
            self.phases.clear();
        }
        for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with("phases")) {
            self.fields.insert(name.clone(), value.clone());
        }
        for row in event.data["phases"].as_array().into_iter().flatten() {
            self.phases.insert(row["id"].as_str().unwrap().to_owned(), row.clone());
        }
        let id = event.id.clone().expect("every event has an id");
        self.seen.push(id.parse().unwrap());
        self.last = Some(id);
    }

    async fn follow(&mut self, events: &mut Events, until: impl Fn(&Self) -> bool) {
        while !until(self) {
            let event = events.next().await.expect("the stream goes on");
            self.take(&event);
        }
    }

    fn state(&self) -> &Value {
        self.fields.get("state").unwrap_or(&Value::Null)
    }

    fn is_whole(&self, state: &Value) -> bool {
        let rows = state["phases"].as_array().unwrap();
        rows.len() == self.phases.len() && rows.iter().all(|row| self.phases[row["id"].as_str().unwrap()] == *row)
    }
}

async fn events(front: &Front, last: Option<&str>) -> Events {
    let call = front.call("GET", "/status?session=s").header("Accept", "text/event-stream");
    match last {
        Some(last) => call.header("Last-Event-ID", last).events().await,
        None => call.events().await,
    }
}

#[tokio::test]
async fn a_stream_that_is_reconnected_has_no_gap() {
    let front = Front::new("stream").await;
    let _runtime = front.runtime("worker").await;
    let chain: Vec<Value> = (0..12)
        .map(|n: usize| {
            let waits: Vec<String> = n.checked_sub(1).map(|n| format!("p{n}")).into_iter().collect();
            let waits: Vec<&str> = waits.iter().map(String::as_str).collect();
            if n.is_multiple_of(4) {
                front.gated(&format!("p{n}"), &waits)
            } else {
                shell(&format!("p{n}"), &waits, "true")
            }
        })
        .collect();
    front.submit("s", &chain.into()).await.expect(200);
    let mut picture = Picture::default();
    let is = |picture: &Picture, id: &str, state: &str| picture.phases.get(id).is_some_and(|row| row["state"] == state);
    let mut stream = events(&front, None).await;
    picture.follow(&mut stream, |picture| is(picture, "p0", "Running")).await;
    drop(stream);
    // What happens now is heard by nobody.
    front.open("p0");
    front.until("s", "p4 runs", |state| super::row(state, "p4")["state"] == "Running").await;
    let last = picture.last.clone();
    let mut stream = events(&front, last.as_deref()).await;
    let first = stream.next().await.unwrap();
    assert_eq!(first.kind, "state", "something was written meanwhile: all of it comes first");
    picture.take(&first);
    assert!(is(&picture, "p3", "Complete") && is(&picture, "p4", "Running"), "{:?}", picture.phases);
    // Cut off anywhere, again and again.
    for gate in ["p4", "p8"] {
        front.open(gate);
        for _ in 0..3 {
            let last = picture.last.clone();
            stream = events(&front, last.as_deref()).await;
            if picture.state() != "Succeeded" && !is(&picture, "p8", "Running") {
                picture.take(&stream.next().await.unwrap());
            }
        }
    }
    picture.follow(&mut stream, |picture| picture.state() == "Succeeded").await;
    let state = front.get("/status?session=s").await.expect(200);
    assert!(picture.is_whole(&state), "{:?}\n{state}", picture.phases);
    assert!(picture.seen.is_sorted(), "time never goes back: {:?}", picture.seen);
}

/// Every version of the session's resource that the API server tells of from now on.
async fn versions(front: &Front) -> Arc<Mutex<BTreeMap<u64, PhaseManifest>>> {
    let versions: Arc<Mutex<BTreeMap<u64, PhaseManifest>>> = Arc::default();
    let (seen, api) = (Arc::clone(&versions), front.api.clone());
    let mut watch = api.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    tokio::spawn(async move {
        while let Some(Ok(event)) = watch.next().await {
            if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event {
                let version = object.metadata.resource_version.as_deref().unwrap().parse().unwrap();
                seen.lock().unwrap().insert(version, object);
            }
        }
    });
    versions
}

#[tokio::test]
async fn every_event_leads_to_what_the_api_server_has_at_its_version() {
    let front = Front::new("true-stream").await;
    let versions = versions(&front).await;
    let _runtime = front.runtime("worker").await;
    let chain: Vec<Value> = (0..10)
        .map(|n: usize| {
            let waits: Vec<String> = n.checked_sub(1).map(|n| format!("p{n}")).into_iter().collect();
            let waits: Vec<&str> = waits.iter().map(String::as_str).collect();
            shell(&format!("p{n}"), &waits, "sleep 0.3")
        })
        .collect();
    front.submit("s", &chain.into()).await.expect(200);
    let mut pictures: Vec<(u64, Value, BTreeMap<String, Value>)> = Vec::new();
    let mut picture = Picture::default();
    let mut stream = events(&front, None).await;
    while picture.state() != "Succeeded" {
        // Cut off now and then.
        if pictures.len() % 4 == 3 {
            stream = events(&front, picture.last.as_deref()).await;
        }
        picture.take(&stream.next().await.expect("the stream goes on"));
        pictures.push((*picture.seen.last().unwrap(), picture.state().clone(), picture.phases.clone()));
    }
    // Statuses are written less often on a busy machine.
    assert!(pictures.len() > 2, "{} events for ten phases", pictures.len());
    assert!(picture.seen.is_sorted_by(|one, next| one < next), "no version is told twice: {:?}", picture.seen);
    let last = *picture.seen.last().unwrap();
    eventually(SOON, "the last version is known", async || versions.lock().unwrap().get(&last).map(|_| ())).await;
    let versions = versions.lock().unwrap();
    for (version, state, phases) in &pictures {
        let status = versions.get(version).unwrap_or_else(|| panic!("{version} is no version")).status.as_ref();
        let status = status.expect("there is one by default");
        assert_eq!(state.as_str(), status.state.as_deref(), "at {version}");
        for row in &status.phases {
            assert_eq!(phases[&row.id]["state"], row.state.as_str(), "{} at {version}", row.id);
        }
    }
}

#[tokio::test]
async fn a_client_that_has_seen_all_hears_only_what_is_new() {
    let front = Front::new("uptodate").await;
    front.submit("s", &json!([phase("a", &[])])).await.expect(200);
    front.until("s", "it is offered", |state| state["counts"]["offered"] == 1).await;
    let mut stream = events(&front, None).await;
    let first = stream.next().await.unwrap();
    let mut picture = Picture::default();
    picture.take(&first);
    // It may still change its mind about its runtime; then it is quiet.
    front.until("s", "nobody answers", |state| state["state"] == "NoRuntime").await;
    picture.follow(&mut stream, |picture| picture.state() == "NoRuntime").await;
    let mut again = events(&front, picture.last.as_deref()).await;
    front.post("/phases/a/complete?session=s").await.expect(202);
    let next = again.next().await.unwrap();
    assert_eq!(next.kind, "change", "{next:?}");
    picture.take(&next);
    picture.follow(&mut again, |picture| picture.state() == "Succeeded").await;
}

#[tokio::test]
async fn the_end_of_a_session_is_told_and_ends_the_stream() {
    let front = Front::new("gone").await;
    front.submit("s", &json!([phase("a", &[])])).await.expect(200);
    let mut stream = events(&front, None).await;
    assert_eq!(stream.next().await.unwrap().kind, "state");
    front.api.delete("s", &kube::api::DeleteParams::default()).await.unwrap();
    let mut last = stream.next().await.unwrap();
    while last.kind != "gone" {
        last = stream.next().await.expect("it is told");
    }
    assert_eq!(stream.next().await, None);
    assert_eq!(front.get("/status?session=s").await.problem(404), "NoSuchSession");
}

#[tokio::test]
async fn streams_are_so_many_and_no_more_and_their_places_come_free() {
    let front = Front::with("places", &["--gateway-streams-max", "2"]).await;
    front.submit("s", &json!([phase("a", &[])])).await.expect(200);
    let (one, two) = (events(&front, None).await, events(&front, None).await);
    let call = front.call("GET", "/status?session=s").header("Accept", "text/event-stream");
    let refused = call.clone().send().await;
    assert_eq!(refused.problem(503), "TooManyStreams");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(front.get("/status?session=s").await.code, 200, "others are answered");
    drop((one, two));
    eventually(SOON, "a place is free", async || {
        // Written to, the gateway notices that nobody reads any more.
        let body = json!({"command": "pause"});
        front.call("POST", "/control?session=s").json(&body).send().await;
        let body = json!({"command": "resume"});
        front.call("POST", "/control?session=s").json(&body).send().await;
        let stream = call.open().await;
        let mut head = [0; 12];
        tokio::io::AsyncReadExt::read_exact(&mut { stream }, &mut head).await.ok()?;
        (&head == b"HTTP/1.1 200").then_some(())
    })
    .await;
}

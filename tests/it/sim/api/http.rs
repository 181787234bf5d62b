//! Requests as `kube::Client` makes them: from a path to the store and back, with the faults of the schedule on the way.

use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::{sync::oneshot, time::sleep};

use super::{
    ApiServer, Kind,
    store::{self, Failure, Key, Part, Preconditions, Store, Stored},
    watch::{self, Answer, Wish},
};
use crate::sim::{
    fates::{After, Effect},
    world::Door,
};

/// Where a request goes.
struct Place {
    kind: Kind,
    namespace: Option<String>,
    name: Option<String>,
    part: Part,
}

/// Which objects are meant: equality on labels and fields, as the operator asks for them.
#[derive(Debug, Clone, Default)]
pub struct Filter(Vec<(Vec<String>, String)>);

impl Filter {
    pub fn takes(&self, object: &Value) -> bool {
        self.0.iter().all(|(path, wanted)| {
            let found = path.iter().try_fold(object, |value, step| value.get(step));
            found.and_then(Value::as_str).unwrap_or_default() == wanted
        })
    }
}

/// Everything of a request that matters.
struct Call {
    method: Method,
    place: Place,
    filter: Filter,
    from: Option<u64>,
    watch: bool,
    bookmarks: bool,
    timeout: Duration,
    metadata_only: bool,
    body: Value,
}

pub async fn serve(server: ApiServer, door: Door, request: Request<Body>) -> Response<Answer> {
    door.pass().await;
    let call = match read(request).await {
        Ok(call) => call,
        Err(failure) => return refused(&failure),
    };
    let answer = match (call.method == Method::GET, call.watch) {
        (true, true) => {
            let from = call.from.unwrap_or_else(|| server.store().version());
            let (kind, namespace) = (call.place.kind, call.place.namespace);
            let (filter, bookmarks, timeout) = (call.filter, call.bookmarks, call.timeout);
            let wish = Wish { kind, namespace, filter, from, bookmarks, timeout };
            let fate = server.0.shared.fates.read(&door);
            sleep(fate.delay).await;
            match fate.refused {
                Some(failure) => refused(&failure),
                None => Response::new(watch::start(server, door.clone(), wish)),
            }
        }
        (true, false) => {
            let fate = server.0.shared.fates.read(&door);
            sleep(fate.delay).await;
            answered(fate.refused.map_or_else(|| look(&server, &call), Err))
        }
        (false, _) => answered(write(server, door.clone(), call).await),
    };
    door.pass().await;
    answer
}

/// A write goes on at the server even if whoever asked is gone by then.
async fn write(server: ApiServer, door: Door, call: Call) -> Result<String, Failure> {
    let fates = &server.0.shared.fates;
    let kind = if call.place.kind == Kind::Event { Effect::Event } else { Effect::Write };
    let fate = fates.write(&door, kind);
    let after = fate.after;
    let (to, answer) = oneshot::channel();
    let at_server = {
        let server = server.clone();
        async move {
            sleep(fate.delay).await;
            let done = fate.refused.map_or_else(|| server.change(|store, now| carry_out(store, &call, now)), Err);
            if door.is_operator() {
                server.0.shared.wrote(&door, fate.effect, call.method.as_str(), &call.place.describe(), &done);
            }
            let _ = to.send(done.map(|object| cut(&call, &object)));
            door
        }
    };
    let door = if fate.delay.is_zero() { at_server.await } else { joined(tokio::spawn(at_server)).await };
    match after {
        After::Answer => {}
        After::Crash => door.shut(),
        After::Silence => std::future::pending().await,
        After::Error(failure) => return Err(failure),
    }
    answer.await.expect("the server answers whatever it was asked")
}

async fn joined<T>(task: tokio::task::JoinHandle<T>) -> T {
    task.await.expect("the server does not panic")
}

fn carry_out(store: &mut Store, call: &Call, now: &str) -> store::Answer {
    let place = &call.place;
    let namespace = place.namespace.clone().unwrap_or_default();
    if call.method == Method::POST {
        return store.create(place.kind, &namespace, call.body.clone(), now);
    }
    let key = place.key()?;
    match call.method {
        Method::PATCH => store.patch(&key, place.part, &call.body),
        Method::DELETE => {
            let text = |pointer: &str| call.body.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
            let preconditions =
                Preconditions { uid: text("/preconditions/uid"), version: text("/preconditions/resourceVersion") };
            store.delete(&key, &preconditions)
        }
        _ => Err(Failure::new(405, "MethodNotAllowed", "the operator does not do this")),
    }
}

fn look(server: &ApiServer, call: &Call) -> Result<String, Failure> {
    let store = server.store();
    if call.place.name.is_some() {
        return store.get(&call.place.key()?).map(|object| cut(call, &object));
    }
    let (api_version, kind, _) = call.place.kind.names();
    let items: Vec<&str> = store
        .list(call.place.kind, call.place.namespace.as_deref())
        .filter(|object| call.filter.takes(object))
        .map(|object| object.text.as_str())
        .collect();
    let metadata = json!({"resourceVersion": store.version().to_string()});
    let items = items.join(",");
    Ok(format!(r#"{{"apiVersion":"{api_version}","kind":"{kind}List","metadata":{metadata},"items":[{items}]}}"#))
}

/// The answer as it was asked for.
fn cut(call: &Call, object: &Stored) -> String {
    if call.method == Method::DELETE {
        let details = json!({"name": object["metadata"]["name"], "uid": object["metadata"]["uid"]});
        let status =
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
        return status.to_string();
    }
    if call.metadata_only {
        let metadata = &object["metadata"];
        let partial = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
        return partial.to_string();
    }
    object.text.clone()
}

fn answered(answer: Result<String, Failure>) -> Response<Answer> {
    match answer {
        Ok(text) => Response::new(whole(text)),
        Err(failure) => refused(&failure),
    }
}

fn refused(failure: &Failure) -> Response<Answer> {
    let body = whole(failure.status().to_string());
    Response::builder().status(failure.code).body(body).expect("the code is a legal one")
}

fn whole(text: String) -> Answer {
    Answer::Whole(Some(Bytes::from(text)))
}

// === reading ===

async fn read(request: Request<Body>) -> Result<Call, Failure> {
    let (parts, body) = request.into_parts();
    let place = Place::read(parts.uri.path())?;
    let query: Vec<(String, String)> = parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect();
    let of = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let accept = parts.headers.get("accept").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let bytes = body.collect_bytes().await.expect("bodies come from memory");
    let body = if bytes.is_empty() { Value::Null } else { parsed(&bytes)? };
    let mut filter = Filter::default();
    for term in of("labelSelector").into_iter().flat_map(|terms| terms.split(',')).filter(|term| !term.is_empty()) {
        let (key, value) = term.split_once('=').expect("the operator asks for equality only");
        filter.0.push((vec!["metadata".into(), "labels".into(), key.to_owned()], value.to_owned()));
    }
    for term in of("fieldSelector").into_iter().flat_map(|terms| terms.split(',')).filter(|term| !term.is_empty()) {
        let (path, value) = term.split_once('=').expect("the operator asks for equality only");
        filter.0.push((path.split('.').map(str::to_owned).collect(), value.to_owned()));
    }
    Ok(Call {
        method: parts.method,
        place,
        filter,
        from: of("resourceVersion").and_then(|version| version.parse().ok()).filter(|version| *version > 0),
        watch: of("watch") == Some("true"),
        bookmarks: of("allowWatchBookmarks") == Some("true"),
        timeout: Duration::from_secs(of("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(290)),
        metadata_only: accept.contains("as=PartialObjectMetadata"),
        body,
    })
}

fn parsed(bytes: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(bytes).map_err(|error| Failure::new(400, "BadRequest", error.to_string()))
}

impl Place {
    /// `/api/v1/...` or `/apis/<group>/<version>/...`, then `[namespaces/<ns>/]<plural>[/<name>[/status]]`.
    fn read(path: &str) -> Result<Self, Failure> {
        let unknown = || Failure::new(404, "NotFound", format!("the server could not find {path}"));
        let steps: Vec<String> = path.split('/').filter(|step| !step.is_empty()).map(decoded).collect();
        let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
        let (group, rest) = match &steps[..] {
            ["api", version, rest @ ..] => ((*version).to_owned(), rest),
            ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
            _ => return Err(unknown()),
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
            rest => (None, rest),
        };
        let (plural, rest) = rest.split_first().ok_or_else(unknown)?;
        let is_it = |kind: &Kind| kind.names().0 == group && kind.names().2 == *plural;
        let kind = Kind::ALL.into_iter().find(is_it).ok_or_else(unknown)?;
        let (name, part) = match rest {
            [] => (None, Part::Main),
            [name] => (Some((*name).to_owned()), Part::Main),
            [name, "status"] => (Some((*name).to_owned()), Part::Status),
            _ => return Err(unknown()),
        };
        Ok(Self { kind, namespace, name, part })
    }

    fn key(&self) -> Result<Key, Failure> {
        let name = self.name.clone().ok_or_else(|| Failure::new(405, "MethodNotAllowed", "a name is wanted"))?;
        Ok(Key { kind: self.kind, namespace: self.namespace.clone().unwrap_or_default(), name })
    }

    fn describe(&self) -> String {
        let part = if self.part == Part::Status { "/status" } else { "" };
        format!("{}/{}{part}", self.kind.names().2, self.name.as_deref().unwrap_or_default())
    }
}

/// Percent-decoding of a query or a path.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'%').then(|| tail.get(..2)).flatten();
        let code = code.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        rest = if code.is_some() { &tail[2..] } else { tail };
        bytes.push(code.unwrap_or(if first == b'+' { b' ' } else { first }));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

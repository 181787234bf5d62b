//! The status as it changes, as server-sent events: the whole state first, then what changes of it.
//!
//! Each event's id is the resourceVersion that it leads to. A client that comes back with `Last-Event-ID` gets the whole
//! state if anything was written since, so it misses no change of state, however long it was away; one that reads too
//! slowly gets the whole state instead of what it missed.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use axum::{
    http::{HeaderMap, request::Parts},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt, stream::unfold};
use serde_json::{Map, Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, broadcast},
    time::{Instant, sleep_until},
};

use super::{Gateway, fault::Fault, query::Query, serve::Lease, sessions::version_of, submit::name_version};
use crate::{
    controller::{
        Change,
        call::{name, namespace, uid},
    },
    resource::PhaseManifest,
};

/// A stream ends after this and its client comes back; so nobody holds a place for ever.
const STREAM_LIFETIME: Duration = Duration::from_hours(1);

/// Between two comments on a silent stream, so that whoever stands between keeps it open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What a client is told to wait before it comes back.
const RETRY: Duration = Duration::from_secs(1);

/// GET /status with `Accept: text/event-stream`.
pub async fn status(gateway: &Gateway, query: &Query, request: &Parts) -> Result<Response, Fault> {
    let place = place(gateway)?;
    // Before the state is read, so that nothing falls between the two.
    let changes = gateway.sessions.view.changes();
    let known = last_event_id(&request.headers).and_then(|id| id.parse::<u64>().ok());
    let object = gateway
        .in_time(async {
            let object = gateway.sessions.of(query).await?;
            // The client may have seen more than this process, from another one.
            match known.filter(|&known| version_of(&object).is_some_and(|version| version < known)) {
                Some(known) => {
                    let newer = gateway.sessions.at_least(namespace(&object), name(&object), known).await;
                    Ok(newer.unwrap_or(object))
                }
                None => Ok(object),
            }
        })
        .await?;
    let is_up_to_date = known.is_some() && known == version_of(&object);
    let told = if is_up_to_date { Some(gateway.states.of(gateway, &object).await) } else { None };
    let follower = Follower {
        gateway: gateway.clone(),
        changes,
        told: told.map(|state| (version_of(&object).unwrap_or_default(), state)),
        next: (!is_up_to_date).then(|| Arc::clone(&object)),
        uid: uid(&object).to_owned(),
        at: (namespace(&object).to_owned(), name(&object).to_owned()),
        is_over: false,
        _place: place,
    };
    let events = unfold(follower, |mut follower| async { follower.next().await.map(|event| (event, follower)) });
    let mut response = respond(gateway, request, events);
    name_version(response.headers_mut(), &object);
    Ok(response)
}

/// One of so many streams; 503 where there are that many.
pub fn place(gateway: &Gateway) -> Result<OwnedSemaphorePermit, Fault> {
    gateway.streams.clone().try_acquire_owned().map_err(|_| {
        let detail = format!("{} streams are open, and no more are served: ask again", gateway.bounds.streams_max);
        Fault::unavailable("TooManyStreams", detail)
    })
}

/// The header that a client comes back with.
pub fn last_event_id(headers: &HeaderMap) -> Option<&str> {
    headers.get("last-event-id")?.to_str().ok().map(str::trim)
}

/// The events until their hour is over or the server stops.
pub fn respond(gateway: &Gateway, request: &Parts, events: impl Stream<Item = Event> + Send + 'static) -> Response {
    if let Some(lease) = request.extensions.get::<Lease>() {
        lease.extend(STREAM_LIFETIME);
    }
    let (stop, end) = (gateway.stop.clone(), Instant::now() + STREAM_LIFETIME);
    let over = async move {
        tokio::select! {
            () = stop.cancelled_owned() => {}
            () = sleep_until(end) => {}
        }
    };
    let first = futures::stream::once(async { Event::default().retry(RETRY) });
    let events = first.chain(events).take_until(Box::pin(over)).map(Ok::<_, Infallible>);
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

/// One client's view of one session.
struct Follower {
    gateway: Gateway,
    changes: broadcast::Receiver<Change>,
    /// What the client knows, and its version.
    told: Option<(u64, Arc<Value>)>,
    /// To be told before anything is waited for.
    next: Option<Arc<PhaseManifest>>,
    uid: String,
    /// Namespace and name.
    at: (String, String),
    is_over: bool,
    _place: OwnedSemaphorePermit,
}

impl Follower {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if self.is_over {
                return None;
            }
            if let Some(object) = self.next.take() {
                match self.tell(&object).await {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            match self.changes.recv().await {
                // Where it is gone by now, the change that says so follows.
                Ok(Change::Applied { namespace, name }) if (&namespace, &name) == (&self.at.0, &self.at.1) => {
                    self.next = self.gateway.sessions.view.get(&namespace, &name);
                }
                Ok(Change::Applied { .. }) => {}
                Ok(Change::Deleted(uid)) => {
                    if uid == self.uid {
                        return Some(self.gone());
                    }
                }
                // Anything may have happened meanwhile.
                Ok(Change::Refilled) | Err(broadcast::error::RecvError::Lagged(_)) => {
                    match self.gateway.sessions.view.get(&self.at.0, &self.at.1) {
                        Some(object) => self.next = Some(object),
                        None => return Some(self.gone()),
                    }
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    fn gone(&mut self) -> Event {
        self.is_over = true;
        Event::default().event("gone").data(json!({"namespace": self.at.0, "name": self.at.1}).to_string())
    }

    /// What the client is to hear of this version; nothing where it knows it, or a later one.
    async fn tell(&mut self, object: &PhaseManifest) -> Option<Event> {
        let version = version_of(object)?;
        let is_another = uid(object) != self.uid;
        if is_another {
            uid(object).clone_into(&mut self.uid);
            self.told = None;
        }
        if self.told.as_ref().is_some_and(|(told, _)| version <= *told) {
            return None;
        }
        let state = self.gateway.states.of(&self.gateway, object).await;
        let before = self.told.replace((version, Arc::clone(&state)));
        let event = Event::default().id(version.to_string());
        match before {
            None => Some(event.event("state").data(state.to_string())),
            Some((_, before)) => {
                let change = change(&before, &state)?;
                Some(event.event("change").data(change.to_string()))
            }
        }
    }
}

/// The states that followers have, each once, however many have it. Kept only as long as somebody does.
#[derive(Default)]
pub struct States(Mutex<Vec<Known>>);

struct Known {
    uid: String,
    version: u64,
    state: Weak<Value>,
}

impl States {
    /// The state that this version of the object is.
    async fn of(&self, gateway: &Gateway, object: &PhaseManifest) -> Arc<Value> {
        let (uid, version) = (uid(object), version_of(object).unwrap_or_default());
        if let Some(state) = self.known(uid, version) {
            return state;
        }
        let state = Arc::new(gateway.state(object).await);
        // One without all its phases is made anew for the next.
        if Gateway::is_whole(object, &state) {
            self.know(uid, version, &state);
        }
        state
    }

    fn known(&self, uid: &str, version: u64) -> Option<Arc<Value>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let it = known.iter().find(|known| known.version == version && known.uid == uid)?;
        it.state.upgrade()
    }

    fn know(&self, uid: &str, version: u64, state: &Arc<Value>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|known| known.state.strong_count() > 0);
        known.push(Known { uid: uid.to_owned(), version, state: Arc::downgrade(state) });
    }
}

/// From one state to the next: fields that are different (null where gone), and of `phases` the rows that are, with
/// `phasesRemoved` for ids that are gone. Nothing where only the version is another.
fn change(before: &Value, after: &Value) -> Option<Value> {
    let empty = Map::new();
    let (old, new) = (before.as_object().unwrap_or(&empty), after.as_object().unwrap_or(&empty));
    let mut change = Map::new();
    for (name, value) in new.iter().filter(|(name, _)| *name != "phases") {
        if old.get(name) != Some(value) {
            change.insert(name.clone(), value.clone());
        }
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        change.insert(name.clone(), Value::Null);
    }
    let rows = |state: &Map<String, Value>| -> std::collections::BTreeMap<String, Value> {
        let rows = state.get("phases").and_then(Value::as_array).into_iter().flatten();
        rows.filter_map(|row| Some((row["id"].as_str()?.to_owned(), row.clone()))).collect()
    };
    let (old_rows, new_rows) = (rows(old), rows(new));
    let changed: Vec<&Value> =
        new_rows.iter().filter(|(id, row)| old_rows.get(*id) != Some(row)).map(|(_, row)| row).collect();
    let removed: Vec<&String> = old_rows.keys().filter(|id| !new_rows.contains_key(*id)).collect();
    let is_news = !changed.is_empty() || !removed.is_empty() || change.keys().any(|name| name != "resourceVersion");
    if !changed.is_empty() {
        change.insert("phases".to_owned(), json!(changed));
    }
    if !removed.is_empty() {
        change.insert("phasesRemoved".to_owned(), json!(removed));
    }
    is_news.then_some(Value::Object(change))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_what_is_different_and_nothing_else() {
        let before = json!({"state": "Running", "message": "m", "resourceVersion": "1", "phases": [
            {"id": "a", "state": "Running"}, {"id": "b", "state": "Waiting"}, {"id": "c", "state": "Waiting"},
        ]});
        let after = json!({"state": "Running", "verdict": "Failed", "resourceVersion": "2", "phases": [
            {"id": "a", "state": "Complete"}, {"id": "b", "state": "Waiting"},
        ]});
        let wanted = json!({
            "message": null,
            "verdict": "Failed",
            "resourceVersion": "2",
            "phases": [{"id": "a", "state": "Complete"}],
            "phasesRemoved": ["c"],
        });
        assert_eq!(change(&before, &after), Some(wanted));
    }

    #[test]
    fn a_state_is_shared_as_long_as_anybody_has_it() {
        let states = States::default();
        let state = Arc::new(json!({"state": "Running"}));
        states.know("uid", 1, &state);
        assert!(Arc::ptr_eq(&states.known("uid", 1).unwrap(), &state));
        assert!(states.known("uid", 2).is_none() && states.known("other", 1).is_none());
        drop(state);
        assert!(states.known("uid", 1).is_none());
        states.know("uid", 2, &Arc::default());
        assert_eq!(states.0.lock().unwrap().len(), 1, "what nobody has is forgotten");
    }

    #[test]
    fn another_version_of_the_same_state_is_no_news() {
        assert_eq!(change(&json!({"resourceVersion": "1"}), &json!({"resourceVersion": "2"})), None);
    }
}

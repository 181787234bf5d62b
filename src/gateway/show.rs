//! What is only read: GET /plan, /status, /diff, /phases/{id} and /sessions, from the cache.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    Gateway,
    fault::Fault,
    media,
    path::Named,
    plans::Started,
    query::{Query, bad},
    sessions::{session_of, version_of},
    steer::no_such_phase,
    stream,
    submit::name_version,
};
use crate::{
    controller::{
        answers,
        call::{name, namespace},
    },
    manifest::Plan,
    resource::PhaseManifest,
};

/// Sessions of one page of GET /sessions: by default, and at most.
const PAGE: usize = 100;
const PAGE_MAX: usize = 500;

/// GET /status and /state: JSON, or a stream of changes.
pub async fn get_status(State(gateway): State<Gateway>, request: Request) -> Result<Response, Fault> {
    let (parts, _) = request.into_parts();
    let headers = &parts.headers;
    let query = Query::of(parts.uri.query(), &["session", "namespace"])?;
    if media::preferred(headers, &[media::JSON, media::EVENTS])? == media::EVENTS {
        return stream::status(&gateway, &query, &parts).await;
    }
    gateway
        .in_time(async {
            let object = gateway.sessions.of(&query).await?;
            if is_known(headers, &etag(&object)) {
                return Ok(tagged(StatusCode::NOT_MODIFIED.into_response(), &object));
            }
            let state = gateway.state(&object).await;
            let is_whole = Gateway::is_whole(&object, &state);
            let mut response = tagged(Json(state).into_response(), &object);
            if !is_whole {
                response.headers_mut().remove(header::ETAG);
            }
            Ok(response)
        })
        .await
}

/// GET /plan: the manifest that the spec holds, in canonical form.
pub async fn get_plan(State(gateway): State<Gateway>, request: Request) -> Result<Response, Fault> {
    let headers = request.headers();
    let query = Query::of(request.uri().query(), &["session", "namespace"])?;
    let media = media::preferred(headers, &[media::MANIFEST, media::JSON, media::YAML])?;
    gateway
        .in_time(async {
            let object = gateway.sessions.of(&query).await?;
            let plan = gateway.spec_plan(&object).await?;
            let write = move || match media {
                media::YAML => serde_saphyr::to_string(&plan.canonical()).unwrap_or_default(),
                _ => plan.canonical().to_string(),
            };
            let text = gateway.plans.parsers.place().await?.run(write).await?;
            let mut response = ([(header::CONTENT_TYPE, media)], text).into_response();
            name_version(response.headers_mut(), &object);
            Ok(response)
        })
        .await
}

/// GET /diff: from the last revision to what the spec holds.
pub async fn get_diff(State(gateway): State<Gateway>, request: Request) -> Result<Response, Fault> {
    media::preferred(request.headers(), &[media::JSON])?;
    let query = Query::of(request.uri().query(), &["session", "namespace"])?;
    gateway
        .in_time(async {
            let object = gateway.sessions.of(&query).await?;
            let spec = gateway.spec_plan(&object).await?;
            let last = match gateway.plans.started(&object).await {
                Started::Plan(plan) => plan,
                Started::Never => Arc::default(),
                Started::Lost => {
                    let detail = "the manifest of the last revision is kept nowhere: it was too large to be stored, and \
                                  the spec holds another one by now";
                    return Err(Fault::conflict("RevisionLost", detail));
                }
                Started::Unreadable => {
                    return Err(Fault::unavailable("RevisionUnreadable", "the last revision cannot be read now"));
                }
            };
            Ok(versioned(answers::diff(&object, &last, &spec), &object))
        })
        .await
}

/// GET /phases/{id}: its row, what it waits for, and what it is.
pub async fn get_phase(
    State(gateway): State<Gateway>,
    Named(phase): Named,
    request: Request,
) -> Result<Response, Fault> {
    media::preferred(request.headers(), &[media::JSON])?;
    let query = Query::of(request.uri().query(), &["session", "namespace"])?;
    gateway
        .in_time(async {
            let object = gateway.sessions.of(&query).await?;
            let plan = match gateway.plans.started(&object).await {
                Started::Plan(plan) if plan.index_of(phase.as_str()).is_some() => plan,
                _ => gateway.spec_plan(&object).await?,
            };
            let Some(ix) = plan.index_of(phase.as_str()) else { return Err(no_such_phase(&phase)) };
            let state = answers::state(&object, Some(&plan));
            let row = state["phases"].as_array().and_then(|rows| rows.iter().find(|row| row["id"] == phase.as_str()));
            let mut answer = row.cloned().unwrap_or_else(|| json!({"id": phase.as_str(), "state": "Waiting"}));
            let names = |list: &[_]| list.iter().map(|&ix| Value::from(plan.id(ix).as_str())).collect::<Value>();
            answer["sessionId"] = session_of(&object).map(|id| id.to_string()).into();
            answer["waitsFor"] = names(plan.waits(ix));
            answer["dependents"] = names(plan.dependents(ix));
            answer["spec"] = plan.phase(ix).canonical()["spec"].take();
            Ok(versioned(answer, &object))
        })
        .await
}

/// GET /sessions: a page of them, by namespace and name.
pub async fn get_sessions(State(gateway): State<Gateway>, request: Request) -> Result<Response, Fault> {
    media::preferred(request.headers(), &[media::JSON])?;
    let query = Query::of(request.uri().query(), &["namespace", "limit", "continue"])?;
    let (limit, within) = (query.number("limit", PAGE, PAGE_MAX)?, query.namespace()?);
    let after = query.text("continue")?.map(|token| {
        let place = token.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
        place.ok_or_else(|| bad("continue", "continue is what the page before named, and nothing else".to_owned()))
    });
    let after = after.transpose()?;
    gateway.sessions.ready()?;
    gateway.sessions.check_bound(None, within)?;
    let is_bound = |object: &PhaseManifest| {
        let Some(bound) = gateway.sessions.bound() else { return true };
        namespace(object) == bound.namespace && session_of(object).as_ref() == Some(&bound.session)
    };
    let mut objects = gateway.sessions.view.all();
    objects.retain(|object| {
        within.is_none_or(|wanted| namespace(object) == wanted)
            && after.is_none_or(|after| (namespace(object), name(object)) > after)
            && is_bound(object)
    });
    objects.sort_unstable_by(|one, other| (namespace(one), name(one)).cmp(&(namespace(other), name(other))));
    let more = objects.len() > limit;
    objects.truncate(limit);
    let last = objects.last().filter(|_| more).map(|object| format!("{}/{}", namespace(object), name(object)));
    let items: Vec<Value> = objects.iter().map(|object| summary(object)).collect();
    let mut answer = json!({"sessions": items});
    if let Some(last) = last {
        answer["continue"] = last.into();
    }
    Ok(Json(answer).into_response())
}

/// One session in a list.
fn summary(object: &PhaseManifest) -> Value {
    let mut summary = json!({
        "sessionId": session_of(object).map(|id| id.to_string()),
        "namespace": namespace(object),
        "name": name(object),
        "resourceVersion": object.metadata.resource_version,
    });
    let Some(status) = &object.status else { return summary };
    let fields = [
        ("state", json!(status.state)),
        ("message", json!(status.message)),
        ("verdict", json!(status.verdict)),
        ("revision", json!(status.revision)),
        ("digest", json!(status.digest)),
        ("progress", json!(status.progress)),
        ("startedAt", json!(status.started_at)),
        ("finishedAt", json!(status.finished_at)),
    ];
    for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_null()) {
        summary[name] = value;
    }
    summary
}

impl Gateway {
    /// The whole session, every phase of its last revision with it.
    pub(super) async fn state(&self, object: &PhaseManifest) -> Value {
        let started = self.plans.started(object).await;
        let mut state = answers::state(object, started.plan().map(|plan| &**plan));
        state["sessionId"] = session_of(object).map(|id| id.to_string()).into();
        state["namespace"] = namespace(object).into();
        state["name"] = name(object).into();
        state["resourceVersion"] = object.metadata.resource_version.clone().into();
        state
    }

    /// Whether every phase is in it: not where the plan of the revision could not be read.
    pub(super) fn is_whole(object: &PhaseManifest, state: &Value) -> bool {
        let total = object.status.as_ref().and_then(|status| Some(usize::try_from(status.counts?.total).unwrap_or(0)));
        let has_revision = object.status.as_ref().is_some_and(|status| status.revision.is_some());
        !has_revision || state["phases"].as_array().map(Vec::len) == total
    }

    /// The plan in the spec; 409 where it holds none that is valid.
    async fn spec_plan(&self, object: &PhaseManifest) -> Result<Arc<Plan>, Fault> {
        self.plans.spec(object).await?.ok_or_else(|| {
            let said = object.status.as_ref().and_then(|status| status.message.clone()).unwrap_or_default();
            let detail = format!("the resource holds no valid manifest, or it cannot be read now: {said}");
            Fault::conflict("InvalidManifest", detail.trim_end_matches([':', ' ']).replace(char::is_control, " "))
        })
    }
}

fn versioned(mut answer: Value, object: &PhaseManifest) -> Response {
    answer["resourceVersion"] = object.metadata.resource_version.clone().into();
    let mut response = Json(answer).into_response();
    name_version(response.headers_mut(), object);
    response
}

/// Names this version of the object: two answers with one tag are the same.
fn etag(object: &PhaseManifest) -> String {
    format!("\"{}\"", version_of(object).unwrap_or_default())
}

fn tagged(mut response: Response, object: &PhaseManifest) -> Response {
    let headers = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(&etag(object)) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    name_version(headers, object);
    response
}

/// Whether If-None-Match names the tag, weakly compared (RFC 9110, 13.1.2).
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let lists = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(str::trim).any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}

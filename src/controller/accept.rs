//! From a resource as it was written to what is acted on, or to why it is not: the first stage of reconcile.
//!
//! Everything is judged here once, so that no later stage looks at the spec again. It decides nothing about a session
//! that runs, and it writes nothing. Two kinds of failure are kept apart: our own reading failed (try again), and the
//! spec is refused (wait for an edit).

use std::{fmt::Write as _, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use serde_json::Value;

use super::call::{self, call, name, namespace};
use crate::{
    engine::{Request, Settings, Strategy},
    manifest::{Format, OtherKinds, Plan, Problem, from_values, parse},
    protocol::SessionId,
    resource::{
        CONDITION_MESSAGE_BYTES_MAX, ConfigMapKey, ManifestSource, Orders, PhaseManifest, Phases, Refusal, UpdatePolicy,
    },
};

/// A spec that can be acted on.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    pub plan: Arc<Plan>,
    pub settings: Settings,
    pub strategy: Strategy,
    pub requests: Vec<Request>,
    pub update_policy: UpdatePolicy,
    /// Show what would change, and run nothing of it.
    pub staged: bool,
    pub dry_run: bool,
    /// As written, or the default.
    pub session_id: SessionId,
    /// Name of a configured NATS connection; whether it is one is not judged here.
    pub connection: String,
    pub ttl_after_finished: Option<Duration>,
    /// Old revisions to keep.
    pub revision_history_limit: usize,
}

impl Accepted {
    /// Shown, and not run: the last revision goes on.
    pub fn is_held_back(&self) -> bool {
        self.staged || self.dry_run
    }
}

/// What the spec names could not be read; nothing is known about the spec.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the manifest that spec.manifestFrom names")]
    ConfigMap(#[source] call::Error),
}

impl Error {
    /// One PascalCase word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ConfigMap(error) => error.reason(),
        }
    }
}

/// Judges the whole spec, and reads the ConfigMap where the phases are in one.
///
/// The outer error says that our reading failed. The inner one is a refusal and its message for the condition: every
/// problem, one a line, within [`CONDITION_MESSAGE_BYTES_MAX`].
pub async fn accept(client: &Client, object: &PhaseManifest) -> Result<Result<Accepted, (Refusal, String)>, Error> {
    let orders = match Orders::new(&object.spec) {
        Ok(orders) => orders,
        Err(problems) => return Ok(Err(refused(problems, phases_problems(object)))),
    };
    let plan = match plan_of(client, object, orders.manifest).await? {
        Ok(plan) => plan,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let misfits = orders.problems_with(&plan);
    if !misfits.is_empty() {
        return Ok(Err((Refusal::InvalidSpec, listed(&misfits))));
    }
    let session_id = match session_id(object, &orders) {
        Ok(id) => id,
        Err(refusal) => return Ok(Err(refusal)),
    };
    Ok(Ok(Accepted {
        plan: Arc::new(plan),
        settings: orders.settings,
        strategy: orders.strategy,
        requests: orders.requests,
        update_policy: orders.update_policy,
        staged: orders.staged,
        dry_run: orders.dry_run,
        session_id,
        connection: orders.connection.to_owned(),
        ttl_after_finished: orders.ttl_after_finished,
        revision_history_limit: orders.revision_history_limit,
    }))
}

/// The plan that the spec holds or names now, or why there is none.
pub(super) async fn plan_of(
    client: &Client,
    object: &PhaseManifest,
    source: ManifestSource<'_>,
) -> Result<Result<Plan, (Refusal, String)>, Error> {
    match source {
        ManifestSource::Inline(phases) => Ok(match from_values(&values(phases), OtherKinds::Refuse) {
            Ok((plan, _)) => Ok(plan),
            Err(problems) => Err((Refusal::InvalidManifest, listed(&problems))),
        }),
        ManifestSource::ConfigMap(key) => {
            let text = config_map_text(client, namespace(object), key).await?;
            Ok(text.and_then(|text| plan_of_text(&text, key)))
        }
    }
}

/// The text under the key; a refusal where there is no such ConfigMap or key.
async fn config_map_text(
    client: &Client,
    namespace: &str,
    key: &ConfigMapKey,
) -> Result<Result<Vec<u8>, (Refusal, String)>, Error> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let found = call("read the ConfigMap", api.get_opt(&key.name)).await.map_err(Error::ConfigMap)?;
    let not_found = |what: String| Ok(Err((Refusal::ManifestNotFound, what)));
    let Some(map) = found else {
        return not_found(format!("there is no ConfigMap {} in this namespace: create it", key.name));
    };
    let text = map.data.and_then(|mut data| data.remove(&key.key)).map(String::into_bytes);
    let bytes = || map.binary_data.and_then(|mut data| data.remove(&key.key)).map(|bytes| bytes.0);
    match text.or_else(bytes) {
        Some(text) => Ok(Ok(text)),
        None => not_found(format!("the ConfigMap {} has no key {}: add it", key.name, key.key)),
    }
}

fn plan_of_text(text: &[u8], key: &ConfigMapKey) -> Result<Plan, (Refusal, String)> {
    match parse(text, Format::Auto, OtherKinds::Refuse) {
        Ok(document) if document.resource.is_none() => Ok(document.plan),
        // What stands beside its phases would be given up in silence.
        Ok(_) => Err((
            Refusal::InvalidManifest,
            format!("{} of ConfigMap {} is a whole PhaseManifest: put only its phases there", key.key, key.name),
        )),
        Err(problems) => {
            let place = format!("{} of ConfigMap {}: ", key.key, key.name);
            Err((Refusal::InvalidManifest, listed_under(&place, &problems)))
        }
    }
}

fn session_id(object: &PhaseManifest, orders: &Orders<'_>) -> Result<SessionId, (Refusal, String)> {
    match orders.session_id {
        None => Ok(SessionId::default_for(namespace(object), name(object))),
        Some(text) => SessionId::new(text).map_err(|error| (Refusal::InvalidSpec, format!("/spec/sessionId: {error}"))),
    }
}

/// What is wrong with the phases of a spec that is wrong elsewhere, so that all is told at once.
fn phases_problems(object: &PhaseManifest) -> Vec<Problem> {
    from_values(&values(object.spec.phases.as_ref()), OtherKinds::Refuse).err().unwrap_or_default()
}

fn values(phases: Option<&Phases>) -> Vec<Value> {
    phases.map(Phases::values).unwrap_or_default()
}

fn refused(mut spec: Vec<Problem>, manifest: Vec<Problem>) -> (Refusal, String) {
    let refusal = if manifest.is_empty() { Refusal::InvalidSpec } else { Refusal::InvalidManifest };
    spec.extend(manifest);
    (refusal, listed(&spec))
}

fn listed(problems: &[Problem]) -> String {
    listed_under("", problems)
}

/// `2 problems:` and one a line; whole problems only, and how many more there are.
fn listed_under(place: &str, problems: &[Problem]) -> String {
    /// `and 200000 more` with its line break, and the rest of the room for a first problem that is too long.
    const REST_BYTES: usize = 32;
    let room = CONDITION_MESSAGE_BYTES_MAX - REST_BYTES;
    if let [problem] = problems {
        return cut(format!("{place}{}", line(problem)), CONDITION_MESSAGE_BYTES_MAX);
    }
    let mut text = format!("{place}{} problems:", problems.len());
    let mut told = 0;
    for problem in problems {
        let line = line(problem);
        if text.len() + 1 + line.len() > room && told > 0 {
            break;
        }
        text.push('\n');
        text.push_str(&cut(line, room.saturating_sub(text.len())));
        told += 1;
    }
    if told < problems.len() {
        write!(text, "\nand {} more", problems.len() - told).expect("a string takes every text");
    }
    text
}

/// On one line, whatever it quotes.
fn line(problem: &Problem) -> String {
    problem.to_string().replace(char::is_control, " ")
}

fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Reason;

    fn problem(message: &str) -> Problem {
        Problem {
            reason: Reason::BadValue,
            pointer: "/spec/phases/0".to_owned(),
            message: message.to_owned(),
            hint: None,
            place: None,
        }
    }

    #[test]
    fn one_problem_is_told_without_a_count() {
        assert_eq!(listed(&[problem("it is wrong")]), "/spec/phases/0: it is wrong");
    }

    #[test]
    fn every_problem_has_its_own_line() {
        let text = listed(&[problem("a\nb"), problem("c")]);
        assert_eq!(text, "2 problems:\n/spec/phases/0: a b\n/spec/phases/0: c");
    }

    #[test]
    fn problems_past_the_room_are_counted_and_none_is_cut_in_two() {
        let problems: Vec<Problem> = (0..200).map(|n| problem(&format!("wrong in way {n:03}"))).collect();
        let text = listed(&problems);
        assert!(text.len() <= CONDITION_MESSAGE_BYTES_MAX, "{}", text.len());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "200 problems:");
        let told = lines.len() - 2;
        assert!(told > 10);
        assert_eq!(lines[lines.len() - 1], format!("and {} more", 200 - told));
        assert!(lines[1..=told].iter().all(|line| line.len() == "/spec/phases/0: wrong in way 000".len()));
    }

    #[test]
    fn a_problem_longer_than_the_room_is_cut_at_a_character() {
        let long = "é".repeat(2000);
        for problems in [vec![problem(&long)], vec![problem(&long), problem("second")]] {
            let text = listed(&problems);
            assert!(text.len() <= CONDITION_MESSAGE_BYTES_MAX, "{}", text.len());
            assert!(text.contains('é'));
        }
    }
}

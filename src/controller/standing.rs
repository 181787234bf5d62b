//! The status of a resource that has no session task: refused, staged before anything ran, or planned only.
//!
//! A merge patch of a few fields: what an earlier session left in the status stays as it is.

use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::call::{Error, call, name, namespace};
use crate::{
    engine::Availability,
    manifest::Plan,
    resource::{BusStanding, Moment, PhaseManifest, STATUS_SCHEMA, Situation, conditions},
};

/// Writes the situation, unless it stands there already.
pub async fn write(
    client: &Client,
    object: &PhaseManifest,
    situation: &Situation,
    now: Timestamp,
) -> Result<(), Error> {
    patch(client, object, situation, json!({}), now).await
}

/// Writes that the plan is valid and was not run.
pub async fn write_planned(
    client: &Client,
    object: &PhaseManifest,
    session_id: &str,
    plan: &Plan,
    now: Timestamp,
) -> Result<(), Error> {
    let phases = plan.len();
    let mut planned = json!({
        "schema": STATUS_SCHEMA,
        "sessionId": session_id,
        "verdict": "Planned",
        "progress": format!("0/{phases}"),
        "counts": {"total": phases, "wanted": phases},
        "finishedAt": Moment::from(now),
    });
    if object.status.as_ref().is_none_or(|status| status.revision.is_none()) {
        // Beside a revision the digest is that revision's, which the next edit is compared with.
        planned["digest"] = json!(plan.digest().to_string());
    }
    patch(client, object, &Situation::Planned, planned, now).await
}

async fn patch(
    client: &Client,
    object: &PhaseManifest,
    situation: &Situation,
    mut more: Value,
    now: Timestamp,
) -> Result<(), Error> {
    let generation = object.metadata.generation.unwrap_or_default();
    let status = object.status.clone().unwrap_or_default();
    let is_said = status.observed_generation == Some(generation)
        && status.state.as_deref() == Some(situation.state())
        && status.message.as_deref() == Some(&situation.message());
    if is_said {
        return Ok(());
    }
    let availability = match status.availability.as_deref() {
        Some("Available") => Availability::Available,
        Some("Unavailable") => Availability::Unavailable,
        _ => Availability::Unknown,
    };
    more["observedGeneration"] = json!(generation);
    more["state"] = json!(situation.state());
    more["message"] = json!(situation.message());
    more["conditions"] =
        json!(conditions(situation, availability, &BusStanding::Unknown, &status.conditions, generation, now));
    let api: Api<PhaseManifest> = Api::namespaced(client.clone(), namespace(object));
    let patch = json!({
        "metadata": {"resourceVersion": object.metadata.resource_version, "uid": object.metadata.uid},
        "status": more,
    });
    call("write the status", api.patch_status(name(object), &PatchParams::default(), &Patch::Merge(patch)))
        .await
        .map(drop)
}

//! POST /apply: what was staged runs, if it is still what the client has seen.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Map, Value, json};

use super::{
    CONFLICTS_MAX,
    answer::{Facts, Outcome, answer},
    is_started,
    judge::Standing,
    respond, session_text, started,
};
use crate::{
    controller::{
        call::{call, name, namespace},
        commands::{CommandId, Identity, with_request},
    },
    gateway::{
        Gateway,
        fault::Fault,
        media,
        query::{Query, bad},
    },
    manifest::{Digest, Plan},
    resource::{PhaseManifest, Request as Asked, RequestAction},
};

/// POST /apply.
pub async fn post_apply(State(gateway): State<Gateway>, request: Request) -> Result<Response, Fault> {
    let (parts, stream) = request.into_parts();
    media::preferred(&parts.headers, &[media::JSON])?;
    let query = Query::of(parts.uri.query(), &["session", "namespace", "digest"])?;
    let digest = query.text("digest")?.map(str::parse::<Digest>).transpose();
    let digest = digest.map_err(|error| bad("digest", error.to_string()))?;
    gateway.bodies.ignore(&parts.headers, stream).await?;
    Box::pin(gateway.in_time(gateway.apply(&query, digest))).await
}

impl Gateway {
    async fn apply(&self, query: &Query, digest: Option<Digest>) -> Result<Response, Fault> {
        let mut object = self.sessions.fresh(query).await?;
        let api: Api<PhaseManifest> = Api::namespaced(self.client.clone(), namespace(&object));
        for _ in 0..CONFLICTS_MAX {
            let plan = self.committed(&object, digest).await?;
            // Unknown where it cannot be read; then the changes are, too.
            let base = self.plans.started(&object).await.base();
            let facts = facts(&object, &plan);
            if facts.outcome == Outcome::Unchanged {
                return Ok(respond(&object, answer(&object, &session_text(&object), &plan, &facts, base.as_deref())));
            }
            let (params, patch) = (PatchParams::default(), Patch::Merge(commit(&object, facts.outcome)?));
            match call("apply what is staged", api.patch(name(&object), &params, &patch)).await {
                Ok(written) => {
                    self.sessions.wrote(&written);
                    let told = answer(&written, &session_text(&written), &plan, &facts, base.as_deref());
                    return Ok(respond(&written, told));
                }
                Err(error) if error.is_conflict() => object = self.sessions.fresh(query).await?,
                Err(error) => return Err(error.into()),
            }
        }
        Err(Fault::unavailable("Contended", "the resource is written to all the time: ask again"))
    }

    /// The plan in the spec, if it may be committed: it is staged, or was by this request before; and it is the one that
    /// the client means.
    async fn committed(&self, object: &PhaseManifest, digest: Option<Digest>) -> Result<Arc<Plan>, Fault> {
        let about = |fault: Fault| fault.with("sessionId", session_text(object).into());
        let is_staged = object.spec.staged == Some(true);
        if !is_staged && digest.is_none() {
            let detail = "nothing is staged: POST /plan?stage=true first";
            return Err(about(Fault::conflict("NothingStaged", detail)));
        }
        let Some(plan) = self.plans.spec(object).await? else {
            let detail = "what is in the spec is no valid plan: stage another one";
            return Err(about(Fault::conflict("InvalidManifest", detail)));
        };
        if let Some(digest) = digest
            && digest != *plan.digest()
        {
            let detail = format!("what is staged has the digest {}, not the one that was asked for", plan.digest());
            return Err(
                about(Fault::conflict("DigestMismatch", detail)).with("digest", plan.digest().to_string().into())
            );
        }
        Ok(plan)
    }
}

/// What applying does: a next revision, the last one again where that has its verdict, or nothing where it was done.
fn facts(object: &PhaseManifest, plan: &Plan) -> Facts {
    let (base, is_same) = (started(object), is_started(object, plan.digest()));
    let next = base + u64::from(!is_same);
    match object.spec.staged {
        Some(true) if is_same && !Standing::of(object).is_executing => {
            Facts { outcome: Outcome::Restarted, revision: Some(base), base }
        }
        Some(true) => Facts { outcome: Outcome::Applied, revision: Some(next), base },
        _ => Facts { outcome: Outcome::Unchanged, revision: Some(base).filter(|&base| base > 0), base },
    }
}

fn commit(object: &PhaseManifest, outcome: Outcome) -> Result<Value, Fault> {
    let mut spec = Map::from_iter([("staged".to_owned(), Value::Null)]);
    if !Standing::of(object).is_executing {
        // What was cancelled once would be cancelled at once again.
        spec.insert("shutdown".to_owned(), Value::Null);
    }
    if outcome == Outcome::Restarted {
        let id = CommandId::over_http(None);
        let request = Asked { token: id.token().to_owned(), action: RequestAction::Restart, phase: None };
        spec.extend(with_request(object, &request)?.unwrap_or_default());
    }
    Ok(json!({
        "metadata": {"resourceVersion": object.metadata.resource_version, "uid": object.metadata.uid},
        "spec": spec,
    }))
}

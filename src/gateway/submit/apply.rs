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
use serde_json::{Value, json};

use super::{
    CONFLICTS_MAX,
    answer::{Facts, Outcome, answer},
    ignore_body,
    judge::Standing,
    respond, session_text, started,
};
use crate::{
    controller::call::{call, name, namespace},
    gateway::{
        Gateway,
        fault::Fault,
        media,
        query::{Query, bad},
    },
    manifest::{Digest, Plan},
    resource::PhaseManifest,
};

/// POST /apply.
pub async fn post_apply(State(gateway): State<Gateway>, request: Request) -> Result<Response, Fault> {
    let (parts, stream) = request.into_parts();
    media::preferred(&parts.headers, &[media::JSON])?;
    let query = Query::of(parts.uri.query(), &["session", "namespace", "digest"])?;
    let digest = query.text("digest").map(str::parse::<Digest>).transpose();
    let digest = digest.map_err(|error| bad("digest", error.to_string()))?;
    ignore_body(&parts.headers, stream).await?;
    gateway.in_time(Box::pin(gateway.apply(&query, digest))).await
}

impl Gateway {
    async fn apply(&self, query: &Query, digest: Option<Digest>) -> Result<Response, Fault> {
        let mut object = self.sessions.fresh(query).await?;
        let api: Api<PhaseManifest> = Api::namespaced(self.client.clone(), namespace(&object));
        for _ in 0..CONFLICTS_MAX {
            let plan = self.committed(&object, digest).await?;
            let is_staged = object.spec.staged == Some(true);
            let base = self.sessions.started_plan(&object).await.unwrap_or_default();
            let changes_something = started(&object) == 0 || base.digest() != plan.digest();
            let mut facts = Facts {
                outcome: if is_staged { Outcome::Applied } else { Outcome::Unchanged },
                revision: Some(started(&object) + u64::from(is_staged && changes_something)),
                base: started(&object),
            };
            if !is_staged {
                facts.revision = facts.revision.filter(|&revision| revision > 0);
                let told = answer(&object, &session_text(&object), &plan, &facts, Some(&base));
                return Ok(respond(&object, told));
            }
            let (params, patch) = (PatchParams::default(), Patch::Merge(commit(&object)));
            match call("apply what is staged", api.patch(name(&object), &params, &patch)).await {
                Ok(written) => {
                    self.sessions.wrote(&written);
                    let told = answer(&written, &session_text(&written), &plan, &facts, Some(&base));
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
        let Some(plan) = self.sessions.spec_plan(object).await else {
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

fn commit(object: &PhaseManifest) -> Value {
    let mut spec = json!({"staged": null});
    if !Standing::of(object).is_executing {
        // What was cancelled once would be cancelled at once again.
        spec["shutdown"] = Value::Null;
    }
    json!({
        "metadata": {"resourceVersion": object.metadata.resource_version, "uid": object.metadata.uid},
        "spec": spec,
    })
}

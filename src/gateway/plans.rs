//! Plans of sessions: of what the spec holds, and of what has started. Read once, and shared as long as there is room.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::Client;
use tokio::time::timeout;

use super::{fault::Fault, parsers::Parsers};
use crate::{
    controller::{
        call::{name, uid},
        revision,
    },
    manifest::{Digest, OtherKinds, Plan, from_values},
    resource::PhaseManifest,
};

/// How long a read may wait for a stored revision.
const LOAD_TIMEOUT: Duration = Duration::from_secs(2);

/// Phases of all plans that are kept at hand; about 1 KiB each.
const PLAN_PHASES_MAX: usize = 20_000;

/// Specs of which it is known which plan they hold; 100 bytes each.
const SPECS_MAX: usize = 1024;

/// The plan of the last revision that started.
#[derive(Debug, Clone, PartialEq)]
pub enum Started {
    /// There is no revision yet.
    Never,
    Plan(Arc<Plan>),
    /// Nobody has it any more: it was too large to be stored, and the spec holds another one by now.
    Lost,
    /// It cannot be read now.
    Unreadable,
}

impl Started {
    pub fn plan(&self) -> Option<&Arc<Plan>> {
        match self {
            Self::Plan(plan) => Some(plan),
            Self::Never | Self::Lost | Self::Unreadable => None,
        }
    }

    /// What a new plan is compared with: nothing yet, or that plan.
    pub fn base(&self) -> Option<Arc<Plan>> {
        match self {
            Self::Never => Some(Arc::default()),
            started => started.plan().cloned(),
        }
    }
}

/// The plan of one spec: its generation, and the digest of what it holds; none where that is no plan.
struct Spec {
    uid: String,
    generation: i64,
    digest: Option<Digest>,
}

/// The spec was read, and holds no valid plan.
struct NoPlan;

/// Plans by digest.
pub struct Plans {
    client: Client,
    pub parsers: Parsers,
    /// The most recently used last.
    kept: Mutex<VecDeque<Arc<Plan>>>,
    /// The newest last.
    specs: Mutex<VecDeque<Spec>>,
}

impl Plans {
    pub fn new(client: Client) -> Self {
        Self { client, parsers: Parsers::default(), kept: Mutex::default(), specs: Mutex::default() }
    }

    /// Of the last revision that started.
    pub async fn started(&self, object: &PhaseManifest) -> Started {
        let Some(status) = object.status.as_ref().filter(|status| status.revision.is_some()) else {
            return Started::Never;
        };
        let Some(digest) = status.digest.as_deref().and_then(|digest| digest.parse::<Digest>().ok()) else {
            return Started::Lost;
        };
        if let Some(plan) = self.kept(&digest) {
            return Started::Plan(plan);
        }
        if let Ok(Some(plan)) = self.spec(object).await
            && *plan.digest() == digest
        {
            return Started::Plan(plan);
        }
        // A status without the rows of its plan is better than none: nobody waits for an API server that is away.
        match timeout(LOAD_TIMEOUT, revision::started(&self.client, object)).await {
            Ok(Ok(Some(plan))) => Started::Plan(self.keep(plan)),
            Ok(Ok(None)) => Started::Lost,
            Ok(Err(error)) => {
                let (resource, error) = (name(object), &error as &dyn std::error::Error);
                tracing::warn!(resource, error, "a revision cannot be read");
                Started::Unreadable
            }
            Err(_) => Started::Unreadable,
        }
    }

    /// What the spec holds or names now; nothing where it holds none, or where it cannot be read.
    pub async fn spec(&self, object: &PhaseManifest) -> Result<Option<Arc<Plan>>, Fault> {
        let Some(phases) = &object.spec.phases else {
            return Ok(revision::live(&self.client, object).await.ok().flatten().map(|plan| self.keep(plan)));
        };
        if let Some(known) = self.known(object) {
            return Ok(known.ok());
        }
        let place = self.parsers.place().await?;
        // Somebody else may have read it meanwhile.
        if let Some(known) = self.known(object) {
            return Ok(known.ok());
        }
        let phases = phases.clone();
        let read = place.run(move || from_values(&phases.values(), OtherKinds::Refuse)).await?;
        let plan = read.ok().map(|(plan, _)| self.keep(plan));
        self.know(object, plan.as_ref().map(|plan| *plan.digest()));
        Ok(plan)
    }

    /// Of an earlier revision, as long as it is kept.
    pub async fn revision(&self, object: &PhaseManifest, number: u64) -> Option<Arc<Plan>> {
        revision::load(&self.client, object, number).await.ok().flatten().map(|plan| self.keep(plan))
    }

    /// What is at hand of the spec: its plan, or that it holds none.
    fn known(&self, object: &PhaseManifest) -> Option<Result<Arc<Plan>, NoPlan>> {
        let digest = {
            let specs = self.specs.lock().unwrap_or_else(PoisonError::into_inner);
            specs.iter().find(|spec| spec.is_of(object)).map(|spec| spec.digest)?
        };
        match digest {
            Some(digest) => self.kept(&digest).map(Ok),
            None => Some(Err(NoPlan)),
        }
    }

    fn know(&self, object: &PhaseManifest, digest: Option<Digest>) {
        let Some(generation) = object.metadata.generation else { return };
        let mut specs = self.specs.lock().unwrap_or_else(PoisonError::into_inner);
        // Of one object the newest: older ones are rarely asked for, and read again then.
        specs.retain(|spec| spec.uid != uid(object));
        if specs.len() >= SPECS_MAX {
            specs.pop_front();
        }
        specs.push_back(Spec { uid: uid(object).to_owned(), generation, digest });
    }

    fn kept(&self, digest: &Digest) -> Option<Arc<Plan>> {
        let mut plans = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = plans.iter().position(|plan| plan.digest() == digest)?;
        let plan = plans.remove(at)?;
        plans.push_back(Arc::clone(&plan));
        Some(plan)
    }

    fn keep(&self, plan: Plan) -> Arc<Plan> {
        let plan = Arc::new(plan);
        let mut plans = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        plans.retain(|other| other.digest() != plan.digest());
        plans.push_back(Arc::clone(&plan));
        while plans.len() > 1 && plans.iter().map(|plan| plan.len() + 1).sum::<usize>() > PLAN_PHASES_MAX {
            plans.pop_front();
        }
        plan
    }
}

impl Spec {
    fn is_of(&self, object: &PhaseManifest) -> bool {
        self.uid == uid(object) && Some(self.generation) == object.metadata.generation
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(uid: &str, generation: i64, phases: &serde_json::Value) -> PhaseManifest {
        let mut object = PhaseManifest::new("boot", serde_json::from_value(json!({"phases": phases})).unwrap());
        (object.metadata.uid, object.metadata.generation) = (Some(uid.to_owned()), Some(generation));
        object
    }

    #[tokio::test]
    async fn a_spec_is_read_once_a_generation_also_where_it_is_no_plan() {
        let plans = Plans::new(Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap());
        let good = object("u", 1, &json!([{"kind": "Phase", "id": "a"}]));
        let plan = plans.spec(&good).await.unwrap().unwrap();
        let other = object("u", 1, &json!([{"kind": "Phase", "id": "never looked at"}]));
        assert!(Arc::ptr_eq(&plans.spec(&other).await.unwrap().unwrap(), &plan));
        let bad = object("u", 2, &json!([{"kind": "Job"}]));
        for _ in 0..2 {
            assert_eq!(plans.spec(&bad).await.unwrap(), None);
        }
        assert_eq!(plans.specs.lock().unwrap().len(), 1, "of one object the newest is known");
        assert!(matches!(plans.known(&bad), Some(Err(NoPlan))));
    }
}

//! Revisions: every plan that a session ran, as `apps/v1 ControllerRevision`s that the resource owns.
//!
//! A session is restored over the plan of its revision, not over the spec of today, so a revision is stored before its
//! first message. Stored ones are never changed. A plan that is too large for an object of its own is kept as its digest
//! only, and found again in the spec, as long as nobody edited that.

use std::{
    io::{self, Read as _, Write as _},
    ops::Range,
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use k8s_openapi::{
    ByteString,
    api::apps::v1::ControllerRevision,
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, runtime::RawExtension},
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    accept,
    call::{self, call, name, namespace, uid},
};
use crate::{
    engine::Strategy,
    manifest::{Format, OtherKinds, Plan, limits::TEXT_BYTES_MAX, parse},
    resource::{Orders, PhaseManifest},
};

/// On every revision: the uid of the resource that it belongs to.
pub const OWNER_LABEL: &str = "pmp.dev/manifest-uid";

/// The largest manifest that is stored, as it is stored; etcd takes 1.5 MiB, and a list reads ten of them.
const MANIFEST_BYTES_MAX: usize = 256 * 1024;

/// The version of `data`.
const SCHEMA: u32 = 1;

/// Longest name of an object.
const NAME_BYTES_MAX: usize = 253;

/// Revisions of one resource that are looked at: revisionHistoryLimit is at most 100, the rest was left by failures.
const LISTED_MAX: u32 = 500;

/// What is in a revision.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    schema: u32,
    revision: u64,
    digest: String,
    strategy: String,
    /// Canonical JSON in gzip; absent where it is too large.
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<ByteString>,
    /// Where it was, where it is absent: for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<Value>,
}

/// A revision could not be stored, read or cleared away.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Call(#[from] call::Error),
    #[error("cannot read the live spec in place of the revision")]
    Live(#[source] accept::Error),
    #[error(
        "ControllerRevision {name} is not what this session started as revision {revision}: {detail}; delete it to go on with the live spec"
    )]
    Unreadable { name: String, revision: u64, detail: String },
    #[error(
        "ControllerRevision {name} holds another manifest than revision {revision}, which has started already; delete it if it is not this operator's"
    )]
    Occupied { name: String, revision: u64 },
}

impl Error {
    /// One PascalCase word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Call(error) => error.reason(),
            Self::Live(error) => error.reason(),
            Self::Unreadable { .. } => "RevisionUnreadable",
            Self::Occupied { .. } => "RevisionOccupied",
        }
    }
}

/// Stores the plan as this revision of the object. Doing it twice is doing it once.
///
/// Where another plan is stored under the number, nobody may have started it yet: a process that stored it may have
/// ended before it wrote the status, and the spec was edited since. Then it is replaced. One that the status, read
/// anew, calls started is [`Error::Occupied`].
pub async fn store(
    client: &Client,
    object: &PhaseManifest,
    revision: u64,
    plan: &Plan,
    strategy: Strategy,
) -> Result<(), Error> {
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace(object));
    let data = data(object, revision, plan, strategy);
    let fresh = controller_revision(object, revision, &data);
    let name = object_name(object, revision);
    if create(&api, &fresh).await? {
        return Ok(());
    }
    let Some(stored) = call("read the ControllerRevision", api.get_opt(&name)).await? else {
        // Somebody cleared it away in between; the next reconcile stores it.
        return call("store the revision", api.create(&PostParams::default(), &fresh))
            .await
            .map(drop)
            .map_err(Error::from);
    };
    if same(&stored, &data) {
        return Ok(());
    }
    let objects: Api<PhaseManifest> = Api::namespaced(client.clone(), namespace(object));
    let today = call("read the PhaseManifest", objects.get(call::name(object))).await?;
    let started = today.status.and_then(|status| status.revision).unwrap_or(0);
    if u64::try_from(started).is_ok_and(|started| started >= revision) {
        return Err(Error::Occupied { name, revision });
    }
    delete(&api, &stored.metadata).await?;
    call("store the revision", api.create(&PostParams::default(), &fresh)).await?;
    Ok(())
}

/// The plan of this revision, or nothing where it is not to be found: neither stored nor, by its digest, in the spec.
pub async fn load(client: &Client, object: &PhaseManifest, revision: u64) -> Result<Option<Plan>, Error> {
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace(object));
    let name = object_name(object, revision);
    let stored = call("read the ControllerRevision", api.get_opt(&name)).await?;
    let data = stored.map(|stored| read(stored, &name, revision)).transpose()?;
    // The status is written after the revision and decides which plan it was.
    let started =
        object.status.as_ref().filter(|status| status.revision.and_then(|n| u64::try_from(n).ok()) == Some(revision));
    let digest = match (started.and_then(|status| status.digest.clone()), &data) {
        (Some(digest), _) => digest,
        (None, Some(data)) => data.digest.clone(),
        (None, None) => return Ok(None),
    };
    if let Some(data) = data.filter(|data| data.digest == digest)
        && let Some(manifest) = &data.manifest
    {
        return unpacked(&manifest.0)
            .and_then(|plan| {
                if plan.digest().to_string() == digest { Ok(Some(plan)) } else { Err("its digest differs".to_owned()) }
            })
            .map_err(|detail| Error::Unreadable { name, revision, detail });
    }
    let live = live(client, object).await?;
    Ok(live.filter(|plan| plan.digest().to_string() == digest))
}

/// The plan of the revision that the status says has started; nothing before the first, or where it is lost.
pub async fn started(client: &Client, object: &PhaseManifest) -> Result<Option<Plan>, Error> {
    match object.status.as_ref().and_then(|status| u64::try_from(status.revision?).ok()) {
        Some(revision) => load(client, object, revision).await,
        None => Ok(None),
    }
}

/// The plan that the spec holds or names now; nothing where it holds none.
pub async fn live(client: &Client, object: &PhaseManifest) -> Result<Option<Plan>, Error> {
    let Ok(orders) = Orders::new(&object.spec) else { return Ok(None) };
    let plan = accept::plan_of(client, object, orders.manifest).await.map_err(Error::Live)?;
    Ok(plan.ok())
}

/// Looks whether there is such a revision, to see whether it may be looked for.
pub async fn find(client: &Client, object: &PhaseManifest, revision: u64) -> Result<bool, Error> {
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace(object));
    let found = call("read the ControllerRevision", api.get_metadata_opt(&object_name(object, revision))).await?;
    Ok(found.is_some())
}

/// Deletes old revisions but the `keep` newest of those before the end of `needed`, and none from its beginning on: from
/// the revision that the status names to the one that is about to start.
pub async fn prune(client: &Client, object: &PhaseManifest, keep: usize, needed: Range<u64>) -> Result<(), Error> {
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace(object));
    let ours = ListParams::default().labels(&format!("{OWNER_LABEL}={}", uid(object))).limit(LISTED_MAX);
    let listed = call("list the ControllerRevisions", api.list(&ours)).await?;
    let is_ours = |meta: &ObjectMeta| meta.owner_references.iter().flatten().any(|owner| owner.uid == uid(object));
    let mut old: Vec<(u64, ObjectMeta)> = listed
        .items
        .into_iter()
        .filter(|stored| is_ours(&stored.metadata))
        .filter_map(|stored| Some((u64::try_from(stored.revision).ok()?, stored.metadata)))
        .filter(|(revision, _)| *revision < needed.end)
        .collect();
    old.sort_unstable_by_key(|(revision, _)| std::cmp::Reverse(*revision));
    for (_, meta) in old.into_iter().skip(keep).filter(|(revision, _)| *revision < needed.start) {
        delete(&api, &meta).await?;
    }
    Ok(())
}

/// `<name>-<hash of the uid>-<revision>`: another resource of the same name later never finds these.
fn object_name(object: &PhaseManifest, revision: u64) -> String {
    let digest = Sha256::digest(uid(object));
    let hash = digest[..8].iter().fold(0_u64, |bits, &byte| bits << 8 | u64::from(byte));
    let tail = format!("-{hash:016x}-{revision}");
    let name = name(object);
    // Cut at a dot or a dash, the name would be none.
    let head = name[..name.len().min(NAME_BYTES_MAX - tail.len())].trim_end_matches(['.', '-']);
    format!("{head}{tail}")
}

fn data(object: &PhaseManifest, revision: u64, plan: &Plan, strategy: Strategy) -> Data {
    let manifest = packed(plan);
    let reference = || json!({"generation": object.metadata.generation, "manifestFrom": object.spec.manifest_from});
    Data {
        schema: SCHEMA,
        revision,
        digest: plan.digest().to_string(),
        strategy: strategy_word(strategy).to_owned(),
        reference: manifest.is_none().then(reference),
        manifest: manifest.map(ByteString),
    }
}

/// The words of the resource.
fn strategy_word(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Hybrid => "Hybrid",
        Strategy::Directed => "Directed",
        Strategy::Runtime => "Runtime",
    }
}

fn controller_revision(object: &PhaseManifest, revision: u64, data: &Data) -> ControllerRevision {
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(object_name(object, revision)),
            namespace: object.metadata.namespace.clone(),
            labels: Some([(OWNER_LABEL.to_owned(), uid(object).to_owned())].into()),
            owner_references: object.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        revision: i64::try_from(revision).unwrap_or(i64::MAX),
        data: Some(RawExtension(serde_json::to_value(data).expect("texts and numbers are JSON"))),
    }
}

/// Whether it is there by our doing; false where one of that name was there before.
async fn create(api: &Api<ControllerRevision>, fresh: &ControllerRevision) -> Result<bool, Error> {
    match call("store the revision", api.create(&PostParams::default(), fresh)).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_already_exists() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// That very object, and not one that took its name since.
async fn delete(api: &Api<ControllerRevision>, meta: &ObjectMeta) -> Result<(), Error> {
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: meta.uid.clone(), resource_version: None }),
        ..DeleteParams::default()
    };
    match call("delete the old revision", api.delete(meta.name.as_deref().unwrap_or_default(), &params)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn same(stored: &ControllerRevision, data: &Data) -> bool {
    let found: Option<Data> = stored.data.as_ref().and_then(|found| serde_json::from_value(found.0.clone()).ok());
    found.is_some_and(|found| found.digest == data.digest && found.strategy == data.strategy)
}

fn read(stored: ControllerRevision, name: &str, revision: u64) -> Result<Data, Error> {
    let unreadable = |detail: String| Error::Unreadable { name: name.to_owned(), revision, detail };
    let value = stored.data.map(|data| data.0).unwrap_or_default();
    let data: Data = serde_json::from_value(value).map_err(|error| unreadable(error.to_string()))?;
    match data.schema {
        SCHEMA => Ok(data),
        other => Err(unreadable(format!("it has schema {other}, which a newer operator wrote"))),
    }
}

/// In gzip; nothing where that is too large.
fn packed(plan: &Plan) -> Option<Vec<u8>> {
    let text = serde_json::to_vec(&plan.canonical()).expect("a plan is JSON");
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    let packed = gzip.write_all(&text).and_then(|()| gzip.finish()).expect("memory takes every byte");
    // As it is stored: base64 takes four bytes for three.
    (packed.len().div_ceil(3) * 4 <= MANIFEST_BYTES_MAX).then_some(packed)
}

fn unpacked(packed: &[u8]) -> Result<Plan, String> {
    let limit = u64::try_from(TEXT_BYTES_MAX).unwrap_or(u64::MAX);
    let mut text = Vec::new();
    let read: io::Result<usize> = GzDecoder::new(packed).take(limit).read_to_end(&mut text);
    read.map_err(|error| error.to_string())?;
    let document = parse(&text, Format::Json, OtherKinds::Refuse);
    document
        .map(|document| document.plan)
        .map_err(|problems| problems.first().map_or_else(String::new, ToString::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::from_values;

    fn plan(phases: usize) -> Plan {
        let phase = |n: usize| json!({"kind": "Phase", "id": format!("p{n}"), "spec": {"x-noise": noise(n)}});
        let phases: Vec<Value> = (0..phases).map(phase).collect();
        from_values(&phases, OtherKinds::Refuse).unwrap().0
    }

    /// What gzip cannot make small.
    fn noise(n: usize) -> String {
        crate::manifest::Digest::of(&n.to_be_bytes()).to_string()
    }

    fn named(name: &str) -> PhaseManifest {
        let mut object = PhaseManifest::new(name, crate::resource::PhaseManifestSpec::default());
        object.metadata.uid = Some("b6b7ba30-0000-4000-8000-7f0d2b1b0f2c".to_owned());
        object
    }

    #[test]
    fn a_plan_comes_back_as_it_went_in() {
        let plan = plan(100);
        let packed = packed(&plan).unwrap();
        assert_eq!(unpacked(&packed).unwrap(), plan);
    }

    #[test]
    fn a_plan_past_the_bound_is_not_packed() {
        assert!(packed(&plan(10_000)).is_none());
        let data = data(&named("boot"), 1, &plan(10_000), Strategy::Hybrid);
        assert!(data.manifest.is_none() && data.reference.is_some());
    }

    #[test]
    fn bytes_that_are_no_revision_are_refused() {
        assert!(unpacked(b"nothing").is_err());
        assert!(unpacked(&[]).is_err());
    }

    #[test]
    fn a_name_is_legal_however_long_the_resource_s_is() {
        let tail = object_name(&named("boot"), 7).strip_prefix("boot").unwrap().to_owned();
        assert!(tail.starts_with('-') && tail.ends_with("-7"));
        let cut = NAME_BYTES_MAX - tail.len();
        let dotted = format!("{}.{}", "a".repeat(cut - 1), "b".repeat(30));
        let name = object_name(&named(&dotted), 7);
        assert!(name.len() <= NAME_BYTES_MAX && !name.contains(".-"), "{name}");
        assert_ne!(object_name(&named("boot"), 1), object_name(&named("boot"), 2));
    }
}

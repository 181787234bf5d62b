//! What an API server keeps, and the rules by which it is changed: pure state, no waiting, no faults.
//!
//! As far as the operator uses it: five kinds, create, merge patch, the status subresource, delete with preconditions,
//! versions that rise with every change, and a history that watches read from and that can be compacted.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Deref,
    sync::Arc,
};

use serde_json::{Map, Value, json};

/// The kinds that the operator touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    PhaseManifest,
    ControllerRevision,
    Event,
    ConfigMap,
    Namespace,
}

impl Kind {
    pub const ALL: [Self; 5] =
        [Self::PhaseManifest, Self::ControllerRevision, Self::Event, Self::ConfigMap, Self::Namespace];

    /// `apiVersion`, kind, plural.
    pub fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::PhaseManifest => ("pmp.dev/v1alpha1", "PhaseManifest", "phasemanifests"),
            Self::ControllerRevision => ("apps/v1", "ControllerRevision", "controllerrevisions"),
            Self::Event => ("events.k8s.io/v1", "Event", "events"),
            Self::ConfigMap => ("v1", "ConfigMap", "configmaps"),
            Self::Namespace => ("v1", "Namespace", "namespaces"),
        }
    }
}

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

/// Which part of an object a patch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Main,
    Status,
}

/// What must hold for a deletion.
#[derive(Debug, Clone, Default)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub version: Option<String>,
}

/// A refusal as the API server words it.
#[derive(Debug, Clone)]
pub struct Failure {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
}

impl Failure {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    fn not_found(key: &Key) -> Self {
        Self::new(404, "NotFound", format!("{} {:?} not found", key.kind.names().2, key.name))
    }

    fn conflict(message: &str) -> Self {
        Self::new(409, "Conflict", message)
    }

    pub fn expired() -> Self {
        Self::new(410, "Expired", "too old resource version")
    }

    /// The body of the answer.
    pub fn status(&self) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        })
    }
}

/// An object, and its text: written once, told often.
#[derive(Debug, PartialEq)]
pub struct Stored {
    pub value: Value,
    pub text: String,
}

impl Deref for Stored {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.value
    }
}

/// One change, as watches tell it.
#[derive(Debug, Clone)]
pub struct Change {
    pub version: u64,
    pub key: Key,
    /// ADDED, MODIFIED or DELETED.
    pub word: &'static str,
    pub object: Arc<Stored>,
    pub before: Option<Arc<Stored>>,
}

pub type Answer = Result<Arc<Stored>, Failure>;

/// Everything that is stored.
#[derive(Debug)]
pub struct Store {
    version: u64,
    objects: BTreeMap<Key, Arc<Stored>>,
    history: Vec<Change>,
    /// What happened up to here can no longer be watched.
    compacted: u64,
    made: u64,
    /// Resources whose default status is not stored yet.
    untouched: BTreeSet<Key>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            version: 1000,
            objects: BTreeMap::new(),
            history: Vec::new(),
            compacted: 0,
            made: 0,
            untouched: BTreeSet::new(),
        }
    }
}

impl Store {
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn get(&self, key: &Key) -> Answer {
        self.objects.get(key).cloned().ok_or_else(|| Failure::not_found(key))
    }

    pub fn list(&self, kind: Kind, namespace: Option<&str>) -> impl Iterator<Item = &Arc<Stored>> {
        let namespace = namespace.map(str::to_owned);
        self.objects
            .iter()
            .filter(move |(key, _)| key.kind == kind && namespace.as_ref().is_none_or(|name| *name == key.namespace))
            .map(|(_, object)| object)
    }

    /// What happened after the version; [`Failure::expired`] where that is compacted.
    pub fn changes_after(&self, version: u64) -> Result<&[Change], Failure> {
        if version < self.compacted {
            return Err(Failure::expired());
        }
        let from = self.history.partition_point(|change| change.version <= version);
        Ok(&self.history[from..])
    }

    pub fn last_change(&self) -> Option<&Change> {
        self.history.last()
    }

    /// Forgets the history: whoever watches from before has to list again, and sees of each object only what is.
    pub fn compact(&mut self) {
        self.compacted = self.version;
    }

    pub fn create(&mut self, kind: Kind, namespace: &str, mut object: Value, now: &str) -> Answer {
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = Key { kind, namespace: namespace.to_owned(), name };
        if self.objects.contains_key(&key) {
            let message = format!("{} {:?} already exists", kind.names().2, key.name);
            return Err(Failure::new(409, "AlreadyExists", message));
        }
        self.made += 1;
        let (api_version, kind_name, _) = kind.names();
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(kind_name);
        object["metadata"]["uid"] = json!(format!("5eed0000-0000-4000-8000-{:012x}", self.made));
        object["metadata"]["creationTimestamp"] = json!(now);
        if kind != Kind::Namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        if kind == Kind::PhaseManifest {
            object["metadata"]["generation"] = json!(1);
            // The status of a new object is the schema's default, whatever was sent.
            object["status"] = json!({"observedGeneration": -1});
            self.untouched.insert(key.clone());
        }
        Ok(self.commit(key, "ADDED", object))
    }

    /// A JSON merge patch (RFC 7386). What changes nothing makes no new version.
    pub fn patch(&mut self, key: &Key, part: Part, patch: &Value) -> Answer {
        let old = self.get(key)?;
        let mut new = old.value.clone();
        merge(&mut new, patch);
        let of = |object: &Value, field: &str| object["metadata"][field].clone();
        let named = of(patch, "resourceVersion");
        if named.as_str().is_some_and(|version| !version.is_empty()) && named != of(&old, "resourceVersion") {
            return Err(Failure::conflict("the object has been modified; please apply your changes to the latest"));
        }
        if part == Part::Main && of(&new, "uid") != of(&old, "uid") {
            return Err(Failure::new(422, "Invalid", "metadata.uid: field is immutable"));
        }
        let mut next = old.value.clone();
        match part {
            Part::Status => next["status"] = new["status"].take(),
            Part::Main => {
                for field in ["labels", "annotations", "finalizers"] {
                    next["metadata"][field] = new["metadata"][field].take();
                }
                let rest = |object: &Value| {
                    let fields = object.as_object().into_iter().flatten();
                    let is_rest = |name: &str| !["metadata", "status", "kind", "apiVersion"].contains(&name);
                    fields
                        .filter(|(name, _)| is_rest(name))
                        .map(|(name, value)| (name.clone(), value.clone()))
                        .collect()
                };
                let (before, after): (Map<_, _>, Map<_, _>) = (rest(&old), rest(&new));
                if before != after {
                    if let Some(generation) = next["metadata"]["generation"].as_i64() {
                        next["metadata"]["generation"] = json!(generation + 1);
                    }
                    for (name, value) in after {
                        next[name] = value;
                    }
                }
            }
        }
        prune(&mut next);
        // A default that was only shown so far is stored with the first write.
        if !self.untouched.remove(key) && next == old.value {
            return Ok(old);
        }
        Ok(self.commit(key.clone(), "MODIFIED", next))
    }

    pub fn delete(&mut self, key: &Key, preconditions: &Preconditions) -> Answer {
        let old = self.get(key)?;
        let differs = |wanted: &Option<String>, field: &str| {
            wanted.as_deref().is_some_and(|wanted| old["metadata"][field].as_str() != Some(wanted))
        };
        if differs(&preconditions.uid, "uid") || differs(&preconditions.version, "resourceVersion") {
            return Err(Failure::conflict("a precondition of the deletion does not hold"));
        }
        Ok(self.commit(key.clone(), "DELETED", old.value.clone()))
    }

    fn commit(&mut self, key: Key, word: &'static str, mut object: Value) -> Arc<Stored> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(Stored { text: object.to_string(), value: object });
        let before = match word {
            "DELETED" => self.objects.remove(&key),
            _ => self.objects.insert(key.clone(), Arc::clone(&object)),
        };
        self.history.push(Change { version: self.version, key, word, object: Arc::clone(&object), before });
        object
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            target.as_object_mut().expect("it was just made one").remove(name);
        } else {
            merge(&mut target[name], value);
        }
    }
}

/// Takes back the nulls that reading an absent field by index leaves behind.
fn prune(object: &mut Value) {
    let is_there = |_: &String, value: &mut Value| !value.is_null();
    object.as_object_mut().expect("an object of the API").retain(is_there);
    object["metadata"].as_object_mut().expect("every object has metadata").retain(is_there);
}

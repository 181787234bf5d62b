//! Sessions as the cache has them: finding one, and waiting for what this process has just written.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::{Api, Client};
use tokio::time::{Instant, timeout_at};

use super::{Bound, fault::Fault, query::Query};
use crate::{
    controller::{
        Scope, Selector, View,
        call::{call, name, namespace},
        claim::Claim,
    },
    protocol::SessionId,
    resource::PhaseManifest,
};

/// How long the cache may be behind a write of ours before the API server is asked instead.
const CATCH_UP: Duration = Duration::from_secs(2);

/// Writes that the cache may not have yet. It is behind by milliseconds.
const WRITES_MAX: usize = 256;

/// The sessions that this gateway serves.
pub struct Sessions {
    pub client: Client,
    pub view: View,
    scope: Scope,
    /// Without which the operator would not see what is made here.
    labels: BTreeMap<String, String>,
    bound: Option<Bound>,
    writes: Mutex<VecDeque<Write>>,
}

struct Write {
    session: SessionId,
    namespace: String,
    name: String,
    version: u64,
}

impl Sessions {
    pub fn new(client: Client, view: View, scope: Scope, selector: Option<&Selector>, bound: Option<Bound>) -> Self {
        let labels = selector.map(Selector::equalities).unwrap_or_default();
        Self { client, view, scope, labels, bound, writes: Mutex::default() }
    }

    /// Refuses to answer from a cache that was never filled.
    pub fn ready(&self) -> Result<(), Fault> {
        if self.view.is_filled() {
            return Ok(());
        }
        Err(Fault::unavailable("NotReady", "the cache of PhaseManifests is not filled yet: ask again"))
    }

    /// The session that the request is about: the one that this gateway is bound to, else `?session=&namespace=`.
    pub fn wanted(&self, query: &Query) -> Result<(SessionId, Option<String>), Fault> {
        let (session, namespace) = (query.session()?, query.namespace()?);
        if let Some(bound) = &self.bound {
            self.check_bound(session.as_ref(), namespace)?;
            return Ok((bound.session.clone(), Some(bound.namespace.clone())));
        }
        let session = session
            .ok_or_else(|| Fault::bad_request("BadParameter", "name the session: ?session=...").with_parameter())?;
        Ok((session, namespace.map(str::to_owned)))
    }

    /// What a request may name beside the one session that this gateway is bound to: the same.
    pub fn check_bound(&self, session: Option<&SessionId>, namespace: Option<&str>) -> Result<(), Fault> {
        let Some(bound) = &self.bound else { return Ok(()) };
        let is_same = session.is_none_or(|session| *session == bound.session)
            && namespace.is_none_or(|namespace| namespace == bound.namespace);
        if is_same {
            return Ok(());
        }
        let detail = format!("this gateway serves session {} of namespace {} only", bound.session, bound.namespace);
        Err(Fault::not_found("NoSuchSession", detail))
    }

    pub fn bound(&self) -> Option<&Bound> {
        self.bound.as_ref()
    }

    /// Whether the resources of the namespace are served.
    pub fn serves(&self, namespace: &str) -> bool {
        match &self.scope {
            Scope::AllNamespaces => true,
            Scope::Namespaces(names) => names.iter().any(|name| name == namespace),
        }
    }

    /// Where a plan goes that names no namespace.
    pub fn default_namespace(&self) -> &str {
        match (&self.bound, &self.scope) {
            (Some(bound), _) => &bound.namespace,
            (None, Scope::Namespaces(names)) => names.first().map_or("default", String::as_str),
            (None, Scope::AllNamespaces) => "default",
        }
    }

    /// Whether session ids that are no defaults begin with their namespace.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Of every new resource.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// The session as the cache has it, at least as new as the last write of this gateway; 404 if there is none.
    pub async fn find(&self, session: &SessionId, within: Option<&str>) -> Result<Arc<PhaseManifest>, Fault> {
        self.ready()?;
        if let Some(object) = self.own_write(session, within).await? {
            return Ok(object);
        }
        self.view.find(session, within).ok_or_else(|| no_such(session, within))
    }

    /// [`Self::wanted`] and [`Self::find`].
    pub async fn of(&self, query: &Query) -> Result<Arc<PhaseManifest>, Fault> {
        let (session, namespace) = self.wanted(query)?;
        self.find(&session, namespace.as_deref()).await
    }

    /// The session as the API server has it now.
    pub async fn fresh(&self, query: &Query) -> Result<PhaseManifest, Fault> {
        let cached = self.of(query).await?;
        let api: Api<PhaseManifest> = Api::namespaced(self.client.clone(), namespace(&cached));
        let fresh = call("read the resource", api.get_opt(name(&cached))).await?;
        let session = session_of(&cached);
        fresh.filter(|fresh| session_of(fresh) == session).ok_or_else(|| match session {
            Some(session) => no_such(&session, Some(namespace(&cached))),
            None => Fault::not_found("NoSuchSession", "the session is gone"),
        })
    }

    /// What was just written is read back from here on.
    pub fn wrote(&self, object: &PhaseManifest) {
        let (Some(session), Some(version)) = (session_of(object), version_of(object)) else { return };
        let write = Write { session, namespace: namespace(object).to_owned(), name: name(object).to_owned(), version };
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        writes.retain(|other| other.session != write.session || other.namespace != write.namespace);
        if writes.len() >= WRITES_MAX {
            writes.pop_front();
        }
        writes.push_back(write);
    }

    /// The last write of ours to this session, once the cache has it; nothing where there was none that it has not had
    /// for long.
    async fn own_write(&self, session: &SessionId, within: Option<&str>) -> Result<Option<Arc<PhaseManifest>>, Fault> {
        let is_it =
            |write: &&Write| write.session == *session && within.is_none_or(|namespace| write.namespace == namespace);
        let found = {
            let writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
            writes.iter().find(is_it).map(|write| (write.namespace.clone(), write.name.clone(), write.version))
        };
        let Some((namespace, name, version)) = found else { return Ok(None) };
        let mut object = self.at_least(&namespace, &name, version).await;
        if object.is_none() {
            let api: Api<PhaseManifest> = Api::namespaced(self.client.clone(), &namespace);
            object = call("read the resource", api.get_opt(&name)).await?.map(Arc::new);
        }
        // Waited for once: it is there, or the API server has said what became of it, and that it was deleted too.
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        writes.retain(|write| write.session != *session || write.namespace != namespace || write.version > version);
        Ok(object.filter(|object| session_of(object).as_ref() == Some(session)))
    }

    /// How the session's resource in this namespace is called, as far as the cache or a write of ours knows.
    pub fn name_of(&self, session: &SessionId, namespace: &str) -> Option<String> {
        if let Some(cached) = self.view.find(session, Some(namespace)) {
            return Some(name(&cached).to_owned());
        }
        let writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        let write = writes.iter().find(|write| write.session == *session && write.namespace == namespace);
        write.map(|write| write.name.clone())
    }

    /// The object once the cache has it at this version or a later one; nothing where that takes too long.
    pub async fn at_least(&self, namespace: &str, name: &str, version: u64) -> Option<Arc<PhaseManifest>> {
        let end = Instant::now() + CATCH_UP;
        let mut changes = self.view.changes();
        loop {
            let object = self.view.get(namespace, name);
            if let Some(object) = object.filter(|object| version_of(object).is_some_and(|now| now >= version)) {
                return Some(object);
            }
            // Any change, and also having missed some, is a reason to look again.
            timeout_at(end, changes.recv()).await.ok()?.ok();
        }
    }
}

impl Fault {
    fn with_parameter(self) -> Self {
        self.with("parameter", "session".into())
    }
}

/// The session that the object is.
pub fn session_of(object: &PhaseManifest) -> Option<SessionId> {
    Claim::of(object).map(|claim| claim.session_id)
}

/// resourceVersion as the number that it is on every API server (Kubernetes 1.35: comparable resource versions).
pub fn version_of(object: &PhaseManifest) -> Option<u64> {
    object.metadata.resource_version.as_deref()?.parse().ok()
}

fn no_such(session: &SessionId, within: Option<&str>) -> Fault {
    let place = within.map_or_else(String::new, |namespace| format!(" in namespace {namespace}"));
    Fault::not_found("NoSuchSession", format!("there is no session {session}{place}"))
}

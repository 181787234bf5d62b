//! Who has a session id, when several resources want it (design, "Session ids"). PURE.
//!
//! Every replica must come to the same answer from the same objects, in whatever order it saw them; so this looks at
//! nothing but the facts below. It remembers nothing: a resource that goes away leaves its id to the next at once.

use jiff::Timestamp;

use super::call::{name, namespace, uid};
use crate::{
    protocol::SessionId,
    resource::{PhaseManifest, Refusal},
};

/// What a resource says about its session id, and what decides when another says the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub connection: String,
    pub session_id: SessionId,
    pub naming: Naming,
    pub created_at: Timestamp,
    pub life: Life,
}

/// How the id came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Naming {
    /// The id that the resource has by its namespace and name, written out or not.
    Default,
    /// Another one.
    Explicit,
}

/// Whether the resource is being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Alive,
    Deleted,
}

/// Whose sessions a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    OneNamespace,
    /// An explicit id must begin with its own namespace, so that nobody takes what is another namespace's.
    SeveralNamespaces,
}

impl Claim {
    /// The claim of a stored resource; nothing where its id is none, which [`super::accept`] refuses.
    pub fn of(object: &PhaseManifest) -> Option<Self> {
        let spec = &object.spec;
        let default = SessionId::default_for(namespace(object), name(object));
        let session_id = match spec.session_id.as_deref().filter(|id| !id.is_empty()) {
            None => default.clone(),
            Some(id) => SessionId::new(id).ok()?,
        };
        let connection = spec.connection.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
        Some(Self {
            namespace: namespace(object).to_owned(),
            name: name(object).to_owned(),
            uid: uid(object).to_owned(),
            connection: connection.to_owned(),
            naming: if session_id == default { Naming::Default } else { Naming::Explicit },
            session_id,
            created_at: object.metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0),
            life: if object.metadata.deletion_timestamp.is_some() { Life::Deleted } else { Life::Alive },
        })
    }

    /// Whether [`Self::of`] may be a claim to this id: right whenever it is no, and much cheaper. Every judgement looks
    /// at all resources there are, and building a claim of each takes 10 ms of ten thousand.
    pub fn may_be_to(object: &PhaseManifest, id: &SessionId) -> bool {
        match object.spec.session_id.as_deref().filter(|id| !id.is_empty()) {
            Some(written) => written == id.as_str(),
            None => id.may_be_default_for(namespace(object), name(object)),
        }
    }

    fn is_legal(&self, serves: Serves) -> bool {
        serves == Serves::OneNamespace || self.is_own()
    }

    /// Its namespace's own: the default, or one that begins with the namespace.
    fn is_own(&self) -> bool {
        let rest = self.session_id.as_str().strip_prefix(self.namespace.as_str());
        self.naming == Naming::Default || rest.is_some_and(|rest| rest.starts_with('_'))
    }

    /// [`Self::rank`] where it is not known who may have what: behind all others comes what is being deleted, and what is no
    /// id of its namespace. Of one namespace all are alike in that.
    pub(super) fn likelihood(&self) -> (bool, bool, (Naming, Timestamp, &str)) {
        (self.life == Life::Deleted, !self.is_own(), self.rank())
    }

    /// The lowest of all claims to an id has it: default before explicit, then the older, then the lower uid.
    fn rank(&self) -> (Naming, Timestamp, &str) {
        (self.naming, self.created_at, &self.uid)
    }
}

/// Who has the id on the connection, of all resources there are; nobody where nobody may.
pub fn holder<'a>(
    session_id: &SessionId,
    connection: &str,
    serves: Serves,
    claims: impl Iterator<Item = &'a Claim>,
) -> Option<&'a Claim> {
    claims
        .filter(|claim| claim.session_id == *session_id && claim.connection == connection)
        .filter(|claim| claim.life == Life::Alive && claim.is_legal(serves))
        .min_by_key(|claim| claim.rank())
}

/// Whether `own` has its id, among all resources there are (itself among them or not).
///
/// The loser hears why, with names of its own namespace only.
pub fn judge<'a>(
    own: &'a Claim,
    serves: Serves,
    claims: impl Iterator<Item = &'a Claim>,
) -> Result<(), (Refusal, String)> {
    let id = &own.session_id;
    if !own.is_legal(serves) {
        let namespace = &own.namespace;
        let message = format!(
            "spec.sessionId {id} does not begin with {namespace}_: the connection serves several namespaces, so make \
             the resource anew with sessionId {namespace}_... or with none"
        );
        return Err((Refusal::InvalidSpec, message));
    }
    let all = claims.chain(std::iter::once(own));
    match holder(id, &own.connection, serves, all) {
        Some(winner) if winner.uid != own.uid => {
            let by = if winner.namespace == own.namespace {
                format!("by the PhaseManifest {} of this namespace", winner.name)
            } else {
                "elsewhere".to_owned()
            };
            let message = format!("session id {id} is taken {by}: make this resource anew with another spec.sessionId");
            Err((Refusal::SessionTaken, message))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(namespace: &str, name: &str, id: Option<&str>, second: i64) -> Claim {
        let default = SessionId::default_for(namespace, name);
        let session_id = id.map_or(default.clone(), |id| SessionId::new(id).unwrap());
        Claim {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: format!("uid-of-{namespace}-{name}"),
            connection: "default".to_owned(),
            naming: if session_id == default { Naming::Default } else { Naming::Explicit },
            session_id,
            created_at: Timestamp::from_second(second).unwrap(),
            life: Life::Alive,
        }
    }

    fn winner(claims: &[Claim], serves: Serves) -> Option<&str> {
        let id = &claims[0].session_id;
        let found = holder(id, "default", serves, claims.iter()).map(|claim| claim.name.as_str());
        let backwards = holder(id, "default", serves, claims.iter().rev()).map(|claim| claim.name.as_str());
        assert_eq!(found, backwards, "the order of the objects does not matter");
        found
    }

    #[test]
    fn a_default_id_beats_an_older_explicit_one() {
        let claims = [claim("a", "boot", None, 20), claim("a", "other", Some("a_boot"), 10)];
        assert_eq!(winner(&claims, Serves::SeveralNamespaces), Some("boot"));
    }

    #[test]
    fn a_default_that_is_written_out_counts_as_one() {
        let claims = [claim("a", "boot", Some("a_boot"), 20), claim("a", "other", Some("a_boot"), 10)];
        assert_eq!(winner(&claims, Serves::SeveralNamespaces), Some("boot"));
    }

    #[test]
    fn the_older_of_two_explicit_claims_wins_and_of_twins_the_lower_uid() {
        let older = [claim("a", "x", Some("a_s"), 20), claim("a", "y", Some("a_s"), 10)];
        assert_eq!(winner(&older, Serves::SeveralNamespaces), Some("y"));
        let twins = [claim("a", "y", Some("a_s"), 10), claim("a", "x", Some("a_s"), 10)];
        assert_eq!(winner(&twins, Serves::SeveralNamespaces), Some("x"));
    }

    #[test]
    fn what_is_being_deleted_or_is_no_id_of_its_namespace_is_likely_last() {
        let (lawful, mut gone) = (claim("lab", "bar", Some("lab_x"), 30), claim("lab", "old", Some("lab_x"), 10));
        let foreign = claim("evil", "foo", Some("lab_x"), 20);
        gone.life = Life::Deleted;
        let mut all = [&gone, &foreign, &lawful];
        all.sort_by(|one, other| one.likelihood().cmp(&other.likelihood()));
        assert_eq!(all.map(|claim| claim.name.as_str()), ["bar", "foo", "old"]);
    }

    #[test]
    fn a_deleted_resource_leaves_its_id_at_once() {
        let mut claims = [claim("a", "x", Some("a_s"), 10), claim("a", "y", Some("a_s"), 20)];
        claims[0].life = Life::Deleted;
        assert_eq!(winner(&claims, Serves::SeveralNamespaces), Some("y"));
    }

    #[test]
    fn the_same_id_on_another_connection_is_another_session() {
        let mut claims = [claim("a", "x", Some("a_s"), 10), claim("a", "y", Some("a_s"), 20)];
        claims[0].connection = "other".to_owned();
        assert_eq!(judge(&claims[1], Serves::SeveralNamespaces, claims.iter()), Ok(()));
    }

    #[test]
    fn an_id_of_another_namespace_is_refused_and_takes_nothing() {
        let thief = claim("b", "thief", Some("a_boot"), 5);
        let owner = claim("a", "owner", Some("a_boot"), 10);
        let claims = [thief.clone(), owner.clone()];
        let (refusal, message) = judge(&thief, Serves::SeveralNamespaces, claims.iter()).unwrap_err();
        assert_eq!(refusal, Refusal::InvalidSpec);
        assert!(message.contains("b_"), "{message}");
        assert_eq!(judge(&owner, Serves::SeveralNamespaces, claims.iter()), Ok(()));
        assert_eq!(judge(&thief, Serves::OneNamespace, claims.iter()), Ok(()));
    }

    #[test]
    fn a_namespace_is_a_whole_word_of_the_id() {
        let longer = claim("team", "x", Some("teams_boot"), 10);
        assert!(judge(&longer, Serves::SeveralNamespaces, std::iter::empty()).is_err());
    }

    #[test]
    fn a_loser_hears_names_of_its_own_namespace_only() {
        let own = claim("a", "late", Some("shared"), 20);
        let near = claim("a", "near", Some("shared"), 10);
        let far = claim("b", "far", Some("shared"), 5);
        let (refusal, message) = judge(&own, Serves::OneNamespace, [&near].into_iter()).unwrap_err();
        assert_eq!(refusal, Refusal::SessionTaken);
        assert!(message.contains("near"), "{message}");
        let (_, message) = judge(&own, Serves::OneNamespace, [&near, &far].into_iter()).unwrap_err();
        assert!(!message.contains("far") && !message.contains("near"), "{message}");
    }

    #[test]
    fn a_resource_that_the_cache_does_not_know_yet_is_judged_too() {
        let own = claim("a", "boot", None, 20);
        assert_eq!(judge(&own, Serves::SeveralNamespaces, std::iter::empty()), Ok(()));
    }
}

//! Where a plan goes: the session id, and the name of its resource. PURE.

use super::{
    once::{Key, short},
    wish::Wish,
};
use crate::{
    controller::{Scope, claim::Serves},
    gateway::{
        fault::Fault,
        query::{bad, is_label},
        sessions::Sessions,
    },
    protocol::SessionId,
};

/// A session, and how its resource is called if it has none yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub namespace: String,
    pub session: SessionId,
    pub name: String,
    /// Where another session's resource has that name.
    pub second_name: String,
    pub naming: Naming,
}

/// Who thought of the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    Client,
    /// Nobody will look for it by name: it is deleted a day after its verdict.
    Gateway,
}

/// What the document itself says, where it is a whole resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    pub name: Option<String>,
    pub namespace: Option<String>,
    pub session: Option<SessionId>,
}

/// What the request, the document and the gateway's own session say together; 400 where they contradict each other.
pub fn target(sessions: &Sessions, wish: &Wish, written: &Written) -> Result<Target, Fault> {
    let namespace = agreed("namespace", wish.namespace.as_deref(), written.namespace.as_deref())?;
    let session = agreed("session", wish.session.as_ref(), written.session.as_ref())?;
    sessions.check_bound(session, namespace)?;
    let namespace = namespace.unwrap_or_else(|| sessions.default_namespace()).to_owned();
    if !is_label(&namespace) {
        return Err(bad("namespace", format!("{namespace:?} is no name of a namespace")));
    }
    if !sessions.serves(&namespace) {
        return Err(bad("namespace", format!("namespace {namespace} is not served here")));
    }
    let session = session.or_else(|| sessions.bound().map(|bound| &bound.session));
    if let Some(name) = &written.name {
        let target = named(&namespace, name, session)?;
        check_legal(sessions.scope(), &target)?;
        return Ok(target);
    }
    let target = match session {
        Some(session) => of_session(&namespace, session.clone(), Naming::Client),
        None => of_session(&namespace, made_up(&namespace, wish.key.as_ref()), Naming::Gateway),
    };
    check_legal(sessions.scope(), &target)?;
    Ok(target)
}

fn agreed<'a, T: PartialEq + ?Sized>(
    what: &str,
    asked: Option<&'a T>,
    written: Option<&'a T>,
) -> Result<Option<&'a T>, Fault> {
    match (asked, written) {
        (Some(asked), Some(written)) if asked != written => {
            Err(bad(what, format!("the {what} of the query is not the one in the document")))
        }
        (asked, written) => Ok(asked.or(written)),
    }
}

/// The resource has a name of its own.
fn named(namespace: &str, name: &str, session: Option<&SessionId>) -> Result<Target, Fault> {
    if !is_name(name) {
        let detail = "metadata.name is no name of a resource: a-z, 0-9, dashes and dots, at most 253".to_owned();
        return Err(Fault::bad_request("BadName", detail).with("pointer", "/metadata/name".into()));
    }
    let session = session.cloned().unwrap_or_else(|| SessionId::default_for(namespace, name));
    let second_name = name.to_owned();
    Ok(Target { namespace: namespace.to_owned(), session, name: name.to_owned(), second_name, naming: Naming::Client })
}

/// The name of a session's resource: the id in lower case where that is a name; what follows the namespace where the id
/// is the default of such a resource; else letters that remind of it, and a hash.
fn of_session(namespace: &str, session: SessionId, naming: Naming) -> Target {
    let second_name = hashed(&session);
    let lower = session.as_str().to_ascii_lowercase();
    let rest = session.as_str().strip_prefix(namespace).and_then(|rest| rest.strip_prefix('_'));
    let name = match rest {
        _ if is_name(&lower) => lower,
        Some(rest) if is_name(rest) && SessionId::default_for(namespace, rest) == session => rest.to_owned(),
        _ => second_name.clone(),
    };
    Target { namespace: namespace.to_owned(), session, name, second_name, naming }
}

/// The default id of a resource `plan-<random>`; with a key always the same, so that a repeat finds what the first made.
fn made_up(namespace: &str, key: Option<&Key>) -> SessionId {
    let unique = match key {
        Some(key) => key.as_str()[..16].to_owned(),
        None => format!("{:016x}", rand::random::<u64>()),
    };
    SessionId::default_for(namespace, &format!("plan-{unique}"))
}

fn hashed(session: &SessionId) -> String {
    let text: String = session.as_str().to_ascii_lowercase().chars().map(|c| if c == '_' { '-' } else { c }).collect();
    let head: String = text.trim_start_matches('-').chars().take(100).collect();
    let hash = &short(session.as_str())[..16];
    if head.is_empty() { format!("session-{hash}") } else { format!("{head}-{hash}") }
}

/// Told here rather than by a condition later: on a connection of several namespaces an id begins with its own.
fn check_legal(scope: &Scope, target: &Target) -> Result<(), Fault> {
    let Target { namespace, session, name, .. } = target;
    let is_own = session.as_str().strip_prefix(namespace.as_str()).is_some_and(|rest| rest.starts_with('_'));
    if is_own || scope.serves() == Serves::OneNamespace || SessionId::default_for(namespace, name) == *session {
        return Ok(());
    }
    let detail =
        format!("session {session} does not begin with {namespace}_, as ids do where several namespaces are served");
    Err(bad("session", detail))
}

/// An RFC 1123 subdomain.
fn is_name(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(namespace: &str, session: &str) -> String {
        of_session(namespace, SessionId::new(session).unwrap(), Naming::Client).name
    }

    #[test]
    fn a_session_s_resource_has_its_name_where_that_is_legal() {
        assert_eq!(name("ns", "boot"), "boot");
        assert_eq!(name("ns", "Boot-2"), "boot-2");
        assert_eq!(name("ns", "ns_boot"), "boot", "the default id of the resource boot");
        for odd in ["a_b", "-a", "a-", "___", "ns_", "ns_a_b"] {
            let name = name("ns", odd);
            assert!(is_name(&name), "{odd}: {name}");
            assert!(name.len() > 16, "{odd}: {name}");
        }
    }

    #[test]
    fn ids_that_differ_have_second_names_that_differ() {
        let second = |id: &str| of_session("ns", SessionId::new(id).unwrap(), Naming::Client).second_name;
        assert_ne!(second("boot"), second("Boot"));
        assert_ne!(second("a_b"), second("a-b"));
        assert!(is_name(&second(&"x".repeat(128))) && is_name(&second(&"_".repeat(128))));
    }

    #[test]
    fn an_id_that_the_gateway_makes_is_that_of_its_resource_and_follows_the_key() {
        let id = made_up("ns", None);
        let target = of_session("ns", id.clone(), Naming::Gateway);
        assert_eq!(SessionId::default_for("ns", &target.name), id);
        assert_ne!(made_up("ns", None), id);
        let key = Key::of("k");
        assert_eq!(made_up("ns", Some(&key)), made_up("ns", Some(&key)));
    }
}

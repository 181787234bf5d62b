//! What the operator is told at its start. Data only; the command line makes it.

use std::collections::BTreeMap;

use kube::{Api, Client};

use super::{claim::Serves, heart::Heart, labels::LabelRules, view::View};
use crate::{bus::Bus, protocol::Prefix, resource::PhaseManifest, sessions::Clock};

/// Everything that [`super::run`] needs. One NATS connection, named `default`.
#[derive(Clone)]
pub struct Options {
    /// Without retries of its own; see [`super::call`].
    pub client: Client,
    pub bus: Bus,
    /// Of the subjects on that connection.
    pub prefix: Prefix,
    /// `Pmp-Origin` of all that is published: the id of this cluster.
    pub origin: String,
    /// Names this process, new at every start: `status.holder`, `reportingInstance`.
    pub process: String,
    pub scope: Scope,
    /// Only resources with these labels; absent is all.
    pub selector: Option<Selector>,
    /// Of labels that handlers put.
    pub labels: LabelRules,
    pub heart: Heart,
    /// Filled by the operator, for others in the process to read.
    pub view: View,
    pub clock: Clock,
}

/// Whose resources are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    AllNamespaces,
    /// At least one, none twice, sorted.
    Namespaces(Vec<String>),
}

impl Scope {
    /// No namespaces are all.
    pub fn of(mut namespaces: Vec<String>) -> Self {
        namespaces.sort();
        namespaces.dedup();
        if namespaces.is_empty() { Self::AllNamespaces } else { Self::Namespaces(namespaces) }
    }

    /// The resources to be watched.
    pub fn apis(&self, client: &Client) -> Vec<Api<PhaseManifest>> {
        match self {
            Self::AllNamespaces => vec![Api::all(client.clone())],
            // A watch each, since a Role reaches no further than its namespace.
            Self::Namespaces(namespaces) => {
                namespaces.iter().map(|namespace| Api::namespaced(client.clone(), namespace)).collect()
            }
        }
    }

    /// Whether session ids need a namespace before them.
    pub fn serves(&self) -> Serves {
        match self {
            Self::Namespaces(namespaces) if namespaces.len() == 1 => Serves::OneNamespace,
            _ => Serves::SeveralNamespaces,
        }
    }
}

/// A label selector as the API server takes it: `shard=1,tier!=db,stage in (a,b),!legacy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(String);

/// A text is no label selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{term:?} is no requirement on a label: write key=value, key!=value, key in (a,b), key notin (a,b), key or !key"
)]
pub struct SelectorError {
    term: String,
}

impl Selector {
    /// Checks as much as tells a typing error; whether keys and values are legal is the API server's to say.
    pub fn new(text: &str) -> Result<Self, SelectorError> {
        for term in terms(text) {
            if key(term).is_none() {
                return Err(SelectorError { term: term.to_owned() });
            }
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The labels that it asks for by their value: `shard=1`, not `stage in (a,b)`.
    pub fn equalities(&self) -> BTreeMap<String, String> {
        let equality = |term: &str| {
            let (key, value) = term.split_once("==").or_else(|| term.split_once('='))?;
            let key = key.trim();
            (!key.ends_with('!') && !value.trim().is_empty()).then(|| (key.to_owned(), value.trim().to_owned()))
        };
        terms(&self.0).filter_map(equality).collect()
    }

    /// The keys that it looks at.
    pub fn keys(&self) -> Vec<String> {
        terms(&self.0).filter_map(key).map(str::to_owned).collect()
    }
}

/// The requirements: between commas that stand in no parentheses.
fn terms(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_u32;
    let is_comma = move |c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    text.split(is_comma).map(str::trim)
}

fn key(term: &str) -> Option<&str> {
    let is_key_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let (bare, is_negated) = term.strip_prefix('!').map_or((term, false), |rest| (rest.trim_start(), true));
    let end = bare.find(|c: char| !is_key_char(c)).unwrap_or(bare.len());
    let (key, rest) = (&bare[..end], bare[end..].trim());
    let is_list = |word: &str| {
        let list = rest.strip_prefix(word).map(str::trim_start);
        list.is_some_and(|list| list.starts_with('(') && list.ends_with(')'))
    };
    let is_value = |value: &str| value.trim().chars().all(is_key_char);
    let operator = ["!=", "==", "="].into_iter().find_map(|operator| rest.strip_prefix(operator));
    let is_legal =
        rest.is_empty() || !is_negated && (is_list("in") || is_list("notin") || operator.is_some_and(is_value));
    (!key.is_empty() && is_legal).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_namespace_alone_needs_no_prefix_on_its_session_ids() {
        assert_eq!(Scope::of(vec!["a".into(), "a".into()]).serves(), Serves::OneNamespace);
        assert_eq!(Scope::of(vec!["a".into(), "b".into()]).serves(), Serves::SeveralNamespaces);
        assert_eq!(Scope::of(Vec::new()), Scope::AllNamespaces);
        assert_eq!(Scope::AllNamespaces.serves(), Serves::SeveralNamespaces);
    }

    #[test]
    fn a_selector_names_its_keys() {
        let selector =
            Selector::new("shard=1, tier != db,example.com/stage in (a, b),x notin (c),there,!gone").unwrap();
        assert_eq!(selector.keys(), ["shard", "tier", "example.com/stage", "x", "there", "gone"]);
    }

    #[test]
    fn equalities_are_what_a_new_object_needs() {
        let selector = Selector::new("shard=1, tier != db,example.com/stage in (a, b),kind==x,there,!gone").unwrap();
        let wanted = [("kind", "x"), ("shard", "1")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(selector.equalities(), wanted.into());
    }

    #[test]
    fn a_typing_error_is_told_at_the_start() {
        for text in ["", "a=1,", "=1", "a in b", "a >> 1", "a in (b", "a=b c", "!a=1"] {
            assert!(Selector::new(text).is_err(), "{text}");
        }
    }
}

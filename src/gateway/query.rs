//! Query parameters: known ones only, each once. PURE.
//!
//! A misspelled `dryrun` that is passed over in silence runs the plan for good; so what is not known is refused.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

use super::fault::Fault;
use crate::protocol::SessionId;

/// Pairs that are looked at; the most that a route knows is seven.
const PAIRS_MAX: usize = 32;

/// What stands behind the question mark.
#[derive(Debug)]
pub struct Query(BTreeMap<String, String>);

impl Query {
    /// Of these parameters and no others.
    pub fn of(raw: Option<&str>, known: &[&str]) -> Result<Self, Fault> {
        let mut pairs = BTreeMap::new();
        for (count, pair) in raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).enumerate() {
            if count >= PAIRS_MAX {
                return Err(bad("query", "there are too many parameters".to_owned()));
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decoded(name).ok_or_else(|| bad("query", "a parameter's name is not UTF-8".to_owned()))?;
            let shown: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
            if !known.contains(&name.as_str()) {
                let list = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(bad(&shown, format!("there is no parameter {shown} here; known: {list}")));
            }
            let value = decoded(value).ok_or_else(|| bad(&shown, format!("the value of {shown} is not UTF-8")))?;
            if pairs.insert(name, value).is_some() {
                return Err(bad(&shown, format!("{shown} is given twice")));
            }
        }
        Ok(Self(pairs))
    }

    /// 400 where it is there and empty: `digest=$UNSET` must not be taken for no digest at all.
    pub fn text(&self, name: &str) -> Result<Option<&str>, Fault> {
        match self.0.get(name).map(String::as_str) {
            Some("") => Err(bad(name, format!("{name} is empty: give it a value, or leave it out"))),
            value => Ok(value),
        }
    }

    /// `true`, `1` or nothing but the name; `false` or `0`.
    pub fn flag(&self, name: &str) -> Result<bool, Fault> {
        match self.0.get(name).map(String::as_str) {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(_) => Err(bad(name, format!("{name} is true or false"))),
        }
    }

    /// A number in these bounds, or the default.
    pub fn number(&self, name: &str, default: usize, max: usize) -> Result<usize, Fault> {
        match self.text(name)? {
            None => Ok(default),
            Some(text) => {
                let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
                let number = text.parse().ok().filter(|number| is_plain && (1..=max).contains(number));
                number.ok_or_else(|| bad(name, format!("{name} is a number from 1 to {max}")))
            }
        }
    }

    pub fn session(&self) -> Result<Option<SessionId>, Fault> {
        let id = self.text("session")?.map(SessionId::new).transpose();
        id.map_err(|error| bad("session", error.to_string()))
    }

    /// A legal name of a namespace.
    pub fn namespace(&self) -> Result<Option<&str>, Fault> {
        match self.text("namespace")? {
            Some(name) if !is_label(name) => {
                Err(bad("namespace", "the namespace is no name of one: 1 to 63 of a-z, 0-9 and dashes".to_owned()))
            }
            namespace => Ok(namespace),
        }
    }
}

/// 400, naming the parameter.
pub fn bad(parameter: &str, detail: String) -> Fault {
    Fault::bad_request("BadParameter", detail).with("parameter", parameter.into())
}

/// An RFC 1123 label, as names of namespaces are.
pub fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Percent-decoded, with a plus sign for a space as forms write it.
fn decoded(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 3] = ["session", "dryRun", "limit"];

    #[test]
    fn values_are_decoded_once() {
        let query = Query::of(Some("session=a_b&limit=%31%30&dryRun"), &KNOWN).unwrap();
        assert_eq!(query.session().unwrap(), Some(SessionId::new("a_b").unwrap()));
        assert_eq!(query.number("limit", 5, 10).unwrap(), 10);
        assert!(query.flag("dryRun").unwrap());
        assert_eq!(Query::of(None, &KNOWN).unwrap().number("limit", 5, 10).unwrap(), 5);
    }

    #[test]
    fn what_is_misspelled_or_given_twice_is_refused() {
        for raw in ["dryrun=true", "limit=1&limit=2", "session=%ff", "%ff=1", "dryRun=1&x"] {
            assert!(Query::of(Some(raw), &KNOWN).is_err(), "{raw}");
        }
    }

    #[test]
    fn values_outside_their_bounds_are_refused() {
        let query = |raw| Query::of(Some(raw), &["session", "dryRun", "limit", "namespace"]).unwrap();
        assert!(query("limit=0").number("limit", 5, 10).is_err());
        assert!(query("limit=11").number("limit", 5, 10).is_err());
        assert!(query("limit=%2B1").number("limit", 5, 10).is_err());
        assert!(query("dryRun=yes").flag("dryRun").is_err());
        assert!(query("session=a.b").session().is_err());
        assert!(query("namespace=A").namespace().is_err());
    }

    #[test]
    fn an_empty_value_is_a_mistake_and_no_absence() {
        let query = |raw| Query::of(Some(raw), &["session", "dryRun", "limit", "namespace", "digest"]).unwrap();
        assert!(query("digest=").text("digest").is_err());
        assert!(query("digest").text("digest").is_err());
        assert!(query("session=").session().is_err());
        assert!(query("namespace=").namespace().is_err());
        assert!(query("limit=").number("limit", 5, 10).is_err());
        assert!(query("dryRun=").flag("dryRun").unwrap(), "of a flag the name is enough");
        assert_eq!(query("dryRun").text("digest").unwrap(), None);
    }
}

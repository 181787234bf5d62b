//! Idempotency keys: what was answered under which, kept in an annotation that is written with the object itself.
//!
//! So a repeat is known wherever it arrives, also after the first answer was lost or the gateway was killed. Nothing is
//! written twice: either the object and its key are stored, or neither is.

use axum::http::HeaderName;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{answer::Outcome, session_text};
use crate::{gateway::fault::Fault, manifest::Digest, resource::PhaseManifest};

/// On the resource: the last keys, newest last, as JSON.
pub const KEYS_ANNOTATION: &str = "pmp.dev/idempotency-keys";

/// On an answer that was given before.
pub const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Keys that are remembered; 200 bytes each. A repeat comes within minutes, and rarely after sixteen other plans.
const KEYS_MAX: usize = 16;

/// Nobody is told apart yet. Keys of two callers never meet once there are any.
const CALLER: &str = "anonymous";

/// An Idempotency-Key together with whose it is: only a hash is kept, since keys may be secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key(String);

impl Key {
    pub fn of(key: &str) -> Self {
        Self(short(&json!([CALLER, key]).to_string()))
    }

    /// 32 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The first 128 bits of the digest.
pub fn short(text: &str) -> String {
    let digest = Digest::of(text.as_bytes());
    let bits = digest.as_bytes()[..16].iter().fold(0_u128, |bits, &byte| bits << 8 | u128::from(byte));
    format!("{bits:032x}")
}

/// What a key was used for. Enough to give the same answer again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Use {
    pub key: Key,
    /// Of the body and of what was asked for beside it.
    pub body: String,
    pub outcome: Outcome,
    /// The number that the plan was told to have.
    pub revision: Option<u64>,
    /// The revision that it was compared with; 0 is none.
    pub base: u64,
}

/// What the object remembers; nothing where somebody else wrote into the annotation.
pub fn uses(object: &PhaseManifest) -> Vec<Use> {
    let text = object.metadata.annotations.as_ref().and_then(|annotations| annotations.get(KEYS_ANNOTATION));
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// What this key was used for, if it was.
pub fn used(object: &PhaseManifest, key: &Key) -> Option<Use> {
    uses(object).into_iter().find(|used| used.key == *key)
}

impl Use {
    /// Whether this key may be answered as before: 409 where it was used for something else.
    pub fn check(&self, fingerprint: &str, object: &PhaseManifest) -> Result<(), Fault> {
        if self.body == fingerprint {
            return Ok(());
        }
        let detail = "this Idempotency-Key was used for another body, or with other parameters: use a new one";
        Err(Fault::conflict("IdempotencyKeyReused", detail).with("sessionId", session_text(object).into()))
    }
}

/// The annotation's text with one more, in place of the oldest where there are many.
pub fn remembered(mut uses: Vec<Use>, new: Use) -> String {
    uses.retain(|used| used.key != new.key);
    uses.push(new);
    let surplus = uses.len().saturating_sub(KEYS_MAX);
    uses.drain(..surplus);
    serde_json::to_string(&uses).expect("texts and numbers are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::PhaseManifestSpec;

    fn usage(n: usize) -> Use {
        let key = Key::of(&format!("key {n}"));
        Use { key, body: short("body"), outcome: Outcome::Created, revision: Some(1), base: 0 }
    }

    #[test]
    fn a_key_is_found_again_and_the_oldest_goes() {
        let mut object = PhaseManifest::new("boot", PhaseManifestSpec::default());
        for n in 0..KEYS_MAX + 3 {
            let text = remembered(uses(&object), usage(n));
            object.metadata.annotations = Some([(KEYS_ANNOTATION.to_owned(), text)].into());
        }
        assert_eq!(uses(&object).len(), KEYS_MAX);
        assert_eq!(used(&object, &Key::of("key 2")), None);
        assert_eq!(used(&object, &Key::of("key 3")), Some(usage(3)));
    }

    #[test]
    fn an_annotation_of_somebody_else_is_no_memory() {
        let mut object = PhaseManifest::new("boot", PhaseManifestSpec::default());
        object.metadata.annotations = Some([(KEYS_ANNOTATION.to_owned(), "yes".to_owned())].into());
        assert!(uses(&object).is_empty());
    }
}

//! Digests: whether two manifests are the same, and whether a phase's finished result is still worth keeping.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};

use super::{
    Phase, PhaseIx,
    canonical::{TYPED_EXTENSIONS, write_entries, write_text},
    canonical_text::write_phase,
};

/// A SHA-256. Shown as `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// A text is not `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is `sha256:` and 64 hexadecimal digits in lower case")]
pub struct DigestError;

/// Extensions that steer how a phase is tried, not what its result is.
const STEERING: [&str; 4] = ["x-priority", "x-timeouts", "x-backoff", "x-onExhausted"];

impl Digest {
    /// Of any bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let digits = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64).ok_or(DigestError)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            *byte = nibble(pair[0]).ok_or(DigestError)? << 4 | nibble(pair[1]).ok_or(DigestError)?;
        }
        Ok(Self(bytes))
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Of the canonical array: compact, keys sorted. Fed phase by phase, so that no second copy is held.
pub(super) fn of_manifest(phases: &[Phase]) -> Digest {
    let mut hash = Sha256::new();
    let mut text = Vec::new();
    hash.update(b"[");
    for (index, phase) in phases.iter().enumerate() {
        text.clear();
        if index > 0 {
            text.push(b',');
        }
        write_phase(phase, &mut text);
        hash.update(&text);
    }
    hash.update(b"]");
    Digest(hash.finalize().into())
}

/// Of every phase, in document order: id, selector, waits as a set, the `x-*` that are not [`STEERING`], and the same
/// of what it waits for. How long it waits, retries and handlers are left out: they do not change what was done.
pub(super) fn of_phases(phases: &[Phase], waits: &[Vec<PhaseIx>], order: &[PhaseIx]) -> Vec<Digest> {
    let mut digests = vec![Digest([0; 32]); phases.len()];
    let mut text = Vec::new();
    let mut on: Vec<(&str, Digest)> = Vec::new();
    for &ix in order {
        let phase = &phases[ix.index()];
        on.clear();
        on.extend(waits[ix.index()].iter().map(|w| (phases[w.index()].id.as_str(), digests[w.index()])));
        on.sort_unstable();
        text.clear();
        write_own_part(phase, &mut text);
        let mut hash = Sha256::new();
        hash.update(&text);
        // A digest has a fixed length and says whose it is: nothing can run together.
        for (_, digest) in &on {
            hash.update(digest.0);
        }
        digests[ix.index()] = Digest(hash.finalize().into());
    }
    digests
}

/// What is the phase's own, as JSON: its id, `matchLabels`, what it waits for elsewhere, and the extensions that count.
fn write_own_part(phase: &Phase, out: &mut Vec<u8>) {
    let spec = &phase.spec;
    out.push(b'[');
    write_text(phase.id.as_str(), out);
    for (key, value) in &spec.selector {
        out.push(b',');
        write_text(key, out);
        out.push(b':');
        write_text(value, out);
    }
    let mut others: Vec<_> = spec.wait_for_others.iter().collect();
    others.sort_unstable();
    for wait in others {
        out.extend_from_slice(b",[");
        write_text(&wait.manifest, out);
        out.push(b',');
        write_text(wait.phase.as_str(), out);
        out.push(b']');
    }
    out.push(b',');
    let counts = |key: &str| !STEERING.contains(&key) && !TYPED_EXTENSIONS.contains(&key);
    write_entries(spec.extensions.iter().filter(|(key, _)| counts(key)), out);
    out.push(b']');
}

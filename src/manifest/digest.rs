//! Digests (stand-in for the first compile; replaced with the canonical form).
use super::{Phase, PhaseIx};
use sha2::{Digest as _, Sha256};
use std::fmt;
/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        for b in self.0 {
            write!(f, "{b:02x}")?;
        }
        Ok(())
    }
}
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
pub(super) fn of_manifest(phases: &[Phase]) -> Digest {
    Digest(Sha256::digest(format!("{phases:?}")).into())
}
pub(super) fn of_phases(phases: &[Phase], waits: &[Vec<PhaseIx>], order: &[PhaseIx]) -> Vec<Digest> {
    let mut out = vec![Digest([0; 32]); phases.len()];
    for &ix in order {
        let p = &phases[ix.index()];
        let mut h = Sha256::new();
        h.update(format!("{:?}{:?}{:?}{:?}", p.id, p.spec.selector, p.spec.wait_for, p.spec.extensions));
        for w in &waits[ix.index()] {
            h.update(out[w.index()].0);
        }
        out[ix.index()] = Digest(h.finalize().into());
    }
    out
}

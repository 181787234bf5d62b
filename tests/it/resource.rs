//! The generated CRD.

/// `make generate` writes it, `pmp crd` prints it.
const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/phasemanifests.yaml");

#[test]
fn committed_crd_is_the_generated_one() {
    let committed = std::fs::read_to_string(COMMITTED).expect("crds/phasemanifests.yaml is committed");
    assert!(committed == pmp::resource::crd_yaml(), "crds/phasemanifests.yaml is out of date: run `make generate`");
}

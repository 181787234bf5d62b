//! `spec.phases` as it is kept: the text, and not the tree of values that it would be.
//!
//! The operator holds every resource that there is, and looks into the phases of few. As values, ten small phases take
//! 30 KiB, most of it the empty rest of small maps; as text, one.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// The list of phases, as written and not judged. Cloning is a reference count.
#[derive(Clone, PartialEq, Eq)]
pub struct Phases(Arc<str>);

impl Phases {
    /// The values, read anew at each call: linear in the text.
    pub fn values(&self) -> Vec<Value> {
        serde_json::from_str(&self.0).expect("the text was made from a list of values")
    }
}

impl From<&[Value]> for Phases {
    fn from(values: &[Value]) -> Self {
        Self(serde_json::to_string(values).expect("values are JSON").into())
    }
}

impl From<Vec<Value>> for Phases {
    fn from(values: Vec<Value>) -> Self {
        values.as_slice().into()
    }
}

impl fmt::Debug for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Phases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<Value>::deserialize(deserializer).map(Self::from)
    }
}

impl Serialize for Phases {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.values().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn phases_come_back_as_they_were_written() {
        let written = json!([{"kind": "Phase", "id": "a\n", "spec": {"x-a": [1, 1.5e300, null, "é"]}}, 7, "odd"]);
        let phases: Phases = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(Value::Array(phases.values()), written);
        assert_eq!(serde_json::to_value(&phases).unwrap(), written);
    }

    #[test]
    fn numbers_beyond_what_json_readers_hold_do_not_break_it() {
        let phases: Phases = serde_json::from_str("[1e308, -0.0, 18446744073709551615]").unwrap();
        assert_eq!(phases.values().len(), 3);
    }
}

//! What a runtime carries, and so which phases are for it.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

/// Longest queue group spelled out; a longer one is hashed. Far below what a NATS control line takes (4 KiB).
const GROUP_BYTES_MAX: usize = 200;

/// Which phases a runtime takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Labels {
    /// Every phase, whatever its selector (the laptop, where there is nobody else).
    Everything,
    /// Phases whose `selector.matchLabels` are all among these. A phase without selector matches.
    Carried(BTreeMap<String, String>),
}

/// Why a text is no label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no label: write key=value, without spaces")]
pub struct LabelError(String);

impl Labels {
    /// Of `key=value` texts; none at all is [`Labels::Everything`], as on a laptop, where there is nobody else.
    pub fn of_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, LabelError> {
        Ok(match Self::carried(texts)? {
            Self::Carried(labels) if labels.is_empty() => Self::Everything,
            labels => labels,
        })
    }

    /// Of `key=value` texts; whoever carries none takes only phases without a selector.
    ///
    /// ```
    /// use pmp::runtime::Labels;
    ///
    /// let labels = Labels::carried(["site=lab", "gpu=yes"])?;
    /// assert!(labels.match_selector(&[("site".to_owned(), "lab".to_owned())].into()));
    /// assert!(!Labels::carried([])?.match_selector(&[("site".to_owned(), "lab".to_owned())].into()));
    /// # Ok::<(), pmp::runtime::LabelError>(())
    /// ```
    pub fn carried<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, LabelError> {
        let mut carried = BTreeMap::new();
        for text in texts {
            let (key, value) = text.split_once('=').ok_or_else(|| LabelError(text.to_owned()))?;
            if key.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
                return Err(LabelError(text.to_owned()));
            }
            carried.insert(key.to_owned(), value.to_owned());
        }
        Ok(Self::Carried(carried))
    }

    /// Whether a phase with this selector is for this runtime.
    pub fn match_selector(&self, selector: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Everything => true,
            Self::Carried(labels) => selector.iter().all(|(key, value)| labels.get(key) == Some(value)),
        }
    }

    /// The queue group of all runtimes that do this kind of work under these labels, so that one of them answers an
    /// offer and not hundreds (design, section 7).
    ///
    /// The kind is part of it because a runtime that cannot do a phase declines it: beside one that can, it would
    /// swallow half of the offers.
    pub fn queue_group(&self, kind: &str) -> String {
        let set = match self {
            Self::Everything => "all".to_owned(),
            // No set of labels, since those have a `=` each.
            Self::Carried(labels) if labels.is_empty() => "none".to_owned(),
            Self::Carried(labels) => labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","),
        };
        // A group's name follows the rules of a subject; what would break them is legal in a label.
        let is_plain = set.bytes().all(|byte| byte.is_ascii_graphic() && !b"*>".contains(&byte));
        if is_plain && !set.contains("..") && !set.ends_with('.') && kind.len() + set.len() < GROUP_BYTES_MAX {
            return format!("{kind};{set}");
        }
        let hash = Sha256::digest(set.as_bytes());
        let hash = u128::from_be_bytes(hash[..16].try_into().expect("a SHA-256 has 32 bytes"));
        format!("{kind};{hash:032x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_phase_is_taken_only_if_all_its_labels_are_carried() {
        let labels = Labels::of_texts(["site=lab", "gpu=yes"]).unwrap();
        assert!(labels.match_selector(&selector(&[("site", "lab")])));
        assert!(labels.match_selector(&selector(&[])));
        assert!(!labels.match_selector(&selector(&[("site", "field")])));
        assert!(!labels.match_selector(&selector(&[("site", "lab"), ("disk", "ssd")])));
        assert!(Labels::of_texts([]).unwrap().match_selector(&selector(&[("anything", "goes")])));
        let without = Labels::carried([]).unwrap();
        assert!(without.match_selector(&selector(&[])) && !without.match_selector(&selector(&[("site", "lab")])));
        assert_eq!(without.queue_group("exec"), "exec;none");
    }

    #[test]
    fn the_queue_group_does_not_depend_on_the_order_of_labels() {
        let one = Labels::of_texts(["b=2", "a=1"]).unwrap().queue_group("exec");
        let two = Labels::of_texts(["a=1", "b=2"]).unwrap().queue_group("exec");
        assert_eq!(one, "exec;a=1,b=2");
        assert_eq!(one, two);
        let long = Labels::of_texts([format!("k={}", "v".repeat(500)).as_str()]).unwrap().queue_group("exec");
        assert!(long.len() < GROUP_BYTES_MAX);
        let dotted = Labels::of_texts(["k=a..b"]).unwrap().queue_group("exec");
        assert!(!dotted.contains(".."), "{dotted}");
    }

    #[test]
    fn a_label_without_a_value_is_refused_by_name() {
        let text = Labels::of_texts(["lonely"]).unwrap_err().to_string();
        assert!(text.contains("'lonely'"), "{text}");
        assert!(Labels::of_texts(["a=b c"]).is_err());
    }
}

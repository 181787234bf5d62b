//! Which name is meant: equal but for casing, or nearest.

use std::fmt::Write as _;

use super::{PhaseId, limits::SUGGESTION_WORK_MAX};

/// Longest name that is compared with others, in bytes. Longer ones are no typing errors.
const COMPARED_BYTES_MAX: usize = 64;

/// Longest part of a person's text that a message repeats, in characters.
const QUOTED_CHARS_MAX: usize = 80;

/// Whether two names differ in nothing but casing: `match_labels`, `matchLabels`, `MatchLabels`. Case and inner
/// underscores do not count.
pub(super) fn same_field(written: &str, known: &str) -> bool {
    if written == known {
        return true;
    }
    if written.starts_with('_') || written.ends_with('_') {
        return false;
    }
    letters(written).eq(letters(known))
}

fn letters(name: &str) -> impl Iterator<Item = u8> {
    name.bytes().filter(|b| *b != b'_').map(|b| b.to_ascii_lowercase())
}

/// What people write for our fields, coming from other tools.
const FOREIGN_NAMES: [(&str, &str); 17] = [
    ("after", "waitFor"),
    ("attempts", "maxAttempts"),
    ("backoff", "x-backoff"),
    ("command", "x-exec"),
    ("depends", "waitFor"),
    ("dependsOn", "waitFor"),
    ("exec", "x-exec"),
    ("labels", "selector"),
    ("limit", "maxAttempts"),
    ("matchLabels", "selector"),
    ("name", "id"),
    ("needs", "waitFor"),
    ("priority", "x-priority"),
    ("retries", "retry"),
    ("run", "x-exec"),
    ("timeout", "x-timeouts"),
    ("timeouts", "x-timeouts"),
];

/// What to do about an unknown field among these known ones.
pub(crate) fn nearest_field(written: &str, known: &[&str]) -> String {
    if written.len() <= COMPARED_BYTES_MAX {
        let meant = FOREIGN_NAMES.iter().find(|(foreign, _)| same_field(written, foreign));
        if let Some((_, ours)) = meant.filter(|(_, ours)| known.contains(ours)) {
            return format!("did you mean `{ours}`?");
        }
        let lower = written.to_ascii_lowercase();
        let score = |name: &str| strsim::jaro_winkler(&lower, &name.to_ascii_lowercase());
        let nearest = known.iter().map(|name| (score(name), name)).max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((_, name)) = nearest.filter(|(score, _)| *score >= 0.8) {
            return format!("did you mean `{name}`?");
        }
    }
    let names: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
    format!("known here: {}; fields of your own begin with `x-`", names.join(", "))
}

/// The search for the id that a wrong one may have meant. It stops answering after a bounded amount of work, so that a
/// document of wrong ids stays linear.
pub(super) struct Suggestions {
    work_left: usize,
}

impl Suggestions {
    pub fn new() -> Self {
        Self { work_left: SUGGESTION_WORK_MAX }
    }

    /// The nearest id that is near enough.
    pub fn nearest<'i>(&mut self, wrong: &str, ids: &'i [PhaseId]) -> Option<&'i PhaseId> {
        if wrong.len() > COMPARED_BYTES_MAX {
            return None;
        }
        let far = (wrong.len() / 3).max(1);
        let mut best: Option<(usize, &PhaseId)> = None;
        for id in ids {
            let known = id.as_str();
            let work = 1 + if known.len().abs_diff(wrong.len()) <= far { known.len() * wrong.len() } else { 0 };
            self.work_left = self.work_left.checked_sub(work)?;
            if work == 1 {
                continue;
            }
            let distance = if same_field(wrong, known) { 0 } else { strsim::osa_distance(wrong, known) };
            if distance <= far && best.is_none_or(|(least, _)| distance < least) {
                best = Some((distance, id));
            }
        }
        best.map(|(_, id)| id)
    }
}

/// A person's text between backticks, bounded and on one line.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from("`");
    for (count, c) in text.chars().enumerate() {
        if count == QUOTED_CHARS_MAX {
            quoted.push_str("...");
            break;
        }
        if c.is_control() {
            write!(quoted, "{}", c.escape_debug()).expect("a String takes every text");
        } else {
            quoted.push(c);
        }
    }
    quoted.push('`');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casing_does_not_matter_and_letters_do() {
        for written in ["waitFor", "wait_for", "WaitFor", "WAIT_FOR", "waitfor"] {
            assert!(same_field(written, "waitFor"), "{written}");
        }
        for written in ["wait-for", "_waitFor", "waitFor_", "waitFo", "waitForr", ""] {
            assert!(!same_field(written, "waitFor"), "{written}");
        }
    }

    #[test]
    fn the_nearest_field_is_named() {
        let known = ["description", "selector", "waitFor", "retry", "x-timeouts"];
        assert!(nearest_field("selectr", &known).contains("`selector`?"));
        assert!(nearest_field("depends_on", &known).contains("`waitFor`?"));
        assert!(nearest_field("timeout", &known).contains("`x-timeouts`?"));
        assert!(nearest_field("zzz", &known).starts_with("known here"));
        assert!(nearest_field(&"z".repeat(1_000_000), &known).starts_with("known here"));
    }

    #[test]
    fn suggestions_end_when_their_work_is_used_up() {
        let ids: Vec<PhaseId> = (0..20_000).map(|i| PhaseId::new(&format!("phase-{i:06}")).unwrap()).collect();
        let mut suggestions = Suggestions { work_left: 5_000_000 };
        assert_eq!(suggestions.nearest("phase_000007", &ids).map(PhaseId::as_str), Some("phase-000007"));
        let answered = (0..100).filter(|_| suggestions.nearest("phase-00000x", &ids).is_some()).count();
        assert!(answered < 100);
    }

    #[test]
    fn quotes_are_bounded_and_on_one_line() {
        assert_eq!(quoted("a\nb"), "`a\\nb`");
        assert!(quoted(&"x".repeat(1_000)).len() < 100);
    }
}

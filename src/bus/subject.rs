//! Which texts are subjects and patterns, and what matches what. Clients let `a..b`, `*` and `>` through when publishing.

use super::Error;

/// NATS's own advice is 256 and 16 tokens; a subject of ours stays below 400 bytes.
const SUBJECT_BYTES_MAX: usize = 1024;

/// What may be published to: non-empty tokens, no wildcard, nothing that would break the protocol's lines.
pub(super) fn check_subject(subject: &str) -> Result<(), Error> {
    let legal = is_framed(subject) && subject.split('.').all(|token| !token.is_empty() && token != "*" && token != ">");
    if legal { Ok(()) } else { Err(Error::Subject { subject: shown(subject) }) }
}

/// What may be subscribed to: as a subject, with `*` for one token and `>` as the last one.
pub(super) fn check_pattern(pattern: &str) -> Result<(), Error> {
    let mut tokens = pattern.split('.').peekable();
    let mut legal = is_framed(pattern);
    while let Some(token) = tokens.next() {
        legal &= !token.is_empty() && (token != ">" || tokens.peek().is_none());
    }
    if legal { Ok(()) } else { Err(Error::Pattern { pattern: shown(pattern) }) }
}

fn is_framed(text: &str) -> bool {
    text.len() <= SUBJECT_BYTES_MAX && !text.chars().any(|c| c.is_whitespace() || c.is_control())
}

/// A refused subject as it goes into an error: short, on one line.
fn shown(subject: &str) -> String {
    subject.chars().take(100).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Whether a published subject is one that the pattern asks for.
pub(super) fn matches(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in pattern.split('.') {
        match (wanted, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            // Another token, or none left.
            _ => return false,
        }
    }
    tokens.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_one_token_and_an_arrow_is_the_rest() {
        assert!(matches("a.*.c", "a.b.c"));
        assert!(!matches("a.*.c", "a.b.b.c"));
        assert!(!matches("a.*", "a"));
        assert!(matches("a.>", "a.b.c"));
        assert!(!matches("a.>", "a"));
        assert!(matches(">", "a"));
        assert!(matches("a.b", "a.b"));
        assert!(!matches("a.b", "a.b.c"));
        assert!(!matches("a.b.c", "a.b"));
    }

    #[test]
    fn what_nats_would_let_through_is_refused() {
        for subject in ["", ".", "a..b", "a.", ".a", "*", "a.*", "a.>", "a b", "a\r\nPUB", &"a".repeat(1025)] {
            assert!(check_subject(subject).is_err(), "{subject}");
        }
        for pattern in ["", "a..b", ">.a", "a.>.b", "a b"] {
            assert!(check_pattern(pattern).is_err(), "{pattern}");
        }
        for pattern in ["a", "a.*.c", "a.>", ">", "*"] {
            assert!(check_pattern(pattern).is_ok(), "{pattern}");
        }
    }
}

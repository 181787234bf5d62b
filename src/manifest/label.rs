//! Kubernetes label syntax (API conventions, "Labels and Selectors"), because selectors and handler labels become
//! labels or are matched against them.

/// What is wrong with a label key, in words, or nothing.
pub(super) fn key_fault(key: &str) -> Option<&'static str> {
    let name = match key.split_once('/') {
        Some((prefix, _)) if !is_dns_subdomain(prefix) => {
            return Some(
                "the part before `/` is no DNS name (lower-case letters, digits, `-` and `.`, at most 253 bytes)",
            );
        }
        Some((_, name)) => name,
        None => key,
    };
    if name.is_empty() {
        return Some("the name is empty");
    }
    name_fault(name)
}

/// What is wrong with a label value, in words, or nothing. The empty value is legal.
pub(super) fn value_fault(value: &str) -> Option<&'static str> {
    if value.is_empty() { None } else { name_fault(value) }
}

/// DNS-1123 subdomain: what a Kubernetes object may be called.
pub(super) fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

fn is_dns_label(text: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
}

fn name_fault(name: &str) -> Option<&'static str> {
    let bytes = name.as_bytes();
    if bytes.len() > 63 {
        return Some("it is longer than 63 bytes");
    }
    if !bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Some("only letters, digits, `-`, `_` and `.` are allowed");
    }
    let ends = [bytes.first(), bytes.last()];
    if !ends.iter().flatten().all(|b| b.is_ascii_alphanumeric()) {
        return Some("it must begin and end with a letter or a digit");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_the_syntax_of_kubernetes() {
        for key in ["phase", "a", "A.b_c-1", "example.com/phase", "app.kubernetes.io/name", &"k".repeat(63)] {
            assert_eq!(key_fault(key), None, "{key}");
        }
        for key in ["", "/a", "a/", "a/b/c", "-a", "a-", "a b", "Example.com/a", "ü", &"k".repeat(64)] {
            assert!(key_fault(key).is_some(), "{key}");
        }
    }

    #[test]
    fn values_follow_the_syntax_of_kubernetes() {
        for value in ["", "a", "1.2.3", "Some_Value"] {
            assert_eq!(value_fault(value), None, "{value}");
        }
        for value in ["a b", "a/b", ".a", "a.", &"v".repeat(64)] {
            assert!(value_fault(value).is_some(), "{value}");
        }
    }
}

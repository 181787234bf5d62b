//! What travels on a bus.

use bytes::Bytes;

use super::Error;

/// Most headers on one message that we send.
const HEADERS_MAX: usize = 64;

/// One message: where to, what, and where an answer is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    pub subject: String,
    pub headers: Headers,
    pub body: Bytes,
    /// Set when the sender waits for an answer there.
    pub reply: Option<String>,
}

impl Message {
    /// A message without headers that asks for no answer.
    pub fn new(subject: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { subject: subject.into(), body: body.into(), ..Self::default() }
    }

    /// The same with a header more; see [`Headers::set`].
    #[must_use]
    pub fn with_header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.set(name, value);
        self
    }

    /// The bytes that the bus counts against its limit: headers as they are written, and the body.
    pub fn size_bytes(&self) -> usize {
        self.headers.size_bytes() + self.body.len()
    }
}

/// A few headers: names keep their case and compare by it, as on NATS. Sorted by name when they come from the wire.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    pub fn new() -> Self {
        Self::default()
    }

    /// The first value under this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Puts one value under this name in place of what was there.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.retain(|(key, _)| key != name);
        self.0.push((name.to_owned(), value.into()));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As NATS writes them: `NATS/1.0`, a line a header, an empty line. 0 when there are none.
    pub(super) fn size_bytes(&self) -> usize {
        if self.0.is_empty() {
            return 0;
        }
        let lines: usize = self.0.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        "NATS/1.0\r\n\r\n".len() + lines
    }

    /// Refuses what would break the lines of the wire or be read as another header.
    pub(super) fn check(&self) -> Result<(), Error> {
        for (name, value) in self.iter() {
            let name_legal = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
            let value_legal = !value.chars().any(|c| matches!(c, '\r' | '\n' | '\0'));
            if !name_legal || !value_legal || self.0.len() > HEADERS_MAX {
                return Err(Error::Header { name: name.chars().filter(|c| !c.is_control()).take(60).collect() });
            }
        }
        Ok(())
    }
}

impl<Name: Into<String>, Value: Into<String>> FromIterator<(Name, Value)> for Headers {
    fn from_iter<Pairs: IntoIterator<Item = (Name, Value)>>(pairs: Pairs) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_keeps_its_case_and_its_last_value() {
        let mut headers = Headers::new();
        headers.set("Pmp-Origin", "a");
        headers.set("Pmp-Origin", "b");
        assert_eq!(headers.get("Pmp-Origin"), Some("b"));
        assert_eq!(headers.get("pmp-origin"), None);
        assert_eq!(headers.iter().count(), 1);
    }

    #[test]
    fn a_header_that_would_forge_another_is_refused() {
        for (name, value) in [("A", "x\r\nB: y"), ("A B", "x"), ("A:", "x"), ("", "x"), ("É", "x")] {
            assert!(Headers::from_iter([(name, value)]).check().is_err(), "{name:?}");
        }
        assert!(Headers::from_iter([("traceparent", "00-é-1")]).check().is_ok());
    }
}

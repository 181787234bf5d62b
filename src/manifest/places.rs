//! Where in the text the n-th value or key stands.
//!
//! Looked up only when there are problems: a good document never pays for it. JSON is scanned once more for the starts
//! of its tokens; YAML is read once more by a reader that keeps nothing but locations, in the same order.

use std::{collections::BTreeMap, fmt, ops::Range};

use serde::de::{self, Deserialize, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

use super::{Place, source::yaml_options};

/// What a text turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    Json,
    Yaml,
}

/// The places of the values and keys with these ordinals; an ordinal that is not found has none.
pub(super) fn find(text: &str, language: Language, wanted: &[u32]) -> BTreeMap<u32, Place> {
    let mut wanted = wanted.to_vec();
    wanted.sort_unstable();
    wanted.dedup();
    let spans = match language {
        Language::Json => json_spans(text, &wanted),
        Language::Yaml => yaml_spans(text, &wanted),
    };
    let mut by_offset: Vec<(u32, Range<usize>)> = spans;
    by_offset.sort_by_key(|(_, span)| span.start);
    let mut cursor = Cursor::new(text);
    by_offset.into_iter().map(|(at, span)| (at, cursor.place(span))).collect()
}

/// The place of one byte.
pub(super) fn at_offset(text: &str, offset: usize) -> Place {
    Cursor::new(text).place(offset..offset)
}

/// The place of a line and a column, both from 1, the column in bytes (as serde_json counts).
pub(super) fn at_line(text: &str, line: usize, column: usize) -> Place {
    let offset = text.floor_char_boundary((line_start(text, line) + column.saturating_sub(1)).min(text.len()));
    at_offset(text, offset)
}

fn line_start(text: &str, line: usize) -> usize {
    match line {
        0 | 1 => text.len() - text.trim_start_matches('\u{feff}').len(),
        _ => text.match_indices('\n').nth(line - 2).map_or(text.len(), |(newline, _)| newline + 1),
    }
}

/// The place that the YAML library gave, if it knows one.
pub(super) fn of_location(text: &str, location: Location) -> Option<Place> {
    if let Some(span) = span_of(text, location) {
        return Some(Cursor::new(text).place(span));
    }
    // Some errors of its scanner know a line and a column, in characters, but no bytes.
    let (line, column) = (usize::try_from(location.line()).ok()?, usize::try_from(location.column()).ok()?);
    let start = line_start(text, line);
    let offset = text[start..].char_indices().nth(column.checked_sub(1)?).map_or(text.len(), |(at, _)| start + at);
    Some(at_offset(text, offset))
}

fn span_of(text: &str, location: Location) -> Option<Range<usize>> {
    let start = usize::try_from(location.span().byte_offset()?).ok()?;
    let length = usize::try_from(location.span().byte_len()?).ok()?;
    let start = text.floor_char_boundary(start);
    let end = text.floor_char_boundary(start.saturating_add(length)).max(start);
    // A list or an object is pointed at where it begins.
    let end = text[start..end].find('\n').map_or(end, |newline| start + newline);
    Some(start..end)
}

/// Counts lines and columns forwards, so that a thousand places on one long line are found in one walk.
struct Cursor<'t> {
    text: &'t str,
    offset: usize,
    line: u32,
    column: u32,
}

impl<'t> Cursor<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, offset: 0, line: 1, column: 1 }
    }

    /// `span` begins at or after the last one.
    fn place(&mut self, span: Range<usize>) -> Place {
        for c in self.text[self.offset..span.start].chars() {
            if c == '\n' {
                self.line = self.line.saturating_add(1);
                self.column = 1;
            } else {
                self.column = self.column.saturating_add(1);
            }
        }
        self.offset = span.start;
        Place { line: self.line, column: self.column, span }
    }
}

/// `text` is valid JSON, so every string, number, word and opening bracket is the next key or value.
fn json_spans(text: &str, wanted: &[u32]) -> Vec<(u32, Range<usize>)> {
    let bytes = text.as_bytes();
    let mut found = Vec::with_capacity(wanted.len());
    let mut wanted = wanted.iter().copied().peekable();
    let mut start = text.len() - text.trim_start_matches('\u{feff}').len();
    let mut ordinal = 0;
    while start < bytes.len() && wanted.peek().is_some() {
        let end = match bytes[start] {
            b' ' | b'\t' | b'\r' | b'\n' | b',' | b':' | b']' | b'}' => {
                start += 1;
                continue;
            }
            b'[' | b'{' => start + 1,
            b'"' => string_end(bytes, start),
            _ => {
                let delimits = |b: &u8| b" \t\r\n,:]}".contains(b);
                start + bytes[start..].iter().position(delimits).unwrap_or(bytes.len() - start)
            }
        };
        if wanted.next_if_eq(&ordinal).is_some() {
            found.push((ordinal, start..end));
        }
        ordinal += 1;
        start = end;
    }
    found
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn yaml_spans(text: &str, wanted: &[u32]) -> Vec<(u32, Range<usize>)> {
    let Ok(root) = serde_saphyr::from_str_with_options::<Spanned<Outline>>(text, yaml_options(text)) else {
        return Vec::new();
    };
    let mut walk = Walk { text, wanted, ordinal: 0, found: Vec::with_capacity(wanted.len()) };
    walk.value(&root);
    walk.found
}

/// Visits the outline in the order in which [`super::source`] numbered it. Recursion is bounded by the nesting limit.
struct Walk<'t> {
    text: &'t str,
    wanted: &'t [u32],
    ordinal: u32,
    found: Vec<(u32, Range<usize>)>,
}

impl Walk<'_> {
    fn note(&mut self, location: Location) {
        if self.wanted.binary_search(&self.ordinal).is_ok()
            && let Some(span) = span_of(self.text, location)
        {
            self.found.push((self.ordinal, span));
        }
        self.ordinal += 1;
    }

    fn value(&mut self, node: &Spanned<Outline>) {
        self.note(node.referenced);
        match &node.value {
            Outline::Scalar => {}
            Outline::List(items) => items.iter().for_each(|item| self.value(item)),
            Outline::Map(entries) => {
                for (key, value) in entries {
                    self.note(key.referenced);
                    self.value(value);
                }
            }
        }
    }
}

/// The shape of a document without its contents.
enum Outline {
    Scalar,
    List(Vec<Spanned<Outline>>),
    Map(Vec<(Spanned<Key>, Spanned<Outline>)>),
}

impl<'t> Deserialize<'t> for Outline {
    fn deserialize<D: de::Deserializer<'t>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(OutlineVisitor)
    }
}

struct OutlineVisitor;

impl<'t> Visitor<'t> for OutlineVisitor {
    type Value = Outline;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_seq<A: SeqAccess<'t>>(self, mut access: A) -> Result<Outline, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Outline::List(items))
    }

    fn visit_map<A: MapAccess<'t>>(self, mut access: A) -> Result<Outline, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Outline::Map(entries))
    }
}

/// A key, of which only the place matters.
struct Key;

impl<'t> Deserialize<'t> for Key {
    fn deserialize<D: de::Deserializer<'t>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_str(KeyVisitor)
    }
}

struct KeyVisitor;

impl Visitor<'_> for KeyVisitor {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text as the name of a field")
    }

    fn visit_str<E>(self, _: &str) -> Result<Key, E> {
        Ok(Key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands in the text at each ordinal.
    fn texts(text: &str, language: Language) -> Vec<(u32, u32, &str)> {
        let places = find(text, language, &(0..100).collect::<Vec<_>>());
        places.values().map(|p| (p.line, p.column, &text[p.span.clone()])).collect()
    }

    #[test]
    fn json_tokens_are_found_in_document_order() {
        let text = "[\n {\"ü\\\"\": -1.5e3, \"b\": [true,null]}\n]";
        let expected = [
            (1, 1, "["),
            (2, 2, "{"),
            (2, 3, "\"ü\\\"\""),
            (2, 10, "-1.5e3"),
            (2, 18, "\"b\""),
            (2, 23, "["),
            (2, 24, "true"),
            (2, 29, "null"),
        ];
        assert_eq!(texts(text, Language::Json), expected);
    }

    #[test]
    fn yaml_nodes_are_found_in_the_order_in_which_they_are_numbered() {
        let text = "- kind: Phase\n  ü: &x [1, two]\n  again: *x\n";
        let found = texts(text, Language::Yaml);
        let at = |n: usize| (found[n].0, found[n].1);
        assert_eq!((found[2].2, at(2)), ("kind", (1, 3)));
        assert_eq!((found[3].2, at(3)), ("Phase", (1, 9)));
        assert_eq!((found[4].2, at(4)), ("ü", (2, 3)));
        assert_eq!((found[7].2, at(7)), ("two", (2, 13)));
        assert_eq!((found[8].2, at(8)), ("again", (3, 3)));
    }
}

//! Taking an object apart: which field is meant by a key, what is left over, and what is wrong with a value.
//!
//! The machinery of [`super::dialect`], which knows the fields; nothing here knows a phase. Every method reports and goes
//! on, so that one reading finds every mistake.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive, time::Duration};

use serde_json::{Map, Value};

use super::{
    Problem, Reason,
    canonical::canonical_number,
    duration::{DurationError, parse_duration},
    label,
    limits::{LABELS_MAX, PROBLEMS_MAX},
    source::{Entry, Node, Tree},
    spelling::{nearest_field, quoted, same_field},
};

/// Where a value stands: a chain on the stack, made into a JSON Pointer only for a problem.
#[derive(Clone, Copy)]
pub(super) struct Path<'p> {
    up: Option<&'p Path<'p>>,
    step: Step<'p>,
}

#[derive(Clone, Copy)]
enum Step<'p> {
    Root,
    Key(&'p str),
    Index(usize),
}

impl Path<'static> {
    pub const ROOT: Self = Self { up: None, step: Step::Root };
}

impl<'p> Path<'p> {
    pub fn key(&'p self, key: &'p str) -> Self {
        Self { up: Some(self), step: Step::Key(key) }
    }

    pub fn index(&'p self, index: usize) -> Self {
        Self { up: Some(self), step: Step::Index(index) }
    }
}

/// A step of a JSON Pointer (RFC 6901).
pub(crate) fn escaped(step: &str) -> String {
    step.replace('~', "~0").replace('/', "~1")
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(up) = self.up {
            fmt::Display::fmt(up, f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Key(key) => write!(f, "/{}", escaped(key)),
            Step::Index(index) => write!(f, "/{index}"),
        }
    }
}

/// The problems found so far, each with the ordinal of what it is about.
#[derive(Default)]
pub(super) struct Findings {
    listed: Vec<(u32, Problem)>,
    unlisted: usize,
}

/// The fields of one object: the known ones by their number, and the extensions.
pub(super) struct Fields<'t, const N: usize> {
    pub known: [Option<&'t Entry<'t>>; N],
    pub extensions: Vec<&'t Entry<'t>>,
}

/// Whether a key is a custom extension (protocol, "Compliance").
pub(super) fn is_extension(key: &str) -> bool {
    key.len() > 2 && (key.starts_with("x-") || key.starts_with("X-"))
}

impl Findings {
    pub fn add(&mut self, at: u32, path: &Path<'_>, reason: Reason, message: String) {
        self.push(at, path, reason, message, None);
    }

    pub fn add_hinted(&mut self, at: u32, path: &Path<'_>, reason: Reason, message: String, hint: impl Into<String>) {
        self.push(at, path, reason, message, Some(hint.into()));
    }

    fn push(&mut self, at: u32, path: &Path<'_>, reason: Reason, message: String, hint: Option<String>) {
        if self.listed.len() < PROBLEMS_MAX {
            self.listed.push((at, Problem { reason, pointer: path.to_string(), message, hint, place: None }));
        } else {
            self.unlisted += 1;
        }
    }

    /// Counts a problem that would not be listed, without the work of describing it.
    pub fn skip(&mut self) {
        self.unlisted += 1;
    }

    pub fn is_full(&self) -> bool {
        self.listed.len() >= PROBLEMS_MAX
    }

    /// Everything found, in document order, each with its ordinal; nothing means that the document is good.
    pub fn into_listed(mut self) -> Vec<(u32, Problem)> {
        self.listed.sort_by_key(|(at, _)| *at);
        if self.unlisted > 0 {
            let message = format!("{} more problems are not listed", self.unlisted);
            let pointer = String::new();
            self.listed
                .push((u32::MAX, Problem { reason: Reason::TooLarge, pointer, message, hint: None, place: None }));
        }
        self.listed
    }

    /// The entries of an object; `null` is one without any.
    pub fn object<'t>(&mut self, node: &'t Node<'t>, path: &Path<'_>, what: &str) -> Option<&'t [Entry<'t>]> {
        match &node.tree {
            Tree::Map(entries) => Some(entries),
            Tree::Null | Tree::List([]) => Some(&[]),
            _ => {
                self.wrong_type(node, path, what, "an object");
                None
            }
        }
    }

    pub fn wrong_type(&mut self, node: &Node<'_>, path: &Path<'_>, what: &str, wanted: &str) {
        let message = format!("{what} is {wanted}, not {}", node.kind());
        let quotes = wanted.contains("text") && matches!(node.tree, Tree::Number(_) | Tree::Bool(_));
        let hint = quotes.then(|| "put it into quotes".to_owned());
        self.push(node.at, path, Reason::WrongType, message, hint);
    }

    /// Sorts the entries of an object into the known fields, whatever their spelling, and extensions; what is neither,
    /// or comes twice, is reported.
    pub fn fields<'t, const N: usize>(
        &mut self,
        entries: &'t [Entry<'t>],
        path: &Path<'_>,
        names: &[&'static str; N],
    ) -> Fields<'t, N> {
        let mut fields = Fields { known: [None; N], extensions: Vec::new() };
        for entry in entries {
            // Most keys are spelled as we spell them.
            let exact = names.iter().position(|name| entry.key == *name);
            let number = exact.or_else(|| names.iter().position(|name| same_field(entry.key, name)));
            let Some(number) = number else {
                if is_extension(entry.key) {
                    fields.extensions.push(entry);
                } else if self.is_full() {
                    self.skip();
                } else {
                    let message = format!("there is no field {}", quoted(entry.key));
                    let hint = nearest_field(entry.key, names);
                    self.add_hinted(entry.key_at, &path.key(entry.key), Reason::UnknownField, message, hint);
                }
                continue;
            };
            match fields.known[number] {
                None => fields.known[number] = Some(entry),
                Some(first) => self.given_twice(first, entry, path),
            }
        }
        fields
    }

    /// Extensions that nothing can keep.
    pub fn refuse_extensions(&mut self, extensions: &[&Entry<'_>], path: &Path<'_>, what: &str) {
        for entry in extensions {
            let message = format!("{what} takes no extension {}", quoted(entry.key));
            self.add_hinted(entry.key_at, &path.key(entry.key), Reason::UnknownField, message, "put it under `spec`");
        }
    }

    pub fn given_twice(&mut self, first: &Entry<'_>, second: &Entry<'_>, path: &Path<'_>) {
        let message = if first.key == second.key {
            format!("{} is given twice", quoted(first.key))
        } else {
            format!("one field is given twice, as {} and as {}", quoted(first.key), quoted(second.key))
        };
        let path = path.key(second.key);
        self.add_hinted(second.key_at, &path, Reason::DuplicateField, message, "leave one of them out");
    }

    pub fn text<'t>(&mut self, node: &'t Node<'t>, path: &Path<'_>, what: &str) -> Option<&'t str> {
        match &node.tree {
            Tree::Text(text) => Some(text),
            Tree::Null => None,
            _ => {
                self.wrong_type(node, path, what, "a text");
                None
            }
        }
    }

    /// One text or a list of texts, each with its node and its index in the list.
    pub fn texts<'t>(
        &mut self,
        node: &'t Node<'t>,
        path: &Path<'_>,
        what: &str,
    ) -> Vec<(&'t str, &'t Node<'t>, Option<usize>)> {
        match &node.tree {
            Tree::Text(text) => vec![(text, node, None)],
            _ if node.is_absent() => Vec::new(),
            Tree::List(items) => {
                let mut texts = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    match &item.tree {
                        Tree::Text(text) => texts.push((&**text, item, Some(index))),
                        _ => self.wrong_type(item, &path.index(index), &format!("an entry of {what}"), "a text"),
                    }
                }
                texts
            }
            _ => {
                self.wrong_type(node, path, what, "a text or a list of texts");
                Vec::new()
            }
        }
    }

    /// A whole number, also as a text.
    pub fn integer(&mut self, node: &Node<'_>, path: &Path<'_>, what: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let number = match &node.tree {
            _ if node.is_absent() => return None,
            Tree::Number(number) => Some(canonical_number(number)),
            Tree::Text(text) => text.trim().parse().ok(),
            _ => None,
        };
        let Some(number) = number else {
            self.wrong_type(node, path, what, "a whole number");
            return None;
        };
        let value = number.as_i64().filter(|value| range.contains(value));
        if value.is_none() {
            if number.is_f64() && number.as_f64().is_some_and(|n| n.fract() != 0.0) {
                self.wrong_type(node, path, what, "a whole number");
                return None;
            }
            let message = format!("{what} is {number}, which is not between {} and {}", range.start(), range.end());
            self.add(node.at, path, Reason::OutOfRange, message);
        }
        value
    }

    /// A number with a fraction, also as a text.
    pub fn decimal(&mut self, node: &Node<'_>, path: &Path<'_>, what: &str, range: RangeInclusive<f64>) -> Option<f64> {
        let number = match &node.tree {
            _ if node.is_absent() => return None,
            Tree::Number(number) => number.as_f64(),
            Tree::Text(text) => text.trim().parse().ok(),
            _ => None,
        };
        let Some(number) = number else {
            self.wrong_type(node, path, what, "a number");
            return None;
        };
        if range.contains(&number) {
            return Some(number);
        }
        let message = format!("{what} is {number}, which is not between {} and {}", range.start(), range.end());
        self.add(node.at, path, Reason::OutOfRange, message);
        None
    }

    pub fn duration(&mut self, node: &Node<'_>, path: &Path<'_>, what: &str) -> Option<Duration> {
        let text = match &node.tree {
            _ if node.is_absent() => return None,
            Tree::Number(number) => canonical_number(number).to_string(),
            Tree::Text(text) => text.to_string(),
            _ => {
                self.wrong_type(node, path, what, "a duration");
                return None;
            }
        };
        let error = match parse_duration(&text) {
            Ok(duration) => return Some(duration),
            // A number in exponent notation is beyond any duration, or finer than any.
            Err(_) if matches!(&node.tree, Tree::Number(n) if n.as_f64().is_some_and(|n| n > 1e9)) => {
                DurationError::TooLong
            }
            Err(error) => error,
        };
        let message = format!("{what} {} {error}", quoted(&text));
        self.add_hinted(node.at, path, Reason::BadDuration, message, "write it like `300ms`, `30s`, `5m` or `1h30m`");
        None
    }

    /// A duration that is not nothing: a limit of zero would always be exceeded.
    pub fn timeout(&mut self, node: &Node<'_>, path: &Path<'_>, what: &str) -> Option<Duration> {
        let duration = self.duration(node, path, what)?;
        if duration.is_zero() {
            let message = format!("{what} is 0, which every phase would exceed");
            self.add_hinted(node.at, path, Reason::OutOfRange, message, "leave it out for no limit");
            return None;
        }
        Some(duration)
    }

    /// One of a few words, in any casing.
    pub fn choice<T: Copy>(
        &mut self,
        node: &Node<'_>,
        path: &Path<'_>,
        what: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        if node.is_absent() {
            return None;
        }
        let text = self.text(node, path, what)?;
        let chosen = choices.iter().find(|(name, _)| same_field(text, name));
        if chosen.is_none() {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("`{name}`")).collect();
            let message = format!("{what} is {}, which is none of its values", quoted(text));
            self.add_hinted(node.at, path, Reason::BadValue, message, format!("write {}", names.join(" or ")));
        }
        chosen.map(|(_, value)| *value)
    }

    /// A map of labels by the rules of Kubernetes.
    pub fn labels(&mut self, node: &Node<'_>, path: &Path<'_>, what: &str) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        let Some(entries) = self.object(node, path, what) else { return labels };
        if entries.len() > LABELS_MAX {
            let message = format!("{what} has {} labels, more than {LABELS_MAX}", entries.len());
            self.add(node.at, path, Reason::TooLarge, message);
            return labels;
        }
        for (index, entry) in entries.iter().enumerate() {
            let path = path.key(entry.key);
            if let Some(fault) = label::key_fault(entry.key) {
                let message = format!("the label key {} is not allowed: {fault}", quoted(entry.key));
                self.add(entry.key_at, &path, Reason::BadLabel, message);
            }
            let Tree::Text(value) = &entry.value.tree else {
                self.wrong_type(&entry.value, &path, "the value of a label", "a text");
                continue;
            };
            if let Some(fault) = label::value_fault(value) {
                let message = format!("the label value {} is not allowed: {fault}", quoted(value));
                self.add(entry.value.at, &path, Reason::BadLabel, message);
            }
            if labels.insert(entry.key.to_string(), value.to_string()).is_some()
                && let Some(first) = entries[..index].iter().find(|first| first.key == entry.key)
            {
                self.given_twice(first, entry, path.up.unwrap_or(&Path::ROOT));
            }
        }
        labels
    }

    /// A value that is kept as it is, but for the spelling of its numbers. Recursion is bounded by the nesting limit.
    pub fn value(&mut self, node: &Node<'_>, path: &Path<'_>) -> Value {
        match &node.tree {
            Tree::Null => Value::Null,
            Tree::Bool(value) => Value::Bool(*value),
            Tree::Number(number) => Value::Number(canonical_number(number)),
            Tree::Text(text) => Value::String(text.to_string()),
            Tree::List(items) => {
                let values = items.iter().enumerate().map(|(index, item)| self.value(item, &path.index(index)));
                Value::Array(values.collect())
            }
            Tree::Map(entries) => Value::Object(self.map(entries, path)),
        }
    }

    pub fn map(&mut self, entries: &[Entry<'_>], path: &Path<'_>) -> Map<String, Value> {
        let mut map = Map::new();
        for entry in entries {
            let value = self.value(&entry.value, &path.key(entry.key));
            if map.insert(entry.key.to_string(), value).is_some() {
                self.given_twice(entry, entry, path);
            }
        }
        map
    }
}

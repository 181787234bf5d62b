//! The text as a tree that forgets nothing: every key as it was spelled, every repeat, and where each stood.
//!
//! One small tree comes out of JSON, YAML and the API server's values, so that [`super::dialect`] is written once.
//! Places are not kept: every value and key has an ordinal in document order, and [`super::places`] looks up the few
//! that problems name. Nothing here knows what a phase is.

use std::{
    cell::{Cell, RefCell},
    fmt,
};

use bumpalo::Bump;
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};

use super::{
    Problem, Reason,
    limits::{DEPTH_MAX, NODES_FREE, NODES_MAX, TEXT_BYTES_MAX, YAML_DEPTH_MAX},
    places::{self, Language},
};

/// Where a tree is kept: one piece of memory that grows and is given back at once. A manifest of 100,000 phases has three
/// million values and keys, and a list of its own for each cost half of the time to read it.
pub(super) type Room = Bump;

/// A value, and which one it is in document order (keys count too).
#[derive(Debug)]
pub(super) struct Node<'t> {
    pub at: u32,
    pub tree: Tree<'t>,
}

#[derive(Debug)]
pub(super) enum Tree<'t> {
    Null,
    Bool(bool),
    Number(Number),
    Text(&'t str),
    List(&'t [Node<'t>]),
    /// In document order, repeats included.
    Map(&'t [Entry<'t>]),
}

/// A field as it was written.
#[derive(Debug)]
pub(super) struct Entry<'t> {
    pub key: &'t str,
    pub key_at: u32,
    pub value: Node<'t>,
}

impl Node<'_> {
    /// What it is, as a person would say it.
    pub fn kind(&self) -> &'static str {
        match &self.tree {
            Tree::Null => "nothing",
            Tree::Bool(_) => "a boolean",
            Tree::Number(_) => "a number",
            Tree::Text(_) => "a text",
            Tree::List(_) => "a list",
            Tree::Map(_) => "an object",
        }
    }

    /// `null`, `{}`, `[]`: what stands for a field left out.
    pub fn is_absent(&self) -> bool {
        match &self.tree {
            Tree::Null => true,
            Tree::List(items) => items.is_empty(),
            Tree::Map(entries) => entries.is_empty(),
            _ => false,
        }
    }
}

/// How a text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// JSON if the first character that is not blank is `[` or `{`, else YAML. Where a text that begins so fails as
    /// JSON, YAML in flow style is tried; where both fail, the reader that came further says why.
    #[default]
    Auto,
    Json,
    Yaml,
}

/// Reads a text into a tree.
pub(super) fn read<'t>(room: &'t Room, text: &'t [u8], format: Format) -> Result<(Node<'t>, Language), Problem> {
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("the text has {} bytes, more than {TEXT_BYTES_MAX}", text.len());
        return Err(fault(Reason::TooLarge, message, None));
    }
    let text = match std::str::from_utf8(text) {
        Ok(text) => text,
        Err(error) => {
            let valid = std::str::from_utf8(&text[..error.valid_up_to()]).unwrap_or_default();
            let place = places::at_offset(valid, valid.len());
            return Err(fault(Reason::Syntax, "the text is not UTF-8".to_owned(), Some(place)));
        }
    };
    match format {
        Format::Json => json(room, text).map(|node| (node, Language::Json)),
        Format::Yaml => yaml(room, text).map(|node| (node, Language::Yaml)),
        Format::Auto if text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']).starts_with(['[', '{']) => {
            let in_json = match json(room, text) {
                Ok(node) => return Ok((node, Language::Json)),
                Err(problem) if problem.reason == Reason::TooLarge => return Err(problem),
                Err(problem) => problem,
            };
            match yaml(room, text) {
                Ok(node) => Ok((node, Language::Yaml)),
                Err(in_yaml) if reached(&in_yaml) > reached(&in_json) => Err(in_yaml),
                Err(_) => Err(in_json),
            }
        }
        Format::Auto => yaml(room, text).map(|node| (node, Language::Yaml)),
    }
}

fn reached(problem: &Problem) -> usize {
    problem.place.as_ref().map_or(0, |place| place.span.start)
}

fn fault(reason: Reason, message: String, place: Option<super::Place>) -> Problem {
    Problem { reason, pointer: String::new(), message, hint: None, place }
}

/// Strict JSON (RFC 8259), except that a leading byte order mark is skipped, as the RFC allows.
fn json<'t>(room: &'t Room, text: &'t str) -> Result<Node<'t>, Problem> {
    let body = text.strip_prefix('\u{feff}').unwrap_or(text);
    let tally = Tally::of(room, text);
    let mut reader = serde_json::Deserializer::from_str(body);
    let read = tally.root(DEPTH_MAX).deserialize(&mut reader).and_then(|node| reader.end().map(|()| node));
    read.map_err(|error| {
        let place = places::at_line(text, error.line(), error.column());
        if let Some(breach) = tally.breach.get() {
            return fault(Reason::TooLarge, breach.to_string(), Some(place));
        }
        let told = error.to_string();
        let message = told.rsplit_once(" at line ").map_or(told.as_str(), |(message, _)| message);
        fault(Reason::Syntax, format!("this is not JSON: {message}"), Some(place))
    })
}

fn yaml<'t>(room: &'t Room, text: &'t str) -> Result<Node<'t>, Problem> {
    let tally = Tally::of(room, text);
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, yaml_options(text), |reader| {
        tally.root(YAML_DEPTH_MAX).deserialize(reader)
    });
    read.map_err(|error| {
        let place = error.location().and_then(|location| places::of_location(text, location));
        if let Some(breach) = tally.breach.get() {
            return fault(Reason::TooLarge, breach.to_string(), place);
        }
        if is_breach(&error) {
            let message = "the text is nested too deeply, or unfolds to too much".to_owned();
            return fault(Reason::TooLarge, message, place);
        }
        let mut problem = fault(Reason::Syntax, format!("this is not YAML: {}", plain_message(&error)), place);
        if matches!(error, serde_saphyr::Error::MultipleDocuments { .. }) {
            "there is more than one YAML document".clone_into(&mut problem.message);
            problem.hint = Some("put all phases into one list, without `---` between them".to_owned());
        }
        problem
    })
}

/// Whether a budget or an alias limit stopped the library, also inside what an alias stands for.
fn is_breach(error: &serde_saphyr::Error) -> bool {
    use serde_saphyr::Error;
    match error {
        Error::AliasError { error, .. } => is_breach(error),
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => true,
        // The scanner's own limit on brackets, which it tells in no other way.
        _ => error.to_string().starts_with("recursion limit exceeded"),
    }
}

/// The library's message without the place, which we give ourselves, and on one line.
fn plain_message(error: &serde_saphyr::Error) -> String {
    let told = error.to_string();
    let first = told.lines().next().unwrap_or_default().trim();
    let message = first.split_once(" at line ").map_or(first, |(message, _)| message);
    message.trim_start_matches("error: ").to_owned()
}

/// Budgets that bound memory and stack whatever the text unfolds to. The ratio of aliases to anchors is not judged: one
/// anchor for the handlers of a thousand phases is good style.
pub(super) fn yaml_options(text: &str) -> serde_saphyr::Options {
    let nodes = nodes_max(text) as usize;
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: usize::from(YAML_DEPTH_MAX),
            // One more than is allowed, so that our own count says why.
            flow_nesting_limit: usize::from(YAML_DEPTH_MAX) + 1,
            max_nodes: nodes,
            max_events: 2 * nodes,
            max_aliases: nodes,
            max_anchors: nodes,
            max_total_scalar_bytes: TEXT_BYTES_MAX,
            max_total_comment_bytes: TEXT_BYTES_MAX,
            max_merge_keys: nodes,
            enforce_alias_anchor_ratio: false
        },
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 2 * nodes },
        strict_booleans: true,
        emit_comments: false,
        with_snippet: false,
    }
}

fn nodes_max(text: &str) -> u32 {
    u32::try_from(text.len()).unwrap_or(u32::MAX).clamp(NODES_FREE, NODES_MAX)
}

/// Why reading stopped before the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Breach {
    Depth,
    Nodes { max: u32 },
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Depth => {
                write!(f, "objects and lists are nested more than {DEPTH_MAX} deep ({YAML_DEPTH_MAX} in YAML)")
            }
            Self::Nodes { max } => write!(f, "there are more than {max} values and keys"),
        }
    }
}

/// What one reading has used up, and where it puts what it reads.
struct Tally<'t> {
    room: &'t Room,
    nodes: Cell<u32>,
    nodes_max: u32,
    breach: Cell<Option<Breach>>,
    /// Items and entries of the lists and objects that are being read, innermost last.
    open_items: RefCell<Vec<Node<'t>>>,
    open_entries: RefCell<Vec<Entry<'t>>>,
}

impl<'t> Tally<'t> {
    /// As many nodes as the text can hold without aliases, and some more for short ones with many.
    fn of(room: &'t Room, text: &str) -> Self {
        Self::up_to(room, nodes_max(text))
    }

    fn up_to(room: &'t Room, nodes_max: u32) -> Self {
        Self {
            room,
            nodes: Cell::default(),
            nodes_max,
            breach: Cell::default(),
            open_items: RefCell::default(),
            open_entries: RefCell::default(),
        }
    }

    fn root(&self, depth_max: u8) -> Reading<'_, 't> {
        Reading { tally: self, depth_left: depth_max }
    }

    fn next<E: de::Error>(&self) -> Result<u32, E> {
        let at = self.nodes.get();
        if at >= self.nodes_max {
            return Err(self.stop(Breach::Nodes { max: self.nodes_max }));
        }
        self.nodes.set(at + 1);
        Ok(at)
    }

    fn stop<E: de::Error>(&self, breach: Breach) -> E {
        self.breach.set(Some(breach));
        E::custom(breach)
    }
}

/// Reads one value, with so many levels left below it.
#[derive(Clone, Copy)]
struct Reading<'c, 't> {
    tally: &'c Tally<'t>,
    depth_left: u8,
}

impl Reading<'_, '_> {
    fn inside<E: de::Error>(self) -> Result<Self, E> {
        match self.depth_left.checked_sub(1) {
            Some(depth_left) => Ok(Self { depth_left, ..self }),
            None => Err(self.tally.stop(Breach::Depth)),
        }
    }
}

impl<'t> DeserializeSeed<'t> for Reading<'_, 't> {
    type Value = Node<'t>;

    fn deserialize<D: de::Deserializer<'t>>(self, reader: D) -> Result<Node<'t>, D::Error> {
        let at = self.tally.next()?;
        let tree = reader.deserialize_any(self)?;
        Ok(Node { at, tree })
    }
}

impl<'t> Visitor<'t> for Reading<'_, 't> {
    type Value = Tree<'t>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Tree<'t>, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree<'t>, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree<'t>, E> {
        Ok(Tree::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree<'t>, E> {
        Ok(Tree::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Tree<'t>, E> {
        Number::from_f64(value).map(Tree::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_borrowed_str<E>(self, value: &'t str) -> Result<Tree<'t>, E> {
        Ok(Tree::Text(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree<'t>, E> {
        Ok(Tree::Text(self.tally.room.alloc_str(value)))
    }

    fn visit_seq<A: SeqAccess<'t>>(self, mut access: A) -> Result<Tree<'t>, A::Error> {
        let inside = self.inside()?;
        let open = &self.tally.open_items;
        let from = open.borrow().len();
        while let Some(item) = access.next_element_seed(inside)? {
            open.borrow_mut().push(item);
        }
        Ok(Tree::List(self.tally.room.alloc_slice_fill_iter(open.borrow_mut().drain(from..))))
    }

    fn visit_map<A: MapAccess<'t>>(self, mut access: A) -> Result<Tree<'t>, A::Error> {
        let inside = self.inside()?;
        let open = &self.tally.open_entries;
        let from = open.borrow().len();
        while let Some((key, key_at)) = access.next_key_seed(KeyReading(self.tally))? {
            let value = access.next_value_seed(inside)?;
            open.borrow_mut().push(Entry { key, key_at, value });
        }
        Ok(Tree::Map(self.tally.room.alloc_slice_fill_iter(open.borrow_mut().drain(from..))))
    }
}

/// Reads one key.
struct KeyReading<'c, 't>(&'c Tally<'t>);

impl<'t> DeserializeSeed<'t> for KeyReading<'_, 't> {
    type Value = (&'t str, u32);

    fn deserialize<D: de::Deserializer<'t>>(self, reader: D) -> Result<Self::Value, D::Error> {
        let at = self.0.next()?;
        Ok((reader.deserialize_str(KeyText(self.0.room))?, at))
    }
}

struct KeyText<'t>(&'t Room);

impl<'t> Visitor<'t> for KeyText<'t> {
    type Value = &'t str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text as the name of a field")
    }

    fn visit_borrowed_str<E>(self, value: &'t str) -> Result<Self::Value, E> {
        Ok(value)
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(self.0.alloc_str(value))
    }
}

/// Values that somebody else has parsed, as a tree; `Err` says at which index one breaks a limit, and how.
pub(super) fn from_values<'t>(room: &'t Room, values: &'t [Value]) -> Result<Node<'t>, (usize, String)> {
    let tally = Tally::up_to(room, NODES_MAX);
    let mut items = Vec::with_capacity(values.len());
    for (index, value) in values.iter().enumerate() {
        let reading = Reading { tally: &tally, depth_left: DEPTH_MAX - 1 };
        items.push(reading.deserialize(value).map_err(|error| (index, error.to_string()))?);
    }
    // The list itself comes before its items; only the order of ordinals matters, and nothing else has this one.
    Ok(Node { at: 0, tree: Tree::List(room.alloc_slice_fill_iter(items)) })
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn problem(text: &str, format: Format) -> Problem {
        read(&Room::new(), text.as_bytes(), format).expect_err("this text is wrong")
    }

    #[test]
    fn json_and_yaml_make_one_tree() {
        let room = Room::new();
        let json = read(&room, br#"[{"a": [1, -2, 1.5, true, null, "x\ny"], "a": {}}]"#, Format::Auto).unwrap().0;
        let yaml = read(&room, b"- a: [1, -2, 1.5, true, ~, \"x\\ny\"]\n  a: {}\n", Format::Auto).unwrap().0;
        assert_eq!(format!("{json:?}"), format!("{yaml:?}"));
    }

    #[test]
    fn a_flow_of_yaml_is_read_though_it_begins_like_json() {
        let room = Room::new();
        let (node, language) = read(&room, b"[{kind: Phase, id: a}]", Format::Auto).unwrap();
        assert_eq!((node.kind(), language), ("a list", Language::Yaml));
    }

    #[test]
    fn the_reader_that_came_further_says_why() {
        let broken_json = problem("[\n  {\"kind\": \"Phase\",\n   \"id\": }\n]", Format::Json);
        assert_eq!(broken_json.reason, Reason::Syntax);
        assert_eq!(broken_json.place.unwrap().line, 3);
        assert!(problem("[{kind: Phase,\n id: 'a]", Format::Auto).message.contains("YAML"));
        assert!(problem("[1, 2", Format::Json).message.contains("JSON"));
    }

    #[test]
    fn two_yaml_documents_are_refused_with_a_hint() {
        assert!(problem("- a\n---\n- b\n", Format::Auto).hint.is_some());
    }

    #[test]
    fn bytes_that_are_not_utf8_are_placed() {
        let problem = read(&Room::new(), b"- a\n- \xff\n", Format::Auto).expect_err("not UTF-8");
        assert_eq!((problem.reason, problem.place.map(|p| (p.line, p.column))), (Reason::Syntax, Some((2, 3))));
    }

    #[test]
    fn a_hundred_thousand_brackets_do_not_exhaust_the_stack() {
        for (open, format) in
            [("[", Format::Json), ("{\"a\":", Format::Json), ("[", Format::Yaml), ("{a: ", Format::Yaml)]
        {
            let text = open.repeat(100_000);
            assert_eq!(problem(&text, format).reason, Reason::TooLarge, "{open} {format:?}");
            assert_eq!(problem(&text, Format::Auto).reason, Reason::TooLarge, "{open} auto");
        }
        assert_eq!(problem(&"- ".repeat(100_000), Format::Yaml).reason, Reason::TooLarge);
    }

    #[test]
    fn aliases_cannot_unfold_without_bound() {
        let mut text = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (last, next) in ('a'..'j').zip('b'..='j') {
            let again = format!("*{last}, ").repeat(8);
            writeln!(text, "{next}: &{next} [{again}]").unwrap();
        }
        assert_eq!(problem(&text, Format::Yaml).reason, Reason::TooLarge);
    }

    #[test]
    fn one_long_text_cannot_be_repeated_without_bound() {
        let text = format!("- &a \"{}\"\n{}", "\\x41".repeat(1 << 20), "- *a\n".repeat(1_000));
        assert_eq!(problem(&text, Format::Yaml).reason, Reason::TooLarge);
    }

    #[test]
    fn comments_are_skipped_however_many_there_are() {
        let text = format!("{0}- a:\n{0}    - b\n{0}", "  # a comment\n".repeat(1_000));
        assert_eq!(read(&Room::new(), text.as_bytes(), Format::Auto).unwrap().0.kind(), "a list");
    }

    #[test]
    fn words_that_old_yaml_took_for_booleans_are_texts() {
        let room = Room::new();
        let (node, _) = read(&room, b"[yes, no, on, off, y, n]", Format::Yaml).unwrap();
        let Tree::List(items) = node.tree else { panic!("a list") };
        assert!(items.iter().all(|item| matches!(item.tree, Tree::Text(_))));
    }
}

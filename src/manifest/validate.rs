//! The way in: a text or the API server's values become a [`Plan`], or every problem at once.
//!
//! Source tree, then dialect, then graph; problems of all three are answered together, in document order, with places
//! if there was a text.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value};

use super::{
    GraphError, Phase, PhaseId, PhaseIx, Plan, Problem, Reason,
    dialect::{self, Item, field},
    fields::{Findings, Path},
    limits::{CYCLE_MEMBERS_MAX, PHASES_MAX},
    places,
    source::{self, Entry, Format, Node, Tree},
    spelling::{Suggestions, quoted},
};

/// The group and version of the resource that this product knows.
const API_VERSION: &str = "pmp.dev/v1alpha1";

/// What becomes of objects in the array that are no phases (some renderers append them).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OtherKinds {
    /// Each is a problem.
    #[default]
    Refuse,
    /// Each is named in the answer and otherwise left alone (`ignoreOther`).
    Ignore,
}

/// A document that passed: a bare manifest or a whole resource.
#[derive(Debug, PartialEq)]
pub struct Document {
    pub plan: Plan,
    /// Absent for a bare manifest.
    pub resource: Option<Resource>,
    pub ignored: Vec<Ignored>,
}

/// What surrounds the phases of a whole PhaseManifest resource.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resource {
    /// `metadata.name`.
    pub name: Option<String>,
    /// `metadata.namespace`.
    pub namespace: Option<String>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `spec` without `phases`, not judged here.
    pub spec: Map<String, Value>,
}

/// An object of another kind that was left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// JSON Pointer into the document.
    pub pointer: String,
    pub kind: String,
    /// Its `id`, `name` or `metadata.name`.
    pub name: Option<String>,
}

/// Reads a manifest (a JSON array or a YAML list) or a whole PhaseManifest resource, in any accepted spelling.
///
/// Linear in the text, bounded by [`super::limits`], and never panics, whatever the bytes.
pub fn parse(text: &[u8], format: Format, others: OtherKinds) -> Result<Document, Vec<Problem>> {
    parse_judging(text, format, others, |_| Vec::new())
}

/// [`parse`], where what surrounds the phases of a whole resource is judged too, so that all is told at once. What `judge`
/// finds has no places.
pub fn parse_judging(
    text: &[u8],
    format: Format,
    others: OtherKinds,
    judge: impl FnOnce(&Resource) -> Vec<Problem>,
) -> Result<Document, Vec<Problem>> {
    let room = source::Room::new();
    let (tree, language) = source::read(&room, text, format).map_err(|problem| vec![problem])?;
    let mut findings = Findings::default();
    let document = document(&mut findings, &tree, others);
    let judged = document.as_ref().and_then(|document| document.resource.as_ref()).map(judge).unwrap_or_default();
    let listed = findings.into_listed();
    if listed.is_empty()
        && judged.is_empty()
        && let Some(document) = document
    {
        return Ok(document);
    }
    let wanted: Vec<u32> = listed.iter().map(|(at, _)| *at).collect();
    let text = std::str::from_utf8(text).expect("it was read as text");
    let places = places::find(text, language, &wanted);
    let found = listed.into_iter().map(|(at, problem)| Problem { place: places.get(&at).cloned(), ..problem });
    Err(found.chain(judged).collect())
}

/// Reads the phases of a stored resource; pointers begin `/spec/phases`, and there are no places.
pub fn from_values(phases: &[Value], others: OtherKinds) -> Result<(Plan, Vec<Ignored>), Vec<Problem>> {
    let mut findings = Findings::default();
    let (spec, mut read) = (Path::ROOT.key("spec"), None);
    let path = spec.key("phases");
    let room = source::Room::new();
    match source::from_values(&room, phases) {
        Ok(node) => {
            if let Tree::List(items) = &node.tree {
                read = manifest(&mut findings, items, &node, &path, others);
            }
        }
        Err((index, message)) => findings.add(0, &path.index(index), Reason::TooLarge, message),
    }
    let listed = findings.into_listed();
    match read {
        Some(read) if listed.is_empty() => Ok(read),
        _ => Err(listed.into_iter().map(|(_, problem)| problem).collect()),
    }
}

fn document(findings: &mut Findings, root: &Node<'_>, others: OtherKinds) -> Option<Document> {
    let path = Path::ROOT;
    match &root.tree {
        Tree::List(items) => {
            let (plan, ignored) = manifest(findings, items, root, &path, others)?;
            Some(Document { plan, resource: None, ignored })
        }
        Tree::Map(entries) if looks_like_resource(entries) => resource(findings, root, entries, others),
        Tree::Map(entries) if field(entries, "id").is_some() => {
            let message = "this is a single phase".to_owned();
            findings.add_hinted(root.at, &path, Reason::NotAManifest, message, "put it into a list");
            None
        }
        _ => {
            let message = format!("the document is {}, not a list of phases", root.kind());
            let hint = format!("a manifest is a list of phases, or a resource of {API_VERSION}, kind PhaseManifest");
            findings.add_hinted(root.at, &path, Reason::NotAManifest, message, hint);
            None
        }
    }
}

fn looks_like_resource(entries: &[Entry<'_>]) -> bool {
    entries.iter().any(|entry| entry.key == "apiVersion" || entry.key == "metadata")
        || entries.iter().any(|entry| matches!(&entry.value.tree, Tree::Text(text) if *text == "PhaseManifest"))
}

/// A whole resource. Its own fields are Kubernetes', which has one spelling; only what is in `phases` is forgiven.
fn resource(findings: &mut Findings, root: &Node<'_>, entries: &[Entry<'_>], others: OtherKinds) -> Option<Document> {
    let path = Path::ROOT;
    for (name, wanted) in [("apiVersion", API_VERSION), ("kind", "PhaseManifest")] {
        let Some(entry) = only(findings, entries, name, &path) else {
            let message = format!("the resource has no `{name}`");
            findings.add_hinted(root.at, &path, Reason::MissingField, message, format!("write `{name}: {wanted}`"));
            continue;
        };
        match &entry.value.tree {
            Tree::Text(text) if *text == wanted => {}
            Tree::Text(text) => {
                let message = format!("`{name}` is {}", quoted(text));
                let reason = if name == "kind" { Reason::NotAManifest } else { Reason::BadValue };
                findings.add_hinted(entry.value.at, &path.key(name), reason, message, format!("write `{wanted}`"));
            }
            _ => findings.wrong_type(&entry.value, &path.key(name), &format!("`{name}`"), "a text"),
        }
    }
    let metadata = metadata(findings, entries);
    let spec_path = path.key("spec");
    let Some(spec) = only(findings, entries, "spec", &path) else {
        findings.add(root.at, &path, Reason::MissingField, "the resource has no `spec`".to_owned());
        return None;
    };
    let inside = findings.object(&spec.value, &spec_path, "`spec`")?;
    let mut kept = Map::new();
    for entry in inside.iter().filter(|entry| entry.key != "phases") {
        let value = findings.value(&entry.value, &spec_path.key(entry.key));
        if kept.insert(entry.key.to_string(), value).is_some() {
            findings.given_twice(entry, entry, &spec_path);
        }
    }
    let phases_path = spec_path.key("phases");
    let (plan, ignored) = match only(findings, inside, "phases", &spec_path).map(|entry| &entry.value) {
        Some(node) => match &node.tree {
            // Mistakes in phases are findings; what surrounds them is told all the same.
            Tree::List(items) => manifest(findings, items, node, &phases_path, others).unwrap_or_default(),
            Tree::Null => (Plan::default(), Vec::new()),
            _ => {
                findings.wrong_type(node, &phases_path, "`phases`", "a list");
                return None;
            }
        },
        None if kept.contains_key("manifestFrom") => (Plan::default(), Vec::new()),
        None => {
            let message = "the resource has neither `phases` nor `manifestFrom`".to_owned();
            findings.add(spec.value.at, &spec_path, Reason::MissingField, message);
            return None;
        }
    };
    Some(Document { plan, resource: Some(Resource { spec: kept, ..metadata }), ignored })
}

/// What of the metadata is a person's to write; the rest is the API server's and is left alone.
fn metadata(findings: &mut Findings, entries: &[Entry<'_>]) -> Resource {
    let path = Path::ROOT.key("metadata");
    let mut read = Resource::default();
    let Some(metadata) = only(findings, entries, "metadata", &Path::ROOT) else { return read };
    let Some(inside) = findings.object(&metadata.value, &path, "`metadata`") else { return read };
    let mut text = |name: &str| {
        let entry = only(findings, inside, name, &path)?;
        findings.text(&entry.value, &path.key(name), &format!("`{name}`")).map(str::to_owned)
    };
    (read.name, read.namespace) = (text("name"), text("namespace"));
    let mut texts = |name: &str| {
        let Some(entry) = only(findings, inside, name, &path) else { return BTreeMap::new() };
        let path = path.key(name);
        let pairs = findings.object(&entry.value, &path, &format!("`{name}`")).unwrap_or_default();
        let pair = |pair: &Entry<'_>| {
            let value = findings.text(&pair.value, &path.key(pair.key), "the value")?;
            Some((pair.key.to_string(), value.to_owned()))
        };
        pairs.iter().filter_map(pair).collect()
    };
    (read.labels, read.annotations) = (texts("labels"), texts("annotations"));
    read
}

/// The entry with exactly this key; a second one is reported.
fn only<'t>(findings: &mut Findings, entries: &'t [Entry<'t>], key: &str, path: &Path<'_>) -> Option<&'t Entry<'t>> {
    let mut found = entries.iter().filter(|entry| entry.key == key);
    let first = found.next()?;
    found.for_each(|second| findings.given_twice(first, second, path));
    Some(first)
}

/// The array itself. Nothing comes back if there were problems.
fn manifest(
    findings: &mut Findings,
    items: &[Node<'_>],
    list: &Node<'_>,
    path: &Path<'_>,
    others: OtherKinds,
) -> Option<(Plan, Vec<Ignored>)> {
    if items.len() > PHASES_MAX {
        let message = format!("the manifest has {} entries, more than {PHASES_MAX}", items.len());
        findings.add(list.at, path, Reason::TooLarge, message);
        return None;
    }
    let mut phases: Vec<Phase> = Vec::with_capacity(items.len());
    let mut origins = Vec::with_capacity(items.len());
    let mut ignored = Vec::new();
    for (index, node) in items.iter().enumerate() {
        let path = path.index(index);
        match dialect::item(findings, node, &path) {
            Item::Phase(phase) => {
                phases.push(phase);
                origins.push(index);
            }
            Item::Nothing => {}
            Item::Other { kind, name } => match others {
                OtherKinds::Ignore => ignored.push(Ignored {
                    pointer: path.to_string(),
                    kind: kind.to_owned(),
                    name: name.map(str::to_owned),
                }),
                OtherKinds::Refuse => {
                    let message = format!("the kind is {}, not `Phase`", quoted(kind));
                    findings.add_hinted(
                        node.at,
                        &path.key("kind"),
                        Reason::WrongKind,
                        message,
                        "take it out, or have other kinds ignored",
                    );
                }
            },
        }
    }
    let ids: Vec<PhaseId> = phases.iter().map(|phase| phase.id.clone()).collect();
    match Plan::new(phases) {
        Ok(plan) => Some((plan, ignored)),
        Err(errors) => {
            Graph { items, origins: &origins, ids: &ids, path }.report(findings, &errors);
            None
        }
    }
}

/// What is needed to say where in the document a mistake of the graph was written.
struct Graph<'g> {
    items: &'g [Node<'g>],
    /// Index in the document of each phase.
    origins: &'g [usize],
    ids: &'g [PhaseId],
    path: &'g Path<'g>,
}

impl<'g> Graph<'g> {
    fn report(&self, findings: &mut Findings, errors: &[GraphError]) {
        let mut suggestions = Suggestions::new();
        // Mistakes come phase by phase: the waits of one are looked up once for all of its mistakes.
        let mut last: Option<(PhaseIx, Vec<Wait<'g>>)> = None;
        for error in errors {
            if findings.is_full() {
                findings.skip();
                continue;
            }
            match error {
                GraphError::DuplicateId { first, repeat } => self.report_duplicate(findings, *first, *repeat),
                GraphError::UnknownDependency { phase, wait } | GraphError::SelfDependency { phase, wait } => {
                    if last.as_ref().is_none_or(|(known, _)| known != phase) {
                        last = Some((*phase, self.waits(*phase)));
                    }
                    match last.as_ref().and_then(|(_, waits)| waits.get(*wait)) {
                        Some(written) => self.report_wait(findings, *phase, written, &mut suggestions),
                        // Not where the dialect found it: told all the same, at the phase.
                        None => self.at_wait(*phase, None, |at, path| {
                            findings.add(
                                at,
                                path,
                                Reason::UnknownDependency,
                                "a wait is for no other phase".to_owned(),
                            );
                        }),
                    }
                }
                GraphError::Cycle(members) => self.report_cycle(findings, members),
            }
        }
    }

    fn report_duplicate(&self, findings: &mut Findings, first: PhaseIx, repeat: PhaseIx) {
        let first_path = self.path.index(self.origins[first.index()]);
        let message = format!("the id {} is already taken by {first_path}", quoted(self.id(repeat)));
        let index = self.origins[repeat.index()];
        let (node, path) = (&self.items[index], self.path.index(index));
        let id = entries_of(node).and_then(|entries| field(entries, "id"));
        let (at, path) = id.map_or((node.at, path), |id| (id.value.at, path.key(id.key)));
        findings.add_hinted(at, &path, Reason::DuplicateId, message, "rename one of them");
    }

    /// A wait for a phase that is not there, or for itself.
    fn report_wait(&self, findings: &mut Findings, phase: PhaseIx, wait: &Wait<'_>, suggestions: &mut Suggestions) {
        let (reason, message, hint) = if wait.text == self.id(phase) {
            let message = format!("{} waits for itself", quoted(wait.text));
            (Reason::SelfDependency, message, "take this wait out".to_owned())
        } else {
            let hint = match suggestions.nearest(wait.text, self.ids) {
                Some(id) => format!("did you mean {}?", quoted(id.as_str())),
                None => "wait for phases of this manifest; those of another one stand under `x-waitFor`".to_owned(),
            };
            (Reason::UnknownDependency, format!("there is no phase {}", quoted(wait.text)), hint)
        };
        self.at_wait(phase, Some(wait), |at, path| findings.add_hinted(at, path, reason, message, hint));
    }

    fn report_cycle(&self, findings: &mut Findings, members: &[PhaseIx]) {
        let (Some(&first), Some(&second)) = (members.first(), members.get(1)) else { return };
        let half = CYCLE_MEMBERS_MAX / 2;
        let mut names: Vec<String> = members.iter().map(|ix| self.id(*ix).to_owned()).collect();
        if names.len() > CYCLE_MEMBERS_MAX {
            let hidden = format!("({} more)", names.len() - 2 * half);
            names.splice(half..members.len() - half, [hidden]);
        }
        names.push(self.id(first).to_owned());
        let message = format!("these phases wait for each other: {}", names.join(" -> "));
        let waits = self.waits(first);
        let written = waits.iter().find(|wait| wait.text == self.id(second));
        self.at_wait(first, written, |at, path| {
            findings.add_hinted(at, path, Reason::Cycle, message, "take one of these waits out");
        });
    }

    fn id(&self, ix: PhaseIx) -> &'g str {
        self.ids[ix.index()].as_str()
    }

    /// The waits of a phase as they were written, repeats and what is no id left out, as the dialect does.
    fn waits(&self, phase: PhaseIx) -> Vec<Wait<'g>> {
        let node: &'g Node<'g> = &self.items[self.origins[phase.index()]];
        let entry = |node: &'g Node<'g>, name| entries_of(node).and_then(|entries| field(entries, name));
        let Some(spec) = entry(node, "spec") else { return Vec::new() };
        let Some(outer) = entry(&spec.value, "waitFor") else { return Vec::new() };
        let inner = entry(&outer.value, "phases").or_else(|| entry(&outer.value, "dependsOn"));
        let keys = [Some(spec.key), Some(outer.key), inner.map(|inner| inner.key)];
        let list = inner.map_or(&outer.value, |inner| &inner.value);
        let written: Vec<(&str, u32, Option<usize>)> = match &list.tree {
            Tree::Text(text) => vec![(text, list.at, None)],
            Tree::List(items) => items.iter().enumerate().filter_map(|(i, item)| wait_in_list(i, item)).collect(),
            _ => Vec::new(),
        };
        let mut seen = HashSet::with_capacity(written.len());
        let legal = written.into_iter().filter(|(text, ..)| PhaseId::new(text).is_ok() && seen.insert(*text));
        legal.map(|(text, at, index)| Wait { text, at, keys, index }).collect()
    }

    /// Hands over the place of a wait, or of its phase.
    fn at_wait(&self, phase: PhaseIx, wait: Option<&Wait<'_>>, report: impl FnOnce(u32, &Path<'_>)) {
        let origin = self.origins[phase.index()];
        let path = self.path.index(origin);
        let Some(wait) = wait else { return report(self.items[origin].at, &path) };
        let [spec, outer, inner] = wait.keys.map(Option::unwrap_or_default);
        let (path, last) = (&path.key(spec), wait.keys[2].is_some());
        let path = &path.key(outer);
        let path = &if last { path.key(inner) } else { *path };
        match wait.index {
            Some(index) => report(wait.at, &path.index(index)),
            None => report(wait.at, path),
        }
    }
}

/// One wait as it was written.
#[derive(Clone, Copy)]
struct Wait<'g> {
    text: &'g str,
    at: u32,
    /// The spellings of `spec`, `waitFor` and, in an object, `phases`.
    keys: [Option<&'g str>; 3],
    index: Option<usize>,
}

fn wait_in_list<'t>(index: usize, item: &'t Node<'t>) -> Option<(&'t str, u32, Option<usize>)> {
    match &item.tree {
        Tree::Text(text) => Some((text, item.at, Some(index))),
        _ => None,
    }
}

fn entries_of<'t>(node: &'t Node<'t>) -> Option<&'t [Entry<'t>]> {
    match &node.tree {
        Tree::Map(entries) => Some(entries),
        _ => None,
    }
}

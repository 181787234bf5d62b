//! What people write, made into a [`Phase`]: the only forgiving code in the product.
//!
//! Forgiven: the casing of a known field, the shape of `waitFor`, one text for a list of one, numbers as texts, `{}` and
//! `null` for absent. Not forgiven: a field that is not known, a field in two spellings, a value that means nothing.
//! A phase with mistakes is still returned with defaults in their place, so that those who wait for it are not blamed.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use super::{
    ExternalWait, FailureAction, InstanceMode, Jitter, OnExhausted, Phase, PhaseBackoff, PhaseId, PhaseSpec,
    PhaseTimeouts, Reason, SuccessAction, WaitFor,
    canonical::own_extensions,
    fields::{Findings, Path},
    handler::handler,
    label,
    limits::{ATTEMPTS_MAX, DESCRIPTION_BYTES_MAX, EXTERNAL_WAITS_MAX},
    source::{Entry, Node, Tree},
    spelling::{quoted, same_field},
};

/// What an entry of the array turned out to be. Taken apart as soon as it is made, so that a box for the large one would
/// only be made and given back a hundred thousand times.
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack")]
pub(super) enum Item<'t> {
    Phase(Phase),
    /// An object of another kind, and what it calls itself.
    Other {
        kind: &'t str,
        name: Option<&'t str>,
    },
    /// Too wrong to be known by an id.
    Nothing,
}

type Extensions = BTreeMap<String, Value>;

/// The entry of `entries` that spells this field.
pub(super) fn field<'t>(entries: &'t [Entry<'t>], name: &str) -> Option<&'t Entry<'t>> {
    entries.iter().find(|entry| same_field(entry.key, name))
}

/// One entry of the array.
pub(super) fn item<'t>(findings: &mut Findings, node: &'t Node<'t>, path: &Path<'_>) -> Item<'t> {
    let Tree::Map(entries) = &node.tree else {
        findings.wrong_type(node, path, "an entry of the manifest", "an object");
        return Item::Nothing;
    };
    if let Some(entry) = field(entries, "kind")
        && let Tree::Text(kind) = &entry.value.tree
        && !kind.eq_ignore_ascii_case("Phase")
    {
        return Item::Other { kind, name: own_name(entries) };
    }
    let fields = findings.fields(entries, path, &["kind", "id", "spec"]);
    let [kind, id, spec] = fields.known;
    match kind {
        Some(kind) => phase_kind(findings, kind, path),
        None => findings.add_hinted(
            node.at,
            path,
            Reason::MissingField,
            "the phase has no `kind`".to_owned(),
            "write `kind: Phase`",
        ),
    }
    let id = match id {
        Some(id) => findings.text(&id.value, &path.key(id.key), "`id`").and_then(|text| {
            let id_path = path.key(id.key);
            phase_id(findings, text, &id.value, &id_path)
        }),
        None => None,
    };
    if field(entries, "id").is_none_or(|id| matches!(id.value.tree, Tree::Null)) {
        let message = "the phase has no `id`".to_owned();
        findings.add_hinted(node.at, path, Reason::MissingField, message, "name it, uniquely in this manifest");
    }
    let mut read = spec.map_or_else(PhaseSpec::default, |spec| {
        let path = path.key(spec.key);
        let entries = findings.object(&spec.value, &path, "`spec`").unwrap_or_default();
        phase_spec(findings, entries, &path)
    });
    for entry in fields.extensions {
        extension(findings, &mut read.extensions, "../", entry, path);
    }
    id.map_or(Item::Nothing, |id| Item::Phase(Phase { id, spec: read }))
}

/// What an object that is no phase calls itself: `id`, `name` or `metadata.name`.
fn own_name<'t>(entries: &'t [Entry<'t>]) -> Option<&'t str> {
    let direct = field(entries, "id").or_else(|| field(entries, "name")).map(|entry| &entry.value);
    let named = direct.or_else(|| match &field(entries, "metadata")?.value.tree {
        Tree::Map(metadata) => field(metadata, "name").map(|entry| &entry.value),
        _ => None,
    });
    match &named?.tree {
        Tree::Text(name) => Some(name),
        _ => None,
    }
}

fn phase_kind(findings: &mut Findings, kind: &Entry<'_>, path: &Path<'_>) {
    let path = path.key(kind.key);
    match &kind.value.tree {
        Tree::Text(text) if *text == "Phase" => {}
        Tree::Text(text) => {
            let message = format!("the kind is {}", quoted(text));
            findings.add_hinted(kind.value.at, &path, Reason::WrongKind, message, "write `Phase`");
        }
        _ => findings.wrong_type(&kind.value, &path, "`kind`", "a text"),
    }
}

fn phase_id(findings: &mut Findings, text: &str, node: &Node<'_>, path: &Path<'_>) -> Option<PhaseId> {
    match PhaseId::new(text) {
        Ok(id) => Some(id),
        Err(error) => {
            let message = format!("{} is no id: {error}", quoted(text));
            findings.add_hinted(node.at, path, Reason::BadId, message, "an id has 1 to 253 bytes of printable text");
            None
        }
    }
}

const SPEC_FIELDS: [&str; 14] = [
    "description",
    "selector",
    "instanceMode",
    "waitFor",
    "retry",
    "onFailure",
    "onSuccess",
    "x-timeouts",
    "x-backoff",
    "x-priority",
    "x-waitFor",
    "x-onExhausted",
    "x-exec",
    "x-job",
];

fn phase_spec(findings: &mut Findings, entries: &[Entry<'_>], path: &Path<'_>) -> PhaseSpec {
    let mut spec = PhaseSpec::default();
    let fields = findings.fields(entries, path, &SPEC_FIELDS);
    for entry in fields.extensions {
        extension(findings, &mut spec.extensions, "", entry, path);
    }
    for (name, entry) in SPEC_FIELDS.into_iter().zip(fields.known) {
        let Some(entry) = entry.filter(|entry| !entry.value.is_absent()) else { continue };
        let (node, path) = (&entry.value, path.key(entry.key));
        match name {
            "description" => spec.description = description(findings, node, &path),
            "selector" => spec.selector = selector(findings, node, &path, &mut spec.extensions),
            "instanceMode" => {
                let modes = [("immediate", InstanceMode::Immediate), ("onUse", InstanceMode::OnUse)];
                spec.instance_mode = findings.choice(node, &path, "`instanceMode`", &modes).unwrap_or_default();
            }
            "waitFor" => spec.wait_for = wait_for(findings, node, &path, &mut spec.extensions),
            "retry" => spec.max_attempts = max_attempts(findings, node, &path, &mut spec.extensions),
            "onFailure" => {
                let actions = [("raise", FailureAction::Raise), ("continue", FailureAction::Continue)];
                spec.on_failure = handler(findings, node, &path, &actions);
            }
            "onSuccess" => {
                let actions = [("continue", SuccessAction::Continue), ("raise", SuccessAction::Raise)];
                spec.on_success = handler(findings, node, &path, &actions);
            }
            "x-timeouts" => spec.timeouts = timeouts(findings, node, &path),
            "x-backoff" => spec.backoff = backoff(findings, node, &path),
            "x-priority" => {
                let range = i64::from(i32::MIN)..=i64::from(i32::MAX);
                let priority = findings.integer(node, &path, "`x-priority`", range);
                spec.priority = priority.and_then(|priority| i32::try_from(priority).ok()).unwrap_or_default();
            }
            "x-waitFor" => spec.wait_for_others = external_waits(findings, node, &path),
            "x-onExhausted" => {
                let choices = [("Fail", OnExhausted::Fail), ("Hold", OnExhausted::Hold)];
                spec.on_exhausted = findings.choice(node, &path, "`x-onExhausted`", &choices).unwrap_or_default();
            }
            // What a runtime executes is the runtime's to judge; only the field's name is ours.
            _ => {
                let value = findings.value(node, &path);
                spec.extensions.insert(name.to_owned(), value);
            }
        }
    }
    let own = own_extensions(&spec);
    spec.extensions.extend(own.into_iter().map(|(key, value)| (key.to_owned(), value)));
    spec
}

/// Keeps an extension under its path: `x-a` of the spec, `retry/x-a` of a field, `../x-a` of the phase.
pub(super) fn extension(
    findings: &mut Findings,
    kept: &mut Extensions,
    prefix: &str,
    entry: &Entry<'_>,
    path: &Path<'_>,
) {
    let value = findings.value(&entry.value, &path.key(entry.key));
    if kept.insert(format!("{prefix}{}", entry.key), value).is_some() {
        findings.given_twice(entry, entry, path);
    }
}

fn description(findings: &mut Findings, node: &Node<'_>, path: &Path<'_>) -> String {
    let text = findings.text(node, path, "`description`").unwrap_or_default();
    if text.len() > DESCRIPTION_BYTES_MAX {
        let message = format!("`description` has {} bytes, more than {DESCRIPTION_BYTES_MAX}", text.len());
        findings.add(node.at, path, Reason::TooLarge, message);
        return String::new();
    }
    text.to_owned()
}

fn selector(
    findings: &mut Findings,
    node: &Node<'_>,
    path: &Path<'_>,
    kept: &mut Extensions,
) -> BTreeMap<String, String> {
    let Some(entries) = findings.object(node, path, "`selector`") else { return BTreeMap::new() };
    let fields = findings.fields(entries, path, &["matchLabels"]);
    for entry in fields.extensions {
        extension(findings, kept, "selector/", entry, path);
    }
    let [labels] = fields.known;
    labels.map_or_else(BTreeMap::new, |entry| findings.labels(&entry.value, &path.key(entry.key), "`matchLabels`"))
}

/// `{phases, timeout}`, a list of ids, or one id; `dependsOn` inside the object is `phases`.
fn wait_for(findings: &mut Findings, node: &Node<'_>, path: &Path<'_>, kept: &mut Extensions) -> WaitFor {
    let Tree::Map(entries) = &node.tree else {
        return WaitFor { phases: waits(findings, node, path, "`waitFor`"), timeout: None };
    };
    let fields = findings.fields(entries, path, &["phases", "dependsOn", "timeout"]);
    for entry in fields.extensions {
        extension(findings, kept, "waitFor/", entry, path);
    }
    let [phases, depends_on, timeout] = fields.known;
    if let (Some(one), Some(other)) = (phases, depends_on) {
        let (first, second) = if one.key_at < other.key_at { (one, other) } else { (other, one) };
        findings.given_twice(first, second, path);
    }
    let phases = phases.or(depends_on).map_or_else(Vec::new, |entry| {
        waits(findings, &entry.value, &path.key(entry.key), "the list of phases to wait for")
    });
    let timeout = timeout.and_then(|entry| findings.timeout(&entry.value, &path.key(entry.key), "`timeout`"));
    WaitFor { phases, timeout }
}

/// Ids in the order written; repeats collapse.
fn waits(findings: &mut Findings, node: &Node<'_>, path: &Path<'_>, what: &str) -> Vec<PhaseId> {
    let texts = findings.texts(node, path, what);
    let mut seen = HashSet::with_capacity(texts.len());
    let mut ids = Vec::with_capacity(texts.len());
    for (text, node, index) in texts {
        let read = match index {
            Some(index) => phase_id(findings, text, node, &path.index(index)),
            None => phase_id(findings, text, node, path),
        };
        if seen.insert(text) {
            ids.extend(read);
        }
    }
    ids
}

fn max_attempts(findings: &mut Findings, node: &Node<'_>, path: &Path<'_>, kept: &mut Extensions) -> u32 {
    let Some(entries) = findings.object(node, path, "`retry`") else { return 1 };
    let fields = findings.fields(entries, path, &["maxAttempts"]);
    for entry in fields.extensions {
        extension(findings, kept, "retry/", entry, path);
    }
    let [attempts] = fields.known;
    let range = 1..=i64::from(ATTEMPTS_MAX);
    let read = attempts.and_then(|e| findings.integer(&e.value, &path.key(e.key), "`maxAttempts`", range));
    read.and_then(|attempts| u32::try_from(attempts).ok()).unwrap_or(1)
}

fn timeouts(findings: &mut Findings, node: &Node<'_>, path: &Path<'_>) -> PhaseTimeouts {
    let Some(entries) = findings.object(node, path, "`x-timeouts`") else { return PhaseTimeouts::default() };
    let names = ["offer", "start", "attempt", "heartbeat", "total"];
    let fields = findings.fields(entries, path, &names);
    findings.refuse_extensions(&fields.extensions, path, "`x-timeouts`");
    let mut read = names.iter().zip(fields.known).map(|(name, entry)| {
        let entry = entry?;
        findings.timeout(&entry.value, &path.key(entry.key), &format!("`{name}`"))
    });
    let mut next = || read.next().flatten();
    PhaseTimeouts { offer: next(), start: next(), attempt: next(), heartbeat: next(), total: next() }
}

fn backoff(findings: &mut Findings, node: &Node<'_>, path: &Path<'_>) -> PhaseBackoff {
    let Some(entries) = findings.object(node, path, "`x-backoff`") else { return PhaseBackoff::default() };
    let fields = findings.fields(entries, path, &["initial", "factor", "max", "jitter"]);
    findings.refuse_extensions(&fields.extensions, path, "`x-backoff`");
    let [initial, factor, max, jitter] = fields.known;
    PhaseBackoff {
        initial: initial.and_then(|e| findings.duration(&e.value, &path.key(e.key), "`initial`")),
        factor: factor.and_then(|e| findings.decimal(&e.value, &path.key(e.key), "`factor`", 1.0..=100.0)),
        max: max.and_then(|e| findings.duration(&e.value, &path.key(e.key), "`max`")),
        jitter: jitter.and_then(|e| {
            let choices = [("Full", Jitter::Full), ("None", Jitter::None)];
            findings.choice(&e.value, &path.key(e.key), "`jitter`", &choices)
        }),
    }
}

/// A list of `{manifest, phase}`, or one; repeats collapse.
fn external_waits(findings: &mut Findings, node: &Node<'_>, path: &Path<'_>) -> Vec<ExternalWait> {
    let mut waits = Vec::new();
    match &node.tree {
        Tree::List(items) if items.len() > EXTERNAL_WAITS_MAX => {
            let message = format!("`x-waitFor` has {} entries, more than {EXTERNAL_WAITS_MAX}", items.len());
            findings.add(node.at, path, Reason::TooLarge, message);
        }
        Tree::List(items) => {
            for (index, item) in items.iter().enumerate() {
                match external_wait(findings, item, &path.index(index)) {
                    Some(wait) if !waits.contains(&wait) => waits.push(wait),
                    _ => {}
                }
            }
        }
        _ => waits.extend(external_wait(findings, node, path)),
    }
    waits
}

fn external_wait(findings: &mut Findings, node: &Node<'_>, path: &Path<'_>) -> Option<ExternalWait> {
    let Tree::Map(entries) = &node.tree else {
        findings.wrong_type(node, path, "an entry of `x-waitFor`", "an object with `manifest` and `phase`");
        return None;
    };
    let fields = findings.fields(entries, path, &["manifest", "phase"]);
    findings.refuse_extensions(&fields.extensions, path, "an entry of `x-waitFor`");
    let [manifest, phase] = fields.known;
    for (name, entry) in [("manifest", manifest), ("phase", phase)] {
        if entry.is_none_or(|entry| matches!(entry.value.tree, Tree::Null)) {
            findings.add(node.at, path, Reason::MissingField, format!("an entry of `x-waitFor` has no `{name}`"));
        }
    }
    let manifest = manifest.and_then(|entry| {
        let path = path.key(entry.key);
        let name = findings.text(&entry.value, &path, "`manifest`")?;
        if label::is_dns_subdomain(name) {
            return Some(name.to_owned());
        }
        let message = format!("{} is no name of a PhaseManifest", quoted(name));
        let hint = "lower-case letters, digits, `-` and `.`, at most 253 bytes";
        findings.add_hinted(entry.value.at, &path, Reason::BadValue, message, hint);
        None
    });
    let phase = phase.and_then(|entry| {
        let path = path.key(entry.key);
        let text = findings.text(&entry.value, &path, "`phase`")?;
        phase_id(findings, text, &entry.value, &path)
    });
    Some(ExternalWait { manifest: manifest?, phase: phase? })
}

//! The one spelling of a phase: `{kind, id, spec}`, camelCase, defaults and empties left out, keys sorted.
//!
//! What we send, store, show and digest. Reading it again gives the same phase, and writing that the same text.

use std::{collections::BTreeMap, io::Write as _, time::Duration};

use serde_json::{Map, Number, Value, json};

use super::{
    FailureAction, Handler, InstanceMode, Jitter, OnExhausted, Phase, PhaseSpec, Plan, SuccessAction,
    duration::format_duration,
};

/// Extensions whose canonical value is made from the typed fields.
pub(super) const TYPED_EXTENSIONS: [&str; 5] = ["x-timeouts", "x-backoff", "x-priority", "x-waitFor", "x-onExhausted"];

impl Phase {
    /// Canonical JSON: an object with `kind`, `id` and `spec`.
    pub fn canonical(&self) -> Value {
        let mut phase = Map::new();
        phase.insert("kind".to_owned(), "Phase".into());
        phase.insert("id".to_owned(), self.id.as_str().into());
        phase.insert("spec".to_owned(), Value::Object(canonical_spec(&self.spec)));
        for (key, value) in &self.spec.extensions {
            if let Some(key) = key.strip_prefix("../") {
                phase.insert(key.to_owned(), value.clone());
            }
        }
        Value::Object(phase)
    }
}

impl Plan {
    /// Canonical JSON: the array of phases in document order.
    pub fn canonical(&self) -> Value {
        Value::Array(self.phases().iter().map(Phase::canonical).collect())
    }
}

fn canonical_spec(spec: &PhaseSpec) -> Map<String, Value> {
    let mut object = Map::new();
    let own = own_extensions(spec);
    for (key, value) in spec.extensions.iter().filter(|(key, _)| !TYPED_EXTENSIONS.contains(&key.as_str())) {
        put_at(&mut object, key, value.clone());
    }
    object.extend(own.into_iter().map(|(key, value)| (key.to_owned(), value)));
    put(&mut object, "description", spec.description.as_str().into());
    put_inside(&mut object, "selector", "matchLabels", texts_by_key(&spec.selector));
    if spec.instance_mode == InstanceMode::OnUse {
        put(&mut object, "instanceMode", "onUse".into());
    }
    let waits: Vec<&str> = spec.wait_for.phases.iter().map(super::PhaseId::as_str).collect();
    put_inside(&mut object, "waitFor", "phases", waits.into());
    put_inside(&mut object, "waitFor", "timeout", duration_value(spec.wait_for.timeout));
    if spec.max_attempts != 1 {
        put_inside(&mut object, "retry", "maxAttempts", spec.max_attempts.into());
    }
    let on_failure = match spec.on_failure.action {
        FailureAction::Raise => None,
        FailureAction::Continue => Some("continue"),
    };
    put(&mut object, "onFailure", canonical_handler(on_failure, &spec.on_failure));
    let on_success = match spec.on_success.action {
        SuccessAction::Continue => None,
        SuccessAction::Raise => Some("raise"),
    };
    put(&mut object, "onSuccess", canonical_handler(on_success, &spec.on_success));
    object
}

fn canonical_handler<Action>(action: Option<&str>, handler: &Handler<Action>) -> Value {
    let mut object = Map::new();
    let silent = handler.messages.is_empty() && handler.email.is_empty() && handler.slack.is_empty();
    if action.is_none() && silent && handler.labels.is_empty() && handler.extensions.is_empty() {
        return Value::Null;
    }
    for (key, value) in &handler.extensions {
        put_at(&mut object, key, value.clone());
    }
    put(&mut object, "action", action.map_or(Value::Null, Value::from));
    let mut spec = match object.remove("spec") {
        Some(Value::Object(spec)) => spec,
        _ => Map::new(),
    };
    put(&mut spec, "message", handler.messages.clone().into());
    put_inside(&mut spec, "notify", "email", handler.email.clone().into());
    put_inside(&mut spec, "notify", "slack", handler.slack.clone().into());
    put(&mut spec, "labels", texts_by_key(&handler.labels));
    put(&mut object, "spec", Value::Object(spec));
    Value::Object(object)
}

/// The `x-*` fields that have types, in canonical spelling; what is default is left out.
pub(super) fn own_extensions(spec: &PhaseSpec) -> Vec<(&'static str, Value)> {
    let mut timeouts = Map::new();
    let t = &spec.timeouts;
    for (key, value) in
        [("offer", t.offer), ("start", t.start), ("attempt", t.attempt), ("heartbeat", t.heartbeat), ("total", t.total)]
    {
        put(&mut timeouts, key, duration_value(value));
    }
    let mut backoff = Map::new();
    put(&mut backoff, "initial", duration_value(spec.backoff.initial));
    put(&mut backoff, "max", duration_value(spec.backoff.max));
    let factor = spec.backoff.factor.and_then(Number::from_f64);
    put(&mut backoff, "factor", factor.map_or(Value::Null, |factor| canonical_number(&factor).into()));
    let jitter = spec.backoff.jitter.map(|jitter| match jitter {
        Jitter::Full => "Full",
        Jitter::None => "None",
    });
    put(&mut backoff, "jitter", jitter.map_or(Value::Null, Value::from));
    let priority = if spec.priority == 0 { Value::Null } else { spec.priority.into() };
    let others =
        spec.wait_for_others.iter().map(|wait| json!({"manifest": wait.manifest, "phase": wait.phase.as_str()}));
    let exhausted = match spec.on_exhausted {
        OnExhausted::Fail => Value::Null,
        OnExhausted::Hold => "Hold".into(),
    };
    let values = [timeouts.into(), backoff.into(), priority, Value::Array(others.collect()), exhausted];
    TYPED_EXTENSIONS.into_iter().zip(values).filter(|(_, value)| !is_empty(value)).collect()
}

/// An integral number has one spelling, `2`, also when it was written `2.0` or `2e0`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the bounds are checked before each cast")]
pub(super) fn canonical_number(number: &Number) -> Number {
    const UNSIGNED_END: f64 = 18_446_744_073_709_551_616.0; // 2^64
    const SIGNED_END: f64 = 9_223_372_036_854_775_808.0; // 2^63
    match number.as_f64().filter(|n| number.is_f64() && n.fract() == 0.0) {
        Some(n) if (0.0..UNSIGNED_END).contains(&n) => (n as u64).into(),
        Some(n) if (-SIGNED_END..0.0).contains(&n) => (n as i64).into(),
        _ => number.clone(),
    }
}

/// Compact JSON with sorted keys, whatever the map of the JSON library does.
pub(super) fn write_sorted(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_sorted(item, out);
            }
            out.push(b']');
        }
        Value::Object(map) => {
            // Sorted already, unless a crate of the build has asked the JSON library to keep the order of insertion.
            if map.keys().is_sorted() {
                write_entries(map.iter(), out);
            } else {
                let mut entries: Vec<(&String, &Value)> = map.iter().collect();
                entries.sort_unstable_by_key(|(key, _)| *key);
                write_entries(entries.into_iter(), out);
            }
        }
        Value::String(text) => write_text(text, out),
        Value::Number(number) => write!(out, "{number}").expect("memory takes every number"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Null => out.extend_from_slice(b"null"),
    }
}

/// An object of these entries, which are sorted.
pub(super) fn write_entries<'v>(entries: impl Iterator<Item = (&'v String, &'v Value)>, out: &mut Vec<u8>) {
    out.push(b'{');
    for (index, (key, value)) in entries.enumerate() {
        write_entry(key, value, index == 0, out);
    }
    out.push(b'}');
}

/// One entry of an object, with the comma before it unless it is the first.
pub(super) fn write_entry(key: &str, value: &Value, is_first: bool, out: &mut Vec<u8>) {
    if !is_first {
        out.push(b',');
    }
    write_text(key, out);
    out.push(b':');
    write_sorted(value, out);
}

pub(super) fn write_text(text: &str, out: &mut Vec<u8>) {
    // Most texts hold nothing to escape, and are copied whole.
    if !text.bytes().any(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        return out.push(b'"');
    }
    serde_json::to_writer(out, text).expect("memory takes every text");
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn put(object: &mut Map<String, Value>, key: &str, value: Value) {
    if !is_empty(&value) {
        object.insert(key.to_owned(), value);
    }
}

fn put_inside(object: &mut Map<String, Value>, outer: &str, key: &str, value: Value) {
    if !is_empty(&value)
        && let Value::Object(inner) = object.entry(outer).or_insert_with(|| Map::new().into())
    {
        inner.insert(key.to_owned(), value);
    }
}

/// Puts an extension where its path says: `x-a` here, `retry/x-a` into `retry`. Those of the phase (`../x-a`) are not here.
fn put_at(object: &mut Map<String, Value>, path: &str, value: Value) {
    if path.starts_with("../") {
        return;
    }
    match path.split_once('/').filter(|_| !super::fields::is_extension(path)) {
        None => {
            object.insert(path.to_owned(), value);
        }
        Some((outer, rest)) => {
            if let Value::Object(inner) = object.entry(outer).or_insert_with(|| Map::new().into()) {
                put_at(inner, rest, value);
            }
        }
    }
}

fn texts_by_key(map: &BTreeMap<String, String>) -> Value {
    Value::Object(map.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect())
}

fn duration_value(duration: Option<Duration>) -> Value {
    duration.map_or(Value::Null, |duration| format_duration(duration).into())
}

//! The canonical text of a phase, written without the values in between.
//!
//! [`Phase::canonical`] says what the one spelling is; this says the same at a tenth of the cost, because a digest is
//! taken of every phase of every manifest that comes in, and of 100,000 phases a million small maps were most of the
//! time. What is rare, extensions beside our own fields and not under them, takes the long way.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    FailureAction, Handler, InstanceMode, Phase, PhaseId, PhaseSpec, SuccessAction,
    canonical::{TYPED_EXTENSIONS, own_extensions, write_entry, write_sorted, write_text},
    duration::format_duration,
};

/// Appends the phase as compact JSON with sorted keys: `write_sorted(phase.canonical())`, byte for byte.
pub(super) fn write_phase(phase: &Phase, out: &mut Vec<u8>) {
    if !is_plain(&phase.spec) {
        return write_sorted(&phase.canonical(), out);
    }
    out.extend_from_slice(b"{\"id\":");
    write_text(phase.id.as_str(), out);
    out.extend_from_slice(b",\"kind\":\"Phase\",\"spec\":");
    write_spec(&phase.spec, out);
    out.push(b'}');
}

/// Every extension stands behind our own fields: it begins with a small `x-`, which sorts behind them, and none is
/// inside another field (`retry/x-a`) or above (`../x-a`).
fn is_plain(spec: &PhaseSpec) -> bool {
    spec.on_failure.extensions.is_empty()
        && spec.on_success.extensions.is_empty()
        && spec.extensions.keys().all(|key| key.starts_with("x-"))
}

/// An object under way: puts the commas.
struct Object<'o> {
    out: &'o mut Vec<u8>,
    is_empty: bool,
}

impl<'o> Object<'o> {
    fn begin(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, is_empty: true }
    }

    /// The place for the value of this key; keys come in their order, and need no escapes.
    fn key(&mut self, key: &str) -> &mut Vec<u8> {
        if !std::mem::replace(&mut self.is_empty, false) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    fn end(self) {
        self.out.push(b'}');
    }
}

fn write_spec(spec: &PhaseSpec, out: &mut Vec<u8>) {
    let mut object = Object::begin(out);
    if !spec.description.is_empty() {
        write_text(&spec.description, object.key("description"));
    }
    if spec.instance_mode == InstanceMode::OnUse {
        object.key("instanceMode").extend_from_slice(b"\"onUse\"");
    }
    let on_failure = (spec.on_failure.action == FailureAction::Continue).then_some("continue");
    write_handler("onFailure", on_failure, &spec.on_failure, &mut object);
    let on_success = (spec.on_success.action == SuccessAction::Raise).then_some("raise");
    write_handler("onSuccess", on_success, &spec.on_success, &mut object);
    if spec.max_attempts != 1 {
        let out = object.key("retry");
        out.extend_from_slice(format!("{{\"maxAttempts\":{}}}", spec.max_attempts).as_bytes());
    }
    if !spec.selector.is_empty() {
        let out = object.key("selector");
        out.extend_from_slice(b"{\"matchLabels\":");
        write_labels(&spec.selector, out);
        out.push(b'}');
    }
    if !spec.wait_for.phases.is_empty() || spec.wait_for.timeout.is_some() {
        let mut inner = Object::begin(object.key("waitFor"));
        if !spec.wait_for.phases.is_empty() {
            write_list(spec.wait_for.phases.iter().map(PhaseId::as_str), inner.key("phases"));
        }
        if let Some(timeout) = spec.wait_for.timeout {
            write_text(&format_duration(timeout), inner.key("timeout"));
        }
        inner.end();
    }
    write_extensions(spec, &mut object);
    object.end();
}

/// The typed ones from their fields, the others as they were written; all of them sort behind `waitFor`.
fn write_extensions(spec: &PhaseSpec, object: &mut Object<'_>) {
    let own = own_extensions(spec);
    let others = spec.extensions.iter().map(|(key, value)| (key.as_str(), value));
    let others = others.filter(|(key, _)| !TYPED_EXTENSIONS.contains(key));
    let mut write = |(key, value): (&str, &Value)| {
        write_entry(key, value, object.is_empty, object.out);
        object.is_empty = false;
    };
    if own.is_empty() {
        return others.for_each(write);
    }
    let own = own.iter().map(|(key, value)| (*key, value));
    let sorted: BTreeMap<&str, &Value> = others.chain(own).collect();
    sorted.into_iter().for_each(&mut write);
}

fn write_handler<Action>(key: &str, action: Option<&str>, handler: &Handler<Action>, object: &mut Object<'_>) {
    let has_notify = !handler.email.is_empty() || !handler.slack.is_empty();
    let has_spec = has_notify || !handler.messages.is_empty() || !handler.labels.is_empty();
    if action.is_none() && !has_spec {
        return;
    }
    let mut inner = Object::begin(object.key(key));
    if let Some(action) = action {
        write_text(action, inner.key("action"));
    }
    if has_spec {
        let mut spec = Object::begin(inner.key("spec"));
        if !handler.labels.is_empty() {
            write_labels(&handler.labels, spec.key("labels"));
        }
        if !handler.messages.is_empty() {
            write_list(handler.messages.iter().map(String::as_str), spec.key("message"));
        }
        if has_notify {
            let mut notify = Object::begin(spec.key("notify"));
            for (key, list) in [("email", &handler.email), ("slack", &handler.slack)] {
                if !list.is_empty() {
                    write_list(list.iter().map(String::as_str), notify.key(key));
                }
            }
            notify.end();
        }
        spec.end();
    }
    inner.end();
}

fn write_list<'t>(texts: impl Iterator<Item = &'t str>, out: &mut Vec<u8>) {
    out.push(b'[');
    for (index, text) in texts.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(text, out);
    }
    out.push(b']');
}

fn write_labels(labels: &BTreeMap<String, String>, out: &mut Vec<u8>) {
    out.push(b'{');
    for (index, (key, value)) in labels.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(key, out);
        out.push(b':');
        write_text(value, out);
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Format, OtherKinds, parse};

    fn check(text: &str) -> bool {
        let plan = parse(text.as_bytes(), Format::Auto, OtherKinds::Refuse).expect(text).plan;
        for phase in plan.phases() {
            let (mut short, mut long) = (Vec::new(), Vec::new());
            write_phase(phase, &mut short);
            write_sorted(&phase.canonical(), &mut long);
            assert_eq!(String::from_utf8(short).unwrap(), String::from_utf8(long).unwrap());
        }
        plan.phases().iter().all(|phase| is_plain(&phase.spec))
    }

    #[test]
    fn short_way_writes_what_the_long_way_does() {
        let every_field = r#"
- {kind: Phase, id: "a\"\\\u00e9 \u{1F600}"}
- kind: Phase
  id: b
  spec:
    description: "two\nlines"
    instanceMode: onUse
    selector: {matchLabels: {zone: a, pool: build}}
    waitFor: {phases: ["a\"\\\u00e9 \u{1F600}"], timeout: 90}
    retry: {maxAttempts: 7}
    onFailure: {action: continue, spec: {message: [m, n], notify: {email: [a@b.c], slack: ["c"]}, labels: {k: v}}}
    onSuccess: {action: raise, spec: {notify: {slack: [d]}}}
    x-timeouts: {offer: 3s, total: 1h}
    x-backoff: {initial: 2s, factor: 1.5, max: 1m, jitter: None}
    x-priority: -3
    x-waitFor: [{manifest: other, phase: p}]
    x-onExhausted: Hold
    x-exec: {command: [z, a], env: {B: 1.0, A: [true, null, 2.5e3]}}
    x-abc: []
    "x-z\"": 0
"#;
        assert!(check(&every_field.replace("\\u{1F600}", "\u{1F600}")));
        for alone in [
            "waitFor: {timeout: 5s}",
            "onFailure: {action: continue}",
            "onSuccess: {spec: {message: hi}}",
            "onFailure: {spec: {labels: {a: b}}}",
            "onFailure: {spec: {notify: {email: x@y.z}}}",
            "x-priority: 1",
            "x-a: {}",
        ] {
            assert!(check(&format!("[{{kind: Phase, id: a, spec: {{{alone}}}}}]")), "{alone}");
        }
    }

    #[test]
    fn extensions_elsewhere_take_the_long_way() {
        for spec in ["retry: {maxAttempts: 2, x-a: 1}", "onFailure: {x-a: 1}", "X-a: 1"] {
            assert!(!check(&format!("[{{kind: Phase, id: a, spec: {{{spec}}}}}]")), "{spec}");
        }
        assert!(!check("[{kind: Phase, id: a, x-top: 1}]"));
    }
}

//! The schema of `spec.phases`: it teaches, and it refuses nothing that `manifest` could place.
//!
//! Unknown fields are preserved at every level, because the API server would otherwise prune `wait_for` in silence and
//! break the order. Numbers and durations may be text. What has several legal shapes (`waitFor`, `message`, `notify`)
//! has no type. Nothing is required and nothing has a default, which would be a second spelling of its field.

use schemars::{Schema, SchemaGenerator};
use serde_json::{Value, json};

/// More than fit into etcd's request of 1.5 MiB; a bound for whatever multiplies by it.
const PHASES_MAX: u32 = 100_000;

/// How much of a type a field declares.
#[derive(Clone, Copy)]
enum Shape {
    Object,
    Text,
    /// A number or a duration, as number or as text.
    Number,
    /// An object, a list or a text.
    Any,
}
use Shape::{Any, Number, Object, Text};

/// Every canonical field of a phase, parents first (protocol, "Phase Specification Schema", and our extensions).
const FIELDS: [(&str, Shape, &str); 44] = [
    ("kind", Text, "Always Phase."),
    ("id", Text, "Names the phase, uniquely in this manifest: 1 to 253 bytes of printable text."),
    ("spec", Object, "What the phase asks for."),
    ("spec.description", Text, "Says to people what the phase does."),
    ("spec.selector", Object, "Which runtimes may take the phase."),
    ("spec.selector.matchLabels", Object, "A runtime takes the phase only if it carries all of these; none match all."),
    (
        "spec.instanceMode",
        Text,
        "immediate (the default): runs once what it waits for is done. onUse: stays Idle until a phase that runs waits \
         for it, or a person asks for it.",
    ),
    (
        "spec.waitFor",
        Any,
        "The phases that must be done first: an object as below, or a list of ids, or one id. Done is Complete, \
         Skipped, or Failed with onFailure.action continue.",
    ),
    ("spec.waitFor.phases", Any, "Ids of phases of this manifest, a list or one."),
    (
        "spec.waitFor.timeout",
        Number,
        "The longest the phase may wait for them, counted from the moment it was wanted, less paused time; then it \
         fails, reason WaitTimeout, and is not tried. A duration: 300ms, 30s, 5m, 1h, or seconds.",
    ),
    ("spec.retry", Object, "How often the phase is tried."),
    ("spec.retry.maxAttempts", Number, "Tries in all, the first included; default 1. A backoff lies between them."),
    ("spec.onFailure", Object, "What happens once every attempt is spent."),
    (
        "spec.onFailure.action",
        Text,
        "raise (the default): the session fails. continue: the phase stays Failed and is ignored; what waits for it \
         goes on.",
    ),
    ("spec.onFailure.spec", Object, HANDLER),
    ("spec.onFailure.spec.message", Any, MESSAGE),
    ("spec.onFailure.spec.notify", Object, NOTIFY),
    ("spec.onFailure.spec.notify.email", Any, EMAIL),
    ("spec.onFailure.spec.notify.slack", Any, SLACK),
    ("spec.onFailure.spec.labels", Object, LABELS),
    ("spec.onSuccess", Object, "What happens when the phase completes."),
    (
        "spec.onSuccess.action",
        Text,
        "continue (the default), or raise: a Warning event and a notification. The order of phases is not affected.",
    ),
    ("spec.onSuccess.spec", Object, HANDLER),
    ("spec.onSuccess.spec.message", Any, MESSAGE),
    ("spec.onSuccess.spec.notify", Object, NOTIFY),
    ("spec.onSuccess.spec.notify.email", Any, EMAIL),
    ("spec.onSuccess.spec.notify.slack", Any, SLACK),
    ("spec.onSuccess.spec.labels", Object, LABELS),
    (
        "spec.x-timeouts",
        Object,
        "How long this phase may take: 300ms, 30s, 5m, 1h, or seconds. What is absent falls back to the resource's \
         timeouts.",
    ),
    ("spec.x-timeouts.offer", Number, "How long an offer may stay unanswered before it is made again."),
    ("spec.x-timeouts.start", Number, "From taken to begun."),
    ("spec.x-timeouts.attempt", Number, "How long one attempt may run."),
    ("spec.x-timeouts.heartbeat", Number, "Longest silence of a running attempt."),
    ("spec.x-timeouts.total", Number, "All attempts of a run together."),
    ("spec.x-backoff", Object, "The pause between attempts. What is absent falls back to the resource's backoff."),
    ("spec.x-backoff.initial", Number, "Before the second attempt: 300ms, 30s, 5m, 1h, or seconds."),
    ("spec.x-backoff.factor", Any, "From one pause to the next, 1 to 100."),
    ("spec.x-backoff.max", Number, "Longest pause: 300ms, 30s, 5m, 1h, or seconds."),
    (
        "spec.x-backoff.jitter",
        Text,
        "Full draws every pause evenly between nothing and its length; None takes it as it is.",
    ),
    ("spec.x-priority", Number, "Among ready phases the higher goes first; default 0."),
    ("spec.x-waitFor", Any, "Phases of other PhaseManifests of this namespace to wait for: [{manifest, phase}, ...]."),
    (
        "spec.x-onExhausted",
        Text,
        "Fail (the default), or Hold: once attempts are spent the phase is Held until a person asks for Retry, Skip or \
         Complete.",
    ),
    ("spec.x-exec", Any, "What the exec runtime runs."),
    ("spec.x-job", Any, "What the Jobs runtime runs: {template, env, args}, template naming a PodTemplate."),
];
const HANDLER: &str = "What is done besides, once for each run of the phase.";
const MESSAGE: &str = "Lines for the session's log and an Event.";
const NOTIFY: &str = "Who is told.";
const EMAIL: &str = "Addresses, one or a list, of domains that the operator allows.";
const SLACK: &str = "Channels, one or a list, that the operator's configuration knows; never a URL.";
const LABELS: &str = "Labels to put onto the resource.";

/// `spec.phases`: an atomic list, because its order and duplicate ids are for `manifest` to judge.
pub(super) fn phases_schema(_: &mut SchemaGenerator) -> Schema {
    let mut phase = declared(Object, "One unit of work.");
    for (path, shape, description) in FIELDS {
        let field = path.split('.').fold(&mut phase, |parent, name| &mut parent["properties"][name]);
        *field = declared(shape, description);
    }
    let list = json!({
        "description": "The manifest: phases in any order, each with an id that is unique among them. Fields may be \
            written in any casing the protocol allows (waitFor, wait_for, WaitFor); the same field in two spellings is \
            an error. Fields that begin with x- are kept and passed on to runtimes.",
        "type": "array",
        "nullable": true,
        "maxItems": PHASES_MAX,
        "x-kubernetes-list-type": "atomic",
        "items": phase,
    });
    Schema::try_from(list).expect("a JSON object is a schema")
}

fn declared(shape: Shape, description: &str) -> Value {
    let mut schema = json!({"description": description, "nullable": true});
    match shape {
        Object => {
            schema["type"] = "object".into();
            schema["x-kubernetes-preserve-unknown-fields"] = true.into();
        }
        Text => schema["type"] = "string".into(),
        Number => schema["x-kubernetes-int-or-string"] = true.into(),
        Any => schema["x-kubernetes-preserve-unknown-fields"] = true.into(),
    }
    schema
}

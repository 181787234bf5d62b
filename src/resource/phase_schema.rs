//! The schema of `spec.phases`: it teaches, and it refuses nothing that `manifest` could place.
//!
//! Unknown fields are preserved at every level, because the API server would otherwise prune `wait_for` in silence and
//! break the order. Numbers and durations may be text. What has several legal shapes (`waitFor`, `message`, `notify`)
//! has no type. Nothing is required and nothing has a default, which would be a second spelling of its field.

use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// More than fit into etcd's request of 1.5 MiB; a bound for whatever multiplies by it.
const PHASES_MAX: u32 = 100_000;

/// `spec.phases`: an atomic list, because an order of its own and duplicate ids are for `manifest` to judge.
pub(super) fn phases_schema(_: &mut SchemaGenerator) -> Schema {
    let list = json!({
        "description": "The manifest: phases in any order, each with an id that is unique among them. Fields may be \
            written in any casing the protocol allows (waitFor, wait_for, WaitFor); the same field in two spellings is \
            an error. Fields that begin with x- are kept and passed on to runtimes.",
        "type": "array",
        "nullable": true,
        "maxItems": PHASES_MAX,
        "x-kubernetes-list-type": "atomic",
        "items": object("One unit of work.", [
            ("kind", text("Always Phase.")),
            ("id", text("Names the phase, uniquely in this manifest: 1 to 253 bytes of printable text.")),
            ("spec", spec()),
        ]),
    });
    Schema::try_from(list).expect("a JSON object is a schema")
}

fn spec() -> Value {
    object("What the phase asks for.", [
        ("description", text("Says to people what the phase does.")),
        ("selector", object("Which runtimes may take the phase.", [(
            "matchLabels",
            object("A runtime takes the phase only if it carries all of these labels. None matches every runtime.", []),
        )])),
        ("instanceMode", text(
            "immediate (the default): runs once what it waits for is done. onUse: stays Idle until another phase that \
             runs waits for it, or a person asks for it.",
        )),
        ("waitFor", any(
            "The phases that must be done first: {phases: [id, ...], timeout: 10m}, or a list of ids, or one id. Done \
             is Complete, Skipped, or Failed with onFailure.action continue. timeout is the longest the phase may wait \
             for them, counted from the moment it was wanted, less paused time; then it fails, reason WaitTimeout.",
        )),
        ("retry", object("How often the phase is tried.", [(
            "maxAttempts",
            number("Tries in all, the first included; default 1. Between them is the backoff of the resource or of x-backoff."),
        )])),
        ("onFailure", handler(
            "What happens once every attempt is spent.",
            "raise (the default): the session fails. continue: the phase stays Failed and is ignored; what waits for \
             it goes on.",
        )),
        ("onSuccess", handler(
            "What happens when the phase completes.",
            "continue (the default), or raise: a Warning event and a notification. The order of phases is not affected.",
        )),
        ("x-timeouts", durations("How long this phase may take; what is absent falls back to the resource's timeouts.", [
            ("offer", "How long an offer may stay unanswered before it is made again."),
            ("start", "From taken to begun."),
            ("attempt", "How long one attempt may run."),
            ("heartbeat", "Longest silence of a running attempt."),
            ("total", "All attempts of a run together."),
        ])),
        ("x-backoff", object("The pause between attempts; what is absent falls back to the resource's backoff.", [
            ("initial", number("Before the second attempt. A duration.")),
            ("factor", any("From one pause to the next, 1 to 100.")),
            ("max", number("Longest pause. A duration.")),
            ("jitter", text("Full draws every pause evenly between nothing and its length; None takes it as it is.")),
        ])),
        ("x-priority", number("Among ready phases the higher goes first; default 0.")),
        ("x-waitFor", any("Phases of other PhaseManifests of this namespace to wait for: [{manifest, phase}, ...].")),
        ("x-onExhausted", text(
            "Fail (the default), or Hold: once attempts are spent the phase is Held until a person asks for Retry, \
             Skip or Complete.",
        )),
        ("x-exec", any("What the exec runtime runs.")),
        ("x-job", any("What the Jobs runtime runs: {template, env, args}, template naming a PodTemplate.")),
    ])
}

fn handler(description: &str, action: &str) -> Value {
    object(description, [
        ("action", text(action)),
        ("spec", object("What is done besides, once for each run of the phase.", [
            ("message", any("Lines for the session's log and an Event.")),
            ("notify", object("Who is told.", [
                ("email", any("Addresses, one or a list, of domains that the operator allows.")),
                ("slack", any("Channels, one or a list, that the operator's configuration knows; never a URL.")),
            ])),
            ("labels", object("Labels to put onto the resource.", [])),
        ])),
    ])
}

fn durations<const N: usize>(description: &str, fields: [(&str, &str); N]) -> Value {
    object(description, fields.map(|(name, text)| (name, number(&format!("{text} A duration: 300ms, 30s, 5m, 1h, or seconds.")))))
}

/// An object that keeps what it does not know.
fn object<const N: usize>(description: &str, fields: [(&str, Value); N]) -> Value {
    let mut schema = json!({
        "description": description,
        "type": "object",
        "nullable": true,
        "x-kubernetes-preserve-unknown-fields": true,
    });
    if N > 0 {
        let properties: Map<String, Value> = fields.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect();
        schema["properties"] = properties.into();
    }
    schema
}

fn text(description: &str) -> Value {
    json!({"description": description, "type": "string", "nullable": true})
}

/// A number or duration, as number or text.
fn number(description: &str) -> Value {
    json!({"description": description, "x-kubernetes-int-or-string": true, "nullable": true})
}

/// Any shape at all.
fn any(description: &str) -> Value {
    json!({"description": description, "x-kubernetes-preserve-unknown-fields": true, "nullable": true})
}

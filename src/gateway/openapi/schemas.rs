//! What bodies look like. Descriptions are for readers of the document.

use serde_json::{Value, json};

use crate::{
    engine::PhaseState,
    protocol::Command,
    resource::{ConditionReason, PhaseCounts},
};

/// `components/schemas`.
pub fn all() -> Value {
    json!({
        "Any": {"type": "object"},
        "Events": {"type": "string"},
        "Health": {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}},
        "Problem": problem(),
        "Manifest": {
            "type": "array",
            "description": "Phases in the protocol's form; in requests any of its spellings",
            "items": phase(),
        },
        "Submission": {
            "description": "A manifest, or a whole PhaseManifest resource",
            "oneOf": [{"$ref": "#/components/schemas/Manifest"}, {"$ref": "#/components/schemas/Resource"}],
        },
        "Resource": resource(),
        "Planned": planned(),
        "Changes": changes(),
        "Diff": diff(),
        "State": state(),
        "Row": row(),
        "PhaseInFull": {
            "allOf": [{"$ref": "#/components/schemas/Row"}],
            "required": ["waitsFor", "dependents", "spec", "sessionId"],
            "properties": {
                "sessionId": text(),
                "resourceVersion": text(),
                "waitsFor": texts(),
                "dependents": texts(),
                "spec": {"type": "object"},
            },
        },
        "Sessions": sessions(),
        "Command": command(),
        "Obeyed": {
            "type": "object",
            "required": ["status", "message", "sessionId", "namespace", "name", "command"],
            "properties": {
                "status": {"enum": ["accepted", "unchanged"]},
                "message": text(),
                "sessionId": text(),
                "namespace": text(),
                "name": text(),
                "command": text(),
                "phaseId": text(),
                "token": {"type": "string", "description": "Of the request in the resource, and of its result"},
            },
        },
        "Lines": lines(),
    })
}

fn text() -> Value {
    json!({"type": "string"})
}

fn texts() -> Value {
    json!({"type": "array", "items": {"type": "string"}})
}

fn count() -> Value {
    json!({"type": "integer", "minimum": 0})
}

fn time() -> Value {
    json!({"type": "string", "format": "date-time"})
}

fn problem() -> Value {
    json!({
        "type": "object",
        "description": "RFC 9457, with a stable reason",
        "required": ["type", "title", "status", "detail", "reason"],
        "properties": {
            "type": {"type": "string", "pattern": "^urn:pmp:problem:[A-Za-z]+$"},
            "title": text(),
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": text(),
            "reason": {"type": "string", "pattern": "^[A-Za-z]+$"},
            "errors": {"type": "array", "items": {
                "type": "object",
                "required": ["pointer", "reason", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "JSON Pointer into the document as it was sent"},
                    "reason": text(),
                    "detail": text(),
                    "hint": text(),
                    "line": count(),
                    "column": count(),
                },
            }},
            "parameter": text(),
            "sessionId": text(),
            "namespace": text(),
            "digest": {"type": ["string", "null"]},
            "diff": {"type": ["object", "null"]},
            "phaseId": text(),
        },
    })
}

fn phase() -> Value {
    json!({
        "type": "object",
        "required": ["kind", "id"],
        "properties": {
            "kind": {"const": "Phase"},
            "id": {"type": "string", "minLength": 1, "maxLength": 253},
            "spec": {
                "type": "object",
                "properties": {
                    "description": text(),
                    "selector": {"type": "object", "properties": {
                        "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
                    }},
                    "instanceMode": {"enum": ["immediate", "onUse"]},
                    "waitFor": {"type": "object", "properties": {"phases": texts(), "timeout": text()}},
                    "retry": {"type": "object", "properties": {"maxAttempts": {"type": "integer", "minimum": 1}}},
                    "onFailure": {"type": "object"},
                    "onSuccess": {"type": "object"},
                },
            },
        },
    })
}

fn resource() -> Value {
    json!({
        "type": "object",
        "required": ["apiVersion", "kind", "spec"],
        "properties": {
            "apiVersion": {"const": "pmp.dev/v1alpha1"},
            "kind": {"const": "PhaseManifest"},
            "metadata": {"type": "object", "properties": {
                "name": text(),
                "namespace": text(),
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            }},
            "spec": {
                "type": "object",
                "required": ["phases"],
                "properties": {"phases": {"$ref": "#/components/schemas/Manifest"}},
            },
        },
    })
}

fn planned() -> Value {
    json!({
        "type": "object",
        "required": ["status", "message", "sessionId", "namespace", "name", "revision", "digest", "phasesCount",
            "changesCount", "changes", "waves"],
        "properties": {
            "status": {"enum": ["created", "updated", "restarted", "attached", "staged", "planned", "applied", "unchanged"]},
            "message": text(),
            "sessionId": text(),
            "namespace": text(),
            "name": {"type": "string", "description": "Of the PhaseManifest"},
            "revision": {
                "type": ["integer", "null"],
                "description": "The number that the plan has or will have; null for what does not run",
            },
            "digest": {"type": "string", "description": "Of the manifest in canonical form"},
            "phasesCount": count(),
            "changesCount": {"type": ["integer", "null"], "description": "Phases added, removed and changed"},
            "changes": {"oneOf": [{"$ref": "#/components/schemas/Changes"}, {"type": "null"}]},
            "waves": {"type": "array", "items": texts(), "description": "Each waits only for earlier ones"},
            "ignored": {"type": "array", "items": {"type": "object"}},
        },
    })
}

fn changes() -> Value {
    let edges = json!({"type": "array", "items": {
        "type": "object",
        "required": ["phase", "waitsFor"],
        "properties": {"phase": text(), "waitsFor": text()},
    }});
    json!({
        "type": "object",
        "description": "From the last revision",
        "required": ["added", "removed", "changed", "edgesAdded", "edgesRemoved", "rerun"],
        "properties": {
            "added": texts(),
            "removed": texts(),
            "changed": {"type": "array", "items": {
                "type": "object",
                "required": ["id", "fields"],
                "properties": {"id": text(), "fields": texts()},
            }},
            "edgesAdded": edges,
            "edgesRemoved": edges,
            "rerun": {"type": "array", "items": text(), "description": "Their results no longer count"},
        },
    })
}

fn diff() -> Value {
    json!({
        "allOf": [{"$ref": "#/components/schemas/Changes"}],
        "required": ["digest", "specDigest", "changesCount", "resourceVersion"],
        "properties": {
            "sessionId": {"type": ["string", "null"]},
            "revision": {"type": ["integer", "null"]},
            "digest": text(),
            "specDigest": text(),
            "changesCount": count(),
            "resourceVersion": text(),
        },
    })
}

fn state() -> Value {
    let counts = serde_json::to_value(PhaseCounts::default()).expect("numbers are JSON");
    let counts: Vec<String> = counts.as_object().into_iter().flat_map(|counts| counts.keys().cloned()).collect();
    let words: Vec<&str> = ConditionReason::ALL.into_iter().map(ConditionReason::as_str).collect();
    json!({
        "type": "object",
        "description": "What is not known is absent",
        "required": ["sessionId", "namespace", "name", "resourceVersion", "phases"],
        "properties": {
            "sessionId": text(),
            "namespace": text(),
            "name": text(),
            "resourceVersion": text(),
            "state": {"type": "string", "examples": words},
            "message": text(),
            "verdict": {"enum": ["Succeeded", "Failed", "Cancelled", "Planned"]},
            "revision": count(),
            "digest": text(),
            "strategy": {"enum": ["Hybrid", "Directed", "Runtime"]},
            "counts": {"type": "object", "required": counts, "additionalProperties": {"type": "integer"}},
            "progress": {"type": "string", "pattern": "^[0-9]+/[0-9]+$"},
            "startedAt": time(),
            "finishedAt": time(),
            "pausedSince": time(),
            "observedGeneration": {"type": "integer"},
            "requests": {"type": "array", "items": {"type": "object"}},
            "phases": {"type": "array", "items": {"$ref": "#/components/schemas/Row"}},
        },
    })
}

fn row() -> Value {
    let states: Vec<&str> = PhaseState::ALL.iter().map(|state| state.as_str()).collect();
    json!({
        "type": "object",
        "required": ["id", "state"],
        "properties": {
            "id": text(),
            "state": {"enum": states},
            "run": count(),
            "attempt": count(),
            "reason": text(),
            "message": text(),
            "blockedBy": texts(),
            "runtime": text(),
            "progress": text(),
            "since": time(),
            "due": time(),
            "startedAt": time(),
            "finishedAt": time(),
            "ignored": {"type": "boolean"},
        },
    })
}

fn sessions() -> Value {
    json!({
        "type": "object",
        "required": ["sessions"],
        "properties": {
            "sessions": {"type": "array", "items": {
                "type": "object",
                "required": ["sessionId", "namespace", "name", "resourceVersion"],
                "properties": {
                    "sessionId": {"type": ["string", "null"]},
                    "namespace": text(),
                    "name": text(),
                    "resourceVersion": text(),
                    "state": text(),
                    "message": text(),
                    "verdict": text(),
                    "revision": count(),
                    "digest": text(),
                    "progress": text(),
                    "startedAt": time(),
                    "finishedAt": time(),
                },
            }},
            "continue": {"type": "string", "description": "Of the next page; absent on the last"},
        },
    })
}

fn command() -> Value {
    let commands =
        Command::ALL.into_iter().filter(|command| !matches!(command, Command::Report | Command::CancelAttempt));
    let commands: Vec<&str> = commands.map(Command::as_str).collect();
    json!({
        "type": "object",
        "required": ["command"],
        "properties": {
            "command": {"enum": commands},
            "x-phaseId": {"type": "string", "description": "The phase, for commands about one"},
        },
    })
}

fn lines() -> Value {
    json!({
        "type": "object",
        "required": ["sessionId", "lines"],
        "properties": {
            "sessionId": text(),
            "lines": {"type": "array", "items": {
                "type": "object",
                "required": ["level", "message", "timestamp"],
                "properties": {
                    "phaseId": text(),
                    "level": {"enum": ["debug", "info", "warning", "error"]},
                    "message": text(),
                    "timestamp": time(),
                },
            }},
        },
    })
}

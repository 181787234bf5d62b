//! The table of operations: path, method, parameters, bodies and answers.

/// A media type and the name of a schema.
pub type Content = (&'static str, &'static str);

/// One method of one path.
pub struct Operation {
    pub path: &'static str,
    pub method: &'static str,
    pub id: &'static str,
    pub summary: &'static str,
    /// Names in `components/parameters`.
    pub parameters: &'static [&'static str],
    pub bodies: &'static [Content],
    /// Code, description and bodies.
    pub answers: &'static [(&'static str, &'static str, &'static [Content])],
    /// Codes of problems beside those that any request may meet.
    pub refusals: &'static [&'static str],
    /// Whether answers carry Pmp-Resource-Version.
    pub names_version: bool,
}

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

const SESSION: &[&str] = &["session", "namespace"];
const PHASE: &[&str] = &["id", "session", "namespace", "idempotencyKey"];
const STATUS: &[&str] = &["session", "namespace", "ifNoneMatch", "lastEventId"];

const MANIFESTS: &[Content] =
    &[("application/vnd.phase-manifest+json", "Manifest"), (JSON, "Submission"), ("application/yaml", "Submission")];

/// Only the server has a say in what a document of other kinds looks like.
const BASE: Operation = Operation {
    path: "",
    method: "get",
    id: "",
    summary: "",
    parameters: SESSION,
    bodies: &[],
    answers: &[],
    refusals: &["404"],
    names_version: true,
};

const STATUS_ANSWERS: &[(&str, &str, &[Content])] = &[
    (
        "200",
        "The session; or its changes as events: `state` with all of it, `change` with what is different, `gone`",
        &[(JSON, "State"), (EVENTS, "Events")],
    ),
    ("304", "It is as it was", &[]),
];

const ACCEPTED: &[(&str, &str, &[Content])] =
    &[("202", "It stands in the resource, and the operator carries it out", &[(JSON, "Obeyed")])];

const HEALTHY: &[(&str, &str, &[Content])] = &[("200", "It is", &[(JSON, "Health")])];

/// Everything that is answered.
pub const OPERATIONS: &[Operation] = &[
    Operation {
        path: "/plan",
        method: "post",
        id: "submitPlan",
        summary: "Submit a manifest: a new session, the next revision of one, or a run again of a finished one",
        parameters: &["session", "namespace", "dryRun", "stage", "ignoreOther", "onConflict", "idempotencyKey"],
        bodies: MANIFESTS,
        answers: &[("200", "The plan is stored", &[(JSON, "Planned")])],
        refusals: &["404", "408", "409", "413", "415"],
        ..BASE
    },
    Operation {
        path: "/plan",
        id: "getPlan",
        summary: "The manifest that was submitted last, in canonical form",
        answers: &[(
            "200",
            "The manifest",
            &[
                ("application/vnd.phase-manifest+json", "Manifest"),
                (JSON, "Manifest"),
                ("application/yaml", "Manifest"),
            ],
        )],
        refusals: &["404", "409"],
        ..BASE
    },
    Operation {
        path: "/apply",
        method: "post",
        id: "applyPlan",
        summary: "Run what is staged",
        parameters: &["session", "namespace", "digest"],
        answers: &[("200", "It is stored that it runs", &[(JSON, "Planned")])],
        refusals: &["404", "408", "409", "413"],
        ..BASE
    },
    Operation {
        path: "/status",
        id: "getStatus",
        summary: "The whole session: state, counts, every phase",
        parameters: STATUS,
        answers: STATUS_ANSWERS,
        ..BASE
    },
    Operation {
        path: "/state",
        id: "getState",
        summary: "The same as /status",
        parameters: STATUS,
        answers: STATUS_ANSWERS,
        ..BASE
    },
    Operation {
        path: "/diff",
        id: "getDiff",
        summary: "From the last revision to the manifest that was submitted last",
        answers: &[("200", "The difference", &[(JSON, "Diff")])],
        refusals: &["404", "409"],
        ..BASE
    },
    Operation {
        path: "/phases/{id}",
        id: "getPhase",
        summary: "One phase: where it is, what it waits for, what it is",
        parameters: &["id", "session", "namespace"],
        answers: &[("200", "The phase", &[(JSON, "PhaseInFull")])],
        refusals: &["404", "409"],
        ..BASE
    },
    Operation { path: "/phases/{id}/retry", id: "retryPhase", summary: "Reopen a finished phase", ..ASK },
    Operation {
        path: "/phases/{id}/skip",
        id: "skipPhase",
        summary: "End a phase without running it, as skipped",
        ..ASK
    },
    Operation { path: "/phases/{id}/use", id: "usePhase", summary: "Want a phase whose instanceMode is onUse", ..ASK },
    Operation {
        path: "/phases/{id}/complete",
        id: "completePhase",
        summary: "End a phase without running it, as complete",
        ..ASK
    },
    Operation {
        path: "/control",
        method: "post",
        id: "controlSession",
        summary: "Give the session a command, as on the bus",
        parameters: &["session", "namespace", "idempotencyKey"],
        bodies: &[(JSON, "Command")],
        answers: ACCEPTED,
        refusals: &["404", "408", "409", "413", "415"],
        ..BASE
    },
    Operation {
        path: "/sessions",
        id: "listSessions",
        summary: "Sessions by namespace and name, page by page",
        parameters: &["namespace", "sessionsLimit", "continue"],
        answers: &[("200", "A page", &[(JSON, "Sessions")])],
        names_version: false,
        ..BASE
    },
    Operation {
        path: "/logs",
        id: "getLogs",
        summary: "The newest lines of a session's log",
        parameters: &["session", "namespace", "phaseId", "limit", "since", "follow", "lastEventId"],
        answers: &[("200", "Lines, oldest first; with follow as events `log`", &[(JSON, "Lines"), (EVENTS, "Events")])],
        ..BASE
    },
    Operation { path: "/health", id: "getHealth", summary: "Whether the process is alive", ..PROBE },
    Operation { path: "/ready", id: "getReady", summary: "Whether it answers from a full cache", ..PROBE },
    Operation {
        path: "/metrics",
        id: "getMetrics",
        summary: "Figures for Prometheus",
        answers: &[("200", "In the text format", &[("text/plain", "Events")])],
        ..PROBE
    },
    Operation {
        path: "/openapi.json",
        id: "getOpenapi",
        summary: "This document",
        answers: &[("200", "The document", &[(JSON, "Any")])],
        ..PROBE
    },
];

const ASK: Operation =
    Operation { method: "post", parameters: PHASE, answers: ACCEPTED, refusals: &["404", "408", "409", "413"], ..BASE };

const PROBE: Operation = Operation { parameters: &[], answers: HEALTHY, refusals: &[], names_version: false, ..BASE };

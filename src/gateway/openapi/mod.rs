//! The gateway for machines: OpenAPI 3.1, made here, committed as `docs/openapi.json` by `make generate`, and held by
//! tests against the router and against real answers.
//!
//! One table of operations; what they share (parameters, refusals, schemas) is named once.

mod operations;
mod schemas;

use serde_json::{Map, Value, json};

use self::operations::{Content, OPERATIONS, Operation};

/// The whole document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = described(operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Phase Manifest Protocol gateway",
            "description": "Submits manifests, shows what became of them, and steers their sessions. Errors are \
                            application/problem+json (RFC 9457) with a stable `reason`.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas::all(),
            "parameters": parameters(),
            "headers": {
                "ResourceVersion": {
                    "description": "The version of the session's resource that was written or read",
                    "schema": {"type": "string", "pattern": "^[0-9]+$"},
                },
            },
        },
    })
}

/// The document as it is committed.
pub fn text() -> String {
    let mut text = serde_json::to_string_pretty(&document()).expect("a document of texts is JSON");
    text.push('\n');
    text
}

fn described(operation: &Operation) -> Value {
    let parameters: Vec<Value> =
        operation.parameters.iter().map(|name| json!({"$ref": format!("#/components/parameters/{name}")})).collect();
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": responses(operation),
    });
    if !operation.bodies.is_empty() {
        described["requestBody"] = json!({"required": true, "content": contents(operation.bodies)});
    }
    described
}

fn responses(operation: &Operation) -> Value {
    let mut responses = Map::new();
    for (code, description, bodies) in operation.answers {
        let mut response = json!({"description": description});
        if !bodies.is_empty() {
            response["content"] = contents(bodies);
        }
        if operation.names_version {
            response["headers"] = json!({"Pmp-Resource-Version": {"$ref": "#/components/headers/ResourceVersion"}});
        }
        responses.insert((*code).to_owned(), response);
    }
    let problem = json!({"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}});
    for code in EVERYWHERE.iter().chain(operation.refusals) {
        responses.insert((*code).to_owned(), json!({"description": refusal(code), "content": problem}));
    }
    responses.into()
}

/// What any request may be answered with.
const EVERYWHERE: [&str; 6] = ["400", "403", "406", "421", "429", "503"];

fn refusal(code: &str) -> &'static str {
    match code {
        "400" => "The request or the document is not valid",
        "403" => "A web page sent the request, or the cluster forbids it",
        "404" => "There is no such session or phase",
        "406" => "No form of the answer is accepted",
        "408" => "The body came too slowly",
        "409" => "The session stands in the way",
        "413" => "The body is too large",
        "415" => "The body's type is not taken",
        "421" => "The Host is not this machine",
        "429" => "Too many requests; or too many of the session wait for their turn",
        _ => "The API server, the bus or the gateway is not able to answer now; ask again after Retry-After",
    }
}

fn contents(bodies: &[Content]) -> Value {
    let content = |(media, schema): &Content| {
        ((*media).to_owned(), json!({"schema": {"$ref": format!("#/components/schemas/{schema}")}}))
    };
    Value::Object(bodies.iter().map(content).collect())
}

fn parameters() -> Value {
    let query = |name: &str, description: &str, schema: Value| json!({"name": name, "in": "query", "description": description, "schema": schema});
    let flag = || json!({"type": "boolean", "default": false});
    json!({
        "id": {
            "name": "id", "in": "path", "required": true,
            "description": "The id of a phase: printable text, percent-encoded",
            "schema": {"type": "string", "minLength": 1, "maxLength": 253},
        },
        "session": query(
            "session",
            "The session; needed unless the gateway is bound to one",
            json!({"type": "string", "pattern": "^[A-Za-z0-9_-]{1,128}$"}),
        ),
        "namespace": query(
            "namespace",
            "Where its resource is",
            json!({"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"}),
        ),
        "dryRun": query("dryRun", "Only plan: nothing runs, the verdict is Planned", flag()),
        "stage": query("stage", "Nothing runs before POST /apply", flag()),
        "ignoreOther": query("ignoreOther", "Objects of other kinds in the array are left alone", flag()),
        "onConflict": query(
            "onConflict",
            "Where the session executes already: attach to the same plan, or replace another",
            json!({"type": "string", "enum": ["attach", "replace"]}),
        ),
        "digest": query(
            "digest",
            "Only if this is what is staged",
            json!({"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}),
        ),
        "sessionsLimit": query("limit", "Of one page", json!({"type": "integer", "minimum": 1, "maximum": 500, "default": 100})),
        "continue": query("continue", "What the page before named", json!({"type": "string"})),
        "phaseId": query("phaseId", "Of this phase only", json!({"type": "string", "minLength": 1, "maxLength": 253})),
        "limit": query("limit", "The newest so many", json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100})),
        "since": query("since", "A time (RFC 3339), or how long ago: 30s, 5m, 1h", json!({"type": "string"})),
        "follow": query("follow", "As server-sent events, and every further one", flag()),
        "idempotencyKey": {
            "name": "Idempotency-Key", "in": "header",
            "description": "Repeated with the same key, a request is carried out once and answered alike",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]{1,255}$"},
        },
        "lastEventId": {
            "name": "Last-Event-ID", "in": "header",
            "description": "The last event that was seen: what came after it follows",
            "schema": {"type": "string", "pattern": "^[0-9-]{1,40}$"},
        },
        "ifNoneMatch": {
            "name": "If-None-Match", "in": "header",
            "description": "The ETag of the answer that is known",
            "schema": {"type": "string", "pattern": "^\"[0-9]{1,20}\"$"},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => {
                    for (name, value) in fields {
                        match value {
                            Value::String(text) if name == "$ref" => found.push(text.clone()),
                            value => references(value, found),
                        }
                    }
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 100);
        for reference in found {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
    }
}

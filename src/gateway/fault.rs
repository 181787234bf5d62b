//! Every answer that is not what was asked for: `application/problem+json` (RFC 9457), also for what no handler sees.
//!
//! `reason` is the stable word; `detail` is for people and may change.

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use kube::core::response::StatusCause;
use serde_json::{Map, Value, json};

use crate::{
    controller::{call, commands},
    manifest::Problem,
};

/// When to ask again where the API server is away: it takes some seconds to come back.
const RETRY_AFTER_SECONDS: u32 = 5;

/// Why a request is not answered with what it asked for.
#[derive(Debug, Clone)]
pub struct Fault {
    status: StatusCode,
    reason: &'static str,
    detail: String,
    more: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Fault {
    /// `detail` in lower case, without a full stop: what, where and what to do.
    pub fn new(status: StatusCode, reason: &'static str, detail: impl Into<String>) -> Self {
        Self { status, reason, detail: detail.into(), more: Map::new(), headers: Vec::new() }
    }

    pub fn bad_request(reason: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason, detail)
    }

    pub fn not_found(reason: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, reason, detail)
    }

    pub fn conflict(reason: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, reason, detail)
    }

    /// It would be answered later; with `Retry-After`.
    pub fn unavailable(reason: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason, detail).retry_after(RETRY_AFTER_SECONDS)
    }

    /// Everything that is wrong with a document: `errors: [{pointer, reason, detail, hint?, line?, column?}]`.
    pub fn invalid(problems: &[Problem]) -> Self {
        let count = problems.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        let detail = match problems.first() {
            Some(first) => format!("the manifest has {count} {noun}; the first: {first}"),
            None => "the manifest is not valid".to_owned(),
        };
        let errors: Vec<Value> = problems.iter().map(error).collect();
        Self::bad_request("InvalidManifest", printable(&detail)).with("errors", errors.into())
    }

    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.more.insert(name.to_owned(), value);
        self
    }

    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.headers.push((header::RETRY_AFTER, seconds.into()));
        self
    }

    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub fn reason(&self) -> &'static str {
        self.reason
    }
}

/// A problem as one object, with the words that conditions and metrics use too.
fn error(problem: &Problem) -> Value {
    let mut error = json!({
        "pointer": problem.pointer,
        "reason": problem.reason.as_str(),
        "detail": printable(&problem.message),
    });
    if let Some(hint) = &problem.hint {
        error["hint"] = printable(hint).into();
    }
    if let Some(place) = &problem.place {
        error["line"] = place.line.into();
        error["column"] = place.column.into();
    }
    error
}

/// What the API server says of one field of the resource.
fn cause(cause: &StatusCause) -> Value {
    json!({"pointer": pointer(&cause.field), "reason": "InvalidSpec", "detail": printable(&cause.message)})
}

/// `spec.phases[3].id` as a JSON Pointer.
fn pointer(field: &str) -> String {
    let steps = field.split(['.', '[']).map(|step| step.trim_end_matches(']')).filter(|step| !step.is_empty());
    steps.flat_map(|step| ["/".to_owned(), crate::manifest::escaped(step)]).collect()
}

/// On one line, whatever it quotes.
fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut body = Map::from_iter([
            ("type".to_owned(), format!("urn:pmp:problem:{}", self.reason).into()),
            ("title".to_owned(), self.status.canonical_reason().unwrap_or("Error").into()),
            ("status".to_owned(), self.status.as_u16().into()),
            ("detail".to_owned(), self.detail.into()),
            ("reason".to_owned(), self.reason.into()),
        ]);
        body.extend(self.more);
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (self.status, kind, Value::Object(body).to_string()).into_response();
        response.headers_mut().extend(self.headers);
        response
    }
}

impl From<commands::Refused> for Fault {
    fn from(refused: commands::Refused) -> Self {
        let (reason, detail) = (refused.reason(), refused.to_string());
        match refused {
            commands::Refused::BadCommand(_) => Self::bad_request(reason, detail),
            commands::Refused::TooManyRequests => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, reason, detail).retry_after(RETRY_AFTER_SECONDS)
            }
            commands::Refused::ShutDown => Self::conflict(reason, detail),
        }
    }
}

impl From<commands::Error> for Fault {
    fn from(error: commands::Error) -> Self {
        match error {
            commands::Error::Call(error) => error.into(),
            commands::Error::Contended => {
                Self::unavailable("Contended", "the resource is written to all the time: ask again")
            }
        }
    }
}

impl From<call::Error> for Fault {
    /// What the API server says of a request that was legal up to there.
    fn from(error: call::Error) -> Self {
        let Some(status) = error.status() else {
            tracing::warn!(error = &error as &dyn std::error::Error, "the API server does not answer");
            return Self::unavailable(error.reason(), format!("{error}: ask again later"));
        };
        let said = printable(&status.message);
        match status.code {
            400 | 422 => {
                let causes = status.details.iter().flat_map(|details| &details.causes);
                let errors: Vec<Value> = causes.map(cause).collect();
                let fault = Self::bad_request("InvalidSpec", format!("the API server refuses it: {said}"));
                if errors.is_empty() { fault } else { fault.with("errors", errors.into()) }
            }
            404 => Self::not_found("NotFound", said),
            409 => Self::conflict("Conflict", format!("{error}: {said}")),
            413 => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", said),
            // etcd says so in a 500 of the API server.
            500 if said.contains("too large") => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", said),
            403 if said.contains("is being terminated") || said.contains("exceeded quota") => {
                Self::conflict("Refused", said)
            }
            // By its roles or by an admission webhook, whose words name what was tried; asking again is of no use.
            403 => Self::new(StatusCode::FORBIDDEN, "Forbidden", format!("{error}: {said}")),
            _ => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the API server refuses the gateway");
                Self::unavailable(error.reason(), format!("{error}: ask again later"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;
    use crate::manifest::{Format, OtherKinds, parse};

    #[test]
    fn every_mistake_of_a_manifest_is_told_with_its_pointer() {
        let text = br#"[{"kind": "Phase", "id": "a", "spec": {"wait": 1, "retry": {"maxAttempts": -1}}}]"#;
        let problems = parse(text, Format::Json, OtherKinds::Refuse).unwrap_err();
        let fault = Fault::invalid(&problems);
        let errors = fault.more["errors"].as_array().unwrap();
        assert_eq!(errors.len(), 2);
        assert_eq!(errors[0]["pointer"], "/0/spec/wait");
        assert_eq!(errors[0]["reason"], "UnknownField");
        assert_eq!(errors[0]["line"], 1);
        assert_eq!(fault.status(), StatusCode::BAD_REQUEST);
    }

    fn refused(code: u16, message: &str, causes: &Value) -> Fault {
        let status: Status = serde_json::from_value(json!({
            "status": "Failure", "code": code, "message": message, "reason": "",
            "details": {"name": "", "group": "", "kind": "", "uid": "", "retryAfterSeconds": 0, "causes": causes},
        }))
        .unwrap();
        call::Error::Refused { what: "create the resource", source: Box::new(kube::Error::Api(Box::new(status))) }
            .into()
    }

    #[test]
    fn what_the_cluster_forbids_is_said_and_not_asked_again() {
        let said = "phasemanifests.pmp.dev is forbidden: User \"u\" cannot create resource \"phasemanifests\"";
        let fault = refused(403, said, &json!([]));
        assert_eq!((fault.status(), fault.reason()), (StatusCode::FORBIDDEN, "Forbidden"));
        assert!(fault.headers.is_empty() && fault.detail.contains("cannot create"), "{fault:?}");
        assert_eq!(refused(403, "namespace x is being terminated", &json!([])).status(), StatusCode::CONFLICT);
        assert_eq!(refused(500, "oops", &json!([])).status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn what_the_api_server_says_of_fields_is_told_with_pointers() {
        let field = |field: &str| json!({"field": field, "message": "no", "reason": "FieldValueInvalid"});
        let fault = refused(422, "invalid", &json!([field("spec.requests[3].phase"), field("metadata.labels")]));
        let pointers: Vec<&Value> = fault.more["errors"].as_array().unwrap().iter().map(|e| &e["pointer"]).collect();
        assert_eq!(pointers, ["/spec/requests/3/phase", "/metadata/labels"]);
    }
}

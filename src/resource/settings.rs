//! What surrounds the phases of a whole resource that did not come from the API server: judged here as its schema would,
//! and in full.
//!
//! The API server refuses what is wrong outside `spec.phases`; a file and a body of HTTP have no such gate. Without this a
//! misspelled `paralelism` would be passed over, and the first mistake would hide all others.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use serde_json::{Map, Value};

use super::{PhaseManifestSpec, crd};
use crate::manifest::{Problem, Reason, escaped, nearest_field};

/// The spec as far as it can be read, and everything that cannot: each with its pointer.
pub fn read_settings(written: &Map<String, Value>) -> (PhaseManifestSpec, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut readable = written.clone();
    readable.retain(|name, value| {
        let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
        let read = serde_json::from_value::<PhaseManifestSpec>(alone);
        if let Err(error) = &read {
            let pointer = format!("/spec/{}", escaped(name));
            problems.push(problem(Reason::BadValue, pointer, format!("{name} cannot be read: {error}")));
        }
        read.is_ok()
    });
    let spec: PhaseManifestSpec =
        serde_json::from_value(Value::Object(readable.clone())).expect("every field was read by itself");
    let known = serde_json::to_value(&spec).expect("a spec of texts, numbers and lists is JSON");
    lost(&Value::Object(readable), &known, &mut vec!["spec".to_owned()], &mut problems);
    (spec, problems)
}

fn problem(reason: Reason, pointer: String, message: String) -> Problem {
    Problem { reason, pointer, message, hint: None, place: None }
}

/// Fields of `written` that reading it has passed over: a spelling mistake, or a newer version's.
fn lost(written: &Value, read: &Value, path: &mut Vec<String>, problems: &mut Vec<Problem>) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (name, value) in written {
                match read.get(name) {
                    Some(read) => {
                        path.push(name.clone());
                        lost(value, read, path, problems);
                        path.pop();
                    }
                    None if value.is_null() => {}
                    None => problems.push(unknown(name, path)),
                }
            }
        }
        (Value::Array(written), Value::Array(read)) => {
            for (i, (written, read)) in written.iter().zip(read).enumerate() {
                path.push(i.to_string());
                lost(written, read, path, problems);
                path.pop();
            }
        }
        _ => {}
    }
}

fn unknown(name: &str, path: &[String]) -> Problem {
    let mut pointer: String = path.iter().flat_map(|step| ["/".to_owned(), escaped(step)]).collect();
    pointer.extend(["/".to_owned(), escaped(name)]);
    let known = fields_at(path);
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let hint = (!known.is_empty()).then(|| nearest_field(name, &known));
    Problem { hint, ..problem(Reason::UnknownField, pointer, format!("there is no field {name:?} here")) }
}

/// The names that the schema knows there.
fn fields_at(path: &[String]) -> Vec<String> {
    let version = crd().spec.versions.into_iter().next();
    let mut schema = version.and_then(|version| version.schema).and_then(|schema| schema.open_api_v3_schema);
    for step in path {
        schema = schema.and_then(|schema: JSONSchemaProps| schema.properties?.remove(step));
    }
    schema.and_then(|schema| schema.properties).unwrap_or_default().into_keys().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(spec: Value) -> Vec<String> {
        let Value::Object(spec) = spec else { unreachable!("a spec is an object") };
        read_settings(&spec).1.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_mistake_is_told_with_its_place_and_what_was_meant() {
        let told = told(json!({
            "paralelism": 3, "failurePolicy": "isolate", "timeouts": {"ofer": "1s"}, "suspend": true,
        }));
        assert_eq!(told.len(), 3, "{told:#?}");
        assert!(told.iter().any(|line| line.starts_with("/spec/failurePolicy: ") && line.contains("`Isolate`")));
        assert!(told.iter().any(|line| line.starts_with("/spec/paralelism: ") && line.contains("`parallelism`?")));
        assert!(told.iter().any(|line| line.starts_with("/spec/timeouts/ofer: ") && line.contains("`offer`?")));
    }

    #[test]
    fn what_is_right_is_read() {
        let Value::Object(spec) = json!({"parallelism": 3, "shutdown": "", "strategy": "Directed"}) else {
            unreachable!("a spec is an object")
        };
        let (spec, problems) = read_settings(&spec);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(spec.parallelism, Some(3));
    }
}

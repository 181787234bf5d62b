//! What the document as a whole does; each small syntax is tested beside its code.

mod meaning;
mod mistakes;
mod size;
mod spellings;

use super::{Document, Format, OtherKinds, Plan, Problem, Reason, parse};

fn document(text: &str) -> Document {
    parse(text.as_bytes(), Format::Auto, OtherKinds::Refuse).unwrap_or_else(|problems| {
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        panic!("{}\nin {text}", told.join("\n"))
    })
}

fn plan(text: &str) -> Plan {
    document(text).plan
}

fn problems(text: &str) -> Vec<Problem> {
    parse(text.as_bytes(), Format::Auto, OtherKinds::Refuse).expect_err("this document is wrong")
}

/// Reason and pointer of every problem, and the text that each place spans.
fn told(text: &str) -> Vec<(Reason, String, String)> {
    let span = |p: &Problem| p.place.as_ref().map_or("", |place| &text[place.span.clone()]).to_owned();
    problems(text).into_iter().map(|p| (p.reason, p.pointer.clone(), span(&p))).collect()
}

/// One phase `a` with this spec, in YAML flow.
fn one(spec: &str) -> String {
    format!("- kind: Phase\n  id: a\n  spec: {spec}\n")
}

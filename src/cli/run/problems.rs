//! An invalid manifest, told: every problem beside its source line. Pure.

use std::fmt;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};
use serde_json::{Value, json};

use super::paint::Paint;
use crate::manifest::Problem;

/// Most problems shown with their source; the count of the others is said. The JSON document has all of them.
const SHOWN_MAX: usize = 50;

/// One problem as miette takes it.
struct Shown<'a> {
    problem: &'a Problem,
    source: Option<&'a NamedSource<String>>,
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.problem, f)
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem.message)
    }
}

impl std::error::Error for Shown<'_> {}

impl Diagnostic for Shown<'_> {
    fn code<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        let pointer = &self.problem.pointer;
        Some(Box::new(format!(
            "{} at {}",
            self.problem.reason.as_str(),
            if pointer.is_empty() { "/" } else { pointer }
        )))
    }

    fn help<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        self.problem.hint.as_ref().map(|hint| Box::new(hint) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let place = self.problem.place.as_ref().filter(|_| self.source.is_some())?;
        let length = place.span.end.saturating_sub(place.span.start).max(1);
        let label = LabeledSpan::new(Some("here".to_owned()), place.span.start, length);
        Some(Box::new(std::iter::once(label)))
    }
}

/// `name` is what the person called the document: a path, or `standard input`.
pub fn report(name: &str, source: &[u8], problems: &[Problem], columns: usize, paint: Paint) -> String {
    let theme = match paint {
        Paint::Colour => GraphicalTheme::unicode(),
        Paint::Plain => GraphicalTheme::unicode_nocolor(),
    };
    let handler = GraphicalReportHandler::new_themed(theme).with_width(columns).with_context_lines(1);
    // Spans are byte offsets into the text as it came, so a text that is not UTF-8 is not quoted.
    let source = str::from_utf8(source).ok().map(|text| NamedSource::new(name, text.to_owned()));
    let mut out = String::new();
    for problem in problems.iter().take(SHOWN_MAX) {
        let in_text = |place: &crate::manifest::Place| place.span.end <= source.as_ref().map_or(0, |s| s.inner().len());
        let has_place = problem.place.as_ref().is_some_and(in_text);
        let shown = Shown { problem, source: source.as_ref().filter(|_| has_place) };
        if handler.render_report(&mut out, &shown).is_err() {
            out.push_str(&problem.to_string());
            out.push('\n');
        }
        out.push('\n');
    }
    if problems.len() > SHOWN_MAX {
        out = format!("{out}and {} more\n", problems.len() - SHOWN_MAX);
    }
    let count = if problems.len() == 1 { "1 problem".to_owned() } else { format!("{} problems", problems.len()) };
    format!("{out}{name}: {}\n", paint.bad(&format!("not a valid manifest, {count}")))
}

/// `{verdict: "Invalid", exitCode: 2, problems: [{reason, pointer, message, hint, line, column}]}`.
pub fn document(problems: &[Problem]) -> Value {
    let problems: Vec<Value> = problems
        .iter()
        .map(|problem| {
            json!({
                "reason": problem.reason.as_str(),
                "pointer": problem.pointer,
                "message": problem.message,
                "hint": problem.hint,
                "line": problem.place.as_ref().map(|place| place.line),
                "column": problem.place.as_ref().map(|place| place.column),
            })
        })
        .collect();
    json!({ "verdict": "Invalid", "exitCode": 2, "problems": problems })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Place, Reason};

    const TEXT: &str = "- kind: Phase\n  id: web\n  spec: {waitFor: [netwrk]}\n";

    fn problem() -> Problem {
        let start = TEXT.find("netwrk").unwrap();
        Problem {
            reason: Reason::UnknownDependency,
            pointer: "/0/spec/waitFor/0".to_owned(),
            message: "no phase is called 'netwrk'".to_owned(),
            hint: Some("did you mean 'network'?".to_owned()),
            place: Some(Place { line: 3, column: 20, span: start..start + 6 }),
        }
    }

    #[test]
    fn a_problem_stands_beside_its_line_with_its_hint() {
        let told = report("boot.yaml", TEXT.as_bytes(), &[problem()], 80, Paint::Plain);
        for part in ["boot.yaml:3:20", "waitFor: [netwrk]", "no phase is called", "did you mean", "/0/spec/waitFor/0"] {
            assert!(told.contains(part), "{part} is missing in:\n{told}");
        }
        assert!(told.ends_with("boot.yaml: not a valid manifest, 1 problem\n"), "{told}");
    }

    #[test]
    fn a_problem_without_a_place_is_told_without_source() {
        let told = report("-", TEXT.as_bytes(), &[Problem { place: None, ..problem() }], 80, Paint::Plain);
        assert!(told.contains("no phase is called") && !told.contains("waitFor: ["), "{told}");
    }

    #[test]
    fn text_that_is_not_utf8_is_not_quoted() {
        let told = report("x", b"\xff\xfe", &[problem()], 80, Paint::Plain);
        assert!(told.contains("no phase is called"), "{told}");
    }

    #[test]
    fn past_fifty_problems_only_the_number_is_told() {
        let told = report("x", TEXT.as_bytes(), &vec![problem(); 60], 80, Paint::Plain);
        assert_eq!(told.matches("no phase is called").count(), SHOWN_MAX);
        assert!(told.contains("and 10 more"));
        assert_eq!(document(&vec![problem(); 60])["problems"].as_array().unwrap().len(), 60);
    }
}

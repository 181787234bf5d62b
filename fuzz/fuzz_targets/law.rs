//! What must hold for every text: no panic; problems point into the text; the canonical form is a fixed point.

use crate::manifest::{Format, OtherKinds, diff, from_values, parse};

pub fn holds(text: &[u8], format: Format) {
    match parse(text, format, OtherKinds::Ignore) {
        Ok(document) => {
            let canonical = document.plan.canonical();
            let written = canonical.to_string();
            for format in [Format::Json, Format::Auto] {
                let again = parse(written.as_bytes(), format, OtherKinds::Refuse).expect("the canonical form is good").plan;
                assert_eq!(again.canonical(), canonical);
                assert_eq!(again.digest(), document.plan.digest());
                assert!(diff(&document.plan, &again).is_empty());
            }
            let values = canonical.as_array().expect("a manifest is an array");
            let (stored, _) = from_values(values, OtherKinds::Refuse).expect("the canonical form is good");
            assert_eq!(stored, document.plan);
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            for problem in problems {
                assert!(problem.pointer.is_empty() || problem.pointer.starts_with('/'));
                if let Some(place) = problem.place {
                    assert!(place.span.start <= place.span.end && place.span.end <= text.len());
                    assert!(place.line > 0 && place.column > 0);
                }
            }
        }
    }
}

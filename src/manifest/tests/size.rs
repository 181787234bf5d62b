//! Large and hostile documents: linear, bounded, never a panic.

use std::fmt::Write as _;

use super::{Reason, plan, problems};
use crate::manifest::{PhaseIx, limits};

fn chain(length: usize, first: &str) -> String {
    let mut text = format!("[{{\"kind\":\"Phase\",\"id\":\"p0\",\"spec\":{{{first}}}}}");
    for i in 1..length {
        write!(text, ",{{\"kind\":\"Phase\",\"id\":\"p{i}\",\"spec\":{{\"waitFor\":[\"p{}\"]}}}}", i - 1).unwrap();
    }
    text.push(']');
    text
}

/// On a stack as small as a worker thread's.
fn on_a_small_stack(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(test).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_chain_of_two_hundred_thousand_phases_is_read() {
    on_a_small_stack(|| {
        let plan = plan(&chain(limits::PHASES_MAX, ""));
        assert_eq!(plan.len(), limits::PHASES_MAX);
        assert_eq!(plan.topological_order().last(), Some(&PhaseIx::new(limits::PHASES_MAX - 1)));
    });
}

#[test]
fn a_ring_of_two_hundred_thousand_phases_is_one_bounded_problem() {
    on_a_small_stack(|| {
        let text = chain(limits::PHASES_MAX, &format!("\"waitFor\":\"p{}\"", limits::PHASES_MAX - 1));
        let found = problems(&text);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].reason, Reason::Cycle);
        assert!(found[0].message.contains("(199000 more)") && found[0].message.len() < 100_000);
    });
}

#[test]
fn a_hundred_thousand_phases_of_ten_layers_are_read() {
    let mut text = "[".to_owned();
    for i in 0..100_000 {
        let comma = if i == 0 { "" } else { "," };
        let wait = if i < 10_000 { String::new() } else { format!(",\"waitFor\":\"p{}\"", i - 10_000) };
        write!(text, "{comma}{{\"kind\":\"Phase\",\"id\":\"p{i}\",\"spec\":{{\"x-own\":{i}{wait}}}}}").unwrap();
    }
    text.push(']');
    assert_eq!(plan(&text).len(), 100_000);
}

#[test]
fn ten_thousand_phases_of_yaml_are_read() {
    let mut text = String::new();
    for i in 0..10_000 {
        writeln!(text, "- kind: Phase\n  id: p{i}\n  spec:\n    retry:\n      maxAttempts: 3").unwrap();
    }
    assert_eq!(plan(&text).len(), 10_000);
}

#[test]
fn one_phase_too_many_is_refused() {
    let text = format!("[{}1]", "1,".repeat(limits::PHASES_MAX));
    let found = problems(&text);
    assert_eq!((found.len(), found[0].reason), (1, Reason::TooLarge));
}

#[test]
fn problems_past_the_bound_are_counted() {
    let mut text = String::new();
    for i in 0..5_000 {
        writeln!(text, "- {{kind: Phase, id: p{i}, spec: {{waitFor: [q{i}, r{i}], retrys: 1}}}}").unwrap();
    }
    let found = problems(&text);
    assert_eq!(found.len(), limits::PROBLEMS_MAX + 1);
    assert!(found.last().unwrap().message.starts_with("14000 more"));
}

#[test]
fn a_hundred_thousand_wrong_waits_of_one_phase_are_linear() {
    let mut text = "[{\"kind\":\"Phase\",\"id\":\"a\",\"spec\":{\"waitFor\":[\"q\"".to_owned();
    for i in 0..100_000 {
        write!(text, ",\"q{i}\"").unwrap();
    }
    text += "]}}]";
    assert_eq!(problems(&text).len(), limits::PROBLEMS_MAX + 1);
}

#[test]
fn nesting_up_to_the_limit_is_read_and_beyond_refused() {
    let nested = |depth: usize| {
        // List, phase and spec are three levels.
        let (open, close) = ("[".repeat(depth - 3), "]".repeat(depth - 3));
        format!("[{{\"kind\":\"Phase\",\"id\":\"a\",\"spec\":{{\"x-own\":{open}{close}}}}}]")
    };
    on_a_small_stack(move || {
        let max = usize::from(limits::DEPTH_MAX);
        assert_eq!(plan(&nested(max)).len(), 1);
        assert_eq!(problems(&nested(max + 1))[0].reason, Reason::TooLarge);
        let max = usize::from(limits::YAML_DEPTH_MAX);
        let in_yaml = |depth| format!("# yaml\n{}", nested(depth));
        assert_eq!(plan(&in_yaml(max)).len(), 1);
        assert_eq!(problems(&in_yaml(max + 1))[0].reason, Reason::TooLarge);
        assert_eq!(problems(&in_yaml(max).replace("x-own", "xown"))[0].reason, Reason::UnknownField);
    });
}

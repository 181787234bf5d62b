//! What is run: the shapes of work, as phases that wait for each other, and as texts.

use std::fmt::Write as _;

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use serde_json::{Value, json};

/// One step and what it waits for.
pub struct Step {
    pub id: String,
    pub waits: Vec<String>,
}

/// How steps hang together.
#[derive(Clone, Copy)]
pub enum Shape {
    /// One after the other.
    Chain(usize),
    /// One, then this many, then one.
    Fan(usize),
    /// Layers of this width; each step after two or three of the layer before.
    Layers { count: usize, width: usize },
}

/// A measured piece of work: so many manifests of one shape, at once.
#[derive(Clone, Copy)]
pub struct Load {
    pub name: &'static str,
    pub manifests: usize,
    pub shape: Shape,
}

/// The workloads of the design, section 13.
pub const LOADS: [Load; 4] = [
    Load { name: "chain-50", manifests: 1, shape: Shape::Chain(50) },
    Load { name: "fan-500", manifests: 1, shape: Shape::Fan(500) },
    Load { name: "layers-20x50", manifests: 1, shape: Shape::Layers { count: 20, width: 50 } },
    Load { name: "manifests-100x10", manifests: 100, shape: Shape::Chain(10) },
];

impl Load {
    pub fn steps_total(&self) -> usize {
        self.manifests * self.shape.len()
    }
}

impl Shape {
    pub fn len(&self) -> usize {
        match *self {
            Self::Chain(count) => count,
            Self::Fan(count) => count + 2,
            Self::Layers { count, width } => count * width,
        }
    }

    /// In topological order. The same seed gives the same steps.
    pub fn steps(&self, seed: u64) -> Vec<Step> {
        match *self {
            Self::Chain(count) => (0..count)
                .map(|i| Step {
                    id: format!("s{i:04}"),
                    waits: i.checked_sub(1).map(|i| format!("s{i:04}")).into_iter().collect(),
                })
                .collect(),
            Self::Fan(count) => {
                let middle: Vec<String> = (0..count).map(|i| format!("m{i:04}")).collect();
                let root = Step { id: "root".to_owned(), waits: Vec::new() };
                let join = Step { id: "join".to_owned(), waits: middle.clone() };
                let between = middle.into_iter().map(|id| Step { id, waits: vec!["root".to_owned()] });
                std::iter::once(root).chain(between).chain([join]).collect()
            }
            Self::Layers { count, width } => {
                let mut rng = SmallRng::seed_from_u64(seed);
                let step = |layer: usize, place: usize| format!("l{layer:04}n{place:04}");
                let mut steps = Vec::with_capacity(count * width);
                for layer in 0..count {
                    for place in 0..width {
                        let first = rng.random_range(0..width);
                        let waits = if layer == 0 { 0 } else { rng.random_range(2..=3_usize).min(width) };
                        let waits = (0..waits).map(|n| step(layer - 1, (first + n * 7) % width)).collect();
                        steps.push(Step { id: step(layer, place), waits });
                    }
                }
                steps
            }
        }
    }
}

/// The phases of a PhaseManifest: nothing but id and waits, since the work is nothing.
pub fn phases(steps: &[Step]) -> Value {
    let phase = |step: &Step| {
        if step.waits.is_empty() {
            json!({"kind": "Phase", "id": step.id, "spec": {}})
        } else {
            json!({"kind": "Phase", "id": step.id, "spec": {"waitFor": {"phases": step.waits}}})
        }
    };
    steps.iter().map(phase).collect()
}

/// A manifest as JSON text with some 350 bytes a phase: what people write who use selectors, retries and commands.
pub fn full_text(steps: &[Step]) -> String {
    let mut text = String::from("[\n");
    for (index, Step { id, waits }) in steps.iter().enumerate() {
        let comma = if index + 1 == steps.len() { "" } else { "," };
        let waits = waits.iter().map(|id| format!("\"{id}\"")).collect::<Vec<_>>().join(", ");
        writeln!(
            text,
            "  {{\"kind\": \"Phase\", \"id\": \"{id}\", \"spec\": {{\"description\": \"step {index} of the plan\", \
             \"selector\": {{\"matchLabels\": {{\"pool\": \"build\", \"zone\": \"a{}\"}}}}, \
             \"waitFor\": {{\"phases\": [{waits}], \"timeout\": \"2h\"}}, \"retry\": {{\"maxAttempts\": 3}}, \
             \"onFailure\": {{\"action\": \"raise\", \"spec\": {{\"message\": [\"{id} failed\"]}}}}, \
             \"x-exec\": {{\"command\": [\"make\", \"-C\", \"/src\", \"{id}\"]}}}}}}{comma}",
            index % 3,
        )
        .expect("a string takes every text");
    }
    text.push_str("]\n");
    text
}

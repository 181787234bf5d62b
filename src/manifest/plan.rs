//! A manifest that passed validation, with its graph and its digests. Everything past the edge works on plans.
//!
//! The graph is petgraph's; what is asked of it here is linear in phases plus waits and recurses nowhere, because a
//! chain of 200,000 phases is a legal document.

use std::collections::{HashMap, VecDeque};

use petgraph::{
    Direction,
    algo::kosaraju_scc,
    graph::{DiGraph, NodeIndex},
};

use super::{Digest, Phase, PhaseId, digest};

/// Index of a phase in its plan, in document order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhaseIx(u32);

impl PhaseIx {
    pub fn new(index: usize) -> Self {
        Self(u32::try_from(index).expect("a manifest holds fewer than 2^32 phases (validation bounds it)"))
    }

    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A valid manifest. Cheap to share (`Arc<Plan>`), never changed.
#[derive(Debug, PartialEq)]
pub struct Plan {
    phases: Vec<Phase>,
    by_id: HashMap<PhaseId, PhaseIx>,
    waits: Vec<Vec<PhaseIx>>,
    dependents: Vec<Vec<PhaseIx>>,
    order: Vec<PhaseIx>,
    phase_digests: Vec<Digest>,
    digest: Digest,
}

/// Why phases that are each legal do not make a plan. All of them, in document order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GraphError {
    /// `repeat` has the id that `first` already has.
    DuplicateId { first: PhaseIx, repeat: PhaseIx },
    /// The `wait`-th entry of the phase's `waitFor.phases` names no phase.
    UnknownDependency { phase: PhaseIx, wait: usize },
    /// The `wait`-th entry of the phase's `waitFor.phases` is the phase itself.
    SelfDependency { phase: PhaseIx, wait: usize },
    /// Each waits for the next, the last for the first. At least two members; one cycle for every knot in the graph.
    Cycle(Vec<PhaseIx>),
}

impl Plan {
    /// Links the phases; every graph mistake is answered at once.
    pub fn new(phases: Vec<Phase>) -> Result<Self, Vec<GraphError>> {
        let mut errors = Vec::new();
        let mut by_id: HashMap<PhaseId, PhaseIx> = HashMap::with_capacity(phases.len());
        for (i, phase) in phases.iter().enumerate() {
            let ix = PhaseIx::new(i);
            match by_id.get(&phase.id) {
                Some(&first) => errors.push(GraphError::DuplicateId { first, repeat: ix }),
                None => {
                    by_id.insert(phase.id.clone(), ix);
                }
            }
        }
        let mut waits = vec![Vec::new(); phases.len()];
        let mut dependents = vec![Vec::new(); phases.len()];
        for (i, phase) in phases.iter().enumerate() {
            let ix = PhaseIx::new(i);
            for (wait, id) in phase.spec.wait_for.phases.iter().enumerate() {
                match by_id.get(id) {
                    None => errors.push(GraphError::UnknownDependency { phase: ix, wait }),
                    Some(_) if *id == phase.id => errors.push(GraphError::SelfDependency { phase: ix, wait }),
                    Some(&on) => {
                        waits[i].push(on);
                        dependents[on.index()].push(ix);
                    }
                }
            }
        }
        let order = topological_order(&waits, &dependents);
        if order.len() < phases.len() {
            errors.extend(cycles(&waits).into_iter().map(GraphError::Cycle));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let phase_digests = digest::of_phases(&phases, &waits, &order);
        let digest = digest::of_manifest(&phases);
        Ok(Self { phases, by_id, waits, dependents, order, phase_digests, digest })
    }

    /// In document order.
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    pub fn len(&self) -> usize {
        self.phases.len()
    }

    pub fn is_empty(&self) -> bool {
        self.phases.is_empty()
    }

    pub fn phase(&self, ix: PhaseIx) -> &Phase {
        &self.phases[ix.index()]
    }

    pub fn id(&self, ix: PhaseIx) -> &PhaseId {
        &self.phases[ix.index()].id
    }

    pub fn index_of(&self, id: &str) -> Option<PhaseIx> {
        self.by_id.get(id).copied()
    }

    /// All indices in document order.
    pub fn indices(&self) -> impl Iterator<Item = PhaseIx> + use<> {
        (0..self.phases.len()).map(PhaseIx::new)
    }

    /// What the phase waits for, in the order written.
    pub fn waits(&self, ix: PhaseIx) -> &[PhaseIx] {
        &self.waits[ix.index()]
    }

    /// What waits for the phase, in document order.
    pub fn dependents(&self, ix: PhaseIx) -> &[PhaseIx] {
        &self.dependents[ix.index()]
    }

    /// Every phase after all it waits for; among equals, document order.
    pub fn topological_order(&self) -> &[PhaseIx] {
        &self.order
    }

    /// Of the whole canonical manifest: equal for every spelling of it.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Of what makes a finished result of this phase still valid: id, selector, waits, `x-*` but those that only
    /// steer how it is tried, and the same of everything it waits for.
    pub fn phase_digest(&self, ix: PhaseIx) -> &Digest {
        &self.phase_digests[ix.index()]
    }
}

/// An empty plan succeeds at once.
impl Default for Plan {
    fn default() -> Self {
        Self::new(Vec::new()).expect("no phases make no mistakes")
    }
}

/// Kahn's algorithm (1962), first in first out: linear, iterative, and stable in document order. Shorter than the
/// input exactly when there is a cycle.
fn topological_order(waits: &[Vec<PhaseIx>], dependents: &[Vec<PhaseIx>]) -> Vec<PhaseIx> {
    let mut open: Vec<usize> = waits.iter().map(Vec::len).collect();
    let mut queue: VecDeque<PhaseIx> = (0..waits.len()).filter(|&i| open[i] == 0).map(PhaseIx::new).collect();
    let mut order = Vec::with_capacity(waits.len());
    while let Some(ix) = queue.pop_front() {
        order.push(ix);
        for &next in &dependents[ix.index()] {
            open[next.index()] -= 1;
            if open[next.index()] == 0 {
                queue.push_back(next);
            }
        }
    }
    order
}

/// One full cycle for every knot (strongly connected component), each as short as a breadth-first walk from its first
/// member finds it.
///
/// petgraph's Kosaraju is iterative; its Tarjan recurses and overflows on long chains.
fn cycles(waits: &[Vec<PhaseIx>]) -> Vec<Vec<PhaseIx>> {
    let mut graph: DiGraph<(), (), u32> = DiGraph::with_capacity(waits.len(), waits.len());
    for _ in waits {
        graph.add_node(());
    }
    for (i, on) in waits.iter().enumerate() {
        for ix in on {
            graph.add_edge(NodeIndex::new(i), NodeIndex::new(ix.index()), ());
        }
    }
    let knots = kosaraju_scc(&graph);
    let mut knot_of = vec![0_usize; waits.len()];
    for (k, knot) in knots.iter().enumerate() {
        for node in knot {
            knot_of[node.index()] = k;
        }
    }
    let mut found: Vec<Vec<PhaseIx>> = knots
        .iter()
        .filter(|knot| knot.len() > 1)
        .map(|knot| {
            let start = knot.iter().min().copied().expect("a knot has members");
            shortest_cycle(&graph, &knot_of, start)
        })
        .collect();
    found.sort();
    found
}

/// The shortest way from `start` back to itself inside its knot.
fn shortest_cycle(graph: &DiGraph<(), (), u32>, knot_of: &[usize], start: NodeIndex<u32>) -> Vec<PhaseIx> {
    let mut came_from: HashMap<NodeIndex<u32>, NodeIndex<u32>> = HashMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(node) = queue.pop_front() {
        for next in graph.neighbors_directed(node, Direction::Outgoing) {
            if next == start {
                let mut path = vec![PhaseIx::new(node.index())];
                let mut at = node;
                while at != start {
                    at = came_from[&at];
                    path.push(PhaseIx::new(at.index()));
                }
                path.reverse();
                return path;
            }
            if knot_of[next.index()] == knot_of[start.index()] && !came_from.contains_key(&next) {
                came_from.insert(next, node);
                queue.push_back(next);
            }
        }
    }
    unreachable!("every member of a strongly connected component of two or more lies on a cycle")
}

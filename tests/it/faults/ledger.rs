//! What phases wrote down of themselves: the file of one session, read and judged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

/// What a phase does: it notes that it begins, works, and notes that it has ended. A line is one write with O_APPEND, so
/// lines of phases that run at the same time do not mix.
pub fn line(work: Duration) -> String {
    let file = r#""$DIR/$PMP_SESSION_ID""#;
    let who = "$PMP_PHASE_ID $PMP_ATTEMPT";
    let seconds = work.as_secs_f64();
    format!(r#"echo "+ {who} $PPID" >> {file}; sleep {seconds:.3}; echo "- {who} $(date +%s%3N)" >> {file}"#)
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Begun {
    phase: String,
    token: String,
    /// The runtime's process id.
    runtime: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Ended {
    phase: String,
    token: String,
    at: Duration,
}

/// The beginnings and ends of a session's phases, each in the order in which they were written.
#[derive(Debug, Default)]
pub struct Ledger {
    begun: Vec<Begun>,
    ended: Vec<Ended>,
}

impl Ledger {
    /// Empty where no phase has begun yet.
    pub fn read(file: &Path) -> Self {
        let mut ledger = Self::default();
        for line in fs::read_to_string(file).unwrap_or_default().lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["+", phase, token, runtime] => ledger.begun.push(Begun {
                    phase: phase.to_owned(),
                    token: token.to_owned(),
                    runtime: runtime.parse().expect("the shell writes a process id"),
                }),
                ["-", phase, token, millis] => ledger.ended.push(Ended {
                    phase: phase.to_owned(),
                    token: token.to_owned(),
                    at: Duration::from_millis(millis.parse().expect("date writes milliseconds")),
                }),
                _ => panic!("{} has a line that no phase writes: {line:?}", file.display()),
            }
        }
        ledger
    }

    /// How many attempts have come to their end.
    pub fn ended(&self) -> usize {
        self.ended.len()
    }

    /// How many attempts were begun.
    pub fn begun(&self) -> usize {
        self.begun.len()
    }

    /// The longest time in which no phase came to its end.
    pub fn longest_gap(&self) -> Duration {
        let mut times: Vec<_> = self.ended.iter().map(|ended| ended.at).collect();
        times.sort_unstable();
        times.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or_default()
    }

    /// No attempt ran twice, every phase was brought to its end, and no phase has a second attempt but after one whose
    /// runtime is among `killed`: without a killed runtime, every phase ran exactly once.
    pub fn assert_once(&self, phases: impl IntoIterator<Item = String>, killed: &BTreeSet<u32>) {
        let mut runs: BTreeMap<&str, Vec<&Begun>> = BTreeMap::new();
        for begun in &self.begun {
            runs.entry(&begun.phase).or_default().push(begun);
        }
        let expected: BTreeSet<_> = phases.into_iter().collect();
        assert_eq!(runs.keys().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>(), expected, "the phases that ran");
        for (phase, runs) in runs {
            let tokens: BTreeSet<_> = runs.iter().map(|begun| &begun.token).collect();
            assert_eq!(tokens.len(), runs.len(), "an attempt of {phase} began twice: {runs:#?}");
            let (last, before) = runs.split_last().expect("an entry is made with a value");
            let excused = before.iter().all(|begun| killed.contains(&begun.runtime));
            assert!(excused, "{phase} ran again although no runtime had died with it: {runs:#?}; killed {killed:?}");
            let ends = |token| self.ended.iter().filter(|ended| ended.phase == phase && &ended.token == token).count();
            assert_eq!(ends(&last.token), 1, "the last attempt of {phase} came to its end: {runs:#?}");
            assert!(before.iter().all(|begun| ends(&begun.token) <= 1), "{phase}: {runs:#?}");
        }
    }
}

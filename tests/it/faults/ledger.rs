//! What phases wrote down of themselves: the file of one session, read and judged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

/// How long after an attempt's last line its end may be known to its runtime alone, and die with it.
const UNHEARD: Duration = Duration::from_secs(1);

/// What a phase does: it notes that it begins, works, and notes that it has ended. A line is one write with O_APPEND, so
/// lines of phases that run at the same time do not mix.
pub fn line(work: Duration) -> String {
    let file = r#""$DIR/$PMP_SESSION_ID""#;
    let who = "$PMP_PHASE_ID $PMP_ATTEMPT";
    let (seconds, now) = (work.as_secs_f64(), "$(date +%s%3N)");
    format!(r#"echo "+ {who} {now} $PPID" >> {file}; sleep {seconds:.3}; echo "- {who} {now}" >> {file}"#)
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Begun {
    phase: String,
    token: String,
    at: Duration,
    /// The runtime's process id.
    runtime: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Ended {
    phase: String,
    token: String,
    at: Duration,
}

/// The beginnings and ends of a session's phases, each in the order in which they were written. Times are since the epoch.
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
                ["+", phase, token, at, runtime] => ledger.begun.push(Begun {
                    phase: phase.to_owned(),
                    token: token.to_owned(),
                    at: millis(at),
                    runtime: runtime.parse().expect("the shell writes a process id"),
                }),
                ["-", phase, token, at] => {
                    ledger.ended.push(Ended { phase: phase.to_owned(), token: token.to_owned(), at: millis(at) });
                }
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

    /// Whether a runtime has begun what it has not ended.
    pub fn is_busy(&self, runtime: u32) -> bool {
        self.begun.iter().any(|begun| begun.runtime == runtime && self.end_of(begun).is_none())
    }

    /// The longest time in which no phase came to its end.
    pub fn longest_gap(&self) -> Duration {
        let mut times: Vec<_> = self.ended.iter().map(|ended| ended.at).collect();
        times.sort_unstable();
        times.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or_default()
    }

    /// No attempt ran twice, every phase was brought to its end, more than one runtime had a part in it, and no phase has
    /// a second attempt but after one with which its runtime died, as `killed` has it by process id and time: without a
    /// killed runtime, every phase ran exactly once.
    pub fn assert_once(&self, phases: impl IntoIterator<Item = String>, killed: &BTreeMap<u32, Duration>) {
        let mut runs: BTreeMap<&str, Vec<&Begun>> = BTreeMap::new();
        for begun in &self.begun {
            runs.entry(&begun.phase).or_default().push(begun);
        }
        let expected: BTreeSet<_> = phases.into_iter().collect();
        assert_eq!(runs.keys().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>(), expected, "the phases that ran");
        let runtimes: BTreeSet<_> = self.begun.iter().map(|begun| begun.runtime).collect();
        assert!(runtimes.len() > 1, "one runtime did it all");
        for (phase, runs) in runs {
            let tokens: BTreeSet<_> = runs.iter().map(|begun| &begun.token).collect();
            assert_eq!(tokens.len(), runs.len(), "an attempt of {phase} began twice: {runs:#?}");
            for pair in runs.windows(2) {
                let is_excused =
                    killed.get(&pair[0].runtime).is_some_and(|died| self.died_with(pair[0], *died, pair[1]));
                assert!(
                    is_excused,
                    "{phase} ran again although no runtime had died with it: {pair:#?}; killed {killed:?}"
                );
            }
            let ends = |begun: &Begun| self.ends_of(begun).count();
            let (last, before) = runs.split_last().expect("an entry is made with a value");
            assert_eq!(ends(last), 1, "the last attempt of {phase} came to its end: {runs:#?}");
            assert!(before.iter().all(|begun| ends(begun) <= 1), "{phase}: {runs:#?}");
        }
    }

    /// Whether an attempt's runtime died before anyone can have heard of the attempt's end, and the next began after that.
    fn died_with(&self, attempt: &Begun, died: Duration, next: &Begun) -> bool {
        next.at >= died && self.end_of(attempt).is_none_or(|end| end.at + UNHEARD > died)
    }

    fn end_of(&self, begun: &Begun) -> Option<&Ended> {
        self.ends_of(begun).next()
    }

    fn ends_of(&self, begun: &Begun) -> impl Iterator<Item = &Ended> {
        self.ended.iter().filter(move |ended| ended.phase == begun.phase && ended.token == begun.token)
    }
}

fn millis(text: &str) -> Duration {
    Duration::from_millis(text.parse().expect("date writes milliseconds"))
}

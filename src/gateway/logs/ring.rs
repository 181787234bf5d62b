//! The last lines of each session, in memory: what there is of logs where the bus keeps no messages.
//!
//! Bounded in lines a session and in bytes overall, the oldest go first; it begins empty with the process.

use std::collections::{HashMap, VecDeque};

use super::Line;
use crate::protocol::SessionId;

/// Lines of one session; as many as one answer may hold.
const LINES_MAX: usize = 1000;

/// Of all lines together.
const BYTES_MAX: usize = 16 << 20;

/// What a line takes beside its texts, about.
const OVERHEAD_BYTES: usize = 160;

/// Lines by session, oldest first.
#[derive(Debug, Default)]
pub struct Ring {
    sessions: HashMap<SessionId, VecDeque<Line>>,
    /// Whose line came when. A line that went earlier than its turn leaves its place here.
    order: VecDeque<(u64, SessionId)>,
    bytes: usize,
}

impl Ring {
    pub fn push(&mut self, session: &SessionId, line: Line) {
        self.bytes += size_bytes(&line);
        self.order.push_back((line.sequence, session.clone()));
        let lines = self.sessions.entry(session.clone()).or_default();
        lines.push_back(line);
        if lines.len() > LINES_MAX
            && let Some(old) = lines.pop_front()
        {
            self.bytes -= size_bytes(&old);
        }
        while self.bytes > BYTES_MAX || self.order.len() > BYTES_MAX / OVERHEAD_BYTES {
            let Some((sequence, session)) = self.order.pop_front() else { break };
            self.forget(sequence, &session);
        }
    }

    fn forget(&mut self, sequence: u64, session: &SessionId) {
        let Some(lines) = self.sessions.get_mut(session) else { return };
        while lines.front().is_some_and(|line| line.sequence <= sequence) {
            let old = lines.pop_front().expect("there is a first one");
            self.bytes -= size_bytes(&old);
        }
        if lines.is_empty() {
            self.sessions.remove(session);
        }
    }

    /// The newest `limit` lines of which this is so, oldest first.
    pub fn newest(&self, session: &SessionId, limit: usize, is_wanted: impl Fn(&Line) -> bool) -> Vec<Line> {
        let lines = self.sessions.get(session).into_iter().flatten().rev().filter(|line| is_wanted(line));
        let mut newest: Vec<Line> = lines.take(limit).cloned().collect();
        newest.reverse();
        newest
    }
}

fn size_bytes(line: &Line) -> usize {
    OVERHEAD_BYTES + line.message.message.len() + line.message.phase.as_ref().map_or(0, |id| id.as_str().len())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::protocol::{LogLevel, LogMessage};

    fn line(sequence: u64, message: String) -> Line {
        let message = LogMessage { phase: None, level: LogLevel::Info, message, timestamp: None };
        Line { sequence, at: Timestamp::UNIX_EPOCH, message }
    }

    fn session(text: &str) -> SessionId {
        SessionId::new(text).unwrap()
    }

    #[test]
    fn a_session_keeps_its_newest_lines() {
        let mut ring = Ring::default();
        for n in 0..3000 {
            ring.push(&session("a"), line(n, n.to_string()));
        }
        let newest = ring.newest(&session("a"), 5000, |_| true);
        assert_eq!(newest.len(), LINES_MAX);
        assert_eq!(newest[0].sequence, 2000);
        assert_eq!(ring.newest(&session("a"), 2, |_| true)[1].sequence, 2999);
        assert!(ring.newest(&session("b"), 2, |_| true).is_empty());
    }

    #[test]
    fn all_together_keep_to_the_bytes_and_the_oldest_go() {
        let mut ring = Ring::default();
        for n in 0..20_000 {
            ring.push(&session(&format!("s{}", n % 100)), line(n, "x".repeat(4000)));
            assert!(ring.bytes <= BYTES_MAX);
        }
        let lines: usize = ring.sessions.values().map(VecDeque::len).sum();
        let bytes: usize = ring.sessions.values().flatten().map(size_bytes).sum();
        assert_eq!(bytes, ring.bytes);
        assert!((3000..5000).contains(&lines), "{lines}");
        assert!(ring.order.len() < 5000);
    }
}

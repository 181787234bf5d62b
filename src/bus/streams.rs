//! The two streams of a prefix (design, section 7): what is reported, and what was said and done.
//!
//! Never acks and requests: a stream answers requests on its subjects itself, and a runtime would take its word for a
//! grant. So the channels are named one by one, and no pattern covers all.

use std::time::Duration;

use super::{Bus, Error, StreamWish};
use crate::protocol::{Channel, Prefix, SessionId};

/// What sessions are restored from after a while without an operator: commands and reports, beside the start of each.
const REPORTS: [Channel; 3] = [Channel::Start, Channel::Control, Channel::State];
/// What people read.
const RECORD: [Channel; 3] = [Channel::Target, Channel::Log, Channel::Events];

/// Longest time for which nobody looks.
const REPORTS_AGE_MAX: Duration = Duration::from_hours(7 * 24);
/// Some 800,000 reports of 300 bytes. A server sets it aside whether it is used or not.
const REPORTS_BYTES_MAX: u64 = 256 << 20;
/// Of one session's reports: a week of heartbeats of a phase that runs all the time.
const REPORTS_PER_SESSION_MAX: u64 = 100_000;

const RECORD_BYTES_MAX: u64 = 128 << 20;
/// Lines of log that a session keeps, and targets, and events: the largest of all three take half of the room at the most,
/// so that no session crowds out all others.
const RECORD_PER_SESSION_MAX: u64 = 2_600;
const RECORD_MESSAGE_BYTES_MAX: usize = 8 << 10;

/// Within it a repeated Msg-Id is kept once; the server's own default.
const DUPLICATE_WINDOW: Duration = Duration::from_mins(2);

/// `start`, `control` and `state` of every session, for a week.
pub fn reports(prefix: &Prefix) -> StreamWish {
    StreamWish {
        description: format!("Starts, commands and reports of the sessions under {prefix}"),
        age_max: Some(REPORTS_AGE_MAX),
        bytes_max: Some(REPORTS_BYTES_MAX),
        messages_per_subject_max: Some(REPORTS_PER_SESSION_MAX),
        message_bytes_max: None,
        ..wish(prefix, "reports", REPORTS)
    }
}

/// `target`, `log` and `events` of every session, the latest of each.
pub fn record(prefix: &Prefix) -> StreamWish {
    StreamWish {
        description: format!("Targets, logs and events of the sessions under {prefix}"),
        age_max: None,
        bytes_max: Some(RECORD_BYTES_MAX),
        messages_per_subject_max: Some(RECORD_PER_SESSION_MAX),
        message_bytes_max: Some(RECORD_MESSAGE_BYTES_MAX),
        ..wish(prefix, "record", RECORD)
    }
}

/// Where both streams end at a moment: each stream there is, and the place behind its newest message.
pub type Ends = Vec<(String, u64)>;

/// Where both streams end now. A stream that is not there has nothing to end.
pub async fn ends(bus: &Bus, prefix: &Prefix) -> Result<Ends, Error> {
    let Some(storage) = bus.storage() else { return Ok(Ends::new()) };
    let mut ends = Ends::new();
    for wish in [reports(prefix), record(prefix)] {
        match storage.facts(&wish.name).await {
            Ok(facts) => ends.push((wish.name, facts.last + 1)),
            Err(Error::NoStream { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ends)
}

/// Removes what the streams have of the session before these ends. What came later under the same id stays.
pub async fn purge(bus: &Bus, prefix: &Prefix, session: &SessionId, ends: &Ends) -> Result<(), Error> {
    let Some(storage) = bus.storage() else { return Ok(()) };
    for (stream, before) in ends {
        match storage.purge(stream, &prefix.session_pattern(session), *before).await {
            Ok(()) | Err(Error::NoStream { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wish(prefix: &Prefix, kind: &str, channels: [Channel; 3]) -> StreamWish {
    StreamWish {
        name: format!("{}_{kind}", prefix.as_str().replace('.', "_")),
        owner: prefix.to_string(),
        description: String::new(),
        subjects: channels.map(|channel| prefix.pattern(channel)).to_vec(),
        age_max: None,
        bytes_max: None,
        messages_per_subject_max: None,
        message_bytes_max: None,
        duplicate_window: DUPLICATE_WINDOW,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_stream_hears_what_is_answered() {
        let prefix = Prefix::default();
        let kept: Vec<String> =
            [reports(&prefix), record(&prefix)].into_iter().flat_map(|wish| wish.subjects).collect();
        for channel in [Channel::Ack, Channel::GetState, Channel::Diff] {
            assert!(!kept.contains(&prefix.pattern(channel)), "{channel}");
        }
        assert_eq!(kept.len(), 6);
    }

    #[test]
    fn what_one_session_says_takes_half_of_the_record_at_the_most() {
        let wish = record(&Prefix::default());
        // Subject, headers of the store and checksum of each.
        let largest = wish.message_bytes_max.unwrap() as u64 + 400;
        let all = wish.subjects.len() as u64 * wish.messages_per_subject_max.unwrap() * largest;
        assert!(2 * all <= wish.bytes_max.unwrap(), "{all}");
    }

    #[test]
    fn names_hold_no_dots() {
        assert_eq!(reports(&Prefix::default()).name, "plan_session_reports");
        assert_eq!(record(&Prefix::new("team-a.plan").unwrap()).name, "team-a_plan_record");
    }
}

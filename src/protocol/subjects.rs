//! Subjects: `<prefix>.<session>.<channel>`, and the only code that puts one together or takes one apart.
//!
//! NATS clients check no tokens: a session id of `*` would read every session's messages, and `a.b` would move the
//! channel. So the types here are made by checking constructors only, and nothing else may format a subject.

use std::{borrow::Borrow, fmt, sync::Arc};

use sha2::{Digest as _, Sha256};

/// Longest session id in bytes.
pub const SESSION_ID_BYTES_MAX: usize = 128;

/// The session of probes, with which subscriptions are proved: it runs nothing and is claimed by nobody.
const PROBE_SESSION: &str = "_pmp_probe";

/// Longest prefix in bytes; with the longest session and channel a subject stays below 400.
const PREFIX_BYTES_MAX: usize = 256;

/// Names a session on the bus: 1 to 128 of `A-Z a-z 0-9 _ -`, so always exactly one subject token.
///
/// Cloning is a reference count.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(Arc<str>);

/// Why a text is no session id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionIdError {
    #[error("the session id is empty")]
    Empty,
    #[error("the session id is longer than 128 bytes")]
    TooLong,
    #[error("the session id holds a character other than A-Z, a-z, 0-9, _ and -")]
    Character,
}

impl SessionId {
    /// Checks length and characters.
    pub fn new(text: &str) -> Result<Self, SessionIdError> {
        if text.is_empty() {
            return Err(SessionIdError::Empty);
        }
        if text.len() > SESSION_ID_BYTES_MAX {
            return Err(SessionIdError::TooLong);
        }
        if !text.bytes().all(is_token_byte) {
            return Err(SessionIdError::Character);
        }
        Ok(Self(text.into()))
    }

    /// The id of a resource that names none: `<namespace>_<name>`, dots as underscores.
    ///
    /// Kubernetes names hold no underscore, so the first one parts namespace from name and the rest were dots: two
    /// resources never share a plain default. Where that would be too long or ambiguous (names from elsewhere, such as
    /// files), the id ends in 64 bits of a hash over both names.
    pub fn default_for(namespace: &str, name: &str) -> Self {
        let plain = namespace.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
            && !namespace.is_empty()
            && !name.is_empty();
        let text: String = format!("{namespace}_{name}")
            .chars()
            .map(|c| if u8::try_from(c).is_ok_and(is_token_byte) { c } else { '_' })
            .collect();
        if plain && text.len() <= SESSION_ID_BYTES_MAX {
            return Self(text.into());
        }
        let hash = hash_of_names(namespace, name);
        let head = &text[..text.len().min(SESSION_ID_BYTES_MAX - hash.len() - 1)];
        Self(format!("{head}-{hash}").into())
    }

    /// Whether this may be [`Self::default_for`] these names: right whenever it is no, and without making a text, for
    /// whoever looks for one among ten thousand resources.
    pub fn may_be_default_for(&self, namespace: &str, name: &str) -> bool {
        if !namespace.is_ascii() || !name.is_ascii() {
            return true;
        }
        let whole = namespace.bytes().chain([b'_']).chain(name.bytes());
        let whole = whole.map(|byte| if is_token_byte(byte) { byte } else { b'_' });
        // A hash may follow, and the head before it is cut for it.
        let head = (namespace.len() + 1 + name.len()).min(SESSION_ID_BYTES_MAX - HASH_BYTES - 1);
        self.0.len() >= head && self.0.bytes().zip(whole).take(head).all(|(own, theirs)| own == theirs)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Of a hash over names, in hexadecimal.
const HASH_BYTES: usize = 16;

fn hash_of_names(namespace: &str, name: &str) -> String {
    let mut hash = Sha256::new();
    for part in [namespace, name] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let first = hash.finalize()[..8].iter().fold(0, |bits: u64, &byte| bits << 8 | u64::from(byte));
    format!("{first:016x}")
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Borrow<str> for SessionId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The last token of a subject (protocol, "Subject Schema").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Channel {
    Start,
    Control,
    Log,
    Events,
    State,
    GetState,
    Diff,
    Target,
    Ack,
}

impl Channel {
    pub const ALL: [Self; 9] = [
        Self::Start,
        Self::Control,
        Self::Log,
        Self::Events,
        Self::State,
        Self::GetState,
        Self::Diff,
        Self::Target,
        Self::Ack,
    ];

    /// The token on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Control => "control",
            Self::Log => "log",
            Self::Events => "events",
            Self::State => "state",
            Self::GetState => "get_state",
            Self::Diff => "diff",
            Self::Target => "target",
            Self::Ack => "ack",
        }
    }

    fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|channel| channel.as_str() == token)
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What stands before the session id in every subject of a connection; `plan.session` unless configured otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prefix(Arc<str>);

/// Why a text is no prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    #[error("the prefix is longer than 256 bytes")]
    TooLong,
    #[error("the prefix has an empty token: write tokens joined by single dots, such as plan.session")]
    EmptyToken,
    #[error("the prefix holds a character other than A-Z, a-z, 0-9, _, - and the dots between tokens")]
    Character,
    #[error("the prefix begins with _INBOX, which NATS clients keep for replies")]
    Reserved,
}

impl Default for Prefix {
    fn default() -> Self {
        Self("plan.session".into())
    }
}

impl Prefix {
    /// One or more tokens joined by dots, without wildcards.
    pub fn new(text: &str) -> Result<Self, PrefixError> {
        if text.len() > PREFIX_BYTES_MAX {
            return Err(PrefixError::TooLong);
        }
        for token in text.split('.') {
            if token.is_empty() {
                return Err(PrefixError::EmptyToken);
            }
            if !token.bytes().all(is_token_byte) {
                return Err(PrefixError::Character);
            }
        }
        if text.starts_with("_INBOX") {
            return Err(PrefixError::Reserved);
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where a message of this session and channel is published.
    pub fn subject(&self, session: &SessionId, channel: Channel) -> String {
        format!("{}.{session}.{channel}", self.0)
    }

    /// One channel of every session: `plan.session.*.ack`.
    pub fn pattern(&self, channel: Channel) -> String {
        format!("{}.*.{channel}", self.0)
    }

    /// Every channel of one session: `plan.session.<id>.*`.
    pub fn session_pattern(&self, session: &SessionId) -> String {
        format!("{}.{session}.*", self.0)
    }

    /// Where a subscription to [`Self::pattern`] is proved. Users of the bus need leave to publish there.
    pub fn probe_subject(&self, channel: Channel) -> String {
        format!("{}.{PROBE_SESSION}.{channel}", self.0)
    }

    /// Takes a subject apart; `None` for what is not ours or has no legal session id.
    pub fn parse(&self, subject: &str) -> Option<(SessionId, Channel)> {
        let rest = subject.strip_prefix(&*self.0)?.strip_prefix('.')?;
        let (session, channel) = rest.split_once('.')?;
        Some((SessionId::new(session).ok()?, Channel::from_token(channel)?))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn session(text: &str) -> SessionId {
        SessionId::new(text).unwrap()
    }

    #[test]
    fn subjects_are_the_ones_that_the_protocol_lists() {
        let prefix = Prefix::default();
        let subjects: Vec<_> = Channel::ALL.iter().map(|&channel| prefix.subject(&session("s1"), channel)).collect();
        assert_eq!(
            subjects,
            [
                "plan.session.s1.start",
                "plan.session.s1.control",
                "plan.session.s1.log",
                "plan.session.s1.events",
                "plan.session.s1.state",
                "plan.session.s1.get_state",
                "plan.session.s1.diff",
                "plan.session.s1.target",
                "plan.session.s1.ack",
            ]
        );
    }

    #[test]
    fn patterns_cover_one_channel_or_one_session() {
        let prefix = Prefix::new("tenant-a.pmp").unwrap();
        assert_eq!(prefix.pattern(Channel::Ack), "tenant-a.pmp.*.ack");
        assert_eq!(prefix.session_pattern(&session("s1")), "tenant-a.pmp.s1.*");
    }

    #[test]
    fn a_subject_that_is_not_ours_is_no_subject() {
        let prefix = Prefix::default();
        for subject in [
            "",
            "plan.session",
            "plan.session.",
            "plan.session.s1",
            "plan.session.s1.",
            "plan.session..ack",
            "plan.session.s1.nothing",
            "plan.session.s1.ack.more",
            "plan.session.*.ack",
            "plan.sessions.s1.ack",
            "plan.sessionx.s1.ack",
            "other.session.s1.ack",
        ] {
            assert_eq!(prefix.parse(subject), None, "{subject}");
        }
    }

    #[test]
    fn a_session_id_never_holds_a_wildcard_a_dot_or_a_space() {
        for text in ["*", ">", "a.b", "a b", "a\n", "é", "a/b"] {
            assert_eq!(SessionId::new(text), Err(SessionIdError::Character), "{text}");
        }
        assert_eq!(SessionId::new(""), Err(SessionIdError::Empty));
        assert_eq!(SessionId::new(&"a".repeat(129)), Err(SessionIdError::TooLong));
        assert!(SessionId::new(&"a".repeat(128)).is_ok());
    }

    #[test]
    fn the_default_id_is_namespace_and_name_with_dots_as_underscores() {
        assert_eq!(SessionId::default_for("prod", "deploy").as_str(), "prod_deploy");
        assert_eq!(SessionId::default_for("prod", "deploy.v1.2").as_str(), "prod_deploy_v1_2");
    }

    #[test]
    fn a_default_that_is_long_or_ambiguous_ends_in_a_hash() {
        let long = SessionId::default_for("prod", &"x".repeat(253));
        assert_eq!(long.as_str().len(), SESSION_ID_BYTES_MAX);
        assert_ne!(long, SessionId::default_for("prod", &"x".repeat(252)));

        let dotted = SessionId::default_for("a", "b.c");
        let scored = SessionId::default_for("a", "b_c");
        let shifted = SessionId::default_for("a_b", "c");
        assert_eq!(dotted.as_str(), "a_b_c");
        assert!(scored.as_str().starts_with("a_b_c-"), "{scored}");
        assert!(shifted.as_str().starts_with("a_b_c-"), "{shifted}");
        assert_ne!(scored, shifted);
    }

    #[test]
    fn a_prefix_is_whole_tokens() {
        assert_eq!(Prefix::new(""), Err(PrefixError::EmptyToken));
        assert_eq!(Prefix::new("plan..session"), Err(PrefixError::EmptyToken));
        assert_eq!(Prefix::new("plan.session."), Err(PrefixError::EmptyToken));
        assert_eq!(Prefix::new("plan.*"), Err(PrefixError::Character));
        assert_eq!(Prefix::new("$JS.API"), Err(PrefixError::Character));
        assert_eq!(Prefix::new("_INBOX.x"), Err(PrefixError::Reserved));
        assert_eq!(Prefix::new(&"a".repeat(257)), Err(PrefixError::TooLong));
    }

    #[test]
    fn another_names_default_is_told_apart_without_making_it() {
        let id = SessionId::default_for("prod", "deploy.v1");
        assert!(!id.may_be_default_for("prod", "deploy.v2"));
        assert!(!id.may_be_default_for("prod", "deploy.v1x"));
        assert!(!id.may_be_default_for("test", "deploy.v1"));
    }

    proptest! {
        #[test]
        fn a_default_may_be_that_of_its_own_names(namespace in "[a-zé-]{0,140}", name in "[a-z._-]{0,140}") {
            prop_assert!(SessionId::default_for(&namespace, &name).may_be_default_for(&namespace, &name));
        }

        #[test]
        fn what_is_put_together_comes_apart_the_same(id in "[A-Za-z0-9_-]{1,128}", channel in 0..Channel::ALL.len()) {
            let prefix = Prefix::default();
            let (id, channel) = (session(&id), Channel::ALL[channel]);
            prop_assert_eq!(prefix.parse(&prefix.subject(&id, channel)), Some((id, channel)));
        }

        #[test]
        fn every_default_is_a_legal_id(namespace in ".{0,80}", name in ".{0,300}") {
            let id = SessionId::default_for(&namespace, &name);
            prop_assert!(SessionId::new(id.as_str()).is_ok(), "{}", id);
        }

        #[test]
        fn no_subject_makes_parse_panic(subject in ".{0,200}") {
            let _ = Prefix::default().parse(&subject);
        }
    }
}

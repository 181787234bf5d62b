//! What is wrong with a document: one [`Problem`] a mistake, all of them at once.

use std::{fmt, ops::Range};

/// One mistake: where it is, what it is, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub reason: Reason,
    /// JSON Pointer (RFC 6901) into the document as written, e.g. `/3/spec/waitFor/phases/0`; of a whole
    /// PhaseManifest resource, `/spec/phases/3/...`.
    pub pointer: String,
    /// Lower case, no full stop, names the offending value.
    pub message: String,
    /// What to do, where there is something to say.
    pub hint: Option<String>,
    /// Where in the text, when the document came as text.
    pub place: Option<Place>,
}

/// A place in a source text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    /// Byte offsets.
    pub span: Range<usize>,
}

/// The stable word for a kind of mistake; part of the API (conditions, problem+json, metrics). Text may change, these do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Not JSON or YAML at all, or not UTF-8.
    Syntax,
    /// Neither a manifest nor a PhaseManifest resource.
    NotAManifest,
    /// Past a limit on size, count or nesting.
    TooLarge,
    /// One field in two spellings.
    DuplicateField,
    UnknownField,
    MissingField,
    WrongType,
    BadValue,
    /// `kind` other than Phase.
    WrongKind,
    BadId,
    DuplicateId,
    UnknownDependency,
    SelfDependency,
    Cycle,
    BadDuration,
    BadLabel,
    OutOfRange,
}

impl Reason {
    /// One PascalCase word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "Syntax",
            Self::NotAManifest => "NotAManifest",
            Self::TooLarge => "TooLarge",
            Self::DuplicateField => "DuplicateField",
            Self::UnknownField => "UnknownField",
            Self::MissingField => "MissingField",
            Self::WrongType => "WrongType",
            Self::BadValue => "BadValue",
            Self::WrongKind => "WrongKind",
            Self::BadId => "BadId",
            Self::DuplicateId => "DuplicateId",
            Self::UnknownDependency => "UnknownDependency",
            Self::SelfDependency => "SelfDependency",
            Self::Cycle => "Cycle",
            Self::BadDuration => "BadDuration",
            Self::BadLabel => "BadLabel",
            Self::OutOfRange => "OutOfRange",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "line {}: ", place.line)?;
        }
        write!(f, "{}: {}", if self.pointer.is_empty() { "/" } else { &self.pointer }, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

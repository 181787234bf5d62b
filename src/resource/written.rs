//! How times and numbers are written in the resource. Nothing here decides anything.

use std::{fmt, str::FromStr, time::Duration};

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point in time, written as RFC 3339 in UTC with milliseconds; what is finer is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(Timestamp);

impl Moment {
    pub fn get(self) -> Timestamp {
        self.0
    }
}

impl From<Timestamp> for Moment {
    /// Cuts at the millisecond, towards the past: a stored due time is never later than the one that was meant.
    fn from(at: Timestamp) -> Self {
        let cut = TimestampRound::new().smallest(Unit::Millisecond).mode(RoundMode::Floor);
        Self(at.round(cut).unwrap_or(at))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Timestamp::deserialize(deserializer).map(Self::from)
    }
}

impl JsonSchema for Moment {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Moment".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // The pattern is narrower than the format: whatever the API server lets in, we can read.
        json_schema!({
            "type": "string",
            "format": "date-time",
            "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,9})?Z$",
        })
    }
}

/// A length of time in status: `90s`, or `1500ms` where it is no whole number of seconds. Finer than that is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(Duration);

impl Span {
    pub fn get(self) -> Duration {
        self.0
    }
}

impl From<Duration> for Span {
    fn from(length: Duration) -> Self {
        Self(Duration::new(length.as_secs(), length.subsec_millis() * 1_000_000))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.subsec_millis() {
            0 => write!(f, "{}s", self.0.as_secs()),
            _ => write!(f, "{}ms", self.0.as_millis()),
        }
    }
}

/// The text is not a number followed by `s` or `ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a length of time such as 90s or 1500ms")]
pub struct SpanError;

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let (digits, whole) = match text.strip_suffix("ms") {
            Some(digits) => (digits, Duration::from_millis as fn(u64) -> Duration),
            None => (text.strip_suffix('s').ok_or(SpanError)?, Duration::from_secs as fn(u64) -> Duration),
        };
        digits.parse().map(|count| Self(whole(count))).map_err(|_| SpanError)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // 18 digits of seconds or milliseconds always fit.
        json_schema!({"type": "string", "pattern": "^[0-9]{1,18}m?s$"})
    }
}

/// A number or duration as people write it in `spec`: `5`, `"5"`, `30s`. Checked by [`super::Orders`], not here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Number {
    Int(i64),
    Text(String),
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

impl From<&str> for Number {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// The schema of a duration outside `spec.phases`: seconds as a number, or number and unit. Empty is off.
///
/// 366 days is the longest that `manifest` takes; the text is bounded so that its check is.
pub(super) fn duration_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "nullable": true,
        "pattern": "^([0-9]+(\\.[0-9]+)?|([0-9]+(\\.[0-9]+)?(ms|s|m|h))+)?$",
        "maxLength": 32,
        "minimum": 0,
        "maximum": 31_622_400,
    })
}

/// The schema of `backoff.factor`: no floats, because JSON, YAML and etcd disagree on how to write one back.
pub(super) fn factor_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "nullable": true,
        "pattern": "^([0-9]{1,3}(\\.[0-9]{1,6})?)?$",
        "maxLength": 10,
        "minimum": 1,
        "maximum": 100,
    })
}

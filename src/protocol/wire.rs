//! Bounds of what comes in, and how single fields are spelled in JSON.
//!
//! Names (ids, tokens, runtimes) past their bound make a message malformed, because a cut name is another name. Texts for
//! people are cut instead: losing a `failed` because its message is long would be worse.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de::DeserializeOwned, de::Error as _};

use crate::{engine::AttemptToken, manifest::PhaseId};

/// Largest body that is read: NATS's own default for `max_payload`.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// Longest token or runtime name in bytes.
pub const NAME_BYTES_MAX: usize = 253;

/// What is kept of a message, a reason or a progress, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;

/// Longest explanation of a malformed message, in characters: the peer's own words are in it.
const DETAIL_CHARS_MAX: usize = 200;

/// Why a body is not the message it should be. The sender is at fault; the message is counted and dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("the body has {size_bytes} bytes; at most 1048576 are read")]
    TooLarge { size_bytes: usize },
    #[error("the body is not the JSON that this subject takes: {detail}")]
    Malformed { detail: String },
}

impl MessageError {
    /// The word that metrics count under.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "TooLarge",
            Self::Malformed { .. } => "Malformed",
        }
    }

    fn malformed(source: &serde_json::Error) -> Self {
        let detail = source.to_string();
        let printable = detail.chars().map(|c| if c.is_control() { ' ' } else { c });
        Self::Malformed { detail: printable.take(DETAIL_CHARS_MAX).collect() }
    }
}

/// Reads one message. Size is bounded here; the nesting of what is kept by `serde_json` (128), which skips the rest without recursion.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, MessageError> {
    if body.len() > BODY_BYTES_MAX {
        return Err(MessageError::TooLarge { size_bytes: body.len() });
    }
    serde_json::from_slice(body).map_err(|error| MessageError::malformed(&error))
}

/// `text` up to [`TEXT_BYTES_MAX`], cut at a character.
fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

fn check_name<E: serde::de::Error>(text: &str) -> Result<(), E> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(E::custom("a name is 1 to 253 bytes without control characters"));
    }
    Ok(())
}

pub(super) mod phase_id {
    use super::{Deserialize, Deserializer, PhaseId, Serializer};

    pub fn serialize<S: Serializer>(id: &PhaseId, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(id.as_str())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PhaseId, D::Error> {
        PhaseId::new(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

pub(super) mod phase_id_option {
    use super::{Deserialize, Deserializer, PhaseId, Serializer};

    #[allow(clippy::ref_option, reason = "serde passes fields by reference")]
    pub fn serialize<S: Serializer>(id: &Option<PhaseId>, to: S) -> Result<S::Ok, S::Error> {
        match id {
            Some(id) => to.serialize_str(id.as_str()),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PhaseId>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| PhaseId::new(&text).map_err(serde::de::Error::custom)).transpose()
    }
}

pub(super) mod phase_ids {
    use serde::ser::SerializeSeq;

    use super::{Deserialize, Deserializer, PhaseId, Serializer};

    pub fn serialize<S: Serializer>(ids: &[PhaseId], to: S) -> Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(Some(ids.len()))?;
        for id in ids {
            list.serialize_element(id.as_str())?;
        }
        list.end()
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PhaseId>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| PhaseId::new(text).map_err(serde::de::Error::custom)).collect()
    }
}

pub(super) mod token_option {
    use super::{AttemptToken, Deserializer, Serializer, name_option};

    #[allow(clippy::ref_option, reason = "serde passes fields by reference")]
    pub fn serialize<S: Serializer>(token: &Option<AttemptToken>, to: S) -> Result<S::Ok, S::Error> {
        match token {
            Some(token) => to.serialize_str(token.as_str()),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<AttemptToken>, D::Error> {
        Ok(name_option(from)?.map(|text| AttemptToken::received(&text)))
    }
}

/// A name, or nothing.
pub(super) fn name_option<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    if let Some(text) = &text {
        check_name(text)?;
    }
    Ok(text)
}

/// A name that must be there.
pub(super) fn name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    check_name(&text)?;
    Ok(text)
}

/// A text for people, cut to its bound.
pub(super) fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(cut(String::deserialize(from)?))
}

/// A text for people, or nothing. Numbers and booleans are taken as they read: progress is often `0.5`.
pub(super) fn text_option<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    match Option::<serde_json::Value>::deserialize(from)? {
        None => Ok(None),
        Some(serde_json::Value::String(text)) => Ok(Some(cut(text))),
        Some(value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_))) => Ok(Some(value.to_string())),
        Some(_) => Err(D::Error::custom("a text is wanted, or a number")),
    }
}

/// A time that nothing rests on: what cannot be read is no reason to lose the report around it.
pub(super) fn lenient_time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<jiff::Timestamp>, D::Error> {
    let value = Option::<serde_json::Value>::deserialize(from)?;
    Ok(value.as_ref().and_then(serde_json::Value::as_str).and_then(|text| text.parse().ok()))
}

pub(super) mod duration_option {
    use super::{Deserialize, Deserializer, Duration, Serializer};
    use crate::manifest::{DURATION_MAX, format_duration, parse_duration};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Spelling {
        Seconds(f64),
        Text(String),
    }

    #[allow(clippy::ref_option, reason = "serde passes fields by reference")]
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => to.serialize_str(&format_duration(*duration)),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        let duration = match Option::<Spelling>::deserialize(from)? {
            None => return Ok(None),
            Some(Spelling::Seconds(seconds)) => Duration::try_from_secs_f64(seconds).ok(),
            Some(Spelling::Text(text)) => parse_duration(&text).ok(),
        };
        match duration {
            Some(duration) if duration <= DURATION_MAX => Ok(Some(duration)),
            _ => Err(serde::de::Error::custom("a duration such as 300ms, 30s, 5m, 1h, or a number of seconds")),
        }
    }
}

//! What the client asks for beside the manifest itself: parameters of the query, and the Idempotency-Key.

use axum::http::{HeaderMap, request::Parts};

use super::once::Key;
use crate::{
    gateway::{
        fault::Fault,
        query::{Query, bad},
    },
    manifest::OtherKinds,
    protocol::SessionId,
};

/// Longest Idempotency-Key, in bytes.
const KEY_BYTES_MAX: usize = 255;

/// How a manifest is to be taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    pub session: Option<SessionId>,
    pub namespace: Option<String>,
    pub mode: Mode,
    pub others: OtherKinds,
    pub on_conflict: OnConflict,
    pub key: Option<Key>,
}

/// What becomes of a plan once it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Run,
    /// Nothing of it runs before POST /apply.
    Stage,
    /// Nothing of it runs; the verdict is Planned.
    DryRun,
}

/// Where the session already executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnConflict {
    /// 409.
    Refuse,
    /// With the same plan that is no mistake.
    Attach,
    /// The plan becomes the session's next revision.
    Replace,
}

impl Wish {
    /// The names of the parameters, as POST /plan takes them.
    pub const PARAMETERS: [&str; 6] = ["session", "namespace", "dryRun", "stage", "ignoreOther", "onConflict"];

    pub fn read(parts: &Parts) -> Result<Self, Fault> {
        let query = Query::of(parts.uri.query(), &Self::PARAMETERS)?;
        let mode = match (query.flag("stage")?, query.flag("dryRun")?) {
            (true, true) => return Err(bad("stage", "stage and dryRun exclude each other".to_owned())),
            (true, false) => Mode::Stage,
            (false, true) => Mode::DryRun,
            (false, false) => Mode::Run,
        };
        let on_conflict = match query.text("onConflict")? {
            None => OnConflict::Refuse,
            Some("attach") => OnConflict::Attach,
            Some("replace") => OnConflict::Replace,
            Some(_) => return Err(bad("onConflict", "onConflict is attach or replace".to_owned())),
        };
        Ok(Self {
            session: query.session()?,
            namespace: query.namespace()?.map(str::to_owned),
            mode,
            others: if query.flag("ignoreOther")? { OtherKinds::Ignore } else { OtherKinds::Refuse },
            on_conflict,
            key: idempotency_key(&parts.headers)?.map(|key| Key::of(&key)),
        })
    }
}

/// The header of that name, if there is one: 1 to 255 printable ASCII characters, with or without quotes around them.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Fault> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let is_legal = (1..=KEY_BYTES_MAX).contains(&bare.len()) && bare.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if !is_legal || values.next().is_some() {
        let detail = format!("an Idempotency-Key is one header of 1 to {KEY_BYTES_MAX} printable ASCII characters");
        return Err(Fault::bad_request("BadIdempotencyKey", detail));
    }
    Ok(Some(bare.to_owned()))
}

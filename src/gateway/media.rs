//! Content types: what a body may be, and which of several forms of an answer a client prefers (RFC 9110, 12.5.1).
//!
//! PURE. The protocol's own type has one optional parameter, `version`; we speak major 1 of it.

use axum::http::{HeaderMap, StatusCode, header};

use super::fault::Fault;
use crate::manifest::Format;

/// The protocol's media type, as answers carry it.
pub const MANIFEST: &str = "application/vnd.phase-manifest+json; version=1.0.0";
pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const EVENTS: &str = "text/event-stream";
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Ranges of one Accept header that are looked at; a browser sends eight.
const RANGES_MAX: usize = 64;

/// How the manifest in a body is written, by its Content-Type.
pub fn manifest_format(headers: &HeaderMap) -> Result<Format, Fault> {
    let media = content_type(headers)?;
    let format = match media.essence.as_str() {
        "application/vnd.phase-manifest+json" | "application/json" => Format::Json,
        "application/yaml" | "application/x-yaml" | "text/yaml" | "text/x-yaml" => Format::Yaml,
        other => return Err(unsupported(format!("a body of type {other} is not taken"))),
    };
    if media.essence == "application/vnd.phase-manifest+json"
        && let Some(version) = media.parameter("version")
        && version.split('.').next() != Some("1")
    {
        return Err(unsupported(format!("version {version} of the protocol is not spoken here: use version=1.0.0")));
    }
    Ok(format)
}

/// Refuses a body that is not JSON.
pub fn require_json(headers: &HeaderMap) -> Result<(), Fault> {
    let media = content_type(headers)?;
    match media.essence.as_str() {
        "application/json" => Ok(()),
        other => Err(unsupported(format!("a body of type {other} is not taken: use application/json"))),
    }
}

fn content_type(headers: &HeaderMap) -> Result<Media, Fault> {
    if let Some(coding) = headers.get(header::CONTENT_ENCODING)
        && !coding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(unsupported("a compressed body is not taken: send it as it is".to_owned()));
    }
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let Some(value) = values.next() else {
        return Err(unsupported("the body has no Content-Type".to_owned()));
    };
    let media = value.to_str().ok().and_then(Media::parse);
    let Some(media) = media.filter(|_| values.next().is_none()) else {
        return Err(unsupported("the Content-Type cannot be read".to_owned()));
    };
    match media.parameter("charset") {
        Some(charset) if !charset.eq_ignore_ascii_case("utf-8") => {
            Err(unsupported(format!("the charset {charset} is not taken: send UTF-8")))
        }
        _ => Ok(media),
    }
}

fn unsupported(detail: String) -> Fault {
    const TAKEN: &str = "application/vnd.phase-manifest+json, application/json, application/yaml";
    Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", detail)
        .header(header::ACCEPT, header::HeaderValue::from_static(TAKEN))
}

/// The one of `offered` that the client likes best; among equals the first. 406 where it takes none.
pub fn preferred(headers: &HeaderMap, offered: &[&'static str]) -> Result<&'static str, Fault> {
    let ranges = accepted(headers);
    if ranges.is_empty() {
        return Ok(offered[0]);
    }
    let best = offered.iter().map(|&offer| (quality(&ranges, offer), offer));
    // The first of the best, where max_by would take the last.
    let best = best.fold((0, ""), |best, next| if next.0 > best.0 { next } else { best });
    if best.0 > 0 {
        return Ok(best.1);
    }
    let detail = format!("none of what Accept names is offered here: {}", offered.join(", "));
    Err(Fault::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", detail))
}

/// Per mille of what the most specific range gives it.
fn quality(ranges: &[(Media, u16)], offer: &str) -> u16 {
    let Some(offer) = Media::parse(offer) else { return 0 };
    let specificity = |range: &Media| match range.essence.as_str() {
        "*/*" => Some(0),
        essence if essence == offer.essence => match (range.parameter("version"), offer.parameter("version")) {
            (Some(wanted), Some(have)) => (wanted.split('.').next() == have.split('.').next()).then_some(3),
            (Some(_), None) => None,
            (None, _) => Some(2),
        },
        essence => {
            let kind = essence.strip_suffix("/*")?;
            offer.essence.strip_prefix(kind)?.starts_with('/').then_some(1)
        }
    };
    let fitting = ranges.iter().filter_map(|(range, quality)| Some((specificity(range)?, *quality)));
    fitting.max().map_or(0, |(_, quality)| quality)
}

fn accepted(headers: &HeaderMap) -> Vec<(Media, u16)> {
    let lists = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges = lists.flat_map(|list| list.split(',')).take(RANGES_MAX).filter_map(|range| {
        let media = Media::parse(range)?;
        let quality = media.parameter("q").map_or(Some(1.0), |q| q.parse::<f32>().ok())?;
        // Within bounds by the clamp.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=1000")]
        let quality = (quality.clamp(0.0, 1.0) * 1000.0) as u16;
        Some((media, quality))
    });
    ranges.collect()
}

/// `type/subtype; name=value`, in lower case but for the values.
#[derive(Debug, PartialEq, Eq)]
struct Media {
    essence: String,
    parameters: Vec<(String, String)>,
}

impl Media {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let essence = parts.next()?.to_ascii_lowercase();
        let is_token = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+*".contains(&b))
        };
        let (kind, subtype) = essence.split_once('/')?;
        if !is_token(kind) || !is_token(subtype) {
            return None;
        }
        let parameters = parts
            .filter(|part| !part.is_empty())
            .map(|part| {
                let (name, value) = part.split_once('=')?;
                Some((name.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_owned()))
            })
            .collect::<Option<_>>()?;
        Some(Self { essence, parameters })
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    fn format(value: &str) -> Result<Format, u16> {
        manifest_format(&headers(header::CONTENT_TYPE, value)).map_err(|fault| fault.status().as_u16())
    }

    fn choice(accept: &str) -> Result<&'static str, u16> {
        let offered = [MANIFEST, JSON];
        preferred(&headers(header::ACCEPT, accept), &offered).map_err(|fault| fault.status().as_u16())
    }

    #[test]
    fn json_yaml_and_the_protocol_s_own_type_are_taken() {
        assert_eq!(format("application/vnd.phase-manifest+json"), Ok(Format::Json));
        assert_eq!(format("Application/JSON; charset=UTF-8"), Ok(Format::Json));
        assert_eq!(format("application/yaml"), Ok(Format::Yaml));
        assert_eq!(format("text/plain"), Err(415));
        assert_eq!(format("application/json; charset=latin1"), Err(415));
        assert_eq!(format("nonsense"), Err(415));
        assert!(manifest_format(&HeaderMap::new()).is_err());
    }

    #[test]
    fn another_major_version_of_the_protocol_is_refused() {
        assert_eq!(format("application/vnd.phase-manifest+json; version=1.7.2"), Ok(Format::Json));
        assert_eq!(format("application/vnd.phase-manifest+json; version=\"1\""), Ok(Format::Json));
        assert_eq!(format("application/vnd.phase-manifest+json; version=2.0.0"), Err(415));
        assert_eq!(format("application/vnd.phase-manifest+json; version=10"), Err(415));
    }

    #[test]
    fn the_client_s_preference_decides_and_refusal_is_heard() {
        assert_eq!(choice("*/*"), Ok(MANIFEST));
        assert_eq!(choice("application/json"), Ok(JSON));
        assert_eq!(choice("application/*;q=0.2, application/json;q=0.9"), Ok(JSON));
        assert_eq!(choice("application/vnd.phase-manifest+json;q=0, */*"), Ok(JSON));
        assert_eq!(choice("application/vnd.phase-manifest+json; version=1"), Ok(MANIFEST));
        assert_eq!(choice("application/vnd.phase-manifest+json; version=2"), Err(406));
        assert_eq!(choice("text/html"), Err(406));
        assert_eq!(preferred(&HeaderMap::new(), &[JSON]).unwrap(), JSON);
    }
}

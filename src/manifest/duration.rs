//! Durations as people write them: `300ms`, `30s`, `1h30m`, `1.5s`, `90`.
//!
//! Whole milliseconds from 0 to 366 days, so that every duration has exactly one canonical spelling and sums of
//! them cannot overflow. Nothing is rounded: what cannot be held exactly is refused.

use std::time::Duration;

/// The longest duration: a leap year.
pub const DURATION_MAX: Duration = Duration::from_hours(366 * 24);

/// Longest text worth reading; the longest canonical one has 17 bytes.
const TEXT_BYTES_MAX: usize = 64;

/// Why a text is no duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    #[error("is no duration")]
    Malformed,
    #[error("is negative")]
    Negative,
    #[error("has a unit other than ms, s, m and h")]
    UnknownUnit,
    #[error("is finer than a millisecond")]
    TooFine,
    #[error("is longer than 366 days")]
    TooLong,
}

/// Reads a duration: numbers with the units `h`, `m`, `s`, `ms`, added up; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let text = text.trim();
    if text.starts_with('-') {
        return Err(DurationError::Negative);
    }
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        return Err(DurationError::Malformed);
    }
    let mut total_ms: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let whole = leading(rest, |b| b.is_ascii_digit());
        rest = &rest[whole.len()..];
        let fraction = match rest.strip_prefix('.') {
            Some(after) => {
                let digits = leading(after, |b| b.is_ascii_digit());
                if digits.is_empty() {
                    return Err(DurationError::Malformed);
                }
                rest = &after[digits.len()..];
                digits
            }
            None => "",
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(DurationError::Malformed);
        }
        let unit = leading(rest, |b| b.is_ascii_alphabetic());
        let bare = unit.is_empty() && rest.is_empty() && text.len() == dotted_len(whole, fraction);
        rest = &rest[unit.len()..];
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "" if bare => 1_000,
            "" => return Err(DurationError::Malformed),
            _ => return Err(DurationError::UnknownUnit),
        };
        total_ms = total_ms.checked_add(part_ms(whole, fraction, unit_ms)?).ok_or(DurationError::TooLong)?;
    }
    let total = Duration::from_millis(total_ms);
    if total > DURATION_MAX { Err(DurationError::TooLong) } else { Ok(total) }
}

/// The one spelling of a duration: `1h30m`, `1s500ms`, `0s`. What is finer than a millisecond is left out.
pub fn format_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms == 0 {
        return "0s".to_owned();
    }
    let parts = [(ms / 3_600_000, "h"), (ms / 60_000 % 60, "m"), (ms / 1_000 % 60, "s"), (ms % 1_000, "ms")];
    parts.into_iter().filter(|(count, _)| *count > 0).fold(String::new(), |mut text, (count, unit)| {
        text.push_str(&count.to_string());
        text.push_str(unit);
        text
    })
}

fn leading(text: &str, wanted: impl Fn(u8) -> bool) -> &str {
    let end = text.bytes().position(|b| !wanted(b)).unwrap_or(text.len());
    &text[..end]
}

fn dotted_len(whole: &str, fraction: &str) -> usize {
    whole.len() + if fraction.is_empty() { 0 } else { fraction.len() + 1 }
}

/// `whole.fraction` units, exactly.
fn part_ms(whole: &str, fraction: &str, unit_ms: u64) -> Result<u64, DurationError> {
    let whole = if whole.is_empty() { "0" } else { whole };
    let mut ms = whole.parse::<u64>().ok().and_then(|n| n.checked_mul(unit_ms)).ok_or(DurationError::TooLong)?;
    let fraction = fraction.trim_end_matches('0');
    if !fraction.is_empty() {
        // An hour is 2^7 * 3^2 * 5^5 ms: with more than seven digits after the point no fraction of it is whole.
        if fraction.len() > 7 {
            return Err(DurationError::TooFine);
        }
        let digits = u32::try_from(fraction.len()).expect("at most seven");
        let numerator = fraction.parse::<u64>().expect("at most seven digits") * unit_ms;
        if !numerator.is_multiple_of(10_u64.pow(digits)) {
            return Err(DurationError::TooFine);
        }
        ms = ms.checked_add(numerator / 10_u64.pow(digits)).ok_or(DurationError::TooLong)?;
    }
    Ok(ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(text: &str) -> Result<u128, DurationError> {
        parse_duration(text).map(|d| d.as_millis())
    }

    #[test]
    fn every_documented_form_is_read() {
        for (text, expected) in [
            ("300ms", 300),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1h30m", 5_400_000),
            ("1.5s", 1_500),
            (".5s", 500),
            ("0.5h", 1_800_000),
            ("90", 90_000),
            ("1.25", 1_250),
            ("0", 0),
            (" 2s ", 2_000),
            ("1.50000000000s", 1_500),
            ("8784h", 31_622_400_000),
        ] {
            assert_eq!(ms(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_held_is_refused_with_its_reason() {
        use DurationError::{Malformed, Negative, TooFine, TooLong, UnknownUnit};
        for (text, expected) in [
            ("", Malformed),
            ("s", Malformed),
            ("1.s", Malformed),
            ("1h30", Malformed),
            ("1 h", Malformed),
            ("+1s", Malformed),
            ("1e3", UnknownUnit),
            ("1d", UnknownUnit),
            ("1H", UnknownUnit),
            ("5µs", Malformed),
            ("-1s", Negative),
            ("0.0005s", TooFine),
            ("1.5ms", TooFine),
            ("0.00000001h", TooFine),
            ("8785h", TooLong),
            ("99999999999999999999", TooLong),
            ("18446744073709551615h", TooLong),
            ("18446744073709551615ms1h", TooLong),
        ] {
            assert_eq!(ms(text), Err(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn formatting_is_undone_by_reading(ms in 0_u64..=31_622_400_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,80}") {
            let _ = parse_duration(&text);
        }

        #[test]
        fn no_duration_like_text_makes_the_reader_panic(text in "[-0-9.hms]{0,30}") {
            let _ = parse_duration(&text);
        }
    }
}

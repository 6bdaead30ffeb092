//! Durations as Go and Docker write them: `10s`, `1m30s`, `1.5h`, `0`.

use std::time::Duration;

const SECOND: u64 = 1_000_000_000;
/// Go's units, the longest suffix first where one ends in another, in nanoseconds.
const UNITS: [(&str, f64); 7] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("ms", 1e6),
    ("s", SECOND as f64),
    ("m", 60.0 * SECOND as f64),
    ("h", 3600.0 * SECOND as f64),
];

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid duration `{0}`: give it as in `10s`, `1m30s` or `2h`")]
pub struct InvalidDuration(pub String);

/// Reads a duration that is not negative.
///
/// # Errors
/// The text is not numbers, each with a unit.
/// spec: Go `time.ParseDuration`
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let wrong = || InvalidDuration(text.to_owned());
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = 0.0;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let unit = &rest[digits..end];
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        total += number * factor;
        rest = &rest[end..];
    }
    Ok(Duration::from_nanos(total as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        for (text, ms) in [("0", 0), ("10s", 10_000), ("1m30s", 90_000), ("1.5h", 5_400_000), ("20ms", 20)] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "10", "s", "-1s", "10 s", "1d", "1..5s"] {
            assert_eq!(parse(text), Err(InvalidDuration(text.to_owned())), "{text}");
        }
    }
}

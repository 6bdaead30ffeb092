//! Sizes, durations and counts as people type them and as Docker prints them. Pure.

use std::time::Duration;

const DECIMAL: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
const BINARY: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/// Bytes as `--memory` takes them: `512m`, `1.5g`, `64KiB`, a bare number; units are powers of 1024.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_bytes(text: &str) -> Result<i64, String> {
    let wrong = || format!("invalid size `{text}`: give a number with an optional unit, as in `512m`");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let power = match unit.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Ok((number * 1024f64.powi(power)) as i64)
}

/// [`parse_bytes`], where `-1` stands for "no limit".
///
/// # Errors
/// What is wrong with the text.
pub fn parse_bytes_or_unlimited(text: &str) -> Result<i64, String> {
    if text == "-1" { Ok(-1) } else { parse_bytes(text) }
}

/// A number of CPUs as `--cpus` takes it, in billionths.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_nano_cpus(text: &str) -> Result<i64, String> {
    let cpus: f64 = text.parse().map_err(|_| format!("invalid number of CPUs `{text}`"))?;
    if !cpus.is_finite() || cpus < 0.0 {
        return Err(format!("invalid number of CPUs `{text}`: it cannot be negative"));
    }
    Ok((cpus * 1e9).round() as i64)
}

/// A duration as Go writes it: `10s`, `1m30s`, `1.5h`, `0`.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    rswarm_base::duration::parse(text).map_err(|error| error.to_string())
}

/// A duration in nanoseconds, as the API carries it.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_nanos(text: &str) -> Result<i64, String> {
    parse_duration(text).map(nanos)
}

/// Nanoseconds, saturating.
pub fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// A duration the way Go prints it: `1m30s`, `1.5s`, `2h0m0s`.
pub fn go_duration(duration: Duration) -> String {
    let ns = duration.as_nanos();
    if ns == 0 {
        return "0s".into();
    }
    let trimmed = |value: f64, unit: &str| format!("{value}{unit}");
    match ns {
        1..1_000 => return format!("{ns}ns"),
        1_000..1_000_000 => return trimmed(ns as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => return trimmed(ns as f64 / 1e6, "ms"),
        _ => {}
    }
    let (hours, minutes) = (duration.as_secs() / 3600, duration.as_secs() / 60 % 60);
    let seconds = (duration.as_secs() % 60) as f64 + f64::from(duration.subsec_nanos()) / 1e9;
    match (hours, minutes) {
        (0, 0) => trimmed(seconds, "s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// How long something took or lasts, roughly, in words: `About a minute`, `3 weeks`.
pub fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let hours = (duration.as_secs_f64() / 3600.0 + 0.5) as u64;
    match (seconds, seconds / 60, hours) {
        (0, ..) => "Less than a second".into(),
        (1, ..) => "1 second".into(),
        (2..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".into(),
        (_, minutes @ 2..60, _) => format!("{minutes} minutes"),
        (.., 1) => "About an hour".into(),
        (.., 2..48) => format!("{hours} hours"),
        (.., 48..336) => format!("{} days", hours / 24),
        (.., 336..1440) => format!("{} weeks", hours / 24 / 7),
        (.., 1440..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// A size in powers of 1000 with three significant digits, as image sizes print: `7.8MB`.
pub fn human_size(bytes: u64) -> String {
    scaled(bytes as f64, 1000.0, &DECIMAL, 3)
}

/// A size in powers of 1000 with four significant digits, as progress prints: `28.23MB`.
pub fn progress_size(bytes: u64) -> String {
    scaled(bytes as f64, 1000.0, &DECIMAL, 4)
}

/// A size in powers of 1024, as `info` prints memory: `1.952GiB`.
pub fn binary_size(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &BINARY, 4)
}

fn scaled(mut size: f64, base: f64, units: &[&str], digits: usize) -> String {
    let mut unit = 0;
    while size >= base && unit < units.len() - 1 {
        size /= base;
        unit += 1;
    }
    format!("{}{}", significant(size, digits), units[unit])
}

/// Go's `%.{digits}g` for the range that sizes take: no exponent, no trailing zeros.
fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let whole = (value.abs().log10().floor() as i64 + 1).max(1) as usize;
    let mut text = format!("{value:.*}", digits.saturating_sub(whole));
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    text
}

/// At most `length` characters, the last one an ellipsis when something was cut.
pub fn ellipsis(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(length.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("1k", 1024), ("512m", 512 << 20), ("1.5g", 3 << 29), ("2GiB", 2 << 30)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "1x", "-5", "1..2"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        assert_eq!(parse_bytes_or_unlimited("-1"), Ok(-1));
    }

    #[test]
    fn durations_are_read_and_printed_as_go_does() {
        for (text, ms) in [("10s", 10_000), ("1m30s", 90_000), ("1.5h", 5_400_000), ("200ms", 200), ("0", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "10", "s", "1d", "1m 30s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        for (ms, text) in
            [(0, "0s"), (200, "200ms"), (1_500, "1.5s"), (90_000, "1m30s"), (7_200_000, "2h0m0s")]
        {
            assert_eq!(go_duration(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn times_are_told_as_docker_tells_them() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (179, "2 minutes"),
            (3_600, "About an hour"),
            (7_200, "2 hours"),
            (172_800, "2 days"),
            (1_209_600, "2 weeks"),
            (5_184_000, "2 months"),
            (63_072_000, "2 years"),
        ] {
            assert_eq!(human_duration(Duration::from_secs(seconds)), text, "{seconds}");
        }
    }

    #[test]
    fn sizes_are_printed_as_docker_prints_them() {
        assert_eq!(human_size(0), "0B");
        assert_eq!(human_size(999), "999B");
        assert_eq!(human_size(7_797_760), "7.8MB");
        assert_eq!(human_size(133_000_000), "133MB");
        assert_eq!(human_size(1_093_484_544), "1.09GB");
        assert_eq!(progress_size(28_228_000), "28.23MB");
        assert_eq!(binary_size(2_095_984_640), "1.952GiB");
    }

    #[test]
    fn cpus_are_billionths() {
        assert_eq!(parse_nano_cpus("1.5"), Ok(1_500_000_000));
        assert_eq!(parse_nano_cpus(".01"), Ok(10_000_000));
        assert!(parse_nano_cpus("-1").is_err());
        assert!(parse_nano_cpus("lots").is_err());
    }

    #[test]
    fn a_cut_text_ends_in_an_ellipsis() {
        assert_eq!(ellipsis("abcdef", 6), "abcdef");
        assert_eq!(ellipsis("abcdefg", 6), "abcde…");
    }
}

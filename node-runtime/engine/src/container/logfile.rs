//! Which log a container keeps. Pure.

use std::path::Path;

use rswarm_proto::model::container::LogDriver;
use rswarm_shim::LogFile;

/// What the driver `local` keeps, as Docker's does: five files of 20 MB.
const LOCAL: (u64, u32) = (20 << 20, 5);

/// The log file of a driver's configuration; `None` keeps none.
///
/// # Errors
/// The driver or option that is not known, in Docker's words.
pub(crate) fn parse(driver: &LogDriver, path: &Path) -> Result<Option<LogFile>, String> {
    let (mut max_size, mut max_files) = match driver.name.as_str() {
        "" | "json-file" => (0, 1),
        "local" => LOCAL,
        "none" => return Ok(None),
        other => {
            return Err(format!("error looking up logging plugin {other}: plugin \"{other}\" not found"));
        }
    };
    for (key, value) in &driver.options {
        let wrong = || format!("invalid value for log opt '{key}': {value}");
        match (key.as_str(), value.as_str()) {
            ("max-size", "-1") => max_size = 0,
            ("max-size", _) => max_size = size(value).filter(|size| *size > 0).ok_or_else(wrong)?,
            ("max-file", _) => max_files = value.parse().ok().filter(|files| *files > 0).ok_or_else(wrong)?,
            ("mode", "blocking") | ("compress", "false") => {}
            _ => return Err(format!("unknown log opt '{key}' for {} log driver", driver_name(driver))),
        }
    }
    if max_files > 1 && max_size == 0 {
        return Err("max-file cannot be configured without max-size".to_owned());
    }
    Ok(Some(LogFile { path: path.to_owned(), max_size, max_files }))
}

fn driver_name(driver: &LogDriver) -> &str {
    if driver.name.is_empty() { "json-file" } else { &driver.name }
}

/// `10m`, `1.5g`, `64kb`, `100`: bytes, by powers of 1024.
fn size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
    let unit = match lower[digits.len()..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    let number: f64 = digits.parse().ok()?;
    let bytes = number * (1u64 << unit) as f64;
    (number.is_finite() && (0.0..=1e18).contains(&bytes)).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, options: &[(&str, &str)]) -> Result<Option<(u64, u32)>, String> {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let driver = LogDriver { name: name.into(), options };
        parse(&driver, Path::new("/x")).map(|file| file.map(|file| (file.max_size, file.max_files)))
    }

    #[test]
    fn drivers_and_options_are_understood() {
        assert_eq!(of("", &[]), Ok(Some((0, 1))));
        assert_eq!(of("json-file", &[("max-size", "10m"), ("max-file", "3")]), Ok(Some((10 << 20, 3))));
        assert_eq!(of("json-file", &[("max-size", "1.5k")]), Ok(Some((1536, 1))));
        assert_eq!(of("local", &[]), Ok(Some(LOCAL)));
        assert_eq!(of("none", &[]), Ok(None));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(of("syslog", &[]).expect_err("driver").contains("syslog"));
        for options in
            [&[("max-size", "big")][..], &[("max-file", "2")], &[("colour", "red")], &[("compress", "true")]]
        {
            assert!(of("json-file", options).is_err(), "{options:?}");
        }
    }
}

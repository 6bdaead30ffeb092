//! Small words that several commands take: variables, labels, limits, ports, host entries. Pure but for files.

use std::collections::BTreeMap;
use std::path::Path;

use rswarm_api::types::{HealthConfig, StringMap, Ulimit};

use super::CommandError;

/// `KEY=VALUE`, or `KEY` alone for an empty value.
pub fn key_values(typed: &[String]) -> StringMap {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        (key.to_owned(), value.to_owned())
    };
    typed.iter().map(pair).collect()
}

/// Lines of files, then what was typed: comments and empty lines are left out.
pub fn with_files(files: &[std::path::PathBuf], typed: &[String]) -> Result<Vec<String>, CommandError> {
    let mut all = Vec::new();
    for file in files {
        let text = read(file)?;
        let lines =
            text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
        all.extend(lines.map(str::to_owned));
    }
    all.extend(typed.iter().cloned());
    Ok(all)
}

/// Variables for a container: one without `=` takes its value from `environment`, or is left out.
pub fn variables(typed: Vec<String>, environment: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let resolve = |variable: String| match variable.contains('=') {
        true => Some(variable),
        false => environment(&variable).map(|value| format!("{variable}={value}")),
    };
    typed.into_iter().filter_map(resolve).collect()
}

/// The environment of this process, for [`variables`].
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Reads a text file.
///
/// # Errors
/// With the path.
pub fn read(path: &Path) -> Result<String, CommandError> {
    std::fs::read_to_string(path).map_err(|source| CommandError::Read { path: path.to_owned(), source })
}

/// `--ulimit nofile=1024:2048`
///
/// # Errors
/// What is wrong with it.
pub fn ulimit(text: &str) -> Result<Ulimit, String> {
    let wrong = || format!("invalid ulimit `{text}`: write it as `nofile=1024` or `nofile=1024:2048`");
    let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let (soft, hard): (i64, i64) = (soft.parse().map_err(|_| wrong())?, hard.parse().map_err(|_| wrong())?);
    if hard != -1 && (soft > hard || soft == -1) {
        return Err(format!("invalid ulimit `{text}`: the soft limit is above the hard one"));
    }
    Ok(Ulimit { name: name.to_owned(), hard, soft })
}

/// `--add-host name:address`, or `name=address`; the latter is what the address of IPv6 needs.
///
/// # Errors
/// What is wrong with it.
pub fn extra_host(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').or_else(|| text.split_once(':'));
    match pair {
        Some((name, address)) if !name.is_empty() && !address.is_empty() => {
            let address = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
            Ok((name.to_owned(), address.to_owned()))
        }
        _ => Err(format!("invalid host `{text}`: write it as `name:address`")),
    }
}

/// The flags of a health check.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Health")]
pub struct HealthArgs {
    /// Command that tells whether the container is healthy
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between checks
    #[arg(long, value_name = "DURATION", value_parser = crate::units::parse_nanos)]
    health_interval: Option<i64>,
    /// How long one check may take
    #[arg(long, value_name = "DURATION", value_parser = crate::units::parse_nanos)]
    health_timeout: Option<i64>,
    /// Failures in a row that make a container unhealthy
    #[arg(long, value_name = "COUNT")]
    health_retries: Option<i32>,
    /// Time at the start in which failures do not count
    #[arg(long, value_name = "DURATION", value_parser = crate::units::parse_nanos)]
    health_start_period: Option<i64>,
    /// Time between checks during the start period
    #[arg(long, value_name = "DURATION", value_parser = crate::units::parse_nanos)]
    health_start_interval: Option<i64>,
    /// Ignore the image's health check
    #[arg(long, conflicts_with_all = ["health_cmd", "health_interval", "health_timeout", "health_retries"])]
    no_healthcheck: bool,
}

impl HealthArgs {
    /// The check asked for, over what there is; `None` when nothing was said and there is none.
    pub fn over(&self, current: Option<HealthConfig>) -> Option<HealthConfig> {
        if self.no_healthcheck {
            return Some(HealthConfig { test: vec!["NONE".into()], ..HealthConfig::default() });
        }
        let before = current.unwrap_or_default();
        let config = HealthConfig {
            test: match &self.health_cmd {
                Some(command) => vec!["CMD-SHELL".into(), command.clone()],
                None => before.test,
            },
            interval: self.health_interval.unwrap_or(before.interval),
            timeout: self.health_timeout.unwrap_or(before.timeout),
            start_period: self.health_start_period.unwrap_or(before.start_period),
            start_interval: self.health_start_interval.unwrap_or(before.start_interval),
            retries: self.health_retries.unwrap_or(before.retries),
        };
        (config != HealthConfig::default()).then_some(config)
    }
}

/// Text of labels as lists print it: `a=1,b=2`.
pub fn printed_labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_without_value_is_taken_from_the_environment() {
        let home = |name: &str| (name == "HOME").then(|| "/root".to_owned());
        let typed = ["A=1", "HOME", "NOPE", "B="].map(str::to_owned).to_vec();
        assert_eq!(variables(typed, home), ["A=1", "HOME=/root", "B="]);
    }

    #[test]
    fn limits_are_soft_and_hard() {
        assert_eq!(ulimit("nofile=1024:2048"), Ok(Ulimit { name: "nofile".into(), hard: 2048, soft: 1024 }));
        assert_eq!(ulimit("core=0"), Ok(Ulimit { name: "core".into(), hard: 0, soft: 0 }));
        for text in ["nofile", "nofile=x", "nofile=3:2"] {
            assert!(ulimit(text).is_err(), "{text}");
        }
    }

    #[test]
    fn host_entries_take_both_spellings() {
        assert_eq!(extra_host("a:10.0.0.1"), Ok(("a".into(), "10.0.0.1".into())));
        assert_eq!(extra_host("a:::1"), Ok(("a".into(), "::1".into())));
        assert_eq!(extra_host("a=[::1]"), Ok(("a".into(), "::1".into())));
        assert!(extra_host("a").is_err());
    }

    #[test]
    fn a_health_check_changes_only_what_was_said() {
        let before =
            HealthConfig { test: vec!["CMD".into(), "x".into()], retries: 3, ..HealthConfig::default() };
        let args = HealthArgs { health_interval: Some(5), ..HealthArgs::default() };
        assert_eq!(args.over(Some(before.clone())), Some(HealthConfig { interval: 5, ..before }));
        assert_eq!(HealthArgs::default().over(None), None);
        let none = HealthArgs { no_healthcheck: true, ..HealthArgs::default() }.over(None).expect("a config");
        assert_eq!(none.test, ["NONE"]);
    }
}

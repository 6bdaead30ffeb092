//! The `filters` parameter: values of one key are alternatives, keys must all match.

use std::collections::BTreeMap;

use regex::Regex;
use rswarm_base::Timestamp;
use serde::Deserialize;

use crate::error::ApiError;

/// Parsed filters. Empty matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filters(BTreeMap<String, Vec<String>>);

/// `{"k":{"v":true}}`, and what clients before 1.22 sent: `{"k":["v"]}`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    Set(BTreeMap<String, bool>),
    List(Vec<String>),
}

impl Filters {
    /// Parses the parameter's text; a key outside `known` is an error that names it.
    pub fn parse(text: &str, known: &[&str]) -> Result<Filters, ApiError> {
        if text.is_empty() {
            return Ok(Filters::default());
        }
        let parsed: BTreeMap<String, Values> = serde_json::from_str(text)
            .map_err(|error| ApiError::invalid(format!("invalid filter: {error}")))?;
        let mut filters = BTreeMap::new();
        for (key, values) in parsed {
            if !known.contains(&key.as_str()) {
                return Err(ApiError::invalid(format!("invalid filter '{key}'"))
                    .hint(format!("use one of: {}", known.join(", "))));
            }
            let values = match values {
                Values::Set(set) => set.into_keys().collect(),
                Values::List(list) => list,
            };
            filters.insert(key, values);
        }
        Ok(Filters(filters))
    }

    /// A key's values; none when it was not given.
    pub fn get(&self, key: &str) -> &[String] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    pub fn has(&self, key: &str) -> bool {
        !self.get(key).is_empty()
    }

    /// Whether one of the key's values satisfies `matches`; true when it was not given.
    pub fn any(&self, key: &str, matches: impl Fn(&str) -> bool) -> bool {
        let values = self.get(key);
        values.is_empty() || values.iter().any(|value| matches(value))
    }

    /// The value is one of the key's, exactly.
    pub fn exact(&self, key: &str, value: &str) -> bool {
        self.any(key, |wanted| wanted == value)
    }

    /// The value begins with one of the key's.
    pub fn prefix(&self, key: &str, value: &str) -> bool {
        self.any(key, |wanted| value.starts_with(wanted))
    }

    /// One of the key's values is a regular expression, or else a text, found in one of `texts`.
    pub fn pattern(&self, key: &str, texts: &[&str]) -> bool {
        self.any(key, |wanted| match Regex::new(wanted) {
            Ok(pattern) => texts.iter().any(|text| pattern.is_match(text)),
            Err(_) => texts.iter().any(|text| text.contains(wanted)),
        })
    }

    /// All of the key's `label` or `label=value` hold: labels, alone, must all match.
    pub fn labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.get(key).iter().all(|wanted| has_label(labels, wanted))
    }

    /// None of the key's labels hold.
    pub fn without_labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        !self.get(key).iter().any(|wanted| has_label(labels, wanted))
    }

    /// A yes-or-no filter; `None` when it was not given.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ApiError> {
        let values = self.get(key);
        match values {
            [] => Ok(None),
            [one] if matches!(one.as_str(), "1" | "true" | "True" | "TRUE" | "t" | "T") => Ok(Some(true)),
            [one] if matches!(one.as_str(), "0" | "false" | "False" | "FALSE" | "f" | "F") => Ok(Some(false)),
            _ => Err(ApiError::invalid(format!("invalid filter '{key}=[{}]'", values.join(" ")))),
        }
    }

    /// The values are among `allowed`.
    pub fn one_of(&self, key: &str, allowed: &[&str]) -> Result<(), ApiError> {
        match self.get(key).iter().find(|value| !allowed.contains(&value.as_str())) {
            Some(value) => Err(ApiError::invalid(format!("invalid filter '{key}={value}'"))
                .hint(format!("use one of: {}", allowed.join(", ")))),
            None => Ok(()),
        }
    }

    /// As [`Filters::one_of`], in the words of a list of the cluster's objects (moby `daemon/cluster/filters.go`).
    pub fn one_in_cluster(&self, key: &str, allowed: &[&str]) -> Result<(), ApiError> {
        match self.get(key).iter().find(|value| !value.is_empty() && !allowed.contains(&value.as_str())) {
            Some(value) => Err(ApiError::invalid(format!("Invalid {key} filter: '{value}'"))
                .hint(format!("use one of: {}", allowed.join(", ")))),
            None => Ok(()),
        }
    }

    /// The `until` filter: a time or a duration before `now`.
    pub fn until(&self, now: Timestamp) -> Result<Option<Timestamp>, ApiError> {
        match self.get("until") {
            [] => Ok(None),
            [one] => parse_time(one, now).map(Some).ok_or_else(|| {
                ApiError::invalid(format!("invalid filter 'until={one}': want a time or a duration"))
            }),
            _ => Err(ApiError::invalid("more than one until filter specified")),
        }
    }
}

fn has_label(labels: &BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
        None => labels.contains_key(wanted),
    }
}

/// Seconds since the epoch with an optional fraction, RFC 3339, or a Go duration before `now`.
pub(crate) fn parse_time(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Some(at) = parse_unix(text) {
        return Some(at);
    }
    if let Some(before) = parse_duration(text) {
        return Some(Timestamp(now.0.saturating_sub(before)));
    }
    Timestamp::parse(text)
}

/// `1700000000` or `1700000000.000000007`.
pub(crate) fn parse_unix(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(seconds.strip_prefix('-').unwrap_or(seconds)) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let seconds: i64 = seconds.parse().ok()?;
    let nanos: i64 = format!("{fraction:0<9}").parse().ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos).map(Timestamp)
}

/// A Go duration, `1h30m` or `1.5s`, in nanoseconds.
fn parse_duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let number_ends = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(number_ends);
        let unit_ends = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_ends);
        let nanos = match unit {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * nanos;
        rest = tail;
    }
    (!text.is_empty()).then_some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn both_forms_parse_to_the_same_filters() {
        let new = Filters::parse(r#"{"name":{"a":true,"b":true}}"#, &["name"]).expect("new form");
        let old = Filters::parse(r#"{"name":["a","b"]}"#, &["name"]).expect("old form");
        assert_eq!(new, old);
        assert!(new.exact("name", "b") && !new.exact("name", "c"));
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = Filters::parse(r#"{"x":["a"]}"#, &["name", "id"]).expect_err("unknown");
        assert_eq!(error.message, "invalid filter 'x'");
        assert_eq!(error.hint.as_deref(), Some("use one of: name, id"));
        assert!(Filters::parse("{", &["name"]).is_err());
    }

    #[test]
    fn labels_must_all_hold_and_names_are_patterns() {
        let filters = Filters::parse(r#"{"label":["a","b=2"],"name":["^/we", "["]}"#, &["label", "name"]);
        let filters = filters.expect("filters");
        assert!(filters.labels("label", &labels(&[("a", "1"), ("b", "2")])));
        assert!(!filters.labels("label", &labels(&[("a", "1"), ("b", "3")])));
        assert!(filters.pattern("name", &["web", "/web"]) && filters.pattern("name", &["x[y"]));
        assert!(!filters.pattern("name", &["web"]));
    }

    #[test]
    fn a_flag_takes_only_what_go_takes() {
        let parse = |value: &str| Filters::parse(&format!(r#"{{"dangling":["{value}"]}}"#), &["dangling"]);
        assert_eq!(parse("true").expect("filters").flag("dangling"), Ok(Some(true)));
        assert_eq!(parse("0").expect("filters").flag("dangling"), Ok(Some(false)));
        let error = parse("perhaps").expect("filters").flag("dangling").expect_err("no flag");
        assert_eq!(error.message, "invalid filter 'dangling=[perhaps]'");
    }

    #[test]
    fn times_come_in_three_forms() {
        let now = Timestamp(10_000_000_000_000);
        assert_eq!(parse_time("5", now), Some(Timestamp(5_000_000_000)));
        assert_eq!(parse_time("5.000000007", now), Some(Timestamp(5_000_000_007)));
        assert_eq!(parse_time("5.5", now), Some(Timestamp(5_500_000_000)));
        assert_eq!(parse_time("1h30m", now), Some(Timestamp(now.0 - 5_400_000_000_000)));
        assert_eq!(parse_time("2023-11-14T22:13:20Z", now), Some(Timestamp(1_700_000_000_000_000_000)));
        assert_eq!(parse_time("soon", now), None);
        assert_eq!(parse_time("", now), None);
    }
}

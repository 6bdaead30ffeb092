//! Docker's JSON to our objects and back: pure functions, one file per object.
//!
//! A field that Docker knows and we cannot honour is refused here when it is set, by name: 501 when it could be
//! had one day, 400 when it makes no sense. Nothing is ignored silently.

pub(crate) mod cluster;
pub(crate) mod content;
pub(crate) mod create;
mod generic;
pub(crate) mod image;
pub(crate) mod inspect;
pub(crate) mod mounts;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod ports;
pub(crate) mod service;
pub(crate) mod stats;
pub(crate) mod summary;
pub(crate) mod task;
pub(crate) mod usage;
pub(crate) mod verbose;

use rswarm_base::Timestamp;
use rswarm_proto::wire;

pub(crate) use self::generic::{generic, generic_out, shown_generic};

use crate::error::ApiError;
use crate::types;

/// Refuses an option that is set.
pub(crate) fn refuse(set: bool, what: &str) -> Result<(), ApiError> {
    if set { Err(ApiError::unsupported(what)) } else { Ok(()) }
}

/// Whether a Go slice or map pointer holds anything.
pub(crate) fn filled<T>(list: Option<&Vec<T>>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

/// An object's version and times, as every Swarm object shows them.
pub(crate) fn meta(meta: Option<wire::Meta>) -> (types::Version, String, String) {
    let meta = meta.unwrap_or_default();
    (types::Version { index: meta.version }, nanos(meta.created_at), nanos(meta.updated_at))
}

/// Nanoseconds since the epoch as RFC 3339.
pub(crate) fn nanos(at: i64) -> String {
    Timestamp(at).to_string()
}

/// A MAC address in its usual form; empty for none.
pub(crate) fn mac(mac: Option<[u8; 6]>) -> String {
    mac.map_or(String::new(), |bytes| bytes.map(|byte| format!("{byte:02x}")).join(":"))
}

/// `aa:bb:cc:dd:ee:ff`.
pub(crate) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        *byte =
            parts.next().filter(|part| part.len() == 2).and_then(|part| u8::from_str_radix(part, 16).ok())?;
    }
    parts.next().is_none().then_some(mac)
}

/// A health check of a container. `NONE` switches the image's off.
pub(crate) fn checked_healthcheck(config: &types::HealthConfig) -> Result<wire::Healthcheck, ApiError> {
    let durations = [
        ("Interval", config.interval),
        ("Timeout", config.timeout),
        ("StartPeriod", config.start_period),
        ("StartInterval", config.start_interval),
    ];
    for (name, value) in durations {
        if value != 0 && value < 1_000_000 {
            return Err(ApiError::invalid(format!("{name} in Healthcheck cannot be less than 1ms")));
        }
    }
    if config.retries < 0 {
        return Err(ApiError::invalid("Retries in Healthcheck cannot be negative"));
    }
    Ok(healthcheck(config))
}

/// A health check as it was asked for: of a service, the managers tell what is wrong.
pub(crate) fn healthcheck(config: &types::HealthConfig) -> wire::Healthcheck {
    wire::Healthcheck {
        test: config.test.clone(),
        interval: config.interval,
        timeout: config.timeout,
        start_period: config.start_period,
        start_interval: config.start_interval,
        retries: config.retries,
    }
}

pub(crate) fn healthcheck_out(check: &wire::Healthcheck) -> types::HealthConfig {
    types::HealthConfig {
        test: check.test.clone(),
        interval: check.interval,
        timeout: check.timeout,
        start_period: check.start_period,
        start_interval: check.start_interval,
        retries: check.retries,
    }
}

pub(crate) fn ulimits(limits: &[types::Ulimit]) -> Vec<wire::Ulimit> {
    limits
        .iter()
        .map(|limit| wire::Ulimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard })
        .collect()
}

pub(crate) fn ulimits_out(limits: &[wire::Ulimit]) -> Vec<types::Ulimit> {
    limits
        .iter()
        .map(|limit| types::Ulimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_six_bytes_of_two_digits() {
        assert_eq!(parse_mac("02:42:ac:11:00:02"), Some([2, 0x42, 0xac, 0x11, 0, 2]));
        for wrong in ["02:42:ac:11:00", "02:42:ac:11:00:02:03", "2:42:ac:11:00:02", "02:42:ac:11:00:zz", ""] {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
        assert_eq!(mac(Some([2, 0x42, 0xac, 0x11, 0, 2])), "02:42:ac:11:00:02");
    }

    #[test]
    fn a_health_check_finer_than_a_millisecond_is_refused() {
        let config = types::HealthConfig { interval: 999_999, ..Default::default() };
        let error = checked_healthcheck(&config).expect_err("too fine");
        assert_eq!(error.message, "Interval in Healthcheck cannot be less than 1ms");
        let config = types::HealthConfig { test: vec!["NONE".into()], retries: 3, ..Default::default() };
        assert_eq!(healthcheck_out(&checked_healthcheck(&config).expect("valid")), config);
    }
}

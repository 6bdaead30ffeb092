//! Options of all containers that do not say otherwise: limits, privileges, the filter of system calls.

use std::collections::BTreeMap;

use clap::Args;
use rswarm_api::types::Ulimit;
use rswarm_engine::config::SeccompProfile;
use rswarm_proto::model::container as model;
use serde::{Deserialize, Deserializer};

use super::{SettingsError, Twice};
use crate::cmd::words;
use crate::units;

/// Flags, and with the same names the keys of the file.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct DefaultOptions {
    /// Filter of system calls: a profile's path, `builtin` or `unconfined` [default: builtin]
    #[arg(long, value_name = "FILE")]
    seccomp_profile: Option<String>,
    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "BYTES", value_parser = units::parse_bytes)]
    #[serde(deserialize_with = "size")]
    default_shm_size: Option<i64>,
    /// Limit, as in `nofile=1024:2048`; may be repeated
    #[arg(long = "default-ulimit", value_name = "NAME=SOFT[:HARD]", value_parser = words::ulimit)]
    #[serde(deserialize_with = "ulimits")]
    default_ulimits: Vec<Ulimit>,
    /// Programs gain no privileges by set-uid bits or file capabilities
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    no_new_privileges: Option<bool>,
}

/// A number of bytes, or a text with a unit.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Number(i64),
        Text(String),
    }
    match Size::deserialize(deserializer)? {
        Size::Number(bytes) => Ok(Some(bytes)),
        Size::Text(text) => units::parse_bytes(&text).map(Some).map_err(serde::de::Error::custom),
    }
}

/// `{"nofile": {"Name": "nofile", "Hard": 2048, "Soft": 1024}}`, as dockerd's file has it.
fn ulimits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Ulimit>, D::Error> {
    let named = BTreeMap::<String, Ulimit>::deserialize(deserializer)?;
    let named = named.into_iter().map(|(key, limit)| {
        let name = if limit.name.is_empty() { key } else { limit.name };
        Ulimit { name, ..limit }
    });
    Ok(named.collect())
}

/// What the options come to.
#[derive(Debug, Clone)]
pub struct DefaultSettings {
    /// The filter of system calls.
    pub seccomp: SeccompProfile,
    /// Bytes of `/dev/shm`; 0 is Docker's default.
    pub shm_size: i64,
    /// Limits that a container does not name itself.
    pub ulimits: Vec<model::Ulimit>,
    /// Whether programs gain no privileges.
    pub no_new_privileges: bool,
}

impl DefaultOptions {
    /// Merges flags and file, and reads the profile. A limit on the command line goes before the file's.
    pub(super) fn merge(
        flags: DefaultOptions,
        file: DefaultOptions,
        twice: &mut Twice,
    ) -> Result<DefaultSettings, SettingsError> {
        let shm_size = twice.either("default-shm-size", flags.default_shm_size, file.default_shm_size);
        if let Some(bytes) = shm_size.filter(|bytes| *bytes < 0) {
            let why = "a size cannot be negative".to_owned();
            return Err(SettingsError::Invalid { option: "default-shm-size", value: bytes.to_string(), why });
        }
        let mut ulimits = flags.default_ulimits;
        for limit in file.default_ulimits {
            if ulimits.iter().all(|known| known.name != limit.name) {
                ulimits.push(limit);
            }
        }
        let nnp = twice.either("no-new-privileges", flags.no_new_privileges, file.no_new_privileges);
        Ok(DefaultSettings {
            seccomp: seccomp(twice.either("seccomp-profile", flags.seccomp_profile, file.seccomp_profile))?,
            shm_size: shm_size.unwrap_or_default(),
            ulimits: ulimits
                .into_iter()
                .map(|limit| model::Ulimit { name: limit.name, soft: limit.soft, hard: limit.hard })
                .collect(),
            no_new_privileges: nnp.unwrap_or(false),
        })
    }
}

fn seccomp(given: Option<String>) -> Result<SeccompProfile, SettingsError> {
    match given.as_deref() {
        None | Some("" | "builtin") => Ok(SeccompProfile::Builtin),
        Some("unconfined") => Ok(SeccompProfile::Unconfined),
        Some(path) => match std::fs::read_to_string(path) {
            Ok(json) => Ok(SeccompProfile::File { path: path.into(), json }),
            Err(error) => Err(SettingsError::Seccomp(path.to_owned(), error)),
        },
    }
}

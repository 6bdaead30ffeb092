//! Options of what can be seen of a daemon from outside: figures, and a record of who asked for what.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use super::{SettingsError, Twice};

/// Flags, and with the same names the keys of the file.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ObserveOptions {
    /// Serve figures for Prometheus at http://ADDRESS:PORT/metrics
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_addr: Option<String>,
    /// Append a line of JSON to this file for every control call: who asked this manager for what, and the outcome
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
}

/// What the options come to.
#[derive(Debug, Clone, Default)]
pub struct ObserveSettings {
    /// Where figures are served; nowhere by default.
    pub metrics_addr: Option<SocketAddr>,
    /// Where control calls are written down.
    pub audit_log: Option<PathBuf>,
}

impl ObserveOptions {
    /// Merges flags and file.
    pub(super) fn merge(
        flags: ObserveOptions,
        file: ObserveOptions,
        twice: &mut Twice,
    ) -> Result<ObserveSettings, SettingsError> {
        let addr = twice.either("metrics-addr", flags.metrics_addr, file.metrics_addr);
        let addr = addr.filter(|addr| !addr.is_empty()).map(|addr| {
            addr.parse().map_err(|_| SettingsError::Invalid {
                option: "metrics-addr",
                value: addr,
                why: "want an IP address and a port, as in 127.0.0.1:9323".to_owned(),
            })
        });
        Ok(ObserveSettings {
            metrics_addr: addr.transpose()?,
            audit_log: twice.either("audit-log", flags.audit_log, file.audit_log),
        })
    }
}

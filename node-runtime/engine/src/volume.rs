//! Named volumes of the local driver.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rswarm_base::Timestamp;
use serde::{Deserialize, Serialize};

/// A volume to make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeCreate {
    /// Its name; empty for an anonymous one.
    pub name: String,
    /// Its driver; empty is `local`.
    pub driver: String,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// `local`.
    pub driver: String,
    /// When it was made.
    pub created: Timestamp,
    /// Its directory on the host.
    pub mountpoint: PathBuf,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl Volume {
    /// Whether it was made for one container, without a name.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.labels.contains_key(ANONYMOUS)
    }
}

/// The label that marks anonymous volumes, as Docker's.
pub const ANONYMOUS: &str = "com.docker.volume.anonymous";

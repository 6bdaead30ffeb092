//! Where a container's root file system comes from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What is mounted at the bundle's root path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rootfs {
    /// An overlay of image layers and the container's own writable directory.
    Overlay {
        /// Read-only layers, topmost first.
        lower: Vec<PathBuf>,
        /// The container's own changes.
        upper: PathBuf,
        /// Overlayfs' scratch directory, on the same file system as `upper`.
        work: PathBuf,
    },
    /// The directory is there already.
    Directory,
}

//! Files in and out of containers, whether they run or not: `docker cp`, `export`, `diff` and `commit`.
//!
//! Start at [`copy`], then [`view`] (how a thread gets to see a container's file system).

pub(crate) mod copy;
mod path;
pub(crate) mod view;

use std::io;

use rswarm_base::{Classify, Kind, Timestamp};
use rswarm_image::ExtractError;
use thiserror::Error;

use crate::error::{Cause, LookupError};

/// What there is at a path in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStat {
    /// The last part of the path that was asked for.
    pub name: String,
    /// Bytes.
    pub size: i64,
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// When it was last changed.
    pub modified: Timestamp,
    /// Where a link leads to in the end; empty for everything else.
    pub link_target: String,
}

/// How files are put into a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// A directory replaces nothing but a directory, and is replaced by nothing else.
    pub keeps_kinds: bool,
    /// Everything belongs to the user that the container runs as.
    pub chown: bool,
}

/// Files could not be read from or put into a container.
#[derive(Debug, Error)]
pub enum CopyError {
    /// No such container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// There is nothing at the path.
    #[error("Could not find the file {path} in container {container}")]
    NotFound {
        /// As it was asked for.
        path: String,
        /// As it was asked for.
        container: String,
    },
    /// The container's state forbids it.
    #[error("{0}")]
    Conflict(String),
    /// The path or the container's configuration forbid it.
    #[error("{0}")]
    Invalid(String),
    /// The file system said no.
    #[error("{0}")]
    Path(String),
    /// The archive could not be unpacked.
    #[error(transparent)]
    Extract(#[from] ExtractError),
    /// Whoever sends the archive stopped.
    #[error("archive could not be read")]
    Read(#[source] io::Error),
    /// The container's file system cannot be reached.
    #[error("file system of container {container} cannot be reached")]
    View {
        /// Its identifier.
        container: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image store.
    #[error(transparent)]
    Below(#[from] Cause),
}

impl Classify for CopyError {
    fn kind(&self) -> Kind {
        match self {
            CopyError::Lookup(error) => error.kind(),
            CopyError::NotFound { .. } => Kind::NotFound,
            CopyError::Conflict(_) => Kind::Conflict,
            CopyError::Invalid(_) | CopyError::Read(_) => Kind::InvalidArgument,
            CopyError::Path(_) | CopyError::View { .. } => Kind::Internal,
            CopyError::Extract(error) => error.kind(),
            CopyError::Below(error) => error.kind(),
        }
    }
}

//! The writable layer of a container: `snapshots/<key>/{fs/, work/, layer}`, where `layer` is a link to
//! the topmost read-only layer. A directory of this shape is all there is to it: it appears by one rename,
//! and the file system's journal keeps it in order with what is written after it.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rswarm_base::{Classify, Kind, fsx};

use crate::catalog::LookupError;
use crate::digest::Digest;
use crate::layers::{LayerError, LayerStore};

/// The kernel's limit for one overlay.
const LAYERS_MAX: usize = 500;
const KEY_LEN_MAX: usize = 200;

/// The directories of a container's root file system, for an overlay mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// Read-only layers, topmost first: the layer of places, and the image's.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// What overlayfs needs to work.
    pub work: PathBuf,
}

/// Why a writable layer could not be made, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is no such image.
    #[error(transparent)]
    Image(#[from] LookupError),
    /// There is no such writable layer.
    #[error("no writable layer `{0}`")]
    NotFound(String),
    /// A key is a plain file name.
    #[error("`{0}` cannot name a writable layer")]
    Key(String),
    /// More layers than the kernel stacks.
    #[error("max depth exceeded: the image has {0} layers, {LAYERS_MAX} can be stacked")]
    Depth(usize),
    /// A layer of the image is gone.
    #[error("layers of `{key}` cannot be stacked")]
    Layers {
        /// The writable layer's key.
        key: String,
        /// Which layer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The disk.
    #[error("writable layer `{key}` failed")]
    Io {
        /// The writable layer's key.
        key: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Classify for SnapshotError {
    fn kind(&self) -> Kind {
        match self {
            Self::Image(error) => error.kind(),
            Self::NotFound(_) => Kind::NotFound,
            Self::Key(_) => Kind::InvalidArgument,
            Self::Depth(_) => Kind::FailedPrecondition,
            Self::Layers { .. } | Self::Io { .. } => Kind::Internal,
        }
    }
}

/// All writable layers of a store.
#[derive(Debug)]
pub(crate) struct Snapshots {
    dir: PathBuf,
}

impl Snapshots {
    pub(crate) fn open(root: &Path) -> io::Result<Snapshots> {
        let dir = root.join("snapshots");
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                fsx::remove_all(&entry.path())?; // never got its name
            }
        }
        Ok(Snapshots { dir })
    }

    pub(crate) fn keys(&self) -> io::Result<Vec<String>> {
        let mut keys = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                keys.push(name);
            }
        }
        keys.sort();
        Ok(keys)
    }

    /// The topmost layer below each snapshot: what must not be swept.
    pub(crate) fn tops(&self) -> io::Result<Vec<Digest>> {
        let mut tops = Vec::new();
        for key in self.keys()? {
            tops.extend(top_of(&self.dir.join(key))?);
        }
        Ok(tops)
    }

    pub(crate) fn prepare(
        &self,
        key: &str,
        top: Option<&Digest>,
        layers: &LayerStore,
    ) -> Result<Layers, SnapshotError> {
        check_key(key)?;
        let path = self.dir.join(key);
        if !path.exists() {
            let lower = stack(key, top, layers)?;
            let made = self.make(&path, key, top, &lower);
            made.map_err(|source| SnapshotError::Io { key: key.to_owned(), source })?;
        }
        self.layers(key, layers)
    }

    fn make(&self, path: &Path, key: &str, top: Option<&Digest>, lower: &[PathBuf]) -> io::Result<()> {
        let temporary = self.dir.join(format!(".{key}"));
        fsx::remove_all(&temporary)?;
        let upper = temporary.join("fs");
        fs::create_dir(&temporary)?;
        fs::create_dir(&upper)?;
        fs::create_dir(temporary.join("work"))?;
        match lower.first() {
            // The overlay's root looks as its upper directory does.
            Some(top) => {
                let root = fs::metadata(top)?;
                std::os::unix::fs::chown(&upper, Some(root.uid()), Some(root.gid()))?;
                fs::set_permissions(&upper, fs::Permissions::from_mode(root.mode() & 0o7777))?;
            }
            None => fs::set_permissions(&upper, fs::Permissions::from_mode(0o755))?,
        }
        if let Some(top) = top {
            symlink(Path::new("../../layers").join(top.hex()), temporary.join("layer"))?;
        }
        fs::rename(&temporary, path)
    }

    pub(crate) fn layers(&self, key: &str, layers: &LayerStore) -> Result<Layers, SnapshotError> {
        check_key(key)?;
        let path = self.dir.join(key);
        let io_error = |source| SnapshotError::Io { key: key.to_owned(), source };
        if !path.exists() {
            return Err(SnapshotError::NotFound(key.to_owned()));
        }
        let top = top_of(&path).map_err(io_error)?;
        let mut lower = stack(key, top.as_ref(), layers)?;
        // Without room for one more, what is missing is made in the writable layer.
        if let Some(top) = top.filter(|_| lower.len() < LAYERS_MAX) {
            lower.insert(0, layers.places(&top, &lower).map_err(io_error)?);
        }
        Ok(Layers { lower, upper: path.join("fs"), work: path.join("work") })
    }

    /// Takes the snapshot out of sight and gives where it lies now, to be deleted; `None`: there was none.
    pub(crate) fn release(&self, key: &str, trash: &Path) -> Result<bool, SnapshotError> {
        check_key(key)?;
        match fs::rename(self.dir.join(key), trash) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(SnapshotError::Io { key: key.to_owned(), source }),
        }
    }

    /// Bytes in the files of the writable layer.
    pub(crate) fn size(&self, key: &str) -> Result<u64, SnapshotError> {
        check_key(key)?;
        let upper = self.dir.join(key).join("fs");
        if !upper.exists() {
            return Err(SnapshotError::NotFound(key.to_owned()));
        }
        size_of(&upper).map_err(|source| SnapshotError::Io { key: key.to_owned(), source })
    }
}

fn stack(key: &str, top: Option<&Digest>, layers: &LayerStore) -> Result<Vec<PathBuf>, SnapshotError> {
    let lower = layers.stack(top).map_err(|source: LayerError| SnapshotError::Layers {
        key: key.to_owned(),
        source: Box::new(source),
    })?;
    if lower.len() > LAYERS_MAX {
        return Err(SnapshotError::Depth(lower.len()));
    }
    Ok(lower)
}

fn top_of(path: &Path) -> io::Result<Option<Digest>> {
    match fs::read_link(path.join("layer")) {
        Ok(target) => {
            let hex = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("sha256:{hex}").parse().map(Some).map_err(io::Error::other)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn check_key(key: &str) -> Result<(), SnapshotError> {
    let is_plain = (1..=KEY_LEN_MAX).contains(&key.len())
        && !key.starts_with('.')
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if is_plain { Ok(()) } else { Err(SnapshotError::Key(key.to_owned())) }
}

/// A file that vanishes while we look is a running container's good right.
fn size_of(dir: &Path) -> io::Result<u64> {
    let mut size = 0;
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            size += size_of(&entry.path())?;
        } else if meta.is_file() {
            size += meta.len();
        }
    }
    Ok(size)
}

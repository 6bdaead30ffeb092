//! Unpacked layers by chain id: `layers/<hex>/{diff/, layer.json, places/}`. A layer is unpacked in `staging/` and
//! appears by one rename; it is made durable by the store before any image names it. `places/` comes with the first
//! container.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rswarm_base::fsx;
use serde::{Deserialize, Serialize};

use crate::content::{BlobError, Content, Ingest, Sealed};
use crate::digest::{Digest, chain_id};
use crate::manifest::{Descriptor, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD};
use crate::places;
use crate::stream::{Compression, Hashed, Tee, decompress};
use crate::unpack::{UnpackError, Unpacked, unpack};

/// Compressed bytes between the source and the decompressor.
const COMPRESSED_BYTES: usize = 64 << 10;
/// Tar bytes between the decompressor and the unpacker: 512-byte headers are read one by one.
const TAR_BYTES: usize = 128 << 10;

/// What is known of an unpacked layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) chain_id: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) parent: Option<Digest>,
    /// Bytes in regular files.
    pub(crate) size: u64,
    /// The blob that it was unpacked from; kept as long as the layer is.
    pub(crate) blob: Descriptor,
}

/// Why a layer could not be unpacked or kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    #[error("failed to register layer")]
    Unpack(#[source] UnpackError),
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("layer could not be read")]
    Read(#[source] io::Error),
    #[error(
        "layer `{expected}` unpacks to `{found}`: the image's configuration does not belong to its layers"
    )]
    DiffId { expected: Digest, found: Digest },
    #[error("layer could not be stored")]
    Store(#[source] io::Error),
    #[error("layer `{0}` is missing")]
    Missing(Digest),
}

impl LayerError {
    /// Whether the bytes are to blame, not this machine.
    pub(crate) fn is_bad_input(&self) -> bool {
        match self {
            Self::Unpack(error) => error.is_bad_input(),
            Self::Blob(error) => !matches!(error, BlobError::Write(_)),
            Self::Read(_) | Self::DiffId { .. } => true,
            Self::Store(_) | Self::Missing(_) => false,
        }
    }
}

/// All layers of a store.
#[derive(Debug)]
pub(crate) struct LayerStore {
    layers: PathBuf,
    staging: PathBuf,
    trash: PathBuf,
    next: AtomicU64,
    known: Mutex<HashMap<Digest, Arc<LayerRecord>>>,
}

/// A layer that is unpacked but not yet placed on another.
#[derive(Debug)]
pub(crate) struct Staged {
    dir: StagingDir,
    unpacked: Unpacked,
    pub(crate) diff_id: Digest,
    pub(crate) blob: Descriptor,
    /// The blob, when it is not in the content store yet.
    sealed: Option<Sealed>,
}

#[derive(Debug)]
struct StagingDir(PathBuf);

impl StagingDir {
    fn diff(&self) -> PathBuf {
        self.0.join("diff")
    }
}

impl Drop for StagingDir {
    fn drop(&mut self) {
        let _ = fsx::remove_all(&self.0); // else at the next start
    }
}

impl LayerStore {
    pub(crate) fn open(root: &Path) -> io::Result<LayerStore> {
        let store = LayerStore {
            layers: root.join("layers"),
            staging: root.join("staging"),
            trash: root.join("trash"),
            next: AtomicU64::new(0),
            known: Mutex::default(),
        };
        for leftovers in [&store.staging, &store.trash] {
            fsx::remove_all(leftovers)?;
        }
        for dir in [&store.layers, &store.staging, &store.trash] {
            fs::create_dir_all(dir)?;
        }
        for entry in fs::read_dir(&store.layers)? {
            let path = entry?.path();
            match fsx::read_json::<LayerRecord>(&path.join("layer.json")) {
                Ok(Some(record)) if path == store.path(&record.chain_id) => {
                    store.known().insert(record.chain_id.clone(), Arc::new(record));
                }
                unreadable => {
                    tracing::warn!(path = %path.display(), ?unreadable, "a layer without a record is removed");
                    fsx::remove_all(&path)?;
                }
            }
        }
        Ok(store)
    }

    pub(crate) fn get(&self, chain_id: &Digest) -> Option<Arc<LayerRecord>> {
        self.known().get(chain_id).cloned()
    }

    pub(crate) fn list(&self) -> Vec<Arc<LayerRecord>> {
        self.known().values().cloned().collect()
    }

    /// The layer's directory, for links to it.
    pub(crate) fn path(&self, chain_id: &Digest) -> PathBuf {
        self.layers.join(chain_id.hex())
    }

    /// The directories of a layer and all below it, topmost first.
    pub(crate) fn stack(&self, top: Option<&Digest>) -> Result<Vec<PathBuf>, LayerError> {
        let mut stack = Vec::new();
        let mut next = top.cloned();
        while let Some(chain_id) = next {
            let record = self.get(&chain_id).ok_or_else(|| LayerError::Missing(chain_id.clone()))?;
            stack.push(self.path(&chain_id).join("diff"));
            next = record.parent.clone();
        }
        Ok(stack)
    }

    /// The directory of what containers need on top of this layer, whose stack is `lower`; made when first asked for.
    pub(crate) fn places(&self, top: &Digest, lower: &[PathBuf]) -> io::Result<PathBuf> {
        let path = self.path(top).join("places");
        if !path.exists() {
            let staged = self.staging_dir();
            fs::create_dir_all(staged.diff())?;
            places::make(&staged.diff(), lower)?;
            match fs::rename(staged.diff(), &path) {
                // Someone else was faster: theirs are the same.
                Err(error) if !matches!(error.raw_os_error(), Some(EEXIST | ENOTEMPTY)) => return Err(error),
                _ => {}
            }
        }
        Ok(path)
    }

    fn staging_dir(&self) -> StagingDir {
        StagingDir(self.staging.join(self.next.fetch_add(1, Ordering::Relaxed).to_string()))
    }

    /// Unpacks a layer from bytes that are not in the content store yet; puts the bytes there too.
    pub(crate) fn stage_stream(
        &self,
        content: &Content,
        source: impl Read,
        expected: Option<&Descriptor>,
    ) -> Result<Staged, LayerError> {
        let mut ingest = content.ingest().map_err(LayerError::Store)?;
        let size_max = expected.map_or(u64::MAX, |descriptor| descriptor.size);
        let tee = Tee::new(source, |bytes: &[u8]| take_in(&mut ingest, bytes, size_max));
        let mut compressed = BufReader::with_capacity(COMPRESSED_BYTES, tee);
        let unpacked = self.unpack(&mut compressed);
        // To the end even after a failure: whether the bytes were right is the better answer.
        let drained = io::copy(&mut compressed, &mut io::sink());
        drop(compressed);
        if let Err(error) = drained {
            return Err(unpacked.err().unwrap_or(LayerError::Read(error)));
        }
        let sealed = ingest.seal()?;
        if let Some(expected) = expected {
            sealed.verify(&expected.digest, expected.size)?;
        }
        let (dir, unpacked, diff_id, compression) = unpacked?;
        let blob = Descriptor::new(media_type(compression), sealed.digest.clone(), sealed.size);
        Ok(Staged { dir, unpacked, diff_id, blob, sealed: Some(sealed) })
    }

    /// Unpacks a layer from a blob that is in the content store.
    pub(crate) fn stage_blob(&self, blob: &Descriptor, source: impl Read) -> Result<Staged, LayerError> {
        let mut compressed = BufReader::with_capacity(COMPRESSED_BYTES, source);
        let (dir, unpacked, diff_id, compression) = self.unpack(&mut compressed)?;
        let blob = Descriptor::new(media_type(compression), blob.digest.clone(), blob.size);
        Ok(Staged { dir, unpacked, diff_id, blob, sealed: None })
    }

    fn unpack(
        &self,
        compressed: impl BufRead,
    ) -> Result<(StagingDir, Unpacked, Digest, Compression), LayerError> {
        let dir = self.staging_dir();
        fs::create_dir(&dir.0).and_then(|()| fs::create_dir(dir.diff())).map_err(LayerError::Store)?;
        let (plain, compression) = decompress(compressed).map_err(LayerError::Read)?;
        let mut tar = BufReader::with_capacity(TAR_BYTES, Hashed::new(plain));
        let unpacked = unpack(&mut tar, &dir.diff()).map_err(LayerError::Unpack)?;
        io::copy(&mut tar, &mut io::sink()).map_err(LayerError::Read)?;
        Ok((dir, unpacked, tar.into_inner().into_hasher().finish(), compression))
    }

    /// Places a staged layer on `parent`, and its blob into the content store: pin both first. Someone
    /// else may have been faster: theirs is as good.
    pub(crate) fn commit(
        &self,
        content: &Content,
        mut staged: Staged,
        parent: Option<&Digest>,
    ) -> Result<Arc<LayerRecord>, LayerError> {
        if let Some(sealed) = staged.sealed.take() {
            sealed.commit(content).map_err(LayerError::Store)?;
        }
        let chain_id = chain_id(parent, &staged.diff_id);
        if let Some(record) = self.get(&chain_id) {
            return Ok(record);
        }
        let lower = self.stack(parent)?;
        staged.unpacked.settle(&staged.dir.diff(), &lower).map_err(LayerError::Unpack)?;
        let record = LayerRecord {
            chain_id: chain_id.clone(),
            diff_id: staged.diff_id,
            parent: parent.cloned(),
            size: staged.unpacked.size,
            blob: staged.blob,
        };
        let text = serde_json::to_vec(&record).map_err(io::Error::from).map_err(LayerError::Store)?;
        fs::write(staged.dir.0.join("layer.json"), text).map_err(LayerError::Store)?;
        match fs::rename(&staged.dir.0, self.path(&chain_id)) {
            Err(error) if !matches!(error.raw_os_error(), Some(EEXIST | ENOTEMPTY)) => {
                return Err(LayerError::Store(error));
            }
            _ => {}
        }
        let record = Arc::new(record);
        self.known().insert(chain_id, Arc::clone(&record));
        Ok(record)
    }

    /// Takes a layer out of sight at once; [`LayerStore::empty_trash`] then does the work.
    pub(crate) fn retire(&self, chain_id: &Digest) -> io::Result<()> {
        self.known().remove(chain_id);
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        fs::rename(self.path(chain_id), self.trash.join(name))
    }

    /// Deletes what was retired, here or as a released snapshot.
    pub(crate) fn empty_trash(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.trash)? {
            fsx::remove_all(&entry?.path())?;
        }
        Ok(())
    }

    /// Where something goes that is to be deleted later.
    pub(crate) fn trash_path(&self) -> PathBuf {
        self.trash.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Digest, Arc<LayerRecord>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const EEXIST: i32 = rustix::io::Errno::EXIST.raw_os_error();
const ENOTEMPTY: i32 = rustix::io::Errno::NOTEMPTY.raw_os_error();

fn take_in(ingest: &mut Ingest, bytes: &[u8], size_max: u64) -> io::Result<()> {
    if ingest.size() + bytes.len() as u64 > size_max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("more than the promised {size_max} bytes"),
        ));
    }
    ingest.write(bytes)
}

fn media_type(compression: Compression) -> &'static str {
    match compression {
        Compression::None => OCI_LAYER,
        Compression::Gzip => OCI_LAYER_GZIP,
        Compression::Zstd => OCI_LAYER_ZSTD,
    }
}

//! Import: one tar of a whole root file system becomes an image of one layer.

use std::io;
use std::sync::Arc;

use rswarm_base::{Classify, Kind, Timestamp};
use tokio::io::AsyncRead;

use crate::changes::{ChangeError, apply_changes};
use crate::config::{History, ImageConfig, ImageDocument, RootFs};
use crate::content::BlobError;
use crate::digest::Digest;
use crate::image::Image;
use crate::layers::{LayerError, LayerRecord};
use crate::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_MANIFEST};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::{Inner, blocking};
use crate::stream::{ChunkReader, pipe};

/// How an image is made of a root file system.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The name it gets.
    pub reference: Option<Reference>,
    /// Its comment.
    pub message: String,
    /// Dockerfile instructions that shape its configuration.
    pub changes: Vec<String>,
    /// What it is for; this machine's when not given.
    pub platform: Option<Platform>,
}

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Only Linux runs here.
    #[error("operating system is not supported")]
    System,
    /// A `--change` that cannot be made.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The archive is broken.
    #[error("archive cannot be imported")]
    Archive(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Whoever sends the archive stopped.
    #[error("archive could not be read")]
    Read(#[source] io::Error),
    /// The disk.
    #[error("image could not be stored")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Classify for ImportError {
    fn kind(&self) -> Kind {
        match self {
            Self::Change(error) => error.kind(),
            Self::System | Self::Archive(_) | Self::Read(_) => Kind::InvalidArgument,
            Self::Store(_) => Kind::Internal,
        }
    }
}

impl From<LayerError> for ImportError {
    fn from(error: LayerError) -> ImportError {
        if error.is_bad_input() { Self::Archive(Box::new(error)) } else { Self::Store(Box::new(error)) }
    }
}

impl From<BlobError> for ImportError {
    fn from(error: BlobError) -> ImportError {
        Self::Store(Box::new(error))
    }
}

pub(crate) async fn import(
    inner: &Arc<Inner>,
    tar: impl AsyncRead + Send + Unpin,
    options: ImportOptions,
) -> Result<Image, ImportError> {
    if options.platform.as_ref().is_some_and(|platform| platform.os != "linux") {
        return Err(ImportError::System);
    }
    let mut config = ImageConfig::default();
    apply_changes(&mut config, &options.changes)?;
    let (sender, reader) = pipe();
    let worker = Arc::clone(inner);
    let (sent, made) =
        tokio::join!(sender.send_all(tar), blocking(move || build(&worker, reader, config, options)));
    sent.map_err(ImportError::Read)?;
    made
}

fn build(
    inner: &Arc<Inner>,
    tar: ChunkReader,
    config: ImageConfig,
    options: ImportOptions,
) -> Result<Image, ImportError> {
    let staged = inner.layers.stage_stream(&inner.content, tar, None)?;
    let _pins = inner.pin(vec![staged.diff_id.clone(), staged.blob.digest.clone()]);
    let layer = inner.layers.commit(&inner.content, staged, None)?;
    let created = Timestamp::now().to_string();
    let platform = options.platform.unwrap_or_else(|| inner.config.platform.clone());
    let document = ImageDocument {
        architecture: platform.architecture,
        variant: platform.variant,
        os: platform.os,
        created: Some(created.clone()),
        comment: options.message.clone(),
        config,
        rootfs: RootFs { kind: "layers".to_owned(), diff_ids: vec![layer.diff_id.clone()] },
        history: vec![History { created: Some(created), comment: options.message, ..History::default() }],
        ..ImageDocument::default()
    };
    let bytes = serde_json::to_vec(&document).expect("a document of ours can be written");
    let id = Digest::of(&bytes);
    let manifest = manifest_of(&bytes, &[layer]);
    let manifest_bytes = serde_json::to_vec(&manifest).expect("a manifest of ours can be written");
    let descriptor = Descriptor::of(OCI_MANIFEST, &manifest_bytes);
    let _pins = inner.pin(vec![id.clone(), descriptor.digest.clone()]);
    inner.content.write(&bytes)?;
    inner.content.write(&manifest_bytes)?;
    let names: Vec<Reference> = options.reference.into_iter().collect();
    inner.register(descriptor, &id, None, &names).map_err(|error| ImportError::Store(Box::new(error)))
}

/// The manifest of an image that came without one, or whose own names blobs that are not here.
pub(crate) fn manifest_of(config: &[u8], layers: &[Arc<LayerRecord>]) -> Manifest {
    Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        config: Descriptor::of(OCI_CONFIG, config),
        layers: layers.iter().map(|layer| layer.blob.clone()).collect(),
    }
}

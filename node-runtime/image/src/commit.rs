//! Commit: what a container wrote becomes a layer on top of its image's.

use std::io;
use std::sync::Arc;
use std::thread;

use rswarm_base::{Classify, Kind, Timestamp};

use crate::catalog::LookupError;
use crate::config::{History, ImageConfig, ImageDocument};
use crate::diff;
use crate::digest::Digest;
use crate::image::Image;
use crate::import::manifest_of;
use crate::layers::{LayerError, LayerRecord, Staged};
use crate::manifest::{Descriptor, OCI_MANIFEST};
use crate::pack::Packer;
use crate::reference::Reference;
use crate::snapshot::{Layers, SnapshotError};
use crate::store::Inner;
use crate::tree::open_root;

/// How an image is made of a container.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// The image that the container was made of, as it is found.
    pub image: String,
    /// The name that the new one gets.
    pub reference: Option<Reference>,
    /// What containers of it run with.
    pub config: ImageConfig,
    /// Who made it.
    pub author: String,
    /// Free text.
    pub comment: String,
}

/// Why nothing was committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The container's image is gone.
    #[error(transparent)]
    Image(#[from] LookupError),
    /// The container has no writable layer.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// What it wrote cannot be read.
    #[error("changes of the container could not be read")]
    Read(#[source] io::Error),
    /// The disk.
    #[error("image could not be stored")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Classify for CommitError {
    fn kind(&self) -> Kind {
        match self {
            Self::Image(error) => error.kind(),
            Self::Snapshot(error) => error.kind(),
            Self::Read(_) | Self::Store(_) => Kind::Internal,
        }
    }
}

/// Blocks.
pub(crate) fn commit(inner: &Arc<Inner>, key: &str, options: CommitOptions) -> Result<Image, CommitError> {
    let stored = |error: Box<dyn std::error::Error + Send + Sync>| CommitError::Store(error);
    let catalog = inner.catalog();
    let parent = catalog.lookup(&options.image)?;
    let _pins = inner.pin(parent.chain.to_vec());
    let dirs = inner.snapshots.layers(key, &inner.layers)?;
    let changed = !diff::changes(&dirs.upper, &dirs.lower).map_err(CommitError::Read)?.is_empty();
    let mut layers = chain(inner, &parent.chain).map_err(|error| stored(Box::new(error)))?;
    let mut _pinned = None;
    if changed {
        let staged = stage(inner, &dirs)?;
        _pinned = Some(inner.pin(vec![
            crate::digest::chain_id(parent.chain.last(), &staged.diff_id),
            staged.blob.digest.clone(),
        ]));
        let layer = inner.layers.commit(&inner.content, staged, parent.chain.last());
        layers.push(layer.map_err(|error| stored(Box::new(error)))?);
    }
    let document = document(&parent.document, &layers, changed, &options);
    let bytes = serde_json::to_vec(&document).expect("a document of ours can be written");
    let id = Digest::of(&bytes);
    let manifest = manifest_of(&bytes, &layers);
    let manifest_bytes = serde_json::to_vec(&manifest).expect("a manifest of ours can be written");
    let descriptor = Descriptor::of(OCI_MANIFEST, &manifest_bytes);
    let _documents = inner.pin(vec![id.clone(), descriptor.digest.clone()]);
    for bytes in [&bytes, &manifest_bytes] {
        inner.content.write(bytes).map_err(|error| stored(Box::new(error)))?;
    }
    let names: Vec<Reference> = options.reference.into_iter().collect();
    let parent = Some(parent.record.id.clone());
    inner.register(descriptor, &id, parent, &names).map_err(|error| stored(Box::new(error)))
}

fn chain(inner: &Inner, chain: &[Digest]) -> Result<Vec<Arc<LayerRecord>>, LayerError> {
    let record = |id: &Digest| inner.layers.get(id).ok_or_else(|| LayerError::Missing(id.clone()));
    chain.iter().map(record).collect()
}

/// Reads the writable layer and unpacks it as a layer like any other, at the same time.
fn stage(inner: &Inner, dirs: &Layers) -> Result<Staged, CommitError> {
    let left_out = diff::left_out(&dirs.upper, &dirs.lower).map_err(CommitError::Read)?;
    let upper = open_root(&dirs.upper).map_err(CommitError::Read)?;
    let (reader, writer) = io::pipe().map_err(CommitError::Read)?;
    thread::scope(|scope| {
        let packing = scope.spawn(move || {
            let mut packer = Packer::layer(io::BufWriter::new(writer), left_out);
            packer.add(&upper, ".".as_ref(), b".")?;
            io::Write::flush(&mut packer.finish()?)
        });
        let staged = inner.layers.stage_stream(&inner.content, reader, None);
        let packed = packing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // A reader that failed is why the writer did.
        let staged = staged.map_err(|error| CommitError::Store(Box::new(error)))?;
        packed.map_err(CommitError::Read)?;
        Ok(staged)
    })
}

fn document(
    parent: &ImageDocument,
    layers: &[Arc<LayerRecord>],
    changed: bool,
    options: &CommitOptions,
) -> ImageDocument {
    let created = Timestamp::now().to_string();
    let mut document = ImageDocument {
        created: Some(created.clone()),
        author: options.author.clone(),
        comment: options.comment.clone(),
        docker_version: String::new(),
        config: options.config.clone(),
        ..parent.clone()
    };
    document.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    document.history.push(History {
        created: Some(created),
        created_by: options.config.cmd.join(" "),
        author: options.author.clone(),
        comment: options.comment.clone(),
        empty_layer: !changed,
    });
    document
}

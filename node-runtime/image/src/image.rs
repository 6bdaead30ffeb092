//! An image as callers see it, and the record of it that is kept on disk.

use std::sync::Arc;

use rswarm_base::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::{History, ImageConfig, ImageDocument};
use crate::digest::{Digest, chain_ids};
use crate::manifest::Descriptor;
use crate::platform::Platform;

/// An image: whole, unpacked, ready to run. A snapshot: later changes do not show in it.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest of the configuration document.
    pub id: Digest,
    /// Familiar names with tags, sorted: `web:latest`.
    pub tags: Vec<String>,
    /// Familiar names with manifest digests, sorted: `web@sha256:…`.
    pub digests: Vec<String>,
    /// When it was built, as the document says.
    pub created: Timestamp,
    /// When it got its last tag here.
    pub last_tagged: Timestamp,
    /// Bytes in the files of all layers.
    pub size: u64,
    /// What a container of it runs with.
    pub config: ImageConfig,
    /// What it was built for.
    pub platform: Platform,
    /// Who made it.
    pub author: String,
    /// What `import -m` and `commit -m` said.
    pub comment: String,
    /// The engine that made it.
    pub docker_version: String,
    /// Digests of the uncompressed layers, lowest first.
    pub layers: Vec<Digest>,
    /// Bytes in the files of each layer, in the order of `layers`.
    pub layer_sizes: Vec<u64>,
    /// The build steps.
    pub history: Vec<History>,
    /// The image that it was committed from here, if any.
    pub parent: Option<Digest>,
    /// The manifest that it came with, or that was made for it here.
    pub manifest: Descriptor,
}

impl Image {
    /// `amd64`, `arm64`, …
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.platform.architecture
    }

    /// `linux`.
    #[must_use]
    pub fn os(&self) -> &str {
        &self.platform.os
    }
}

/// What the store keeps of an image beside its blobs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) id: Digest,
    pub(crate) manifest: Descriptor,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<Digest>,
    #[serde(default)]
    pub(crate) last_tagged: Timestamp,
}

/// A record together with what its document says.
#[derive(Debug, Clone)]
pub(crate) struct StoredImage {
    pub(crate) record: ImageRecord,
    pub(crate) document: Arc<ImageDocument>,
    pub(crate) chain: Arc<[Digest]>,
    pub(crate) layer_sizes: Arc<[u64]>,
    /// Blobs that the manifest names: configuration and layers.
    pub(crate) blobs: Arc<[Digest]>,
}

impl StoredImage {
    pub(crate) fn chain_of(document: &ImageDocument) -> Arc<[Digest]> {
        chain_ids(&document.rootfs.diff_ids).into()
    }

    pub(crate) fn to_image(&self, tags: Vec<String>, digests: Vec<String>) -> Image {
        let document = &self.document;
        Image {
            id: self.record.id.clone(),
            tags,
            digests,
            created: document.created.as_deref().and_then(Timestamp::parse).unwrap_or(Timestamp::ZERO),
            last_tagged: self.record.last_tagged,
            size: self.layer_sizes.iter().sum(),
            config: document.config.clone(),
            platform: Platform {
                os: document.os.clone(),
                architecture: document.architecture.clone(),
                variant: document.variant.clone(),
            },
            author: document.author.clone(),
            comment: document.comment.clone(),
            docker_version: document.docker_version.clone(),
            layers: document.rootfs.diff_ids.clone(),
            layer_sizes: self.layer_sizes.to_vec(),
            history: document.history.clone(),
            parent: self.record.parent.clone(),
            manifest: self.record.manifest.clone(),
        }
    }
}

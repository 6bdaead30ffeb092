//! The handle on everything: [`ImageStore`].

use std::path::PathBuf;

use rswarm_base::{Classify, Kind};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::*;

/// Where images live and how registries are reached.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The store's own directory; `image` under the data root.
    pub root: PathBuf,
    /// URLs of Docker Hub mirrors, tried in order before the Hub.
    pub mirrors: Vec<String>,
    /// Hosts (`name[:port]`) and networks (CIDR) that may speak plain HTTP or show any certificate.
    pub insecure_registries: Vec<String>,
    /// Certificates per registry: `<dir>/<host[:port]>/{*.crt,*.cert,*.key}`.
    pub certs_dir: PathBuf,
    /// Which platform's images are pulled when nothing else is asked.
    pub platform: Platform,
    /// Layers that are fetched at one time, over all pulls.
    pub downloads_max: usize,
}

impl StoreConfig {
    /// Docker's defaults.
    #[must_use]
    pub fn new(root: PathBuf) -> StoreConfig {
        StoreConfig {
            root,
            mirrors: Vec::new(),
            insecure_registries: Vec::new(),
            certs_dir: PathBuf::from("/etc/docker/certs.d"),
            platform: Platform::host(),
            downloads_max: 3,
        }
    }
}
/// x
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// x
    #[error("x")]
    X,
}
impl Classify for OpenError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}
/// x
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// x
    #[error("x")]
    X,
}
impl Classify for LookupError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}
/// x
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// x
    #[error("x")]
    X,
}
impl Classify for TagError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}

/// All images of a node. A cheap handle: clones share one store.
#[derive(Debug, Clone)]
pub struct ImageStore {}

#[allow(unused_variables, clippy::todo)]
impl ImageStore {
    /// Opens the store, creating it when it is new; removes what a crash left half done. Blocking.
    pub fn open(config: StoreConfig) -> Result<ImageStore, OpenError> {
        todo!()
    }
    /// Pulls for the store's platform. `reference` gets `:latest` when it has neither tag nor digest.
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: Option<RegistryAuth>,
        progress: Progress,
    ) -> Result<Image, PullError> {
        todo!()
    }
    /// Pulls for a platform of the caller's.
    pub async fn pull_platform(
        &self,
        reference: &Reference,
        platform: &Platform,
        auth: Option<RegistryAuth>,
        progress: Progress,
    ) -> Result<Image, PullError> {
        todo!()
    }
    /// What the registry says about a name, without pulling.
    pub async fn distribution(
        &self,
        reference: &Reference,
        auth: Option<RegistryAuth>,
    ) -> Result<Distribution, PullError> {
        todo!()
    }
    /// Makes an image of one root file system (tar; plain, gzip or zstd).
    pub async fn import(
        &self,
        tar: impl AsyncRead + Send + Unpin + 'static,
        options: ImportOptions,
    ) -> Result<Image, ImportError> {
        todo!()
    }
    /// Takes in a docker-archive or an OCI layout (tar; plain, gzip or zstd).
    pub async fn load(
        &self,
        tar: impl AsyncRead + Send + Unpin + 'static,
        progress: Progress,
    ) -> Result<Vec<Loaded>, LoadError> {
        todo!()
    }
    /// Writes images as one tar that is an OCI layout and a docker-archive at once.
    pub async fn save(
        &self,
        references: &[String],
        out: impl AsyncWrite + Send + Unpin,
    ) -> Result<(), SaveError> {
        todo!()
    }
    /// All images, newest first.
    pub fn list(&self) -> Vec<Image> {
        todo!()
    }
    /// One image by name, by `sha256:…`, or by the beginning of its id.
    pub fn get(&self, reference_or_id: &str) -> Result<Image, LookupError> {
        todo!()
    }
    /// Gives an image (found as by [`ImageStore::get`]) one more name; a name that is taken moves silently.
    pub async fn tag(&self, source: &str, target: &Reference) -> Result<Image, TagError> {
        todo!()
    }
    /// Removes a name, and the image with it when that was its last; Docker's rules and texts.
    pub async fn remove(
        &self,
        reference: &str,
        options: RemoveOptions,
        users: &[ImageUser],
    ) -> Result<Vec<Removed>, RemoveError> {
        todo!()
    }
    /// Makes the writable layer of a container. Asking again gives the same one.
    pub async fn prepare(&self, key: &str, image_id: &str) -> Result<Layers, SnapshotError> {
        todo!()
    }
    /// The directories of a container that was prepared before.
    pub fn layers(&self, key: &str) -> Result<Layers, SnapshotError> {
        todo!()
    }
    /// Removes the writable layer of a container; one that is not there is fine.
    pub async fn release(&self, key: &str) -> Result<(), SnapshotError> {
        todo!()
    }
    /// Keys of all writable layers.
    pub fn snapshot_keys(&self) -> Vec<String> {
        todo!()
    }
    /// Bytes that a container has written (`docker ps -s`).
    pub async fn snapshot_size(&self, key: &str) -> Result<u64, SnapshotError> {
        todo!()
    }
}

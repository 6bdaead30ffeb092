//! Pulling: name → manifest → configuration → layers, from the first place that has it. All layers go
//! side by side, each through one pipeline (download, hash, decompress, hash, unpack); each is placed when
//! the one below it is. Nothing is visible until the image is registered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use reqwest::StatusCode;
use rswarm_base::{Chain, Classify, Kind, Timestamp};
use tokio::sync::oneshot;

use crate::auth::RegistryAuth;
use crate::catalog::key;
use crate::config::ImageDocument;
use crate::digest::{Digest, chain_ids};
use crate::image::Image;
use crate::layers::{LayerError, Staged};
use crate::manifest::{self, Descriptor, Document, Manifest, ManifestError, OCI_CONFIG};
use crate::platform::Platform;
use crate::progress::{LayerState, Progress, ProgressEvent};
use crate::reference::{Reference, ReferenceError};
use crate::registry::{RawManifest, RegistryError, Repository};
use crate::store::{DOCUMENT_BYTES_MAX, Inner, Pins, blocking};
use crate::stream::{ChunkSender, pipe};

const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const OCTETS: &str = "application/octet-stream";
/// How often a blob is asked for, as Docker does.
const ATTEMPTS_MAX: u32 = 5;
/// The first pause between two attempts; each further one is twice as long.
const BACKOFF: Duration = Duration::from_secs(1);
/// Byte counts for people: more often nobody can read them.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// An index may hold an index; more depth is a loop.
const INDEX_DEPTH_MAX: usize = 3;

/// What a registry says about a name, without pulling it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// Media type, digest and size of what the name points at.
    pub descriptor: Descriptor,
    /// What it can run on.
    pub platforms: Vec<Platform>,
}

/// Why a pull failed; with its sources it reads as Docker's message.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// A name that cannot be pulled.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The registry does not show the repository to us.
    #[error("pull access denied for {name}, repository does not exist or may require 'docker login'")]
    Denied {
        /// The familiar name.
        name: String,
        /// What the registry said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The repository has no such tag or digest.
    #[error("manifest for {reference} not found")]
    ManifestUnknown {
        /// The familiar reference.
        reference: String,
        /// What the registry said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The registry has no such repository.
    #[error("repository {name} not found")]
    NameUnknown {
        /// The familiar name.
        name: String,
        /// What the registry said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The token service or the registry does not accept the credentials.
    #[error("registry refused the credentials for {name}")]
    Credentials {
        /// The familiar name.
        name: String,
        /// What the registry said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The image exists, but not for this platform.
    #[error("no matching manifest for {platform} in the manifest list entries")]
    Platform {
        /// What was wanted.
        platform: Platform,
    },
    /// Windows, mostly.
    #[error("image operating system \"{0}\" cannot be used on this platform")]
    OperatingSystem(String),
    /// Not an image, or one of 2014.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The configuration does not fit the manifest.
    #[error("invalid image configuration `{digest}`: {reason}")]
    Config {
        /// The configuration's digest.
        digest: Digest,
        /// What is wrong.
        reason: String,
    },
    /// A layer is not what its digest says, or cannot be unpacked.
    #[error("layer `{digest}` is refused")]
    Layer {
        /// The layer's digest.
        digest: Digest,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The registry could not be reached, or answered with nonsense.
    #[error(transparent)]
    Registry(Box<dyn std::error::Error + Send + Sync>),
    /// The registry asks us to come less often.
    #[error("too many requests to the registry for {name}")]
    RateLimit {
        /// The familiar name.
        name: String,
        /// What the registry said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The disk.
    #[error("image could not be stored")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A layer below failed; its own error is what is reported.
    #[error("pull was abandoned")]
    Abandoned,
}

impl Classify for PullError {
    fn kind(&self) -> Kind {
        match self {
            Self::Reference(error) => error.kind(),
            Self::Denied { .. }
            | Self::ManifestUnknown { .. }
            | Self::NameUnknown { .. }
            | Self::Platform { .. } => Kind::NotFound,
            Self::Credentials { .. } => Kind::Unauthenticated,
            Self::RateLimit { .. } => Kind::ResourceExhausted,
            Self::OperatingSystem(_) | Self::Manifest(_) | Self::Config { .. } => Kind::InvalidArgument,
            Self::Layer { .. } | Self::Registry(_) | Self::Store(_) | Self::Abandoned => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Denied { .. } | Self::Credentials { .. } => {
                Some("check the name, and log in to the registry when it is private".to_owned())
            }
            Self::Platform { .. } => Some("choose another platform with `--platform`".to_owned()),
            Self::Layer { .. } => Some("the image is damaged in the registry: push it again".to_owned()),
            _ => None,
        }
    }
}

impl PullError {
    /// Whether another place could have what this one does not.
    fn is_about_place(&self) -> bool {
        !matches!(self, Self::Reference(_) | Self::Store(_))
    }
}

/// What happens on the way to a blob concerns the whole pull only as a failed transfer.
fn registry(error: RegistryError) -> PullError {
    PullError::Registry(Box::new(error))
}

/// Says a registry's refusal in Docker's words.
fn translate(error: RegistryError, reference: &Reference) -> PullError {
    let name = reference.familiar_name();
    let code = match &error {
        RegistryError::Refused { code, .. } => code.as_str(),
        _ => "",
    };
    match (error.status(), code) {
        (_, "denied") | (Some(StatusCode::FORBIDDEN), _) => {
            PullError::Denied { name, source: Box::new(error) }
        }
        (_, "name unknown") => PullError::NameUnknown { name, source: Box::new(error) },
        (_, "manifest unknown") | (Some(StatusCode::NOT_FOUND), _) => {
            PullError::ManifestUnknown { reference: reference.familiar(), source: Box::new(error) }
        }
        (Some(StatusCode::UNAUTHORIZED), _) => PullError::Denied { name, source: Box::new(error) },
        (Some(StatusCode::TOO_MANY_REQUESTS), _) => PullError::RateLimit { name, source: Box::new(error) },
        _ => registry(error),
    }
}

/// Pulls `reference` for `platform`, or for the store's own.
pub(crate) async fn pull(
    inner: &Arc<Inner>,
    reference: &Reference,
    platform: Option<&Platform>,
    auth: Option<RegistryAuth>,
    progress: Progress,
) -> Result<Image, PullError> {
    let reference = reference.clone().with_default_tag();
    if reference.familiar_name() == "scratch" {
        return Err(ReferenceError::Scratch.into());
    }
    let wanted = platform.unwrap_or(&inner.config.platform);
    if let Some(image) = local(inner, &reference, wanted) {
        progress.send(ProgressEvent::UpToDate(reference.familiar()));
        return Ok(image);
    }
    let pull =
        Pull { inner, reference: &reference, wanted, is_explicit: platform.is_some(), progress: &progress };
    first_endpoint(inner, &reference, auth, |repository| pull.from(repository)).await
}

/// A digest never changes what it means: what is here already is the answer.
fn local(inner: &Inner, reference: &Reference, wanted: &Platform) -> Option<Image> {
    reference.digest()?;
    let catalog = inner.catalog();
    let image = catalog.names.get(&key(reference)).and_then(|id| catalog.images.get(id))?;
    let image = catalog.view(image);
    wanted.rank(&image.platform).map(|_| image)
}

/// What the registry says about a name.
pub(crate) async fn distribution(
    inner: &Arc<Inner>,
    reference: &Reference,
    auth: Option<RegistryAuth>,
) -> Result<Distribution, PullError> {
    let reference = reference.clone().with_default_tag();
    first_endpoint(inner, &reference, auth, |repository| describe(repository, &reference)).await
}

/// Asks one place after the other until one knows.
async fn first_endpoint<T, F: Future<Output = Result<T, PullError>>>(
    inner: &Arc<Inner>,
    reference: &Reference,
    auth: Option<RegistryAuth>,
    ask: impl Fn(Repository) -> F,
) -> Result<T, PullError> {
    let mut endpoints = inner.registries.endpoints(reference).into_iter().peekable();
    while let Some(endpoint) = endpoints.next() {
        let asked = match Repository::open(&inner.registries, &endpoint, reference, auth.clone()).await {
            Ok(repository) => ask(repository).await,
            Err(error) => Err(registry(error)),
        };
        match asked {
            Err(error) if error.is_about_place() && endpoints.peek().is_some() => {
                let error = Chain(&error).to_string();
                tracing::info!(endpoint = %endpoint.url, error, "the next registry is tried");
            }
            asked => return asked,
        }
    }
    Err(PullError::Reference(ReferenceError::Format))
}

/// All tags of a repository.
pub(crate) async fn tags(
    inner: &Arc<Inner>,
    reference: &Reference,
    auth: Option<RegistryAuth>,
) -> Result<Vec<String>, PullError> {
    let list = |repository: Repository| async move {
        let listed = with_retries(|| repository.tags()).await;
        listed.map_err(|error| translate(error, reference))
    };
    first_endpoint(inner, reference, auth, list).await
}

async fn describe(repository: Repository, reference: &Reference) -> Result<Distribution, PullError> {
    let raw = fetch_manifest(&repository, reference).await?;
    let (document, media_type) = manifest::parse(&raw.bytes, &raw.content_type)?;
    let descriptor = Descriptor::new(&media_type, raw.digest, raw.bytes.len() as u64);
    let platforms = match document {
        Document::Index(index) => index.platforms(),
        Document::Manifest(manifest) => {
            let bytes = repository.small_blob(&manifest.config.digest).await.map_err(registry)?;
            serde_json::from_slice::<Platform>(&bytes).into_iter().collect()
        }
    };
    Ok(Distribution { descriptor, platforms })
}

async fn fetch_manifest(repository: &Repository, reference: &Reference) -> Result<RawManifest, PullError> {
    let tag = reference.tag().unwrap_or_default();
    let fetched = with_retries(|| repository.manifest(tag, reference.digest())).await;
    fetched.map_err(|error| translate(error, reference))
}

/// For small answers: a server that stumbles is asked once more.
async fn with_retries<T, F: Future<Output = Result<T, RegistryError>>>(
    ask: impl Fn() -> F,
) -> Result<T, RegistryError> {
    match ask().await {
        Err(error) if error.is_transient() => {
            tokio::time::sleep(BACKOFF).await;
            ask().await
        }
        answer => answer,
    }
}

/// One pull from wherever.
struct Pull<'a> {
    inner: &'a Arc<Inner>,
    reference: &'a Reference,
    wanted: &'a Platform,
    is_explicit: bool,
    progress: &'a Progress,
}

/// A manifest for the right platform, and the digest that the name stands for.
struct Resolved {
    manifest: Manifest,
    bytes: Vec<u8>,
    descriptor: Descriptor,
    top: Digest,
}

impl Pull<'_> {
    async fn from(&self, repository: Repository) -> Result<Image, PullError> {
        let resolved = self.resolve(&repository).await?;
        // What cannot be found is an answer of its own, before the first word.
        let tag = self.reference.digest().map_or(self.reference.tag().unwrap_or_default(), Digest::as_str);
        let (repository_path, tag) = (self.reference.path().to_owned(), tag.to_owned());
        self.progress.send(ProgressEvent::PullingFrom { repository: repository_path, tag });
        let (document, config) = self.config(&repository, &resolved.manifest).await?;
        let chain = chain_ids(&document.rootfs.diff_ids);
        let id = &resolved.manifest.config.digest;
        let blobs = resolved.manifest.layers.iter().map(|layer| layer.digest.clone());
        let pinned =
            chain.iter().cloned().chain(blobs).chain([id.clone(), resolved.descriptor.digest.clone()]);
        let pins = Arc::new(self.inner.pin(pinned.collect()));
        self.layers(&repository, &resolved.manifest, &document, &chain, &pins).await?;
        let names = match self.reference.digest() {
            Some(_) => vec![key(self.reference)],
            None => vec![self.reference.clone(), self.reference.with_digest(resolved.top.clone())],
        };
        let before = self.inner.catalog().names.get(&key(self.reference)).cloned();
        let (inner, descriptor, image_id) = (Arc::clone(self.inner), resolved.descriptor.clone(), id.clone());
        let image = blocking(move || {
            let _pins = pins;
            let store = |error: Box<dyn std::error::Error + Send + Sync>| PullError::Store(error);
            inner.content.write(&config).map_err(|error| store(error.into()))?;
            inner.content.write(&resolved.bytes).map_err(|error| store(error.into()))?;
            inner.register(descriptor, &image_id, None, &names).map_err(|error| store(error.into()))
        })
        .await?;
        self.progress.send(ProgressEvent::Digest(resolved.top.to_string()));
        let name = self.reference.familiar();
        self.progress.send(match before.as_ref() == Some(&image.id) {
            true => ProgressEvent::UpToDate(name),
            false => ProgressEvent::Downloaded(name),
        });
        Ok(image)
    }

    async fn resolve(&self, repository: &Repository) -> Result<Resolved, PullError> {
        let mut raw = fetch_manifest(repository, self.reference).await?;
        let top = raw.digest.clone();
        for _ in 0..INDEX_DEPTH_MAX {
            let (document, media_type) = manifest::parse(&raw.bytes, &raw.content_type)?;
            match document {
                Document::Manifest(manifest) => {
                    let descriptor = Descriptor::new(&media_type, raw.digest, raw.bytes.len() as u64);
                    return Ok(Resolved { manifest, bytes: raw.bytes, descriptor, top });
                }
                Document::Index(index) => {
                    let missing = || PullError::Platform { platform: self.wanted.clone() };
                    let digest = &index.select(self.wanted).ok_or_else(missing)?.digest;
                    let fetched = with_retries(|| repository.manifest("", Some(digest))).await;
                    raw = fetched.map_err(|error| translate(error, self.reference))?;
                }
            }
        }
        Err(ManifestError::MediaType("an index of an index of an index".to_owned()).into())
    }

    /// The configuration, read and checked against the manifest.
    async fn config(
        &self,
        repository: &Repository,
        manifest: &Manifest,
    ) -> Result<(ImageDocument, Vec<u8>), PullError> {
        let kind = manifest.config.media_type.as_str();
        if !matches!(kind, OCI_CONFIG | DOCKER_CONFIG | OCTETS | "") {
            return Err(ManifestError::MediaType(kind.to_owned()).into());
        }
        let digest = &manifest.config.digest;
        let local =
            self.inner.content.has(digest).then(|| self.inner.content.read(digest, DOCUMENT_BYTES_MAX));
        let bytes = match local {
            Some(Ok(bytes)) => bytes,
            _ => with_retries(|| repository.small_blob(digest)).await.map_err(registry)?,
        };
        let refused = |reason: String| PullError::Config { digest: digest.clone(), reason };
        let document: ImageDocument =
            serde_json::from_slice(&bytes).map_err(|error| refused(error.to_string()))?;
        let (layers, diff_ids) = (manifest.layers.len(), document.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(refused(format!("it lists {diff_ids} layers, the manifest {layers}")));
        }
        if let Some(layer) = manifest.layers.iter().find(|layer| layer.is_foreign()) {
            return Err(ManifestError::MediaType(layer.media_type.clone()).into());
        }
        if !matches!(document.os.as_str(), "linux" | "") {
            return Err(PullError::OperatingSystem(document.os));
        }
        self.warn_of_platform(&document);
        Ok((document, bytes))
    }

    /// An image without an index has one platform, whatever was asked for: Docker pulls it and says so.
    fn warn_of_platform(&self, document: &ImageDocument) {
        let (os, architecture) = (document.os.clone(), document.architecture.clone());
        let actual = Platform { os, architecture, variant: document.variant.clone() };
        if self.is_explicit && self.wanted.rank(&actual).is_none() {
            let (name, wanted) = (self.reference.familiar(), self.wanted);
            self.progress.send(ProgressEvent::Message(format!(
                "WARNING: image with reference {name} was found but does not match the specified platform: \
                 wanted {wanted}, actual: {actual}"
            )));
        }
    }

    async fn layers(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        document: &ImageDocument,
        chain: &[Digest],
        pins: &Arc<Pins>,
    ) -> Result<(), PullError> {
        let (first, mut below) = oneshot::channel();
        let _ = first.send(());
        let mut layers = Vec::with_capacity(chain.len());
        for (at, blob) in manifest.layers.iter().enumerate() {
            let (placed, next) = oneshot::channel();
            let layer = LayerPull {
                pull: self,
                repository,
                blob,
                diff_id: &document.rootfs.diff_ids[at],
                chain_id: &chain[at],
                parent: at.checked_sub(1).map(|below| &chain[below]),
                id: blob.digest.short(),
                pins,
            };
            if self.inner.layers.get(&chain[at]).is_none() {
                layer.tell(LayerState::PullingFsLayer);
            }
            layers.push(layer.run(std::mem::replace(&mut below, next), placed));
        }
        try_join_all(layers).await.map(|_| ())
    }
}

/// One layer of a pull.
struct LayerPull<'a> {
    pull: &'a Pull<'a>,
    repository: &'a Repository,
    blob: &'a Descriptor,
    diff_id: &'a Digest,
    chain_id: &'a Digest,
    parent: Option<&'a Digest>,
    id: &'a str,
    pins: &'a Arc<Pins>,
}

impl LayerPull<'_> {
    /// Fetches and unpacks at once, places when the layer below is there.
    async fn run(self, below: oneshot::Receiver<()>, placed: oneshot::Sender<()>) -> Result<(), PullError> {
        let inner = self.pull.inner;
        if inner.layers.get(self.chain_id).is_some() {
            self.tell(LayerState::AlreadyExists);
            let _ = placed.send(());
            return Ok(());
        }
        let _turn = inner.flights.take(self.chain_id, || self.tell(LayerState::Waiting)).await;
        if inner.layers.get(self.chain_id).is_none() {
            let staged = self.stage().await?;
            if staged.diff_id != *self.diff_id {
                let (expected, found) = (self.diff_id.clone(), staged.diff_id.clone());
                return Err(self.refused(LayerError::DiffId { expected, found }));
            }
            below.await.map_err(|_| PullError::Abandoned)?;
            let (inner, parent, pins) = (Arc::clone(inner), self.parent.cloned(), Arc::clone(self.pins));
            let committed = blocking(move || {
                let _pins = pins;
                inner.layers.commit(&inner.content, staged, parent.as_ref())
            });
            committed.await.map_err(|error| self.refused(error))?;
        }
        self.tell(LayerState::PullComplete);
        let _ = placed.send(());
        Ok(())
    }

    async fn stage(&self) -> Result<Staged, PullError> {
        let inner = Arc::clone(self.pull.inner);
        let _slot = match inner.downloads.try_acquire() {
            Ok(slot) => slot,
            Err(_) => {
                self.tell(LayerState::Waiting);
                inner.downloads.acquire().await.expect("the semaphore is never closed")
            }
        };
        let total = self.blob.size;
        if inner.content.has(&self.blob.digest) {
            self.tell(LayerState::Extracting { current: total, total });
            let (worker, blob) = (Arc::clone(&inner), self.blob.clone());
            let staged = blocking(move || {
                let file = worker.content.open_blob(&blob.digest).map_err(LayerError::Store)?;
                worker.layers.stage_blob(&blob, file)
            });
            return staged.await.map_err(|error| self.refused(error));
        }
        let (sender, reader) = pipe();
        let (worker, blob) = (Arc::clone(&inner), self.blob.clone());
        let (sent, staged) = tokio::join!(
            self.download(sender),
            blocking(move || worker.layers.stage_stream(&worker.content, reader, Some(&blob)))
        );
        sent.map_err(registry)?;
        staged.map_err(|error| self.refused(error))
    }

    /// Sends the whole blob, in as many attempts as it takes; each goes on where the last one broke off.
    async fn download(&self, sender: ChunkSender) -> Result<(), RegistryError> {
        let mut offset = 0;
        let mut failures = 0;
        loop {
            let before = offset;
            let error = match self.attempt(&sender, &mut offset).await {
                Ok(()) => break,
                Err(error) => error,
            };
            failures = if offset > before { 1 } else { failures + 1 };
            if !error.is_transient() || failures >= ATTEMPTS_MAX {
                return Err(error);
            }
            tracing::info!(layer = %self.blob.digest, offset, error = %Chain(&error), "the transfer is resumed");
            let pause = BACKOFF * 2_u32.pow(failures - 1);
            self.tell(LayerState::Retrying(pause.as_secs()));
            tokio::time::sleep(pause).await;
        }
        self.tell(LayerState::DownloadComplete);
        self.tell(LayerState::Extracting { current: self.blob.size, total: self.blob.size });
        sender.end().await;
        Ok(())
    }

    async fn attempt(&self, sender: &ChunkSender, offset: &mut u64) -> Result<(), RegistryError> {
        let total = self.blob.size;
        let mut told = Timestamp::ZERO;
        let mut stream = self.repository.blob(&self.blob.digest, *offset).await?;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            *offset += chunk.len() as u64;
            if !sender.send(chunk).await {
                return Ok(()); // the unpacker gave up, and says why
            }
            let now = Timestamp::now();
            if now.since(told) >= PROGRESS_INTERVAL {
                told = now;
                self.tell(LayerState::Downloading { current: *offset, total });
            }
        }
        if *offset < total {
            let digest = self.blob.digest.clone();
            return Err(RegistryError::Short { digest, got: *offset, wanted: total });
        }
        Ok(())
    }

    fn tell(&self, state: LayerState) {
        self.pull.progress.layer(self.id, state);
    }

    fn refused(&self, error: LayerError) -> PullError {
        if error.is_bad_input() {
            PullError::Layer { digest: self.blob.digest.clone(), source: Box::new(error) }
        } else {
            PullError::Store(Box::new(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: StatusCode, code: &str, message: &str) -> String {
        let reference = Reference::parse("web:2").expect("name");
        let error = RegistryError::Refused { status, code: code.into(), message: message.into() };
        Chain(&translate(error, &reference)).to_string()
    }

    #[test]
    fn refusals_read_as_dockers() {
        let table = [
            (
                refusal(StatusCode::UNAUTHORIZED, "unauthorized", "authentication required"),
                "pull access denied for web, repository does not exist or may require 'docker login': unauthorized: authentication required",
            ),
            (
                refusal(StatusCode::FORBIDDEN, "denied", "requested access to the resource is denied"),
                "pull access denied for web, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
            ),
            (
                refusal(StatusCode::NOT_FOUND, "manifest unknown", "manifest unknown"),
                "manifest for web:2 not found: manifest unknown: manifest unknown",
            ),
            (
                refusal(StatusCode::NOT_FOUND, "name unknown", "repository name not known to registry"),
                "repository web not found: name unknown: repository name not known to registry",
            ),
        ];
        for (found, wanted) in table {
            assert_eq!(found, wanted);
        }
    }
}

//! The handle on everything: [`ImageStore`]. Inside, `Inner` keeps the books: which image has which name,
//! what is being worked on, and what nobody needs any more.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use rswarm_base::{Classify, Kind, Timestamp, fsx};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use crate::auth::RegistryAuth;
use crate::catalog::{Catalog, LookupError, TagError, check_target};
use crate::commit::{self, CommitError, CommitOptions};
use crate::config::ImageDocument;
use crate::content::Content;
use crate::diff::{self, Change};
use crate::digest::Digest;
use crate::flight::Flights;
use crate::image::{Image, ImageRecord, StoredImage};
use crate::import::{self, ImportError, ImportOptions};
use crate::layers::LayerStore;
use crate::load::{self, LoadError, Loaded};
use crate::manifest::{self, Descriptor, Document};
use crate::platform::Platform;
use crate::progress::Progress;
use crate::pull::{self, Distribution, PullError};
use crate::push::{self, LoginError, PushError};
use crate::reference::Reference;
use crate::registry::Registries;
use crate::remove::{ImageUser, RemoveError, RemoveOptions, Removed, removal};
use crate::save::{self, SaveError};
use crate::snapshot::{Layers, SnapshotError, Snapshots};

/// A manifest or configuration of more is none.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 8 << 20;
const FORMAT: u32 = 1;

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

/// Why the store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk, or a file on it that cannot be read.
    #[error("image store `{root}` could not be opened")]
    Io {
        /// The store's directory.
        root: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A newer daemon wrote it.
    #[error("image store has format {0}, this daemon reads up to {FORMAT}")]
    Format(u32),
    /// A setting that cannot be understood.
    #[error("`{0}` is no registry mirror: {1}")]
    Mirror(String, String),
    /// A setting that cannot be understood.
    #[error("`{0}` is neither a registry's host nor a network")]
    Insecure(String),
}

impl Classify for OpenError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { .. } => Kind::Internal,
            Self::Format(_) => Kind::FailedPrecondition,
            Self::Mirror(..) | Self::Insecure(_) => Kind::InvalidArgument,
        }
    }
}

/// All images of a node. A cheap handle: clones share one store.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

impl ImageStore {
    /// Opens the store, creating it when it is new, and removes what a crash left half done. Blocking.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(config: StoreConfig) -> Result<ImageStore, OpenError> {
        Ok(ImageStore { inner: Arc::new(Inner::open(config)?) })
    }

    /// Pulls for the store's platform. `reference` gets `:latest` when it has neither tag nor digest.
    ///
    /// # Errors
    /// [`PullError`], in Docker's words.
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: Option<RegistryAuth>,
        progress: Progress,
    ) -> Result<Image, PullError> {
        pull::pull(&self.inner, reference, None, auth, progress).await
    }

    /// Pulls for a platform of the caller's.
    ///
    /// # Errors
    /// [`PullError`], in Docker's words.
    pub async fn pull_platform(
        &self,
        reference: &Reference,
        platform: &Platform,
        auth: Option<RegistryAuth>,
        progress: Progress,
    ) -> Result<Image, PullError> {
        pull::pull(&self.inner, reference, Some(platform), auth, progress).await
    }

    /// What the registry says about a name, without pulling.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn distribution(
        &self,
        reference: &Reference,
        auth: Option<RegistryAuth>,
    ) -> Result<Distribution, PullError> {
        pull::distribution(&self.inner, reference, auth).await
    }

    /// Sends an image to its registry: one tag, or all that the repository has here when `reference` has none.
    ///
    /// # Errors
    /// [`PushError`], in Docker's words.
    pub async fn push(
        &self,
        reference: &Reference,
        auth: Option<RegistryAuth>,
        progress: Progress,
    ) -> Result<(), PushError> {
        push::push(&self.inner, reference, auth, progress).await
    }

    /// Shows credentials to the registry that they are for.
    ///
    /// # Errors
    /// [`LoginError`], when it does not take them.
    pub async fn login(&self, auth: RegistryAuth) -> Result<(), LoginError> {
        push::login(&self.inner, auth).await
    }

    /// All tags that a registry has of a repository.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn tags(
        &self,
        reference: &Reference,
        auth: Option<RegistryAuth>,
    ) -> Result<Vec<String>, PullError> {
        pull::tags(&self.inner, reference, auth).await
    }

    /// Makes an image of one root file system (tar; plain, gzip or zstd).
    ///
    /// # Errors
    /// [`ImportError`].
    pub async fn import(
        &self,
        tar: impl AsyncRead + Send + Unpin,
        options: ImportOptions,
    ) -> Result<Image, ImportError> {
        import::import(&self.inner, tar, options).await
    }

    /// Takes in a docker-archive or an OCI layout (tar; plain, gzip or zstd).
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn load(
        &self,
        tar: impl AsyncRead + Send + Unpin,
        progress: Progress,
    ) -> Result<Vec<Loaded>, LoadError> {
        load::load(&self.inner, tar, progress).await
    }

    /// Writes images as one tar that is an OCI layout and a docker-archive at once.
    ///
    /// # Errors
    /// [`SaveError`].
    pub async fn save(
        &self,
        references: &[String],
        out: impl AsyncWrite + Send + Unpin,
    ) -> Result<(), SaveError> {
        save::save(&self.inner, references, out).await
    }

    /// All images, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Image> {
        let catalog = self.inner.catalog();
        let mut images: Vec<Image> = catalog.images.values().map(|image| catalog.view(image)).collect();
        images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        images
    }

    /// One image by name, by `sha256:…`, or by the beginning of its id.
    ///
    /// # Errors
    /// [`LookupError`], in Docker's words.
    pub fn get(&self, reference_or_id: &str) -> Result<Image, LookupError> {
        let catalog = self.inner.catalog();
        Ok(catalog.view(catalog.lookup(reference_or_id)?))
    }

    /// The image's configuration document, byte for byte.
    ///
    /// # Errors
    /// [`LookupError`]; a damaged blob reads as a missing image.
    pub async fn raw_config(&self, reference_or_id: &str) -> Result<Vec<u8>, LookupError> {
        let id = self.inner.catalog().lookup(reference_or_id)?.record.id.clone();
        let text = reference_or_id.to_owned();
        self.blocking(move |inner| {
            inner.content.read(&id, DOCUMENT_BYTES_MAX).map_err(|error| {
                tracing::error!(image = %id, %error, "an image's configuration cannot be read");
                LookupError::NotFound(text)
            })
        })
        .await
    }

    /// Gives an image (found as by [`ImageStore::get`]) one more name; a name that is taken moves silently.
    ///
    /// # Errors
    /// [`TagError`].
    pub async fn tag(&self, source: &str, target: &Reference) -> Result<Image, TagError> {
        check_target(target)?;
        let (source, target) = (source.to_owned(), target.clone());
        self.blocking(move |inner| {
            let id = inner.catalog().lookup(&source)?.record.id.clone();
            inner.name(&id, &[target]).map_err(TagError::Store)
        })
        .await
    }

    /// Removes a name, and the image with it when that was its last; Docker's rules and texts.
    ///
    /// # Errors
    /// [`RemoveError`]; then nothing has changed.
    pub async fn remove(
        &self,
        reference: &str,
        options: RemoveOptions,
        users: &[ImageUser],
    ) -> Result<Vec<Removed>, RemoveError> {
        let (reference, users) = (reference.to_owned(), users.to_vec());
        self.blocking(move |inner| inner.remove(&reference, options, &users)).await
    }

    /// Makes the writable layer of a container. Asking again gives the same one.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn prepare(&self, key: &str, image_id: &str) -> Result<Layers, SnapshotError> {
        let (key, image_id) = (key.to_owned(), image_id.to_owned());
        self.blocking(move |inner| {
            let chain = inner.catalog().lookup(&image_id)?.chain.to_vec();
            let top = chain.last().cloned();
            // Held until the snapshot is on disk and so found by a sweep itself. One that came before the
            // pins had to take the image out of the catalog first.
            let _pins = inner.pin(chain);
            inner.catalog().lookup(&image_id)?;
            inner.snapshots.prepare(&key, top.as_ref(), &inner.layers)
        })
        .await
    }

    /// The directories of a container that was prepared before. Reads a few directory entries.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn layers(&self, key: &str) -> Result<Layers, SnapshotError> {
        self.inner.snapshots.layers(key, &self.inner.layers)
    }

    /// Removes the writable layer of a container; one that is not there is fine.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn release(&self, key: &str) -> Result<(), SnapshotError> {
        let key = key.to_owned();
        self.blocking(move |inner| {
            let trash = inner.layers.trash_path();
            let io_error = |source| SnapshotError::Io { key: key.clone(), source };
            if inner.snapshots.release(&key, &trash)? {
                fsx::remove_all(&trash).map_err(io_error)?;
            }
            Ok(())
        })
        .await
    }

    /// Keys of all writable layers.
    #[must_use]
    pub fn snapshot_keys(&self) -> Vec<String> {
        self.inner.snapshots.keys().unwrap_or_else(|error| {
            tracing::error!(%error, "writable layers cannot be listed");
            Vec::new()
        })
    }

    /// What a container changed (`docker diff`), in the order of paths.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn changes(&self, key: &str) -> Result<Vec<Change>, SnapshotError> {
        let key = key.to_owned();
        self.blocking(move |inner| {
            let layers = inner.snapshots.layers(&key, &inner.layers)?;
            let found = diff::changes(&layers.upper, &layers.lower);
            found.map_err(|source| SnapshotError::Io { key: key.clone(), source })
        })
        .await
    }

    /// Makes an image of a container: what it wrote, on top of what it was made of.
    ///
    /// # Errors
    /// [`CommitError`].
    pub async fn commit(&self, key: &str, options: CommitOptions) -> Result<Image, CommitError> {
        let key = key.to_owned();
        self.blocking(move |inner| commit::commit(inner, &key, options)).await
    }

    /// Bytes that a container has written (`docker ps -s`).
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn snapshot_size(&self, key: &str) -> Result<u64, SnapshotError> {
        let key = key.to_owned();
        self.blocking(move |inner| inner.snapshots.size(&key)).await
    }

    /// Removes layers and blobs that neither an image nor a container needs; gives the bytes of the layers.
    /// A removal does it by itself; this is for what failed or abandoned pulls left.
    ///
    /// # Errors
    /// The failing call's.
    pub async fn sweep(&self) -> io::Result<u64> {
        let swept = self.blocking(|inner| inner.sweep()).await?;
        Ok(swept.into_iter().map(|layer| layer.1).sum())
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Arc<Inner>) -> T + Send + 'static) -> T {
        let inner = Arc::clone(&self.inner);
        blocking(move || work(&inner)).await
    }
}

/// Runs work that waits for the disk; a panic in it goes on in the caller.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// What all operations share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    pub(crate) content: Content,
    pub(crate) layers: LayerStore,
    pub(crate) snapshots: Snapshots,
    /// One worker for each layer at a time.
    pub(crate) flights: Flights,
    pub(crate) downloads: Semaphore,
    pub(crate) registries: Registries,
    catalog: ArcSwap<Catalog>,
    books: Mutex<Books>,
}

/// Held by whoever changes the catalog or sweeps.
#[derive(Debug, Default)]
struct Books {
    /// Layers (chain ids) and blobs that are being worked with and that no image names yet.
    pins: HashMap<Digest, usize>,
}

#[derive(Serialize, Deserialize)]
struct NamesFile {
    format: u32,
    names: std::collections::BTreeMap<String, Digest>,
}

/// Keeps layers and blobs from being swept until dropped. Goes along with the work on them: a thread may
/// outlive the call that started it.
#[derive(Debug)]
pub(crate) struct Pins {
    inner: Arc<Inner>,
    pinned: Vec<Digest>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut books = self.inner.books();
        for digest in &self.pinned {
            if let Some(count) = books.pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    books.pins.remove(digest);
                }
            }
        }
    }
}

impl Inner {
    fn open(config: StoreConfig) -> Result<Inner, OpenError> {
        let registries = Registries::new(&config)?;
        let named = |source| OpenError::Io { root: config.root.clone(), source };
        fs::create_dir_all(config.root.join("images")).map_err(named)?;
        // Layers hold setuid programs of other people's making: nobody but root gets near them.
        fs::set_permissions(&config.root, fs::Permissions::from_mode(0o700)).map_err(named)?;
        let inner = Inner {
            content: Content::open(&config.root).map_err(named)?,
            layers: LayerStore::open(&config.root).map_err(named)?,
            snapshots: Snapshots::open(&config.root).map_err(named)?,
            flights: Flights::default(),
            downloads: Semaphore::new(config.downloads_max.max(1)),
            registries,
            catalog: ArcSwap::default(),
            books: Mutex::default(),
            config: config.clone(),
        };
        let catalog = inner.read_catalog()?;
        inner.catalog.store(Arc::new(catalog));
        inner.sweep().map_err(named)?;
        Ok(inner)
    }

    fn read_catalog(&self) -> Result<Catalog, OpenError> {
        let named = |source| OpenError::Io { root: self.config.root.clone(), source };
        let mut catalog = Catalog::default();
        for entry in fs::read_dir(self.config.root.join("images")).map_err(named)? {
            let path = entry.map_err(named)?.path();
            let stored = fsx::read_json::<ImageRecord>(&path).and_then(|record| match record {
                Some(record) => self.stored(record),
                None => Err(io::ErrorKind::NotFound.into()),
            });
            match stored {
                Ok(stored) => {
                    catalog.images.insert(stored.record.id.clone(), Arc::new(stored));
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "an image that is not whole is left out");
                    fsx::remove_all(&path).map_err(named)?;
                }
            }
        }
        let file: Option<NamesFile> = fsx::read_json(&self.names_path()).map_err(named)?;
        let file = file.unwrap_or(NamesFile { format: FORMAT, names: Default::default() });
        if file.format > FORMAT {
            return Err(OpenError::Format(file.format));
        }
        for (name, id) in file.names {
            match Reference::parse(&name) {
                Ok(reference) if catalog.images.contains_key(&id) => catalog.name(&reference, &id),
                _ => tracing::warn!(name, %id, "a name without an image is left out"),
            }
        }
        Ok(catalog)
    }

    /// What a record says in full. Fails when any part of the image is missing.
    fn stored(&self, record: ImageRecord) -> io::Result<StoredImage> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
        let bytes = self.content.read(&record.id, DOCUMENT_BYTES_MAX)?;
        let document: ImageDocument = serde_json::from_slice(&bytes)?;
        let bytes = self.content.read(&record.manifest.digest, DOCUMENT_BYTES_MAX)?;
        let (parsed, _) = manifest::parse(&bytes, &record.manifest.media_type)
            .map_err(|error| invalid(error.to_string()))?;
        let Document::Manifest(parsed) = parsed else {
            return Err(invalid(format!("manifest {} is an index", record.manifest.digest)));
        };
        let chain = StoredImage::chain_of(&document);
        let mut layer_sizes = Vec::with_capacity(chain.len());
        for chain_id in chain.iter() {
            let layer =
                self.layers.get(chain_id).ok_or_else(|| invalid(format!("layer {chain_id} is missing")))?;
            layer_sizes.push(layer.size);
        }
        let mut blobs: Vec<Digest> = parsed.layers.into_iter().map(|layer| layer.digest).collect();
        blobs.push(record.id.clone());
        blobs.push(record.manifest.digest.clone());
        Ok(StoredImage {
            record,
            document: Arc::new(document),
            chain,
            layer_sizes: layer_sizes.into(),
            blobs: blobs.into(),
        })
    }

    /// The catalog as it is now; it does not change under the reader.
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.catalog.load_full()
    }

    /// Makes an image of what lies ready in blobs and layers, and names it. Before any of it can be
    /// found, all of it is on disk.
    pub(crate) fn register(
        &self,
        manifest: Descriptor,
        id: &Digest,
        parent: Option<Digest>,
        names: &[Reference],
    ) -> io::Result<Image> {
        let root = crate::tree::open_root(&self.config.root)?;
        rustix::fs::syncfs(&root)?;
        let record = ImageRecord { id: id.clone(), manifest, parent, last_tagged: Timestamp::ZERO };
        let stored = self.stored(record)?;
        {
            let _books = self.books();
            let mut catalog = Catalog::clone(&self.catalog());
            if !catalog.images.contains_key(id) {
                fsx::write_json(&self.record_path(id), &stored.record)?;
                catalog.images.insert(id.clone(), Arc::new(stored));
                self.catalog.store(Arc::new(catalog));
            }
        }
        self.name(id, names)
    }

    /// Names an image that is in the catalog.
    fn name(&self, id: &Digest, names: &[Reference]) -> io::Result<Image> {
        let _books = self.books();
        let mut catalog = Catalog::clone(&self.catalog());
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("image {id} was removed meanwhile"));
        let mut image = StoredImage::clone(catalog.images.get(id).ok_or_else(gone)?);
        let is_new = |name: &Reference| catalog.names.get(&crate::catalog::key(name)) != Some(id);
        if names.iter().any(is_new) {
            image.record.last_tagged = Timestamp::now();
            fsx::write_json(&self.record_path(id), &image.record)?;
            for name in names {
                catalog.name(name, id);
            }
            catalog.images.insert(id.clone(), Arc::new(image));
            self.publish(catalog)?;
        }
        let catalog = self.catalog();
        Ok(catalog.view(catalog.images.get(id).ok_or_else(gone)?))
    }

    fn remove(
        &self,
        reference: &str,
        options: RemoveOptions,
        users: &[ImageUser],
    ) -> Result<Vec<Removed>, RemoveError> {
        let mut removed;
        let gone;
        let old = {
            let _books = self.books();
            let old = self.catalog();
            let decided = removal(&old, reference, options, users)?;
            self.publish(decided.catalog).map_err(RemoveError::Store)?;
            for id in &decided.images {
                fsx::remove_all(&self.record_path(id)).map_err(RemoveError::Store)?;
            }
            (removed, gone) = (decided.removed, decided.images);
            old
        };
        if gone.is_empty() {
            return Ok(removed);
        }
        let swept: HashSet<Digest> =
            self.sweep().map_err(RemoveError::Store)?.into_iter().map(|(chain_id, _)| chain_id).collect();
        for image in gone.iter().filter_map(|id| old.images.get(id)) {
            let layers = image.chain.iter().rev().filter(|chain_id| swept.contains(*chain_id));
            removed.extend(layers.map(|chain_id| Removed::Deleted(chain_id.to_string())));
        }
        Ok(removed)
    }

    /// Writes the names, then shows the catalog. Called with the books held.
    fn publish(&self, catalog: Catalog) -> io::Result<()> {
        let names = catalog.names.iter().map(|(name, id)| (name.to_string(), id.clone())).collect();
        fsx::write_json(&self.names_path(), &NamesFile { format: FORMAT, names })?;
        self.catalog.store(Arc::new(catalog));
        Ok(())
    }

    /// Keeps layers (by chain id) and blobs until the guard is dropped, whether they exist yet or not.
    pub(crate) fn pin(self: &Arc<Self>, pinned: Vec<Digest>) -> Pins {
        let mut books = self.books();
        for digest in &pinned {
            *books.pins.entry(digest.clone()).or_default() += 1;
        }
        drop(books);
        Pins { inner: Arc::clone(self), pinned }
    }

    /// Removes what nobody needs; gives the layers with their sizes.
    fn sweep(&self) -> io::Result<Vec<(Digest, u64)>> {
        let mut swept = Vec::new();
        {
            let books = self.books();
            let (layers, blobs) = self.needed(&books)?;
            for layer in self.layers.list() {
                if !layers.contains(&layer.chain_id) {
                    self.layers.retire(&layer.chain_id)?;
                    swept.push((layer.chain_id.clone(), layer.size));
                }
            }
            for digest in self.content.list()? {
                if !blobs.contains(&digest) {
                    self.content.remove(&digest)?;
                }
            }
        }
        self.layers.empty_trash()?;
        Ok(swept)
    }

    /// Layers and blobs that an image, a container or work in progress needs.
    fn needed(&self, books: &Books) -> io::Result<(HashSet<Digest>, HashSet<Digest>)> {
        let catalog = self.catalog();
        let mut layers: HashSet<Digest> = books.pins.keys().cloned().collect();
        let mut blobs = layers.clone();
        for image in catalog.images.values() {
            layers.extend(image.chain.iter().cloned());
            blobs.extend(image.blobs.iter().cloned());
        }
        let mut tops = self.snapshots.tops()?;
        tops.extend(layers.iter().cloned());
        for top in tops {
            let mut next = self.layers.get(&top);
            while let Some(layer) = next {
                layers.insert(layer.chain_id.clone());
                blobs.insert(layer.blob.digest.clone());
                next = layer.parent.as_ref().and_then(|parent| self.layers.get(parent));
            }
        }
        Ok((layers, blobs))
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn names_path(&self) -> PathBuf {
        self.config.root.join("names.json")
    }

    fn record_path(&self, id: &Digest) -> PathBuf {
        self.config.root.join("images").join(format!("{}.json", id.hex()))
    }
}

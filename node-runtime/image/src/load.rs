//! Loading archives: `docker save`'s (manifest.json) and OCI layouts (index.json), also both in one. The
//! archive's order is anyone's, so its files are put aside first, hashed on the way, and put together then.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rswarm_base::{Classify, Kind};
use serde::Deserialize;
use tar::{Archive, EntryType};
use tokio::io::AsyncRead;

use crate::config::ImageDocument;
use crate::content::{BlobError, Content, Sealed};
use crate::digest::{Digest, chain_ids};
use crate::image::Image;
use crate::import::manifest_of;
use crate::layers::{LayerError, LayerRecord};
use crate::manifest::{self, Descriptor, Document, Index, Manifest, ManifestError, OCI_MANIFEST};
use crate::platform::Platform;
use crate::progress::{LayerState, Progress, ProgressEvent};
use crate::reference::{Reference, ReferenceError};
use crate::store::{DOCUMENT_BYTES_MAX, Inner, blocking};
use crate::stream::{ChunkReader, decompress, pipe};
use crate::tree::clean;

/// More members than any archive of images has.
const MEMBERS_MAX: usize = 100_000;
/// A link to a link to a link is a loop.
const LINKS_MAX: usize = 8;
const COPY_BYTES: usize = 128 << 10;
/// Where containerd and we put an image's whole name in an index; the other may be a mere tag.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// One image of an archive.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The image.
    pub image: Image,
    /// The familiar names that the archive gave it; empty: it is known by its id alone.
    pub references: Vec<String>,
}

/// Why an archive was not loaded. What came before the failure stays loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not a tar, or a broken one.
    #[error("archive cannot be read")]
    Archive(#[source] io::Error),
    /// Neither manifest.json nor index.json.
    #[error("archive holds no images: there is neither a manifest.json nor an index.json in it")]
    NoImages,
    /// A file that the archive itself mentions.
    #[error("archive is incomplete: `{0}` is missing")]
    Missing(String),
    /// A file of the archive that cannot be understood.
    #[error("`{name}` in the archive is invalid: {reason}")]
    Invalid {
        /// Which file.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A name in the archive.
    #[error("archive names an image `{name}`")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: ReferenceError,
    },
    /// A manifest in the archive.
    #[error("archive holds a manifest that cannot be used")]
    Manifest(#[source] ManifestError),
    /// A layer of the archive.
    #[error("layer `{name}` of the archive is refused")]
    Layer {
        /// Which file.
        name: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The index has nothing for this machine.
    #[error("archive has no image for {0}")]
    Platform(Platform),
    /// The disk.
    #[error("image could not be stored")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Classify for LoadError {
    fn kind(&self) -> Kind {
        match self {
            Self::Store(_) => Kind::Internal,
            Self::Platform(_) => Kind::NotFound,
            _ => Kind::InvalidArgument,
        }
    }
}

impl From<BlobError> for LoadError {
    fn from(error: BlobError) -> LoadError {
        Self::Store(Box::new(error))
    }
}

pub(crate) async fn load(
    inner: &Arc<Inner>,
    tar: impl AsyncRead + Send + Unpin,
    progress: Progress,
) -> Result<Vec<Loaded>, LoadError> {
    let (sender, reader) = pipe();
    let worker = Arc::clone(inner);
    let work = move || {
        let members = Members::read(&worker.content, reader)?;
        Loader { inner: &worker, members, progress }.load()
    };
    let (sent, loaded) = tokio::join!(sender.send_all(tar), blocking(work));
    sent.map_err(LoadError::Archive)?;
    loaded
}

/// The archive's files, put aside.
#[derive(Default)]
struct Members {
    files: HashMap<PathBuf, Sealed>,
    links: HashMap<PathBuf, PathBuf>,
}

impl Members {
    fn read(content: &Content, tar: ChunkReader) -> Result<Members, LoadError> {
        let mut members = Members::default();
        let (plain, _) = decompress(BufReader::with_capacity(COPY_BYTES, tar)).map_err(LoadError::Archive)?;
        let mut tar = BufReader::with_capacity(COPY_BYTES, plain);
        let mut archive = Archive::new(&mut tar);
        for entry in archive.entries().map_err(LoadError::Archive)? {
            let mut entry = entry.map_err(LoadError::Archive)?;
            let raw = entry.path().map_err(LoadError::Archive)?.into_owned();
            let invalid = |reason: &str| LoadError::Invalid {
                name: raw.display().to_string(),
                reason: reason.to_owned(),
            };
            let path = clean(&raw).ok_or_else(|| invalid("it leads out of the archive"))?;
            if members.files.len() + members.links.len() >= MEMBERS_MAX {
                return Err(invalid("the archive has too many files"));
            }
            match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    members.files.insert(path, set_aside(content, &mut entry)?);
                }
                EntryType::Symlink | EntryType::Link => {
                    let target =
                        entry.link_name().map_err(LoadError::Archive)?.unwrap_or_default().into_owned();
                    let is_relative = entry.header().entry_type() == EntryType::Symlink;
                    let base = path.parent().filter(|_| is_relative).unwrap_or(Path::new(""));
                    let target =
                        clean(&base.join(target)).ok_or_else(|| invalid("it leads out of the archive"))?;
                    members.links.insert(path, target);
                }
                _ => {}
            }
        }
        io::copy(&mut tar, &mut io::sink()).map_err(LoadError::Archive)?;
        Ok(members)
    }

    fn find(&self, name: &str) -> Option<&Sealed> {
        let mut path = clean(Path::new(name))?;
        for _ in 0..LINKS_MAX {
            if let Some(file) = self.files.get(&path) {
                return Some(file);
            }
            path = self.links.get(&path)?.clone();
        }
        None
    }

    /// A small file.
    fn text(&self, name: &str) -> Result<Vec<u8>, LoadError> {
        let file = self.find(name).ok_or_else(|| LoadError::Missing(name.to_owned()))?;
        let mut bytes = Vec::new();
        let opened = file.reader().map_err(|error| LoadError::Store(Box::new(error)))?;
        opened.take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes).map_err(LoadError::Archive)?;
        Ok(bytes)
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T, LoadError> {
        serde_json::from_slice(&self.text(name)?)
            .map_err(|error| LoadError::Invalid { name: name.to_owned(), reason: error.to_string() })
    }
}

fn set_aside(content: &Content, file: &mut impl Read) -> Result<Sealed, LoadError> {
    let mut ingest = content.ingest().map_err(|error| LoadError::Store(Box::new(error)))?;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(ingest.seal()?),
            Ok(read) => ingest.write(&buffer[..read]).map_err(|error| LoadError::Store(Box::new(error)))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(LoadError::Archive(error)),
        }
    }
}

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ArchivedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

struct Loader<'a> {
    inner: &'a Arc<Inner>,
    members: Members,
    progress: Progress,
}

impl Loader<'_> {
    fn load(&self) -> Result<Vec<Loaded>, LoadError> {
        if self.members.find("manifest.json").is_some() {
            let images: Vec<ArchivedImage> = self.members.json("manifest.json")?;
            return images.iter().map(|image| self.archived(image)).collect();
        }
        if self.members.find("index.json").is_some() {
            let index: Index = self.members.json("index.json")?;
            return self.wanted(&index).into_iter().map(|entry| self.entry(entry)).collect();
        }
        Err(LoadError::NoImages)
    }

    fn archived(&self, archived: &ArchivedImage) -> Result<Loaded, LoadError> {
        let mut names = Vec::new();
        for name in archived.repo_tags.iter().flatten() {
            names.push(parse_name(name)?);
        }
        let config = self.members.text(&archived.config)?;
        let own = self.own_manifest(&Digest::of(&config), &archived.layers);
        self.image(&config, &archived.config, &archived.layers, own, &names)
    }

    /// The manifest that an archive of both kinds has for an image: with it the image keeps its digest.
    fn own_manifest(&self, config: &Digest, layers: &[String]) -> Option<(Descriptor, Vec<u8>)> {
        let index: Index = self.members.json("index.json").ok()?;
        let layers: Option<Vec<&Digest>> =
            layers.iter().map(|name| self.members.find(name).map(|file| &file.digest)).collect();
        let layers = layers?;
        index.manifests.iter().find_map(|entry| {
            let name = blob_name(&entry.digest);
            let bytes = self.members.text(&name).ok()?;
            self.check_digest(&name, &entry.digest).ok()?;
            let (Document::Manifest(manifest), media_type) =
                manifest::parse(&bytes, &entry.media_type).ok()?
            else {
                return None;
            };
            let is_it = manifest.config.digest == *config
                && manifest.layers.iter().map(|layer| &layer.digest).eq(layers.iter().copied());
            is_it.then(|| (Descriptor::new(&media_type, entry.digest.clone(), bytes.len() as u64), bytes))
        })
    }

    /// The entries of a layout that this machine can run, or all when it can run none. Attestations are
    /// never images.
    fn wanted<'i>(&self, index: &'i Index) -> Vec<&'i Descriptor> {
        let wanted = &self.inner.config.platform;
        let is_image =
            |entry: &&Descriptor| entry.platform.as_ref().is_none_or(|offered| offered.os != "unknown");
        let runs = |entry: &&&Descriptor| {
            entry.platform.as_ref().is_none_or(|offered| wanted.rank(offered).is_some())
        };
        let images: Vec<&Descriptor> = index.manifests.iter().filter(is_image).collect();
        let runnable: Vec<&Descriptor> = images.iter().filter(runs).copied().collect();
        if runnable.is_empty() { images } else { runnable }
    }

    /// One entry of an OCI layout's index; a nested index gives its image for this machine.
    fn entry(&self, entry: &Descriptor) -> Result<Loaded, LoadError> {
        let mut names = Vec::new();
        if let Some(name) = NAME_ANNOTATIONS.iter().find_map(|key| entry.annotations.get(*key))
            && (name.contains('/') || name.contains(':'))
        {
            names.push(parse_name(name)?);
        }
        let mut entry = entry.clone();
        for _ in 0..LINKS_MAX {
            let name = blob_name(&entry.digest);
            let bytes = self.members.text(&name)?;
            self.check_digest(&name, &entry.digest)?;
            let (document, media_type) =
                manifest::parse(&bytes, &entry.media_type).map_err(LoadError::Manifest)?;
            match document {
                Document::Index(index) => {
                    let wanted = &self.inner.config.platform;
                    let found = index
                        .select(wanted)
                        .or(index.manifests.first().filter(|_| index.manifests.len() == 1));
                    entry = found.ok_or_else(|| LoadError::Platform(wanted.clone()))?.clone();
                }
                Document::Manifest(manifest) => {
                    let descriptor = Descriptor::new(&media_type, entry.digest, bytes.len() as u64);
                    return self.oci_image(&manifest, (descriptor, bytes), &names);
                }
            }
        }
        Err(LoadError::Invalid {
            name: "index.json".to_owned(),
            reason: "indexes are nested too deep".to_owned(),
        })
    }

    fn oci_image(
        &self,
        manifest: &Manifest,
        own: (Descriptor, Vec<u8>),
        names: &[Reference],
    ) -> Result<Loaded, LoadError> {
        let config_name = blob_name(&manifest.config.digest);
        let config = self.members.text(&config_name)?;
        self.check_digest(&config_name, &manifest.config.digest)?;
        let mut layers = Vec::new();
        for layer in &manifest.layers {
            let name = blob_name(&layer.digest);
            if self.members.find(&name).is_some() {
                self.check_digest(&name, &layer.digest)?;
            }
            layers.push(name);
        }
        self.image(&config, &config_name, &layers, Some(own), names)
    }

    /// In a layout a file's name is a promise.
    fn check_digest(&self, name: &str, digest: &Digest) -> Result<(), LoadError> {
        match self.members.find(name) {
            None => Err(LoadError::Missing(name.to_owned())),
            Some(file) if file.digest == *digest => Ok(()),
            Some(file) => Err(LoadError::Invalid {
                name: name.to_owned(),
                reason: format!("its digest is {}", file.digest),
            }),
        }
    }

    fn image(
        &self,
        config: &[u8],
        config_name: &str,
        layers: &[String],
        own: Option<(Descriptor, Vec<u8>)>,
        names: &[Reference],
    ) -> Result<Loaded, LoadError> {
        let invalid = |reason: String| LoadError::Invalid { name: config_name.to_owned(), reason };
        let document: ImageDocument =
            serde_json::from_slice(config).map_err(|error| invalid(error.to_string()))?;
        let diff_ids = &document.rootfs.diff_ids;
        if diff_ids.len() != layers.len() {
            return Err(invalid(format!(
                "it lists {} layers, the manifest {}",
                diff_ids.len(),
                layers.len()
            )));
        }
        let id = Digest::of(config);
        let chain = chain_ids(diff_ids);
        let mut pinned = chain.clone();
        pinned.push(id.clone());
        pinned.extend(layers.iter().filter_map(|name| Some(self.members.find(name)?.digest.clone())));
        let _pins = self.inner.pin(pinned);
        let mut records = Vec::with_capacity(layers.len());
        for (at, name) in layers.iter().enumerate() {
            let parent = at.checked_sub(1).map(|below| &chain[below]);
            records.push(self.layer(name, &diff_ids[at], &chain[at], parent)?);
        }
        let (descriptor, bytes) = own.unwrap_or_else(|| {
            let manifest = manifest_of(config, &records);
            let bytes = serde_json::to_vec(&manifest).expect("a manifest of ours can be written");
            (Descriptor::of(OCI_MANIFEST, &bytes), bytes)
        });
        let _pins = self.inner.pin(vec![descriptor.digest.clone()]);
        self.inner.content.write(config)?;
        self.inner.content.write(&bytes)?;
        let image = self.inner.register(descriptor, &id, None, names);
        let image = image.map_err(|error| LoadError::Store(Box::new(error)))?;
        let references: Vec<String> = names.iter().map(Reference::familiar).collect();
        self.announce(&image, &references);
        Ok(Loaded { image, references })
    }

    fn layer(
        &self,
        name: &str,
        diff_id: &Digest,
        chain_id: &Digest,
        parent: Option<&Digest>,
    ) -> Result<Arc<LayerRecord>, LoadError> {
        if let Some(record) = self.inner.layers.get(chain_id) {
            return Ok(record);
        }
        let refused = |error: LayerError| match error.is_bad_input() {
            true => LoadError::Layer { name: name.to_owned(), source: Box::new(error) },
            false => LoadError::Store(Box::new(error)),
        };
        let file = self.members.find(name).ok_or_else(|| LoadError::Missing(name.to_owned()))?;
        let blob = Descriptor::new("", file.digest.clone(), file.size);
        let reader = file.reader().map_err(|error| LoadError::Store(Box::new(error)))?;
        let counted = Counted {
            file: reader,
            current: 0,
            total: file.size,
            id: diff_id.short(),
            progress: &self.progress,
        };
        let staged = self.inner.layers.stage_blob(&blob, counted).map_err(refused)?;
        if staged.diff_id != *diff_id {
            return Err(refused(LayerError::DiffId {
                expected: diff_id.clone(),
                found: staged.diff_id.clone(),
            }));
        }
        file.link(&self.inner.content).map_err(|error| LoadError::Store(Box::new(error)))?;
        self.inner.layers.commit(&self.inner.content, staged, parent).map_err(refused)
    }

    fn announce(&self, image: &Image, references: &[String]) {
        if references.is_empty() {
            self.progress.send(ProgressEvent::Message(format!("Loaded image ID: {}", image.id)));
        }
        for reference in references {
            self.progress.send(ProgressEvent::Message(format!("Loaded image: {reference}")));
        }
    }
}

/// Tells how far a layer is.
struct Counted<'a> {
    file: File,
    current: u64,
    total: u64,
    id: &'a str,
    progress: &'a Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        const STEP: u64 = 1 << 20;
        let read = self.file.read(buffer)?;
        let before = self.current;
        self.current += read as u64;
        if read == 0 || before / STEP != self.current / STEP {
            self.progress.layer(self.id, LayerState::Loading { current: self.current, total: self.total });
        }
        Ok(read)
    }
}

fn parse_name(name: &str) -> Result<Reference, LoadError> {
    match Reference::parse(name) {
        Ok(reference) => Ok(reference.with_default_tag()),
        Err(source) => Err(LoadError::Name { name: name.to_owned(), source }),
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

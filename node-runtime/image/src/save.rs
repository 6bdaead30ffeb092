//! Saving: one tar that is an OCI layout and a docker-archive at once, as Docker writes since 25. Blobs
//! go out byte for byte as they came in.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::sync::Arc;

use bytes::Bytes;
use rswarm_base::{Classify, Kind};
use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::catalog::{Catalog, LookupError, key};
use crate::digest::Digest;
use crate::image::StoredImage;
use crate::import::manifest_of;
use crate::manifest::{self, Descriptor, Document, Index, Manifest, OCI_INDEX, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::{DOCUMENT_BYTES_MAX, Inner, blocking};

/// Chunks between disk and receiver.
const CHUNKS_MAX: usize = 8;
const CHUNK_BYTES: usize = 128 << 10;

/// Why nothing, or not everything, was saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// There is no such image.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The disk.
    #[error("image could not be read")]
    Read(#[source] io::Error),
    /// Whoever takes the archive stopped.
    #[error("archive could not be written")]
    Write(#[source] io::Error),
}

impl Classify for SaveError {
    fn kind(&self) -> Kind {
        match self {
            Self::Lookup(error) => error.kind(),
            Self::Read(_) | Self::Write(_) => Kind::Internal,
        }
    }
}

pub(crate) async fn save(
    inner: &Arc<Inner>,
    references: &[String],
    mut out: impl AsyncWrite + Send + Unpin,
) -> Result<(), SaveError> {
    let wanted = wanted(&inner.catalog(), references)?;
    let (sender, mut receiver) = mpsc::channel::<Bytes>(CHUNKS_MAX);
    let worker = Arc::clone(inner);
    let write = blocking(move || {
        // An image that is removed meanwhile is saved whole all the same.
        let pinned =
            wanted.iter().flat_map(|(image, _)| image.chain.iter().chain(image.blobs.iter()).cloned());
        let _pins = worker.pin(pinned.collect());
        let out = io::BufWriter::with_capacity(CHUNK_BYTES, ChannelWriter(sender));
        Writer { inner: &worker, tar: tar::Builder::new(out), written: BTreeSet::new() }.archive(&wanted)
    });
    let send = async {
        while let Some(chunk) = receiver.recv().await {
            out.write_all(&chunk).await?;
        }
        drop(receiver);
        out.flush().await
    };
    let (written, sent) = tokio::join!(write, send);
    sent.map_err(SaveError::Write)?;
    written.map_err(SaveError::Read)
}

/// An image with the names under which it is saved.
type Wanted = (Arc<StoredImage>, Vec<Reference>);

/// Each image once, with the names that were asked for; an image asked for by its id has none, and a
/// repository without a tag gives all its tags.
fn wanted(catalog: &Catalog, references: &[String]) -> Result<Vec<Wanted>, LookupError> {
    let mut wanted: BTreeMap<Digest, (Arc<StoredImage>, BTreeSet<Reference>)> = BTreeMap::new();
    for text in references {
        let parsed = Reference::parse(text).ok();
        if let Some(repository) =
            parsed.as_ref().filter(|name| name.tag().is_none() && name.digest().is_none())
        {
            let tags = catalog
                .names
                .iter()
                .filter(|(name, _)| name.same_repository(repository) && name.digest().is_none());
            let mut is_found = false;
            for (name, id) in tags {
                let Some(image) = catalog.images.get(id) else { continue };
                let entry = wanted.entry(id.clone()).or_insert_with(|| (Arc::clone(image), BTreeSet::new()));
                entry.1.insert(name.clone());
                is_found = true;
            }
            if is_found {
                continue;
            }
        }
        let image = catalog.lookup(text)?;
        let entry =
            wanted.entry(image.record.id.clone()).or_insert_with(|| (Arc::clone(image), BTreeSet::new()));
        let name = parsed.map(|name| key(&name)).filter(|name| name.tag().is_some());
        entry.1.extend(name.filter(|name| catalog.names.contains_key(name)));
    }
    Ok(wanted.into_values().map(|(image, names)| (image, names.into_iter().collect())).collect())
}

struct ChannelWriter(mpsc::Sender<Bytes>);

impl io::Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Bytes::copy_from_slice(bytes));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ArchivedImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

struct Writer<'a, W: io::Write> {
    inner: &'a Inner,
    tar: tar::Builder<W>,
    written: BTreeSet<Digest>,
}

impl<W: io::Write> Writer<'_, W> {
    fn archive(mut self, images: &[Wanted]) -> io::Result<()> {
        self.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let mut archived = Vec::new();
        let mut index = Index { schema_version: 2, media_type: OCI_INDEX.to_owned(), manifests: Vec::new() };
        let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for (image, names) in images {
            let (manifest, descriptor) = self.image(image)?;
            archived.push(ArchivedImage {
                config: blob_name(&image.record.id),
                repo_tags: names.iter().map(Reference::familiar).collect(),
                layers: manifest.layers.iter().map(|layer| blob_name(&layer.digest)).collect(),
            });
            for name in names {
                let tag = name.tag().unwrap_or_default().to_owned();
                let top =
                    manifest.layers.last().map(|layer| layer.digest.hex().to_owned()).unwrap_or_default();
                repositories.entry(name.familiar_name()).or_default().insert(tag.clone(), top);
                let mut entry = descriptor.clone();
                entry.annotations.insert("io.containerd.image.name".to_owned(), name.to_string());
                entry.annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag);
                index.manifests.push(entry);
            }
            if names.is_empty() {
                index.manifests.push(descriptor);
            }
        }
        self.file("index.json", &serde_json::to_vec(&index)?)?;
        self.file("manifest.json", &serde_json::to_vec(&archived)?)?;
        self.file("repositories", &serde_json::to_vec(&repositories)?)?;
        io::Write::flush(&mut self.tar.into_inner()?)
    }

    /// Configuration, layers and manifest. Where a layer is here in another compression than the manifest
    /// says, the manifest that fits what is here is written instead.
    fn image(&mut self, image: &StoredImage) -> io::Result<(Manifest, Descriptor)> {
        let content = &self.inner.content;
        let config = content.read(&image.record.id, DOCUMENT_BYTES_MAX)?;
        let mut bytes = content.read(&image.record.manifest.digest, DOCUMENT_BYTES_MAX)?;
        let mut descriptor = image.record.manifest.clone();
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
        let parsed =
            manifest::parse(&bytes, &descriptor.media_type).map_err(|error| invalid(error.to_string()))?;
        let mut own = match parsed.0 {
            Document::Manifest(manifest) => manifest,
            Document::Index(_) => return Err(invalid(format!("manifest {} is an index", descriptor.digest))),
        };
        if !own.layers.iter().all(|layer| content.has(&layer.digest)) {
            let layers = image
                .chain
                .iter()
                .map(|id| self.inner.layers.get(id).ok_or_else(|| invalid(format!("layer {id} is missing"))));
            own = manifest_of(&config, &layers.collect::<io::Result<Vec<_>>>()?);
            bytes = serde_json::to_vec(&own)?;
            descriptor = Descriptor::of(OCI_MANIFEST, &bytes);
        }
        for layer in &own.layers {
            self.blob(&layer.digest)?;
        }
        self.small_blob(&image.record.id, &config)?;
        self.small_blob(&descriptor.digest, &bytes)?;
        Ok((own, descriptor))
    }

    fn small_blob(&mut self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        if self.written.insert(digest.clone()) {
            self.file(&blob_name(digest), bytes)?;
        }
        Ok(())
    }

    fn blob(&mut self, digest: &Digest) -> io::Result<()> {
        if self.written.insert(digest.clone()) {
            let file = self.inner.content.open_blob(digest)?;
            let size = file.metadata()?.len();
            self.tar.append_data(&mut header(size), blob_name(digest), file.take(size))?;
        }
        Ok(())
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.tar.append_data(&mut header(bytes.len() as u64), name, bytes)
    }
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

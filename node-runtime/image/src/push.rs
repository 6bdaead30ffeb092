//! Pushing: blobs that the registry does not have, then the manifest that names them.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use rswarm_base::{Classify, Kind};

use crate::auth::RegistryAuth;
use crate::catalog::key;
use crate::digest::Digest;
use crate::image::StoredImage;
use crate::manifest::{self, Descriptor, Document};
use crate::progress::{LayerState, Progress, ProgressEvent};
use crate::reference::{Reference, ReferenceError};
use crate::registry::{RegistryError, Repository};
use crate::store::{DOCUMENT_BYTES_MAX, Inner, blocking};

/// What a blob is sent in.
const CHUNK_BYTES: usize = 128 << 10;
const ID_LENGTH: usize = 12;

/// Why nothing, or not everything, was pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// A name that cannot be pushed to.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// There is no image of that name here.
    #[error("tag does not exist: {0}")]
    NoTag(String),
    /// There is no image of that repository here.
    #[error("An image does not exist locally with the tag: {0}")]
    NoTags(String),
    /// The image's blobs cannot be read.
    #[error("image could not be read")]
    Store(#[source] io::Error),
    /// The registry does not let us.
    #[error("push access denied, repository does not exist or may require authorization")]
    Denied(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The registry could not be reached, or refused something.
    #[error(transparent)]
    Registry(Box<dyn std::error::Error + Send + Sync>),
}

impl Classify for PushError {
    fn kind(&self) -> Kind {
        match self {
            Self::Reference(error) => error.kind(),
            Self::NoTag(_) | Self::NoTags(_) => Kind::NotFound,
            Self::Denied(_) => Kind::PermissionDenied,
            Self::Store(_) | Self::Registry(_) => Kind::Internal,
        }
    }
}

impl From<RegistryError> for PushError {
    fn from(error: RegistryError) -> PushError {
        match error.status().map(|status| status.as_u16()) {
            Some(401 | 403) if !matches!(error, RegistryError::NoCredentials) => {
                Self::Denied(Box::new(error))
            }
            _ => Self::Registry(Box::new(error)),
        }
    }
}

/// Pushes one tag, or without a tag all that the repository has here.
pub(crate) async fn push(
    inner: &Arc<Inner>,
    reference: &Reference,
    auth: Option<RegistryAuth>,
    progress: Progress,
) -> Result<(), PushError> {
    progress.send(ProgressEvent::PushRefersTo(reference.name()));
    let images = chosen(inner, reference)?;
    // Mirrors only read.
    let endpoint = inner.registries.endpoints(reference).pop().ok_or(ReferenceError::Format)?;
    let repository = Repository::open(&inner.registries, &endpoint, reference, auth).await?;
    for (tag, image) in images {
        let push = Push { inner, repository: &repository, progress: &progress };
        push.image(&tag, &image).await?;
    }
    Ok(())
}

/// The tags to push, with their images.
fn chosen(inner: &Inner, reference: &Reference) -> Result<Vec<(String, Arc<StoredImage>)>, PushError> {
    let catalog = inner.catalog();
    if let Some(tag) = reference.tag() {
        let found = catalog.names.get(&key(reference)).and_then(|id| catalog.images.get(id));
        let image = found.ok_or_else(|| PushError::NoTag(reference.familiar()))?;
        return Ok(vec![(tag.to_owned(), Arc::clone(image))]);
    }
    let ours = catalog.names.iter().filter(|(name, _)| name.same_repository(reference));
    let tagged =
        ours.filter_map(|(name, id)| Some((name.tag()?.to_owned(), catalog.images.get(id)?.clone())));
    let tagged: Vec<_> = tagged.collect();
    if tagged.is_empty() {
        return Err(PushError::NoTags(reference.familiar_name()));
    }
    Ok(tagged)
}

struct Push<'a> {
    inner: &'a Arc<Inner>,
    repository: &'a Repository,
    progress: &'a Progress,
}

impl Push<'_> {
    async fn image(&self, tag: &str, image: &StoredImage) -> Result<(), PushError> {
        let _pins = self.inner.pin(image.blobs.to_vec());
        let (inner, descriptor) = (Arc::clone(self.inner), image.record.manifest.clone());
        let bytes = blocking(move || inner.content.read(&descriptor.digest, DOCUMENT_BYTES_MAX))
            .await
            .map_err(PushError::Store)?;
        let media_type = &image.record.manifest.media_type;
        let (document, _) = manifest::parse(&bytes, media_type)
            .map_err(|error| PushError::Store(io::Error::other(error.to_string())))?;
        let Document::Manifest(parsed) = document else {
            return Err(PushError::Store(io::Error::other("an index is stored as a manifest")));
        };
        // Shown by what the layer holds, as Docker does, not by how it is packed.
        let ids: Vec<&str> = image.document.rootfs.diff_ids.iter().map(short).collect();
        for id in &ids {
            self.progress.layer(id, LayerState::Preparing);
        }
        for (layer, id) in parsed.layers.iter().zip(&ids) {
            self.layer(layer, id).await?;
        }
        if !self.repository.has_blob(&parsed.config.digest).await? {
            self.blob(&parsed.config, None).await?;
        }
        self.repository.put_manifest(tag, media_type, &bytes).await?;
        self.progress.send(ProgressEvent::PushedTag {
            tag: tag.to_owned(),
            digest: image.record.manifest.digest.to_string(),
            size: bytes.len() as u64,
        });
        Ok(())
    }

    async fn layer(&self, layer: &Descriptor, id: &str) -> Result<(), PushError> {
        if self.repository.has_blob(&layer.digest).await? {
            self.progress.layer(id, LayerState::LayerAlreadyExists);
            return Ok(());
        }
        self.blob(layer, Some(id)).await?;
        self.progress.layer(id, LayerState::Pushed);
        Ok(())
    }

    async fn blob(&self, blob: &Descriptor, id: Option<&str>) -> Result<(), PushError> {
        let path = self.inner.content.path(&blob.digest);
        let body = || {
            let file = File::open(&path)?;
            let shown = id.map(|id| (self.progress.clone(), id.to_owned()));
            Ok(body(file, blob.size, shown))
        };
        Ok(self.repository.put_blob(&blob.digest, blob.size, body).await?)
    }
}

fn short(digest: &Digest) -> &str {
    &digest.hex()[..ID_LENGTH]
}

/// A file's bytes as they are asked for, with a word about each piece.
fn body(file: File, total: u64, shown: Option<(Progress, String)>) -> reqwest::Body {
    let chunks = stream::try_unfold((file, 0_u64, shown), move |(mut file, sent, shown)| async move {
        let (file, chunk) = blocking(move || {
            let mut buffer = vec![0; CHUNK_BYTES];
            let read = file.read(&mut buffer)?;
            buffer.truncate(read);
            io::Result::Ok((file, buffer))
        })
        .await?;
        if chunk.is_empty() {
            return io::Result::Ok(None);
        }
        let sent = sent + chunk.len() as u64;
        if let Some((progress, id)) = &shown {
            progress.layer(id, LayerState::Pushing { current: sent, total });
        }
        Ok(Some((Bytes::from(chunk), (file, sent, shown))))
    });
    reqwest::Body::wrap_stream(chunks)
}

/// Why credentials are not good.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// A registry's name that cannot be one.
    #[error(transparent)]
    Server(#[from] ReferenceError),
    /// The registry does not take them.
    #[error("unauthorized")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The registry cannot be asked.
    #[error(transparent)]
    Registry(Box<dyn std::error::Error + Send + Sync>),
}

impl Classify for LoginError {
    fn kind(&self) -> Kind {
        match self {
            Self::Server(error) => error.kind(),
            Self::Refused(_) => Kind::Unauthenticated,
            Self::Registry(_) => Kind::Internal,
        }
    }
}

/// Shows credentials to a registry. Docker Hub is what an empty address means, and its old index's.
pub(crate) async fn login(inner: &Arc<Inner>, auth: RegistryAuth) -> Result<(), LoginError> {
    // Of a repository that need not exist: registries are asked by name.
    let reference = match host_of(&auth.serveraddress) {
        "" => Reference::parse("library/login")?,
        host => Reference::parse(&format!("{host}/library/login"))?,
    };
    let endpoint = inner.registries.endpoints(&reference).pop().ok_or(ReferenceError::Format)?;
    let asked = async {
        let repository = Repository::open(&inner.registries, &endpoint, &reference, Some(auth)).await?;
        repository.ping().await
    };
    asked.await.map_err(|error: RegistryError| match error.status().map(|status| status.as_u16()) {
        Some(401 | 403) => LoginError::Refused(Box::new(error)),
        _ => LoginError::Registry(Box::new(error)),
    })
}

/// The registry's host in what users give for it: `https://index.docker.io/v1/`, `reg.example:5000`.
fn host_of(address: &str) -> &str {
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    match bare.split('/').next().unwrap_or_default() {
        "index.docker.io" | "docker.io" | "registry-1.docker.io" => "",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_address_is_its_host() {
        let table = [
            ("", ""),
            ("https://index.docker.io/v1/", ""),
            ("docker.io", ""),
            ("reg.example:5000", "reg.example:5000"),
            ("http://reg.example/v2/", "reg.example"),
        ];
        for (address, host) in table {
            assert_eq!(host_of(address), host, "{address}");
        }
    }
}

//! Manifests and indexes, OCI and Docker schema 2: parsed with limits, chosen by platform. Pure.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::platform::Platform;

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's image manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A layer as it is.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// A gzip'd layer.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// A zstd layer.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// The manifest kinds that we read, for `Accept`.
pub(crate) const ACCEPTED: [&str; 4] = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];

const SCHEMA1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];
/// More than any real image has; bounds what one manifest can make us do.
const LAYERS_MAX: usize = 500;

/// A reference to a blob: what it is, how to verify it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// How to verify it.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// In an index: what it was built for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free keys, such as the name in an OCI layout.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<String, String>,
    /// Where else a foreign layer can be had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
}

impl Descriptor {
    /// A descriptor of `bytes`.
    #[must_use]
    pub fn of(media_type: &str, bytes: &[u8]) -> Descriptor {
        Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// A descriptor with nothing optional.
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: std::collections::BTreeMap::new(),
            urls: Vec::new(),
        }
    }

    /// Layers that only their own host may serve (old Windows bases).
    pub(crate) fn is_foreign(&self) -> bool {
        self.media_type.contains(".foreign.") || self.media_type.contains(".nondistributable.")
    }
}

/// One image for one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`OCI_MANIFEST`] or [`DOCKER_MANIFEST`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The configuration document.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// The same image for several platforms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// [`OCI_INDEX`] or [`DOCKER_LIST`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// One entry for each platform.
    pub manifests: Vec<Descriptor>,
}

/// What a tag can point at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// Why bytes are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of the shape that its media type promises.
    #[error("manifest cannot be parsed")]
    Json(#[source] serde_json::Error),
    /// The format of 2014, which has neither a configuration nor verifiable layers.
    #[error(
        "Docker Image Format v1 and Docker Image manifest version 2, schema 1 support has been removed; \
         push the image again with a current builder"
    )]
    Schema1,
    /// Something else than an image: a chart, a signature, …
    #[error("unsupported manifest media type `{0}`")]
    MediaType(String),
    /// More layers than overlayfs can stack.
    #[error("manifest has {0} layers, more than {LAYERS_MAX}")]
    TooManyLayers(usize),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
}

/// Reads a manifest or an index. The body's own media type wins over the transport's.
pub(crate) fn parse(bytes: &[u8], content_type: &str) -> Result<(Document, String), ManifestError> {
    let probe: Probe = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
    let content_type = content_type.split(';').next().unwrap_or_default().trim();
    let media_type = match (probe.media_type.as_str(), content_type) {
        ("", given) if ACCEPTED.contains(&given) || SCHEMA1.contains(&given) => given,
        ("", _) if probe.manifests.is_some() => OCI_INDEX,
        ("", _) => OCI_MANIFEST,
        (own, _) => own,
    };
    if probe.schema_version == 1 || SCHEMA1.contains(&media_type) {
        return Err(ManifestError::Schema1);
    }
    let document = match media_type {
        OCI_INDEX | DOCKER_LIST => {
            Document::Index(serde_json::from_slice(bytes).map_err(ManifestError::Json)?)
        }
        OCI_MANIFEST | DOCKER_MANIFEST => {
            let manifest: Manifest = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
            if manifest.layers.len() > LAYERS_MAX {
                return Err(ManifestError::TooManyLayers(manifest.layers.len()));
            }
            Document::Manifest(manifest)
        }
        other => return Err(ManifestError::MediaType(other.to_owned())),
    };
    Ok((document, media_type.to_owned()))
}

impl Index {
    /// The entry that runs best where `wanted` is asked for. Entries of no platform (attestations say
    /// `unknown/unknown`) never match.
    pub(crate) fn select(&self, wanted: &Platform) -> Option<&Descriptor> {
        let ranked = |entry: &&Descriptor| entry.platform.as_ref().and_then(|offered| wanted.rank(offered));
        let is_image = |entry: &&Descriptor| {
            entry.media_type.is_empty() || ACCEPTED.contains(&entry.media_type.as_str())
        };
        self.manifests.iter().filter(is_image).filter(|entry| ranked(entry).is_some()).min_by_key(ranked)
    }

    /// Everything that it can run on.
    pub(crate) fn platforms(&self) -> Vec<Platform> {
        let is_real = |platform: &&Platform| platform.os != "unknown";
        self.manifests.iter().filter_map(|entry| entry.platform.as_ref()).filter(is_real).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: &str, fill: char) -> Descriptor {
        let digest = format!("sha256:{}", fill.to_string().repeat(64)).parse().expect("digest");
        let mut descriptor = Descriptor::new(OCI_MANIFEST, digest, 1);
        let mut parts = platform.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        descriptor.platform = Some(Platform { os: next(), architecture: next(), variant: next() });
        descriptor
    }

    #[test]
    fn an_index_gives_the_closest_variant_and_never_an_attestation() {
        let index = Index {
            schema_version: 2,
            media_type: OCI_INDEX.to_owned(),
            manifests: vec![
                entry("unknown/unknown", 'a'),
                entry("linux/arm/v5", 'b'),
                entry("linux/arm/v6", 'c'),
                entry("linux/amd64", 'd'),
            ],
        };
        let pick = |wanted: &str| {
            let wanted: Platform = wanted.parse().expect("platform");
            index.select(&wanted).map(|entry| entry.digest.hex()[..1].to_owned())
        };
        assert_eq!(pick("linux/arm/v7").as_deref(), Some("c"));
        assert_eq!(pick("linux/amd64").as_deref(), Some("d"));
        assert_eq!(pick("linux/s390x"), None);
        assert_eq!(index.platforms().len(), 3);
    }

    #[test]
    fn kinds_are_told_apart_with_and_without_a_media_type() {
        let hex = "a".repeat(64);
        let config = format!(r#"{{"mediaType":"x","digest":"sha256:{hex}","size":1}}"#);
        let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#);
        assert!(
            matches!(parse(manifest.as_bytes(), ""), Ok((Document::Manifest(_), kind)) if kind == OCI_MANIFEST)
        );
        let kind = format!("{DOCKER_MANIFEST}; charset=utf-8");
        assert!(matches!(parse(manifest.as_bytes(), &kind), Ok((_, kind)) if kind == DOCKER_MANIFEST));
        let index = r#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(matches!(parse(index.as_bytes(), ""), Ok((Document::Index(_), _))));
        assert!(matches!(parse(br#"{"schemaVersion":1}"#, ""), Err(ManifestError::Schema1)));
        assert!(matches!(parse(b"<html>", ""), Err(ManifestError::Json(_))));
        let evil = r#"{"schemaVersion":2,"config":{"mediaType":"x","digest":"sha256:../../etc","size":1},"layers":[]}"#;
        assert!(parse(evil.as_bytes(), "").is_err());
    }
}

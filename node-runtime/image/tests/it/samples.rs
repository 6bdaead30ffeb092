//! Hand-made images and a store in a directory of its own.

use std::io::Write as _;
use std::time::{Duration, Instant};

use rswarm_image::{Descriptor, Digest, ImageStore, Manifest, StoreConfig};
use tempfile::TempDir;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A store that goes away with its directory.
pub(crate) struct TestStore {
    pub(crate) dir: TempDir,
    pub(crate) store: ImageStore,
}

pub(crate) fn config(dir: &TempDir) -> StoreConfig {
    let mut config = StoreConfig::new(dir.path().join("image"));
    config.certs_dir = dir.path().join("certs.d");
    config
}

pub(crate) fn store() -> TestStore {
    store_with(|_| {})
}

pub(crate) fn store_with(change: impl FnOnce(&mut StoreConfig)) -> TestStore {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut config = config(&dir);
    change(&mut config);
    TestStore { store: ImageStore::open(config).expect("opens"), dir }
}

/// A tar of regular files, directories where a name ends with a slash.
pub(crate) fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        let is_dir = name.ends_with('/');
        header.set_entry_type(if is_dir { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(if is_dir { 0o755 } else { 0o644 });
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, data.as_bytes()).expect("append");
    }
    builder.into_inner().expect("tar")
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("gzip");
    encoder.finish().expect("gzip")
}

/// An image in pieces, as a registry holds it.
pub(crate) struct Sample {
    pub(crate) config: Vec<u8>,
    /// As they are sent: compressed.
    pub(crate) layers: Vec<(Vec<u8>, &'static str)>,
    pub(crate) manifest: Vec<u8>,
}

impl Sample {
    /// gzip'd layers.
    pub(crate) fn new(layers: &[Vec<u8>], architecture: &str) -> Sample {
        let packed = layers.iter().map(|tar| (gzip(tar), LAYER_GZIP)).collect();
        Sample::of(layers, packed, architecture)
    }

    pub(crate) fn of(tars: &[Vec<u8>], layers: Vec<(Vec<u8>, &'static str)>, architecture: &str) -> Sample {
        let diff_ids: Vec<Digest> = tars.iter().map(|tar| Digest::of(tar)).collect();
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "created": "2024-01-02T03:04:05Z",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "Labels": null},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": "made by hand"}],
            "x-unknown": "kept byte for byte",
        });
        let config = serde_json::to_vec(&config).expect("json");
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            config: Descriptor::of(OCI_CONFIG, &config),
            layers: layers.iter().map(|(bytes, kind)| Descriptor::of(kind, bytes)).collect(),
        };
        let manifest = serde_json::to_vec(&manifest).expect("json");
        Sample { config, layers, manifest }
    }

    pub(crate) fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    pub(crate) fn manifest_digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }
}

/// An image of two layers: the upper one adds, changes and deletes.
pub(crate) fn two_layers() -> Sample {
    Sample::new(
        &[
            tar_of(&[("bin/", ""), ("bin/sh", "#!shell"), ("etc/", ""), ("etc/motd", "lower"), ("old", "x")]),
            tar_of(&[("etc/motd", "upper"), (".wh.old", ""), ("new", "y")]),
        ],
        "amd64",
    )
}

/// Everything under a store's root but what is empty anyway.
pub(crate) fn files(store: &TestStore) -> Vec<String> {
    fn walk(dir: &std::path::Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).expect("dir").flatten() {
            if entry.file_type().expect("type").is_dir() {
                walk(&entry.path(), found);
            } else {
                found.push(entry.path().display().to_string());
            }
        }
    }
    let mut found = Vec::new();
    walk(&store.dir.path().join("image"), &mut found);
    found
}

/// Waits until what a failed operation had begun is swept away. Threads may still be finishing a layer
/// that nobody wants any more.
pub(crate) async fn assert_swept(test: &TestStore, before: &[String]) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        test.store.sweep().await.expect("sweeps");
        let left = files(test);
        if left == before {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {left:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

//! Loading and saving.

use std::collections::BTreeMap;
use std::io::{Cursor, Read as _};

use rswarm_base::{Chain, Classify as _, Kind};
use rswarm_image::{Digest, Image, Progress};

use crate::samples::{OCI_MANIFEST, Sample, TestStore, assert_swept, files, gzip, store, tar_of, two_layers};

/// Names and contents of an archive's files.
type Members = Vec<(String, Vec<u8>)>;

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn tar_of_bytes(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &data[..]).expect("append");
    }
    builder.into_inner().expect("tar")
}

fn layout(sample: &Sample, name: &str) -> Members {
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": OCI_MANIFEST, "digest": sample.manifest_digest(), "size": sample.manifest.len(),
        "annotations": {"io.containerd.image.name": format!("docker.io/library/{name}")},
    }]});
    let mut members = vec![
        ("index.json".to_owned(), serde_json::to_vec(&index).expect("json")),
        (blob_name(&sample.manifest_digest()), sample.manifest.clone()),
        (blob_name(&sample.id()), sample.config.clone()),
    ];
    members.extend(sample.layers.iter().map(|(bytes, _)| (blob_name(&Digest::of(bytes)), bytes.clone())));
    members
}

pub(crate) async fn load_layout(test: &TestStore, sample: &Sample, name: &str) -> Image {
    let tar = tar_of_bytes(&layout(sample, name));
    let mut loaded = test.store.load(Cursor::new(tar), Progress::silent()).await.expect("loads");
    assert_eq!((loaded.len(), loaded[0].references.as_slice()), (1, &[name.to_owned()][..]));
    loaded.remove(0).image
}

/// As `docker save` wrote before version 25: layers as directories, uncompressed, one of them a link.
fn docker_archive(tars: &[Vec<u8>], name: &str) -> (Vec<u8>, Digest) {
    let sample = Sample::new(tars, "amd64");
    let config_name = format!("{}.json", sample.id().hex());
    let manifest = serde_json::json!([{"Config": config_name, "RepoTags": [name], "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"]}]);
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, data).expect("append");
    };
    add("a/layer.tar", &tars[0]);
    add("b/layer.tar", &tars[1]);
    add(&config_name, &sample.config);
    add("manifest.json", &serde_json::to_vec(&manifest).expect("json"));
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "c/layer.tar", "../a/layer.tar").expect("link");
    (builder.into_inner().expect("tar"), sample.id())
}

#[tokio::test]
async fn a_docker_archive_is_loaded_links_gzip_and_all() {
    let test = store();
    let (a, b) = (tar_of(&[("a", "1")]), tar_of(&[("b", "2")]));
    let (tar, id) = docker_archive(&[a.clone(), b, a], "some/web:3");
    let (progress, mut events) = Progress::channel();
    let loaded =
        test.store.load(Cursor::new(gzip(&tar)), progress).await.unwrap_or_else(|e| panic!("{}", Chain(&e)));
    assert_eq!((&loaded[0].image.id, loaded[0].image.tags.as_slice()), (&id, &["some/web:3".to_owned()][..]));
    let mut lines = Vec::new();
    while let Some(event) = events.recv().await {
        lines.push(event.status());
    }
    assert_eq!(lines.last().map(String::as_str), Some("Loaded image: some/web:3"));
    assert!(lines.contains(&"Loading layer".to_owned()));
}

#[tokio::test]
async fn what_is_saved_loads_elsewhere_as_the_same_image() {
    let (here, there) = (store(), store());
    let sample = two_layers();
    load_layout(&here, &sample, "web:1").await;
    let mut tar = Vec::new();
    here.store.save(&["web:1".to_owned()], &mut tar).await.expect("saves");
    let loaded = there.store.load(Cursor::new(tar.clone()), Progress::silent()).await.expect("loads");
    assert_eq!(
        (&loaded[0].image.id, loaded[0].references.as_slice()),
        (&sample.id(), &["web:1".to_owned()][..])
    );

    assert_eq!(loaded[0].image.manifest.digest, sample.manifest_digest(), "also as a docker-archive");

    let mut members = BTreeMap::new();
    for entry in tar::Archive::new(&tar[..]).entries().expect("tar") {
        let mut entry = entry.expect("entry");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("bytes");
        members.insert(entry.path().expect("path").display().to_string(), bytes);
    }
    assert_eq!(members[&blob_name(&sample.id())], sample.config, "byte for byte");
    assert_eq!(members[&blob_name(&sample.manifest_digest())], sample.manifest, "byte for byte");
    assert!(members.contains_key("oci-layout") && members.contains_key("repositories"));
    // The same tar without its manifest.json is a plain OCI layout.
    members.remove("manifest.json");
    let layout: Vec<_> = members.into_iter().collect();
    let third = store();
    let loaded =
        third.store.load(Cursor::new(tar_of_bytes(&layout)), Progress::silent()).await.expect("loads");
    assert_eq!(
        (&loaded[0].image.id, loaded[0].references.as_slice()),
        (&sample.id(), &["web:1".to_owned()][..])
    );
    assert_eq!(loaded[0].image.manifest.digest, sample.manifest_digest());
}

#[tokio::test]
async fn of_a_layout_for_many_platforms_the_own_one_is_loaded() {
    let test =
        crate::samples::store_with(|config| config.platform = "linux/amd64".parse().expect("platform"));
    let amd64 = Sample::new(&[tar_of(&[("for", "amd64")])], "amd64");
    let arm64 = Sample::new(&[tar_of(&[("for", "arm64")])], "arm64");
    let entry = |sample: &Sample, os: &str, architecture: &str| {
        serde_json::json!({
            "mediaType": OCI_MANIFEST, "digest": sample.manifest_digest(), "size": sample.manifest.len(),
            "platform": {"os": os, "architecture": architecture},
        })
    };
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        entry(&arm64, "linux", "arm64"), entry(&amd64, "linux", "amd64"), entry(&arm64, "unknown", "unknown"),
    ]});
    let mut members = layout(&amd64, "x");
    members.extend(layout(&arm64, "x").into_iter().skip(1));
    members[0].1 = serde_json::to_vec(&index).expect("json");
    let (progress, mut events) = Progress::channel();
    let loaded = test.store.load(Cursor::new(tar_of_bytes(&members)), progress).await.expect("loads");
    assert_eq!(loaded.iter().map(|loaded| &loaded.image.id).collect::<Vec<_>>(), [&amd64.id()]);
    let mut last = String::new();
    while let Some(event) = events.recv().await {
        last = event.status();
    }
    assert_eq!(last, format!("Loaded image ID: {}", amd64.id()));
}

#[tokio::test]
async fn archives_that_lie_are_refused_and_leave_nothing() {
    let sample = two_layers();
    let with = |change: &dyn Fn(&mut Members)| {
        let mut members = layout(&sample, "web:1");
        change(&mut members);
        tar_of_bytes(&members)
    };
    let swap = |name: String, to: Vec<u8>| {
        move |members: &mut Members| {
            members.iter_mut().find(|member| member.0 == name).expect("member").1 = to.clone();
        }
    };
    let layer = blob_name(&Digest::of(&sample.layers[0].0));
    let other_layer = sample.layers[1].0.clone();
    let table = [
        ("no images", tar_of(&[("readme", "hello")]), "there is neither a manifest.json nor an index.json"),
        ("another layer", with(&swap(layer.clone(), other_layer)), "its digest is"),
        ("another config", with(&swap(blob_name(&sample.id()), b"{}".to_vec())), "its digest is"),
        ("no layer", with(&|members| members.retain(|member| member.0 != layer)), "is missing"),
        (
            "a broken index",
            with(&swap("index.json".to_owned(), b"[".to_vec())),
            "`index.json` in the archive is invalid",
        ),
        ("not a tar", vec![7; 4096], "archive cannot be read"),
    ];
    for (name, tar, message) in table {
        let test = store();
        let before = files(&test);
        let error = test.store.load(Cursor::new(tar), Progress::silent()).await.expect_err(name);
        assert!(Chain(&error).to_string().contains(message), "{name}: {}", Chain(&error));
        assert_eq!(error.kind(), Kind::InvalidArgument, "{name}");
        assert!(test.store.list().is_empty());
        assert_swept(&test, &before).await;
    }
}

#[tokio::test]
async fn a_config_that_does_not_belong_to_the_layers_is_refused() {
    let test = store();
    let sample = two_layers();
    let foreign = Sample::of(
        &[tar_of(&[("a", "1")]), tar_of(&[("b", "1")])],
        sample.layers.iter().map(|(bytes, kind)| (bytes.clone(), *kind)).collect(),
        "amd64",
    );
    let tar = tar_of_bytes(&layout(&foreign, "web:1"));
    let error = test.store.load(Cursor::new(tar), Progress::silent()).await.expect_err("refused");
    assert!(Chain(&error).to_string().contains("does not belong to its layers"), "{}", Chain(&error));
}

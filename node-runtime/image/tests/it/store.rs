//! Import, names, removal, writable layers, crashes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rswarm_base::{Chain, Classify as _, Kind};
use rswarm_image::{ImageStore, ImageUser, ImportOptions, Layers, Reference, RemoveOptions, Removed};

use crate::samples::{TestStore, config, files, gzip, store, tar_of};

fn reference(text: &str) -> Reference {
    Reference::parse(text).expect("name")
}

async fn import(store: &TestStore, name: &str, files: &[(&str, &str)]) -> rswarm_image::Image {
    let options = ImportOptions { reference: Some(reference(name)), ..ImportOptions::default() };
    store.store.import(std::io::Cursor::new(tar_of(files)), options).await.expect("imports")
}

#[tokio::test]
async fn an_imported_image_is_there_with_its_changes_and_survives_a_restart() {
    let test = store();
    let options = ImportOptions {
        reference: Some(reference("web")),
        message: "by hand".to_owned(),
        changes: vec!["CMD [\"sh\"]".to_owned(), "ENV A=1".to_owned(), "EXPOSE 80".to_owned()],
        platform: None,
    };
    let tar = gzip(&tar_of(&[("bin/", ""), ("bin/sh", "#!")]));
    let image = test.store.import(std::io::Cursor::new(tar), options).await.expect("imports");
    assert_eq!(image.tags, ["web:latest"]);
    assert_eq!(
        (image.config.cmd.as_slice(), image.config.env.as_slice()),
        (&["sh".to_owned()][..], &["A=1".to_owned()][..])
    );
    assert_eq!((image.size, image.comment.as_str(), image.os()), (2, "by hand", "linux"));
    let raw = test.store.raw_config("web").await.expect("raw");
    assert_eq!(rswarm_image::Digest::of(&raw), image.id);

    let root = fs::metadata(test.dir.path().join("image")).expect("root");
    assert_eq!(root.permissions().mode() & 0o7777, 0o700, "setuid programs are out of reach");
    let again = ImageStore::open(config(&test.dir)).expect("opens again");
    let found = again.get("web").expect("still there");
    assert_eq!((found.id, found.layers, found.created), (image.id, image.layers, image.created));
    assert_eq!(again.list().len(), 1);
}

#[tokio::test]
async fn a_broken_or_half_sent_archive_leaves_nothing() {
    let test = store();
    let before = files(&test);
    let tar = gzip(&tar_of(&[("a", "x")]));
    let error = test.store.import(&tar[..tar.len() / 2], ImportOptions::default()).await.expect_err("cut");
    assert_eq!(error.kind(), Kind::InvalidArgument, "{}", Chain(&error));
    let changes = vec!["RUN x".to_owned()];
    let options = ImportOptions { changes, ..ImportOptions::default() };
    let error = test.store.import(std::io::Cursor::new(tar), options).await.expect_err("change");
    assert_eq!(error.to_string(), "run is not a valid change command");
    assert!(test.store.list().is_empty());
    assert_eq!(files(&test), before);
}

#[tokio::test]
async fn names_move_and_the_last_one_takes_everything_with_it() {
    let test = store();
    let empty = files(&test);
    let one = import(&test, "web:1", &[("a", "1")]).await;
    let two = import(&test, "web:2", &[("a", "2")]).await;
    let tagged = test.store.tag(&one.id.short()[..6], &reference("other")).await.expect("tags");
    assert_eq!(tagged.tags, ["other:latest", "web:1"]);
    test.store.tag("web:2", &reference("web:1")).await.expect("moves");
    assert_eq!(test.store.get("web:1").expect("found").id, two.id);
    assert_eq!(test.store.get(one.id.as_str()).expect("found").tags, ["other:latest"]);

    let users = [ImageUser { image_id: two.id.to_string(), container_id: "c".repeat(64), is_running: true }];
    let error =
        test.store.remove(two.id.as_str(), RemoveOptions { force: true, no_prune: false }, &users).await;
    let error = error.expect_err("in use");
    assert_eq!(error.kind(), Kind::Conflict);
    let text = format!(
        "conflict: unable to delete {} (cannot be forced) - image is being used by running container cccccccccccc",
        two.id.short()
    );
    assert_eq!(error.to_string(), text);

    let removed = test.store.remove("other", RemoveOptions::default(), &users).await.expect("removed");
    let layer = rswarm_image::chain_ids(&one.layers).remove(0).to_string();
    assert_eq!(
        removed,
        [
            Removed::Untagged("other:latest".to_owned()),
            Removed::Deleted(one.id.to_string()),
            Removed::Deleted(layer)
        ]
    );
    let error = test.store.get("other").expect_err("gone");
    assert_eq!((error.to_string().as_str(), error.kind()), ("No such image: other:latest", Kind::NotFound));
    test.store.remove("web:1", RemoveOptions::default(), &[]).await.expect("untags");
    test.store.remove("web:2", RemoveOptions::default(), &[]).await.expect("removes");
    let left = files(&test);
    assert_eq!(left.len(), empty.len() + 1, "only the empty list of names: {left:?}");
}

/// What a container would see. The mount is never attached: it is seen through its descriptor alone, and
/// ends with it.
fn mounted<T>(layers: &Layers, look: impl FnOnce(&Path) -> T) -> T {
    use std::os::fd::{AsFd as _, AsRawFd as _};

    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    };
    let fs = fsopen("overlay", FsOpenFlags::empty()).expect("fsopen");
    for lower in &layers.lower {
        fsconfig_set_string(fs.as_fd(), "lowerdir+", lower).expect("lowerdir");
    }
    fsconfig_set_string(fs.as_fd(), "upperdir", &layers.upper).expect("upperdir");
    fsconfig_set_string(fs.as_fd(), "workdir", &layers.work).expect("workdir");
    fsconfig_create(fs.as_fd()).expect("create");
    let mount = fsmount(fs.as_fd(), FsMountFlags::empty(), MountAttrFlags::empty()).expect("fsmount");
    look(Path::new(&format!("/proc/self/fd/{}/", mount.as_raw_fd())))
}

#[tokio::test]
async fn a_container_sees_the_layers_merged_and_writes_into_its_own() {
    let test = store();
    let sample = crate::samples::two_layers();
    crate::archives::load_layout(&test, &sample, "web:1").await;
    let layers = test.store.prepare("c1", "web:1").await.expect("prepares");
    assert_eq!(layers.lower.len(), 1 + 2);
    assert_eq!(test.store.prepare("c1", "web:1").await.expect("again"), layers);
    let other = test.store.prepare("c2", "web:1").await.expect("prepares");
    assert_eq!(other.lower, layers.lower, "the layer of places is shared");
    test.store.release("c2").await.expect("releases");
    mounted(&layers, |root| {
        let names = |dir: &str| {
            let mut names: Vec<_> = fs::read_dir(root.join(dir))
                .expect("dir")
                .flatten()
                .map(|e| e.file_name().into_string().expect("utf8"))
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(""), [".dockerenv", "bin", "dev", "etc", "new", "proc", "sys"]);
        assert_eq!(fs::read_to_string(root.join("etc/motd")).expect("motd"), "upper");
        fs::write(root.join("mine"), "12345").expect("write");
    });
    assert_eq!(test.store.snapshot_size("c1").await.expect("size"), 5);
    assert_eq!(test.store.snapshot_keys(), ["c1"]);

    // The container keeps its layers alive, also over a restart; the blobs of other images are gone.
    test.store.remove("web:1", RemoveOptions { force: true, no_prune: false }, &[]).await.expect("removes");
    let again = ImageStore::open(config(&test.dir)).expect("opens again");
    assert_eq!(again.layers("c1").expect("still there"), layers);
    assert!(layers.lower.iter().all(|lower| lower.exists()));
    again.release("c1").await.expect("releases");
    again.release("c1").await.expect("is idempotent");
    assert_eq!(again.layers("c1").expect_err("gone").kind(), Kind::NotFound);
    again.sweep().await.expect("sweeps");
    assert!(layers.lower.iter().all(|lower| !lower.exists()));
}

#[tokio::test]
async fn keys_are_plain_names_and_images_must_exist() {
    let test = store();
    import(&test, "web", &[("a", "1")]).await;
    for key in ["", ".", "..", "../x", "a/b", ".hidden"] {
        let error = test.store.prepare(key, "web").await.expect_err(key);
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }
    let error = test.store.prepare("c", "nope").await.expect_err("no image");
    assert_eq!(error.to_string(), "No such image: nope:latest");
    assert!(test.store.snapshot_keys().is_empty());
}

#[tokio::test]
async fn what_a_crash_left_behind_is_cleaned_and_what_was_whole_is_kept() {
    let test = store();
    let image = import(&test, "web", &[("a", "1")]).await;
    let root = test.dir.path().join("image");
    let whole = files(&test);
    for leftover in ["staging/7/diff", "trash/3/fs", "snapshots/.c9/fs", "layers/abc/diff"] {
        fs::create_dir_all(root.join(leftover)).expect("dir");
        fs::write(root.join(leftover).join("x"), "half").expect("file");
    }
    fs::write(root.join("ingest/5"), "half").expect("ingest");
    let orphan = root.join("blobs/sha256").join("0".repeat(64));
    fs::write(&orphan, "nobody's").expect("orphan");
    let again = ImageStore::open(config(&test.dir)).expect("opens");
    assert_eq!(again.get("web").expect("whole").id, image.id);
    assert_eq!(files(&test), whole);
}

#[tokio::test]
async fn an_image_with_a_damaged_part_is_not_shown() {
    let test = store();
    let image = import(&test, "web", &[("a", "1")]).await;
    let blob = test.dir.path().join("image/blobs/sha256").join(image.id.hex());
    fs::write(blob, "{}").expect("damage");
    let again = ImageStore::open(config(&test.dir)).expect("opens");
    assert!(again.list().is_empty() && again.get("web").is_err());
}

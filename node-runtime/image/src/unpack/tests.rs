//! Unpacking as root, into directories of our own.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

use tempfile::TempDir;

use super::*;

/// One entry of a hand-made archive: names go in as they are, however wrong.
struct Item<'a> {
    name: &'a str,
    kind: EntryType,
    link: &'a str,
    data: &'a [u8],
    mode: u32,
    owner: u64,
    pax: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Item<'a> {
    fn new(name: &'a str, kind: EntryType) -> Item<'a> {
        Item { name, kind, link: "", data: b"", mode: 0o644, owner: 0, pax: Vec::new() }
    }
}

fn file<'a>(name: &'a str, data: &'a str) -> Item<'a> {
    Item { data: data.as_bytes(), ..Item::new(name, EntryType::Regular) }
}

fn dir(name: &str) -> Item<'_> {
    Item { mode: 0o755, ..Item::new(name, EntryType::Directory) }
}

fn symlink<'a>(name: &'a str, link: &'a str) -> Item<'a> {
    Item { link, ..Item::new(name, EntryType::Symlink) }
}

fn hard_link<'a>(name: &'a str, link: &'a str) -> Item<'a> {
    Item { link, ..Item::new(name, EntryType::Link) }
}

fn archive(items: &[Item<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        if !item.pax.is_empty() {
            builder.append_pax_extensions(item.pax.iter().copied()).expect("pax");
        }
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..item.name.len()].copy_from_slice(item.name.as_bytes());
        header.as_old_mut().linkname[..item.link.len()].copy_from_slice(item.link.as_bytes());
        header.set_entry_type(item.kind);
        header.set_mode(item.mode);
        header.set_uid(item.owner);
        header.set_gid(item.owner);
        header.set_mtime(1_000_000);
        header.set_size(item.data.len() as u64);
        header.set_device_major(1).expect("ustar");
        header.set_device_minor(3).expect("ustar");
        header.set_cksum();
        builder.append(&header, item.data).expect("append");
    }
    builder.into_inner().expect("archive")
}

/// Unpacks layers, each on top of the ones before it, as siblings in a directory with a bait beside them.
fn stack(layers: &[&[Item<'_>]]) -> Result<(TempDir, Vec<PathBuf>), UnpackError> {
    let outer = tempfile::tempdir().expect("tempdir");
    fs::write(outer.path().join("bait"), "untouched").expect("bait");
    let mut lower: Vec<PathBuf> = Vec::new();
    for (at, items) in layers.iter().enumerate() {
        let root = outer.path().join(format!("layer{at}"));
        fs::create_dir(&root).expect("layer");
        unpack(&archive(items)[..], &root)?.settle(&root, &lower)?;
        lower.insert(0, root);
    }
    Ok((outer, lower))
}

fn unpacked(items: &[Item<'_>]) -> (TempDir, PathBuf) {
    let (outer, mut layers) =
        stack(&[items]).unwrap_or_else(|error| panic!("{}", rswarm_base::Chain(&error)));
    (outer, layers.remove(0))
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn opaque(path: &Path) -> bool {
    tree::is_opaque(&tree::open_root(path).expect("directory"))
}

fn whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == 0)
}

#[test]
fn everything_about_a_file_is_kept() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (_outer, root) = unpacked(&[
        dir("./"),
        Item { mode: 0o1777, owner: 7, ..dir("d/") },
        Item {
            mode: 0o4755,
            owner: 1000,
            pax: vec![
                ("mtime", b"1234567890.123456789"),
                ("SCHILY.xattr.user.note", b"a\0b"),
                ("SCHILY.xattr.security.capability", &capability),
            ],
            ..file("d/setuid", "hello")
        },
        Item { owner: 5, ..symlink("d/link", "setuid") },
        hard_link("d/hard", "d/setuid"),
        Item { mode: 0o600, owner: 9, ..Item::new("d/null", EntryType::Char) },
        Item { mode: 0o622, ..Item::new("d/pipe", EntryType::Fifo) },
    ]);
    let setuid = fs::metadata(root.join("d/setuid")).expect("setuid");
    assert_eq!((setuid.mode() & 0o7777, setuid.uid(), setuid.gid()), (0o4755, 1000, 1000));
    assert_eq!((setuid.mtime(), setuid.mtime_nsec()), (1_234_567_890, 123_456_789));
    assert_eq!(fs::metadata(root.join("d/hard")).expect("hard").ino(), setuid.ino());
    let mut value = [0_u8; 64];
    let path = root.join("d/setuid");
    let length = rustix::fs::getxattr(&path, "user.note", &mut value).expect("user.note");
    assert_eq!(&value[..length], b"a\0b");
    let length = rustix::fs::getxattr(&path, "security.capability", &mut value).expect("capability");
    assert_eq!(&value[..length], capability);
    let link = fs::symlink_metadata(root.join("d/link")).expect("link");
    assert_eq!((link.uid(), link.mtime(), link.file_type().is_symlink()), (5, 1_000_000, true));
    let null = fs::metadata(root.join("d/null")).expect("null");
    assert_eq!((null.rdev(), null.mode() & 0o7777, null.uid()), (rustix::fs::makedev(1, 3), 0o600, 9));
    assert!(fs::metadata(root.join("d/pipe")).expect("pipe").file_type().is_fifo());
    let d = fs::metadata(root.join("d")).expect("d");
    assert_eq!((d.mode() & 0o7777, d.uid(), d.mtime()), (0o1777, 7, 1_000_000), "set last");
}

#[test]
fn deletions_become_overlayfs_marks_in_whatever_order_they_come() {
    let (_outer, root) = unpacked(&[
        file("a/.wh.gone", ""),
        file("b/.wh..wh..opq", ""),
        file("b/new", "x"),
        file(".wh.c", ""),
        dir("c"),
        file("c/new", "x"),
        dir("d"),
        file(".wh.d", ""),
        file(".wh.e", ""),
        file("e/deep/new", "x"),
        file("f", "x"),
        file(".wh.f", ""),
        file(".wh.g", ""),
        file("g", "x"),
        file(".wh..wh.plnk", ""),
    ]);
    assert!(whiteout(&root.join("a/gone")) && !opaque(&root.join("a")));
    for name in ["b", "c", "d", "e"] {
        assert!(opaque(&root.join(name)), "{name} hides what is below");
    }
    assert!(!opaque(&root.join("e/deep")));
    assert_eq!((read(root.join("f")), read(root.join("g"))), ("x".to_owned(), "x".to_owned()));
    assert!(
        fs::read_dir(&root)
            .expect("dir")
            .flatten()
            .all(|e| !e.file_name().to_string_lossy().starts_with(".wh."))
    );
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let (_outer, root) = unpacked(&[
        dir("a"),
        file("a/old", "x"),
        symlink("a", "b"),
        dir("b"),
        file("a/new", "through the link"),
        symlink("c", "b"),
        dir("c"),
        file("c/own", "x"),
        file("d", "1"),
        file("d", "2"),
    ]);
    assert!(root.join("a").is_symlink());
    assert_eq!(read(root.join("b/new")), "through the link");
    assert!(!root.join("c").is_symlink() && root.join("c/own").exists() && !root.join("b/own").exists());
    assert_eq!(read(root.join("d")), "2");
}

#[test]
fn no_archive_reaches_out_of_its_layer() {
    let long = "../".repeat(20) + "bait";
    let attacks: Vec<(&str, Vec<Item<'_>>)> = vec![
        ("dots", vec![file("../bait", "x")]),
        ("dots behind a name", vec![file("a/../../bait", "x")]),
        ("absolute", vec![file("/bait", "x")]),
        ("link up", vec![symlink("l", ".."), file("l/bait", "x")]),
        ("link to the root", vec![symlink("l", "/"), file("l/bait", "x")]),
        ("link far up", vec![symlink("l", &long), file("l", "x")]),
        ("a name that is a link", vec![symlink("bait", "../bait"), file("bait", "x")]),
        ("link to a link", vec![symlink("a", "b/.."), symlink("b", "../.."), file("a/bait", "x")]),
        ("hard link up", vec![hard_link("l", "../bait"), file("l", "x")]),
        ("hard link through a link", vec![symlink("up", ".."), hard_link("l", "up/bait"), file("l", "x")]),
        ("hard link to a link", vec![symlink("s", "../bait"), hard_link("l", "s"), file("l", "x")]),
        ("whiteout up", vec![symlink("l", ".."), file("l/.wh.bait", "")]),
        ("whiteout of dots", vec![file("a/.wh...", "")]),
        ("opaque up", vec![symlink("l", ".."), file("l/.wh..wh..opq", "")]),
        ("directory over a link", vec![symlink("l", ".."), dir("l"), file("l/bait", "x")]),
        ("mode through a link", vec![symlink("l", "../bait"), Item { mode: 0, ..dir("l/x") }]),
        ("loop", vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "x")]),
    ];
    for (name, items) in attacks {
        let outer = tempfile::tempdir().expect("tempdir");
        let bait = outer.path().join("bait");
        fs::write(&bait, "untouched").expect("bait");
        fs::set_permissions(&bait, fs::Permissions::from_mode(0o640)).expect("mode");
        let before = fs::metadata(outer.path()).expect("outer");
        let root = outer.path().join("layer");
        fs::create_dir(&root).expect("layer");
        let _ = unpack(&archive(&items)[..], &root).and_then(|unpacked| unpacked.settle(&root, &[]));
        let meta = fs::symlink_metadata(&bait).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((meta.mode() & 0o7777, meta.nlink()), (0o640, 1), "{name}");
        assert_eq!(read(bait), "untouched", "{name}");
        assert_eq!(fs::read_dir(outer.path()).expect("outer").count(), 2, "{name}");
        assert_eq!(fs::metadata(outer.path()).expect("outer").mode(), before.mode(), "{name}");
        assert!(!opaque(outer.path()), "{name}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused_by_name() {
    let check = |items: &[Item<'_>]| stack(&[items]).map(|_| ()).expect_err("refused").to_string();
    assert_eq!(check(&[file("../x", "")]), "invalid tar header: path `../x` leads outside of the layer");
    assert_eq!(
        check(&[hard_link("l", "../x")]),
        "invalid tar header: path `../x` leads outside of the layer"
    );
    assert_eq!(
        check(&[hard_link("l", "nowhere")]),
        "invalid tar header: `l` is a hard link to `nowhere`, which does not exist"
    );
    assert_eq!(
        check(&[Item::new("x", EntryType::new(b'Z'))]),
        "invalid tar header: `x` is of unknown type 0x5a"
    );
    assert_eq!(check(&[file("x", "a"), file("x/y", "b")]), "`x/y` cannot be unpacked");
}

#[test]
fn attributes_that_overlayfs_would_obey_are_not_taken_from_archives() {
    let (_outer, root) = unpacked(&[Item {
        pax: vec![("SCHILY.xattr.trusted.overlay.redirect", b"/etc"), ("SCHILY.xattr.user.ok", b"1")],
        ..dir("d")
    }]);
    let mut value = [0_u8; 16];
    assert!(rustix::fs::getxattr(root.join("d"), "trusted.overlay.redirect", &mut value).is_err());
    assert_eq!(rustix::fs::getxattr(root.join("d"), "user.ok", &mut value), Ok(1));
}

#[test]
fn headers_that_would_fill_the_memory_end_the_archive() {
    let bomb = vec![b'a'; usize::try_from(HEADER_BYTES_MAX).expect("fits") + 1024];
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(bomb.len() as u64);
    header.set_cksum();
    builder.append(&header, &bomb[..]).expect("append");
    let dir = tempfile::tempdir().expect("tempdir");
    let error = unpack(&builder.into_inner().expect("archive")[..], dir.path()).expect_err("refused");
    assert_eq!(rswarm_base::Chain(&error).to_string(), "invalid tar stream: headers are too large");
}

#[test]
fn a_directory_that_is_only_passed_through_looks_as_it_does_below() {
    let (_outer, layers) = stack(&[
        &[
            Item { mode: 0o711, owner: 3, ..dir("./") },
            Item { mode: 0o750, owner: 42, ..dir("srv") },
            dir("opt"),
        ],
        &[file(".wh.opt", "")],
        &[file("srv/app/new", "x"), file("opt/new", "x")],
    ])
    .expect("unpacks");
    let top = &layers[0];
    let srv = fs::metadata(top.join("srv")).expect("srv");
    assert_eq!((srv.mode() & 0o7777, srv.uid(), srv.mtime()), (0o750, 42, 1_000_000));
    let root = fs::metadata(top).expect("root");
    assert_eq!((root.mode() & 0o7777, root.uid()), (0o711, 3));
    let opt = fs::metadata(top.join("opt")).expect("opt");
    assert_eq!((opt.mode() & 0o7777, opt.uid()), (0o755, 0), "it was deleted below");
}

#[test]
fn hard_links_reach_later_files_and_lower_layers() {
    let (_outer, layers) = stack(&[
        &[Item { mode: 0o4711, owner: 8, ..file("bin/tool", "tool") }],
        &[hard_link("early", "late"), file("late", "late"), hard_link("usr/tool", "bin/tool")],
    ])
    .expect("unpacks");
    let inode = |name: &str| fs::metadata(layers[0].join(name)).expect(name).ino();
    assert_eq!(inode("early"), inode("late"));
    let tool = fs::metadata(layers[0].join("usr/tool")).expect("tool");
    assert_eq!(
        (tool.mode() & 0o7777, tool.uid(), read(layers[0].join("usr/tool"))),
        (0o4711, 8, "tool".to_owned())
    );
}

#[test]
fn times_have_fractions_and_may_lie_before_1970() {
    let table = [
        ("12", Some((12, 0))),
        ("12.5", Some((12, 500_000_000))),
        ("12.1234567899", Some((12, 123_456_789))),
        ("-1.25", Some((-2, 750_000_000))),
        ("x", None),
        ("1.x", None),
    ];
    for (text, wanted) in table {
        assert_eq!(parse_time(text).map(|time| (time.tv_sec, time.tv_nsec)), wanted, "{text}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]
    #[test]
    fn no_mix_of_names_and_links_reaches_out(
        steps in proptest::collection::vec((0_u8..5, "[ab./]{1,8}", "[ab./]{1,8}"), 1..8)
    ) {
        let outer = tempfile::tempdir().expect("tempdir");
        fs::write(outer.path().join("a"), "untouched").expect("bait");
        fs::create_dir(outer.path().join("b")).expect("bait");
        let root = outer.path().join("layer");
        fs::create_dir(&root).expect("layer");
        let items: Vec<Item<'_>> = steps.iter().map(|(kind, name, link)| match kind {
            0 => file(name, "x"),
            1 => dir(name),
            2 => symlink(name, link),
            3 => hard_link(name, link),
            _ => Item::new(name, EntryType::Fifo),
        }).collect();
        let _ = unpack(&archive(&items)[..], &root).and_then(|unpacked| unpacked.settle(&root, &[]));
        proptest::prop_assert_eq!(read(outer.path().join("a")), "untouched");
        proptest::prop_assert_eq!(fs::read_dir(outer.path()).expect("outer").count(), 3);
        proptest::prop_assert_eq!(fs::read_dir(outer.path().join("b")).expect("b").count(), 0);
    }
}

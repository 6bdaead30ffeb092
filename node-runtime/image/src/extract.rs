//! Files that go into a container's file system, as an archive: plain, gzip or zstd.

use std::io::{BufRead as _, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rswarm_base::{Classify, Kind};

use crate::stream::decompress;
use crate::unpack::{Rules, UnpackError, unpack_files};

/// Compressed bytes between the source and the decompressor.
const COMPRESSED_BYTES: usize = 64 << 10;
/// Tar bytes between the decompressor and the unpacker.
const TAR_BYTES: usize = 128 << 10;

/// What the archive's entries may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExtractRules {
    /// A directory replaces nothing but a directory, and is replaced by nothing else.
    pub keeps_kinds: bool,
    /// Who owns everything (user, group), whatever the archive says.
    pub owner: Option<(u32, u32)>,
}

/// Why files could not be put in place; those before the failing one are.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ExtractError(#[from] UnpackError);

impl Classify for ExtractError {
    fn kind(&self) -> Kind {
        if self.0.is_bad_input() { Kind::InvalidArgument } else { Kind::Internal }
    }
}

/// Unpacks an archive into the directory `into` (clean and without links) of the file system below `root`,
/// where all links are looked up. An empty stream is an archive without files. Blocks.
///
/// # Errors
/// [`ExtractError`], for the first entry that cannot be placed.
pub fn extract(
    archive: impl Read,
    root: OwnedFd,
    into: &Path,
    rules: &ExtractRules,
) -> Result<(), ExtractError> {
    let mut compressed = BufReader::with_capacity(COMPRESSED_BYTES, archive);
    if compressed.fill_buf().map_err(UnpackError::Tar)?.is_empty() {
        return Ok(());
    }
    let (plain, _) = decompress(compressed).map_err(UnpackError::Tar)?;
    let tar = BufReader::with_capacity(TAR_BYTES, plain);
    let rules = Rules { is_layer: false, keeps_kinds: rules.keeps_kinds, owner: rules.owner };
    Ok(unpack_files(tar, root, into, rules)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;
    use crate::pack::Packer;
    use crate::tree::open_root;

    /// `from` as an archive whose entries' names begin with `as_name`.
    fn archive(from: &Path, as_name: &str) -> Vec<u8> {
        let mut packer = Packer::new(Vec::new());
        packer.add(&open_root(from).expect("opens"), ".".as_ref(), as_name.as_bytes()).expect("packs");
        packer.finish().expect("ends")
    }

    fn put(tar: &[u8], root: &Path, into: &str, rules: &ExtractRules) -> Result<(), String> {
        let done = extract(tar, open_root(root).expect("opens"), Path::new(into), rules);
        done.map_err(|error| rswarm_base::Chain(&error).to_string())
    }

    #[test]
    fn files_go_where_links_lead_inside_the_root_and_keep_literal_names() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (source, root) = (dir.path().join("source"), dir.path().join("root"));
        fs::create_dir_all(source.join("link")).expect("source");
        fs::write(source.join("link/.wh.x"), "x").expect("file");
        fs::create_dir_all(root.join("srv")).expect("root");
        fs::create_dir_all(root.join("etc")).expect("root");
        symlink("/etc", root.join("srv/link")).expect("link");
        let tar = archive(&source, ".");
        // An entry that is a directory takes the link's place; what is below an existing path follows it.
        put(&tar, &root, "srv", &ExtractRules::default()).expect("extracted");
        assert_eq!(fs::read_to_string(root.join("srv/link/.wh.x")).expect("literal"), "x");
        symlink("/etc", root.join("srv/etc")).expect("link");
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_mode(0o644);
        builder.append_data(&mut header, "etc/below", &[][..]).expect("entry");
        let tar = builder.into_inner().expect("archive");
        put(&tar, &root, "srv", &ExtractRules { owner: Some((7, 8)), ..ExtractRules::default() })
            .expect("extracted");
        let meta = fs::metadata(root.join("etc/below")).expect("inside the root");
        assert_eq!((meta.uid(), meta.gid()), (7, 8));
    }

    #[test]
    fn kinds_are_kept_only_where_that_is_asked() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (source, root) = (dir.path().join("source"), dir.path().join("root"));
        fs::create_dir_all(&source).expect("source");
        fs::write(source.join("name"), "file").expect("file");
        fs::create_dir_all(root.join("srv/name/sub")).expect("root");
        let tar = archive(&source, ".");
        let strict = ExtractRules { keeps_kinds: true, owner: None };
        let refused = put(&tar, &root, "srv", &strict).expect_err("a directory is there");
        assert_eq!(refused, "cannot overwrite directory \"/srv/name\" with non-directory \"/srv\"");
        put(&tar, &root, "srv", &ExtractRules::default()).expect("replaced");
        assert_eq!(fs::read_to_string(root.join("srv/name")).expect("file"), "file");
        fs::remove_file(source.join("name")).expect("unlink");
        fs::create_dir(source.join("name")).expect("mkdir");
        let refused = put(&archive(&source, "."), &root, "srv", &strict).expect_err("a file is there");
        assert_eq!(refused, "cannot overwrite non-directory \"/srv/name\" with directory \"/srv\"");
    }

    #[test]
    fn an_empty_stream_is_an_empty_archive_and_garbage_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        put(b"", dir.path(), "", &ExtractRules::default()).expect("nothing to do");
        assert!(put(b"no archive", dir.path(), "", &ExtractRules::default()).is_err());
    }
}

//! Blobs by digest. A blob is hashed while it is written and gets its name only when it is whole, right
//! and on disk; anything else lies in `ingest/`, which is emptied when the store opens.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rswarm_base::fsx;

use crate::digest::{Digest, Hasher};

/// Where blobs are.
#[derive(Debug)]
pub(crate) struct Content {
    blobs: PathBuf,
    ingest: PathBuf,
    next: AtomicU64,
}

/// Why a blob was not taken in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    #[error("filesystem layer verification failed for digest {expected}: got {found}")]
    Mismatch { expected: Digest, found: Digest },
    #[error("blob `{digest}` has {found} bytes, not {expected}")]
    Size { digest: Digest, expected: u64, found: u64 },
    #[error("blob could not be written")]
    Write(#[source] io::Error),
}

impl Content {
    pub(crate) fn open(root: &Path) -> io::Result<Content> {
        let (blobs, ingest) = (root.join("blobs/sha256"), root.join("ingest"));
        fsx::remove_all(&ingest)?;
        fs::create_dir_all(&blobs)?;
        fs::create_dir_all(&ingest)?;
        Ok(Content { blobs, ingest, next: AtomicU64::new(0) })
    }

    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    pub(crate) fn open_blob(&self, digest: &Digest) -> io::Result<File> {
        let path = self.path(digest);
        File::open(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// A small blob, verified.
    pub(crate) fn read(&self, digest: &Digest, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_blob(digest)?.take(bytes_max).read_to_end(&mut bytes)?;
        if Digest::of(&bytes) != *digest {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("blob {digest} is damaged on disk"),
            ));
        }
        Ok(bytes)
    }

    /// A temporary file of ours: gone when dropped, or at the next start.
    pub(crate) fn ingest(&self) -> io::Result<Ingest> {
        let path = self.ingest.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Ingest { file, path, hasher: Hasher::default(), size: 0 })
    }

    /// Takes in a blob that is in memory.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        let mut ingest = self.ingest().map_err(BlobError::Write)?;
        ingest.write(bytes).map_err(BlobError::Write)?;
        let sealed = ingest.seal()?;
        sealed.commit(self).map_err(BlobError::Write)
    }

    pub(crate) fn remove(&self, digest: &Digest) -> io::Result<()> {
        fsx::remove_all(&self.path(digest))
    }

    /// Digests of all blobs.
    pub(crate) fn list(&self) -> io::Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for entry in fs::read_dir(&self.blobs)? {
            let name = entry?.file_name();
            digests.extend(format!("sha256:{}", name.to_string_lossy()).parse::<Digest>());
        }
        Ok(digests)
    }
}

/// A blob being written.
#[derive(Debug)]
pub(crate) struct Ingest {
    file: File,
    path: PathBuf,
    hasher: Hasher,
    size: u64,
}

impl Ingest {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    /// Bytes so far.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Everything is written: puts it on disk and tells what it is.
    pub(crate) fn seal(mut self) -> Result<Sealed, BlobError> {
        self.file.sync_all().map_err(BlobError::Write)?;
        let digest = std::mem::take(&mut self.hasher).finish();
        Ok(Sealed { digest, size: self.size, ingest: self })
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // committed ones have another name by now
    }
}

/// A blob that is written but not yet in the store.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    ingest: Ingest,
}

impl Sealed {
    /// Whether it is what was promised.
    pub(crate) fn verify(&self, digest: &Digest, size: u64) -> Result<(), BlobError> {
        if *digest != self.digest {
            return Err(BlobError::Mismatch { expected: digest.clone(), found: self.digest.clone() });
        }
        if size != self.size {
            return Err(BlobError::Size { digest: digest.clone(), expected: size, found: self.size });
        }
        Ok(())
    }

    /// Gives it its name. Pin the digest first.
    pub(crate) fn commit(self, content: &Content) -> io::Result<Digest> {
        fs::rename(&self.ingest.path, content.path(&self.digest))?;
        fsx::sync_dir(&content.blobs)?;
        Ok(self.digest.clone())
    }

    /// As [`Sealed::commit`], but it stays where it is too: an archive may use a file twice.
    pub(crate) fn link(&self, content: &Content) -> io::Result<()> {
        match fs::hard_link(&self.ingest.path, content.path(&self.digest)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => fsx::sync_dir(&content.blobs),
        }
    }

    /// The bytes, before they are in the store.
    pub(crate) fn reader(&self) -> io::Result<File> {
        File::open(&self.ingest.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_there_only_when_it_is_what_was_promised() {
        let dir = tempfile::tempdir().expect("tempdir");
        let content = Content::open(dir.path()).expect("opens");
        let (good, bad) = (Digest::of(b"good"), Digest::of(b"bad"));
        let sealed = |bytes: &[u8]| {
            let mut ingest = content.ingest().expect("ingest");
            ingest.write(bytes).expect("write");
            ingest.seal().expect("seal")
        };
        let error = sealed(b"good").verify(&bad, 4).expect_err("another digest");
        assert!(error.to_string().contains(bad.as_str()), "{error}");
        assert!(sealed(b"good").verify(&good, 5).is_err());
        assert!(!content.has(&good) && !content.has(&bad));
        sealed(b"good").verify(&good, 4).expect("as promised");
        sealed(b"good").commit(&content).expect("commits");
        assert_eq!(content.read(&good, 100).expect("reads"), b"good");
        assert_eq!(fs::read_dir(dir.path().join("ingest")).expect("dir").count(), 0);
    }

    #[test]
    fn what_a_crash_left_half_written_is_gone_after_a_start_and_damage_is_seen() {
        let dir = tempfile::tempdir().expect("tempdir");
        let content = Content::open(dir.path()).expect("opens");
        let digest = content.write(b"whole").expect("writes");
        std::mem::forget(content.ingest().expect("ingest"));
        let content = Content::open(dir.path()).expect("opens again");
        assert_eq!(fs::read_dir(dir.path().join("ingest")).expect("dir").count(), 0);
        assert_eq!(content.list().expect("lists"), std::slice::from_ref(&digest));
        fs::write(content.path(&digest), b"hole").expect("damage");
        assert!(content.read(&digest, 100).expect_err("damaged").to_string().contains("damaged"));
    }
}

//! A log's files: the current one grows, is rotated by size, and the old ones are compressed if asked.
//!
//! Rotation makes `log` into `log.1`, `log.1` into `log.2`, and so on; the oldest goes. A copy of the process
//! compresses `log.1` into `log.1.gz` meanwhile; the next rotation waits for it. A compressed file says which
//! file it was, so that a reader that was in the middle of it knows where it stands ([`origin`]).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder, GzHeader};
use rustix::pipe::PipeFlags;

use super::{Lost, local, record_length};
use crate::launch::{LogFile, LogFormat};
use crate::note::note;
use crate::sys;

/// What a compressed file's name ends with.
pub const COMPRESSED: &str = ".gz";

/// Tells our compressed files by their header's extra field: this, and the inode's number, big endian.
const ORIGIN: &[u8; 4] = b"rsw1";

/// The inode that a compressed file was made from.
#[must_use]
pub fn origin(header: &GzHeader) -> Option<u64> {
    let number = header.extra()?.strip_prefix(ORIGIN)?;
    number.try_into().ok().map(u64::from_be_bytes)
}

#[derive(Debug)]
pub(super) struct LogStore {
    config: LogFile,
    file: File,
    size: u64,
    failing: bool,
    /// Ends when the copy that compresses has ended.
    compressing: Option<OwnedFd>,
}

impl LogStore {
    /// Opens the current file to append. What a writer that was killed left half written goes.
    pub(super) fn open(config: &LogFile) -> io::Result<LogStore> {
        if let Some(dir) = config.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let file = append(&config.path)?;
        let mut store = LogStore { config: config.clone(), file, size: 0, failing: false, compressing: None };
        store.size = store.file.metadata()?.len();
        if store.config.format == LogFormat::Local {
            store.mend()?;
        }
        remove_if_there(&temporary(&store.config.path))?;
        Ok(store)
    }

    /// Writes whole records; none crosses files. Returns how many were lost.
    pub(super) fn append(&mut self, records: &[u8]) -> Lost {
        let (mut rest, mut lost) = (records, Lost::default());
        while !rest.is_empty() {
            let mut fits = self.whole_records(rest);
            if fits == 0 && self.size > self.size_empty() && self.tell_rotated() {
                continue;
            }
            if fits == 0 {
                // Larger than a file may be, or the files cannot be renamed: it is kept all the same.
                fits = record_length(self.config.format, rest).unwrap_or(rest.len());
            }
            let (now, later) = rest.split_at(fits);
            let lines = self.write(now);
            lost.first |= lines > 0 && rest.len() == records.len();
            lost.lines += lines;
            rest = later;
        }
        lost
    }

    /// How many bytes of `records` the file has room for.
    fn whole_records(&self, records: &[u8]) -> usize {
        let room = match self.config.max_size {
            0 => return records.len(),
            max_size => max_size.saturating_sub(self.size),
        };
        if records.len() as u64 <= room {
            return records.len();
        }
        let mut end = 0;
        while let Some(length) = record_length(self.config.format, &records[end..]) {
            if (end + length) as u64 > room {
                break;
            }
            end += length;
        }
        end
    }

    /// All or nothing: a record that the disk has no room for is not left half written.
    fn write(&mut self, records: &[u8]) -> u64 {
        let written = self.file.write_all(records);
        let failed = written.is_err();
        self.tell(written);
        if !failed {
            self.size += records.len() as u64;
            return 0;
        }
        let cut = self.file.set_len(self.size);
        self.tell(cut);
        count(self.config.format, records)
    }

    fn tell(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                self.failing = true;
                note(format_args!("output is not logged to {}: {error}", self.config.path.display()));
            }
            Err(_) => {}
        }
    }

    fn tell_rotated(&mut self) -> bool {
        let rotated = self.rotate();
        let done = rotated.is_ok();
        self.tell(rotated);
        done
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.wait_for_compression();
        if self.config.max_files <= 1 {
            self.file.set_len(0)?;
            return self.begin();
        }
        for number in (1..self.config.max_files).rev() {
            for ending in ["", COMPRESSED] {
                let to = older(&self.config.path, number, ending);
                remove_if_there(&to)?;
                if number > 1 {
                    rename_if_there(&older(&self.config.path, number - 1, ending), &to)?;
                } else if ending.is_empty() {
                    rename_if_there(&self.config.path, &to)?;
                }
            }
        }
        self.file = append(&self.config.path)?;
        self.begin()?;
        if self.config.compress {
            self.compress()?;
        }
        Ok(())
    }

    /// A new file.
    fn begin(&mut self) -> io::Result<()> {
        self.size = 0;
        if self.config.format == LogFormat::Local {
            self.file.write_all(local::HEADER)?;
        }
        self.size = self.size_empty();
        Ok(())
    }

    fn size_empty(&self) -> u64 {
        match self.config.format {
            LogFormat::Json => 0,
            LogFormat::Local => local::HEADER.len() as u64,
        }
    }

    /// Cuts off what is no record at the end.
    fn mend(&mut self) -> io::Result<()> {
        if self.size < self.size_empty() {
            // A new file is not truncated: ext4 would write all of it to the disk before it is closed
            // (ext4(5), auto_da_alloc), and the container's end would wait for that.
            if self.size > 0 {
                self.file.set_len(0)?;
            }
            return self.begin();
        }
        let mut tail =
            vec![0; usize::try_from(self.size).map_or(local::RECORD_MAX, |size| size.min(local::RECORD_MAX))];
        let begin = self.size - tail.len() as u64;
        let reader = File::open(&self.config.path)?;
        std::os::unix::fs::FileExt::read_exact_at(&reader, &mut tail, begin)?;
        if self.size == self.size_empty() || local::decode_last(&tail).is_some() {
            return Ok(());
        }
        // The torn record is shorter than the tail: the last whole one ends before it.
        let end = (0..tail.len()).rev().find(|end| local::decode_last(&tail[..*end]).is_some());
        self.size = end.map_or(self.size_empty().max(begin), |end| begin + end as u64);
        self.file.set_len(self.size)
    }

    /// In a copy of this process, which lives no longer than that takes.
    fn compress(&mut self) -> io::Result<()> {
        let (done, working) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        if rswarm_runtime::fork()? == 0 {
            sys::close_all_but(&[2, working.as_raw_fd()]);
            let compressed = compress_file(&self.config.path);
            if let Err(error) = &compressed {
                note(format_args!("{} could not be compressed: {error}", self.config.path.display()));
            }
            rswarm_runtime::exit_now(i32::from(compressed.is_err()));
        }
        self.compressing = Some(done);
        Ok(())
    }

    /// The current file's.
    pub(super) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Waits until nothing is being compressed.
    pub(super) fn wait_for_compression(&mut self) {
        if let Some(done) = self.compressing.take() {
            // No byte is ever written: this returns at the end.
            let _ = File::from(done).read(&mut [0]);
        }
    }
}

/// `log.1` becomes `log.1.gz`, which is there only when it is whole.
fn compress_file(path: &Path) -> io::Result<()> {
    let (source, temporary) = (older(path, 1, ""), temporary(path));
    let mut from = File::open(&source)?;
    let extra = [ORIGIN.as_slice(), &from.metadata()?.ino().to_be_bytes()].concat();
    let to = OpenOptions::new().create(true).truncate(true).write(true).mode(0o640).open(&temporary)?;
    let mut gzip = GzBuilder::new().extra(extra).write(to, Compression::fast());
    io::copy(&mut from, &mut gzip)?;
    gzip.finish()?;
    fs::rename(&temporary, older(path, 1, COMPRESSED))?;
    fs::remove_file(&source)
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

fn older(path: &Path, number: u32, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}{ending}"));
    PathBuf::from(name)
}

fn temporary(path: &Path) -> PathBuf {
    older(path, 1, ".gz.tmp")
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    there(fs::remove_file(path))
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    there(fs::rename(from, to))
}

fn there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// How many records there are in some bytes.
pub(super) fn count(format: LogFormat, mut records: &[u8]) -> u64 {
    let mut count = 0;
    while let Some(length) = record_length(format, records) {
        count += 1;
        records = &records[length..];
    }
    count
}

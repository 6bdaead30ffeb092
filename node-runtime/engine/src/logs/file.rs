//! A log and its rotated files (`x`, `x.1`, `x.2`, … from new to old) as one run of lines.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::line::ends_message;

/// How much is read at one time.
const BLOCK: usize = 64 << 10;

/// An open log at some place.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    /// Old to new; the first is being read.
    open: VecDeque<Open>,
    /// The beginning of a line whose end is not written yet.
    partial: Vec<u8>,
}

#[derive(Debug)]
struct Open {
    file: File,
    inode: u64,
}

impl Open {
    fn new(path: &Path) -> io::Result<Option<Open>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let inode = file.metadata()?.ino();
        Ok(Some(Open { file, inode }))
    }
}

fn rotated(path: &Path, n: u32) -> PathBuf {
    if n == 0 { path.to_owned() } else { PathBuf::from(format!("{}.{n}", path.display())) }
}

impl Files {
    /// At the first line of the oldest file.
    pub(super) fn from_start(path: &Path) -> io::Result<Files> {
        let mut open = VecDeque::new();
        for n in 0.. {
            let Some(file) = Open::new(&rotated(path, n))? else {
                if n == 0 {
                    continue; // Between two renames of a rotation there is no current file.
                }
                break;
            };
            // A rotation while we open shows the same file under its next name.
            if open.iter().all(|known: &Open| known.inode != file.inode) {
                open.push_front(file);
            }
        }
        Ok(Files { path: path.to_owned(), open, partial: Vec::new() })
    }

    /// So many lines before the end.
    pub(super) fn from_tail(path: &Path, lines: usize) -> io::Result<Files> {
        let mut files = Files::from_start(path)?;
        let mut wanted = lines;
        let mut kept = VecDeque::new();
        while let Some(mut open) = files.open.pop_back() {
            let (offset, found) = tail_offset(&open.file, wanted)?;
            open.file.seek(SeekFrom::Start(offset))?;
            kept.push_front(open);
            wanted = wanted.saturating_sub(found);
            if offset > 0 {
                break;
            }
        }
        files.open = kept;
        Ok(files)
    }

    /// Reads one block and gives its whole lines to `line`. Returns whether there may be more right now.
    pub(super) fn read_lines(&mut self, mut line: impl FnMut(&[u8])) -> io::Result<bool> {
        let Some(current) = self.open.front_mut() else { return self.open_new() };
        let begun = self.partial.len();
        self.partial.resize(begun + BLOCK, 0);
        let read = current.file.read(&mut self.partial[begun..])?;
        self.partial.truncate(begun + read);
        if read == 0 {
            return self.advance();
        }
        let Some(end) = self.partial[begun..].iter().rposition(|byte| *byte == b'\n') else {
            return Ok(true);
        };
        let rest = self.partial.split_off(begun + end + 1);
        self.partial.pop();
        self.partial.split(|byte| *byte == b'\n').for_each(&mut line);
        self.partial = rest;
        Ok(true)
    }

    /// At the end of a file: on to a newer one, when there is one.
    fn advance(&mut self) -> io::Result<bool> {
        if self.open.len() > 1 {
            self.next_file();
            return Ok(true);
        }
        let current = self.open.front().map(|open| open.inode);
        // The newer files, from the newest back to the one that we are at the end of.
        let mut newer = VecDeque::new();
        for n in 0.. {
            match Open::new(&rotated(&self.path, n))? {
                Some(file) if Some(file.inode) == current => break,
                Some(file) => newer.push_front(file),
                None if n == 0 => {}
                None => break,
            }
        }
        if newer.is_empty() {
            return Ok(false);
        }
        self.open.extend(newer);
        // What was written between our last read and the rotation is read before the step: the old file
        // stays first, and only its next end leads on.
        let old = self.open.front().map_or(Ok(0), |open| open.file.metadata().map(|meta| meta.len()))?;
        let at = self.open.front_mut().map_or(Ok(0), |open| open.file.stream_position())?;
        if at >= old {
            self.next_file();
        }
        Ok(true)
    }

    fn next_file(&mut self) {
        self.open.pop_front();
        self.partial.clear();
    }

    /// A log that was not there: perhaps it is by now.
    fn open_new(&mut self) -> io::Result<bool> {
        self.open.extend(Open::new(&self.path)?);
        Ok(!self.open.is_empty())
    }
}

/// Where the last `wanted` messages of a file begin, and how many of them there are (fewer: all of it).
fn tail_offset(file: &File, wanted: usize) -> io::Result<(u64, usize)> {
    let length = file.metadata()?.len();
    if wanted == 0 {
        return Ok((length, 0));
    }
    let mut found = 0;
    // The bytes from `start` up to the first line break that was seen.
    let mut tail: Vec<u8> = Vec::new();
    let mut start = length;
    while start > 0 {
        let size = usize::try_from(start).unwrap_or(usize::MAX).min(BLOCK);
        start -= size as u64;
        let mut block = vec![0; size];
        file.read_exact_at(&mut block, start)?;
        block.append(&mut tail);
        while let Some(at) = last_break(&block) {
            if ends_message(&block[at + 1..]) {
                if found == wanted {
                    // This line belongs to the message before those wanted.
                    return Ok((start + block.len() as u64 + 1, found));
                }
                found += 1;
            }
            block.truncate(at);
        }
        tail = block;
    }
    if ends_message(&tail) {
        if found == wanted {
            return Ok((tail.len() as u64 + 1, found));
        }
        found += 1;
    }
    Ok((0, found))
}

/// The last line break before the last line; one at the very end closes that line.
fn last_break(block: &[u8]) -> Option<usize> {
    let line_end = block.len() - usize::from(block.last() == Some(&b'\n'));
    block[..line_end].iter().rposition(|byte| *byte == b'\n')
}

//! A log and its rotated files (`x`, `x.1`, `x.2.gz`, … from new to old) as one run of lines.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use rswarm_shim::LogFormat;
use rswarm_shim::log::{COMPRESSED, local, origin};

use super::format;

/// How much is read at one time.
const BLOCK: usize = 64 << 10;

/// A record that is longer is none: what is wrong with it does not fill the memory.
const RECORD_MAX: usize = 4 << 20;

/// An open log at some place.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    format: LogFormat,
    /// Old to new; the first is being read.
    open: VecDeque<Open>,
    /// The beginning of a record whose end is not written yet.
    partial: Vec<u8>,
}

#[derive(Debug)]
struct Open {
    content: Content,
    /// The file's own, or that of the file that it was compressed from.
    inode: u64,
    /// Messages at the beginning that nobody wants.
    skip: usize,
}

#[derive(Debug)]
enum Content {
    Plain(File),
    /// Never changes any more.
    Compressed(Box<MultiGzDecoder<BufReader<File>>>),
}

impl Open {
    /// The file of that number, compressed or not.
    fn new(path: &Path, n: u32) -> io::Result<Option<Open>> {
        if let Some(file) = open(&rotated(path, n, ""))? {
            let inode = file.metadata()?.ino();
            return Ok(Some(Open { content: Content::Plain(file), inode, skip: 0 }));
        }
        if n == 0 {
            return Ok(None);
        }
        let Some(file) = open(&rotated(path, n, COMPRESSED))? else { return Ok(None) };
        let own = file.metadata()?.ino();
        let gzip = MultiGzDecoder::new(BufReader::with_capacity(BLOCK, file));
        let inode = gzip.header().and_then(origin).unwrap_or(own);
        Ok(Some(Open { content: Content::Compressed(Box::new(gzip)), inode, skip: 0 }))
    }

    /// A damaged compressed file ends where the damage begins.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.content {
            Content::Plain(file) => file.read(buffer),
            Content::Compressed(gzip) => gzip.read(buffer).or_else(|error| match error.kind() {
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    Ok(0)
                }
                _ => Err(error),
            }),
        }
    }

    fn rewind(&mut self) -> io::Result<()> {
        match &mut self.content {
            Content::Plain(file) => file.seek(SeekFrom::Start(0)).map(drop),
            Content::Compressed(gzip) => {
                let mut file = gzip.get_ref().get_ref().try_clone()?;
                file.seek(SeekFrom::Start(0))?;
                **gzip = MultiGzDecoder::new(BufReader::with_capacity(BLOCK, file));
                Ok(())
            }
        }
    }

    /// Goes to the last `wanted` messages; returns how many there are (fewer: all of it).
    fn seek_tail(&mut self, format: LogFormat, wanted: usize) -> io::Result<usize> {
        if let Content::Plain(file) = &mut self.content {
            let (offset, found) = tail_offset(file, format, wanted)?;
            file.seek(SeekFrom::Start(offset))?;
            return Ok(found);
        }
        // Compressed files are read from the front only: once to count, once to give.
        let (mut partial, mut messages) = (Vec::new(), 0);
        while fill(self, &mut partial)? > 0 {
            take_records(format, &mut partial, |raw| {
                messages += usize::from(format::ends_message(format, raw))
            });
        }
        self.rewind()?;
        self.skip = messages.saturating_sub(wanted);
        Ok(messages.min(wanted))
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn rotated(path: &Path, n: u32, ending: &str) -> PathBuf {
    if n == 0 { path.to_owned() } else { PathBuf::from(format!("{}.{n}{ending}", path.display())) }
}

/// Reads a block behind what is there already.
fn fill(file: &mut Open, partial: &mut Vec<u8>) -> io::Result<usize> {
    let begun = partial.len();
    partial.resize(begun + BLOCK, 0);
    let read = file.read(&mut partial[begun..]);
    partial.truncate(begun + read.as_ref().copied().unwrap_or(0));
    read
}

/// Takes whole records off the beginning.
fn take_records(format: LogFormat, bytes: &mut Vec<u8>, mut record: impl FnMut(&[u8])) {
    let mut taken = 0;
    while let Some((raw, length)) = format::next(format, &bytes[taken..]) {
        if !raw.is_empty() {
            record(raw);
        }
        taken += length;
    }
    bytes.drain(..taken);
    if bytes.len() > RECORD_MAX {
        bytes.clear();
    }
}

impl Files {
    /// At the first line of the oldest file.
    pub(super) fn from_start(path: &Path, format: LogFormat) -> io::Result<Files> {
        let mut open = VecDeque::new();
        for n in 0.. {
            let Some(file) = Open::new(path, n)? else {
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
        Ok(Files { path: path.to_owned(), format, open, partial: Vec::new() })
    }

    /// So many lines before the end.
    pub(super) fn from_tail(path: &Path, format: LogFormat, lines: usize) -> io::Result<Files> {
        let mut files = Files::from_start(path, format)?;
        let mut wanted = lines;
        let mut kept = VecDeque::new();
        while let Some(mut open) = files.open.pop_back() {
            wanted -= open.seek_tail(format, wanted)?;
            kept.push_front(open);
            if wanted == 0 {
                break;
            }
        }
        files.open = kept;
        Ok(files)
    }

    /// Reads one block and gives its whole records to `record`. Returns whether there may be more right now.
    pub(super) fn read_records(&mut self, mut record: impl FnMut(&[u8])) -> io::Result<bool> {
        let Some(current) = self.open.front_mut() else { return self.open_new() };
        if fill(current, &mut self.partial)? == 0 {
            return self.advance();
        }
        let (format, skip) = (self.format, &mut current.skip);
        take_records(format, &mut self.partial, |raw| {
            if *skip == 0 {
                record(raw);
            } else if format::ends_message(format, raw) {
                *skip -= 1;
            }
        });
        Ok(true)
    }

    /// At the end of a file: on to a newer one, when there is one.
    fn advance(&mut self) -> io::Result<bool> {
        if self.open.len() > 1 {
            self.next_file();
            return Ok(true);
        }
        if self.start_over_if_emptied()? {
            return Ok(true);
        }
        let current = self.open.front().map(|open| open.inode);
        // The newer files, from the newest back to the one that we are at the end of.
        let mut newer = VecDeque::new();
        for n in 0.. {
            match Open::new(&self.path, n)? {
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
        if self.at_end()? {
            self.next_file();
        }
        Ok(true)
    }

    fn at_end(&mut self) -> io::Result<bool> {
        match self.open.front_mut().map(|open| &mut open.content) {
            Some(Content::Plain(file)) => Ok(file.stream_position()? >= file.metadata()?.len()),
            Some(Content::Compressed(_)) | None => Ok(true),
        }
    }

    /// A log of one file is emptied where others are rotated.
    fn start_over_if_emptied(&mut self) -> io::Result<bool> {
        let Some(Open { content: Content::Plain(file), .. }) = self.open.front_mut() else {
            return Ok(false);
        };
        if file.stream_position()? <= file.metadata()?.len() {
            return Ok(false);
        }
        file.seek(SeekFrom::Start(0))?;
        self.partial.clear();
        Ok(true)
    }

    fn next_file(&mut self) {
        self.open.pop_front();
        self.partial.clear();
    }

    /// A log that was not there: perhaps it is by now.
    fn open_new(&mut self) -> io::Result<bool> {
        self.open.extend(Open::new(&self.path, 0)?);
        Ok(!self.open.is_empty())
    }
}

/// Where the last `wanted` messages of a file begin, and how many of them there are (fewer: all of it).
fn tail_offset(file: &File, format: LogFormat, wanted: usize) -> io::Result<(u64, usize)> {
    let length = file.metadata()?.len();
    if wanted == 0 {
        return Ok((length, 0));
    }
    match format {
        LogFormat::Json => tail_of_lines(file, length, wanted),
        LogFormat::Local => tail_of_frames(file, length, wanted),
    }
}

fn tail_of_lines(file: &File, length: u64, wanted: usize) -> io::Result<(u64, usize)> {
    let ends_message = |raw: &[u8]| format::ends_message(LogFormat::Json, raw);
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
        if block.len() > RECORD_MAX {
            // No line of ours is so long: what lies before it is not looked for.
            return Ok((start + block.len() as u64, found));
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

/// From record to record backwards; where there is none, from the front.
fn tail_of_frames(file: &File, length: u64, wanted: usize) -> io::Result<(u64, usize)> {
    let (mut end, mut found) = (length, 0);
    let mut block: Vec<u8> = Vec::new();
    while end > local::HEADER.len() as u64 {
        let Some(record) = local::decode_last(&block) else {
            if block.len() >= local::RECORD_MAX || block.len() as u64 >= end {
                return tail_of_damaged(file, wanted);
            }
            let size = usize::try_from(end).unwrap_or(usize::MAX).min(BLOCK.max(local::RECORD_MAX));
            block.resize(size, 0);
            file.read_exact_at(&mut block, end - size as u64)?;
            continue;
        };
        if !record.partial {
            if found == wanted {
                return Ok((end, found));
            }
            found += 1;
        }
        let before = block.len() - record.length;
        end -= record.length as u64;
        block.truncate(before);
    }
    Ok((0, found))
}

/// Two passes from the front, as for a compressed file: the second ends where the wanted messages begin.
fn tail_of_damaged(file: &File, wanted: usize) -> io::Result<(u64, usize)> {
    let ends = |limit: usize| -> io::Result<(u64, usize)> {
        let (mut offset, mut at, mut messages) = (0, 0, 0);
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; BLOCK]);
        loop {
            let read = file.read_at(&mut buffer, at)?;
            if read == 0 || messages >= limit {
                return Ok((offset, messages));
            }
            at += read as u64;
            bytes.extend_from_slice(&buffer[..read]);
            let mut taken = 0;
            while messages < limit
                && let Some((raw, length)) = format::next(LogFormat::Local, &bytes[taken..])
            {
                taken += length;
                messages += usize::from(format::ends_message(LogFormat::Local, raw));
            }
            bytes.drain(..taken);
            offset += taken as u64;
        }
    };
    let (_, all) = ends(usize::MAX)?;
    let (offset, before) = ends(all.saturating_sub(wanted))?;
    Ok((offset, all - before))
}

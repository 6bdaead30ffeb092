//! Sealed records in files: what the log, raft snapshots and keys are made of.
//!
//! ```text
//! file:   magic(8) purpose(1) sequence(8) sum(8)            frames...
//! frame:  length(4) kind(1) index(8) term(8) sum(8)         nonce(24) ciphertext tag(16)
//! ```
//! Numbers are little-endian; a sum is the start of a SHA-256 over what precedes it in its header. Bodies are
//! XChaCha20-Poly1305, bound to kind, index, term, file and offset: a record that was changed, moved or
//! repeated does not open. The sum over the length is what tells a torn write from damage: a header that is
//! whole but wrong was not written so.

use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rswarm_base::id::random_bytes;
use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"RSWRAFT1";
const SUM: usize = 8;
pub(super) const FILE_HEADER: usize = 8 + 1 + 8 + SUM;
pub(super) const FRAME_HEADER: usize = 4 + 1 + 8 + 8 + SUM;
const NONCE: usize = 24;
const TAG: usize = 16;

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Purpose {
    Log = 1,
    Snapshot = 2,
    Keys = 3,
    Member = 4,
}

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A raft entry.
    Entry = 1,
    /// raft's hard state.
    HardState = 2,
    /// A raft snapshot up to `index` became the start of the log.
    Marker = 3,
    /// A raft snapshot's metadata: the first record of its file.
    SnapshotMeta = 4,
    /// A piece of a raft snapshot's data.
    SnapshotData = 5,
    /// The last record of a raft snapshot's file.
    SnapshotEnd = 6,
    /// The data key, sealed with a key of the node; `index` names that key.
    DataKey = 7,
    /// This manager's raft id.
    Member = 8,
}

impl Kind {
    fn parse(byte: u8) -> Option<Kind> {
        use Kind::{DataKey, Entry, HardState, Marker, Member, SnapshotData, SnapshotEnd, SnapshotMeta};
        [Entry, HardState, Marker, SnapshotMeta, SnapshotData, SnapshotEnd, DataKey, Member]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// A record, opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub offset: usize,
    pub kind: Kind,
    pub index: u64,
    pub term: u64,
    pub body: Vec<u8>,
}

/// What is wrong with a file, and where.
#[derive(Debug)]
pub(super) struct Damage {
    pub offset: usize,
    pub what: &'static str,
    /// The file ends before the record does: all that an interrupted write can leave.
    pub is_torn: bool,
}

impl Damage {
    pub(super) fn new(offset: usize, what: &'static str) -> Damage {
        Damage { offset, what, is_torn: false }
    }

    pub(super) fn in_file(self, path: &Path) -> DamagedFile {
        DamagedFile { path: path.to_owned(), offset: self.offset, what: self.what }
    }
}

/// A file whose content is not what was written to it.
#[derive(Debug, thiserror::Error)]
#[error("`{}` is damaged at offset {offset}: {what}", path.display())]
pub struct DamagedFile {
    /// Which file.
    pub path: PathBuf,
    /// Where the first record that cannot be trusted begins.
    pub offset: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

/// A symmetric key that seals records.
#[derive(Clone)]
pub(super) struct Sealer(XChaCha20Poly1305);

impl Sealer {
    pub(super) fn new(key: &[u8; 32]) -> Sealer {
        Sealer(XChaCha20Poly1305::new(key.into()))
    }
}

/// The text that begins a file.
pub(super) fn file_header(purpose: Purpose, sequence: u64) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.push(purpose as u8);
    header.extend(sequence.to_le_bytes());
    let sum = sum(&header);
    header.extend(sum);
    header
}

/// Appends records to what will be written at some offset of a file.
pub(super) struct Writer<'a> {
    sealer: &'a Sealer,
    purpose: Purpose,
    sequence: u64,
    offset: usize,
    pub bytes: Vec<u8>,
}

impl<'a> Writer<'a> {
    /// For bytes that go to `offset` of the file with this header.
    pub(super) fn new(sealer: &'a Sealer, purpose: Purpose, sequence: u64, offset: usize) -> Writer<'a> {
        Writer { sealer, purpose, sequence, offset, bytes: Vec::new() }
    }

    pub(super) fn push(&mut self, kind: Kind, index: u64, term: u64, body: &[u8]) {
        let offset = self.offset + self.bytes.len();
        let nonce = random_bytes::<NONCE>();
        let aad = associated(kind, index, term, self.purpose, self.sequence, offset);
        let payload = Payload { msg: body, aad: &aad };
        let sealed =
            self.sealer.0.encrypt(&XNonce::from(nonce), payload).expect("records are far below 256 GiB");
        let length = u32::try_from(NONCE + sealed.len()).expect("records are far below 4 GiB");
        let header = self.bytes.len();
        self.bytes.extend(length.to_le_bytes());
        self.bytes.push(kind as u8);
        self.bytes.extend(index.to_le_bytes());
        self.bytes.extend(term.to_le_bytes());
        let sum = sum(&self.bytes[header..]);
        self.bytes.extend(sum);
        self.bytes.extend(nonce);
        self.bytes.extend(sealed);
    }
}

/// Reads the records of a file's bytes in order.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    purpose: Purpose,
    sequence: u64,
    offset: usize,
}

impl<'a> Reader<'a> {
    /// Checks the file's header.
    pub(super) fn new(bytes: &'a [u8], purpose: Purpose, sequence: u64) -> Result<Reader<'a>, Damage> {
        let header = bytes.get(..FILE_HEADER).ok_or(Damage::new(0, "the file is shorter than its header"))?;
        if header != file_header(purpose, sequence) {
            let known = header[..8] == MAGIC[..];
            let what = if known { "the file header is not the expected one" } else { "unknown file format" };
            return Err(Damage::new(0, what));
        }
        Ok(Reader { bytes, purpose, sequence, offset: FILE_HEADER })
    }

    /// Where the next record begins.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// The next record's header, without opening its body: kind and index.
    pub(super) fn peek(&self) -> Result<Option<(Kind, u64)>, Damage> {
        Ok(self.header()?.map(|header| (header.kind, header.index)))
    }

    /// The next record; `None` at the end of the file.
    pub(super) fn next(&mut self, sealer: &Sealer) -> Result<Option<Record>, Damage> {
        let Some(header) = self.header()? else { return Ok(None) };
        let Header { kind, index, term, length } = header;
        let offset = self.offset;
        let start = offset + FRAME_HEADER;
        let sealed = self.bytes.get(start..start + length).ok_or(Damage {
            offset,
            what: "the file ends within a record",
            is_torn: true,
        })?;
        let aad = associated(kind, index, term, self.purpose, self.sequence, offset);
        let (nonce, ciphertext) = sealed.split_at(NONCE);
        let nonce: [u8; NONCE] = nonce.try_into().expect("split at the length of a nonce");
        let payload = Payload { msg: ciphertext, aad: &aad };
        let opened = sealer.0.decrypt(&XNonce::from(nonce), payload);
        let body = opened.map_err(|_| Damage::new(offset, "a record's content was changed"))?;
        self.offset = start + length;
        Ok(Some(Record { offset, kind, index, term, body }))
    }

    fn header(&self) -> Result<Option<Header>, Damage> {
        let offset = self.offset;
        let rest = &self.bytes[offset..];
        if rest.is_empty() {
            return Ok(None);
        }
        // Space that was allotted but never written reads as zeros, and no record begins with one.
        if rest.iter().all(|byte| *byte == 0) {
            return Err(Damage { offset, what: "the file ends in zeros", is_torn: true });
        }
        let Some(header) = rest.get(..FRAME_HEADER) else {
            return Err(Damage { offset, what: "the file ends within a record's header", is_torn: true });
        };
        Header::parse(header).map_err(|what| Damage::new(offset, what)).map(Some)
    }
}

struct Header {
    length: usize,
    kind: Kind,
    index: u64,
    term: u64,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Header, &'static str> {
        let (fields, found) = bytes.split_at(FRAME_HEADER - SUM);
        if sum(fields) != *found {
            return Err("a record's header was changed");
        }
        let number = |at: usize| u64::from_le_bytes(fields[at..at + 8].try_into().expect("8 bytes"));
        let length = u32::from_le_bytes(fields[..4].try_into().expect("4 bytes")) as usize;
        if length < NONCE + TAG {
            return Err("a record is shorter than its seal");
        }
        let kind = Kind::parse(fields[4]).ok_or("a record's kind is not known to this version")?;
        Ok(Header { length, kind, index: number(5), term: number(13) })
    }
}

fn sum(bytes: &[u8]) -> [u8; SUM] {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    digest[..SUM].try_into().expect("a digest is longer than its start")
}

fn associated(kind: Kind, index: u64, term: u64, purpose: Purpose, sequence: u64, offset: usize) -> [u8; 34] {
    let mut aad = [0; 34];
    aad[0] = kind as u8;
    aad[1] = purpose as u8;
    for (slot, number) in [index, term, sequence, offset as u64].into_iter().enumerate() {
        aad[2 + 8 * slot..10 + 8 * slot].copy_from_slice(&number.to_le_bytes());
    }
    aad
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(sealer: &Sealer) -> Vec<u8> {
        let mut bytes = file_header(Purpose::Log, 7);
        let mut writer = Writer::new(sealer, Purpose::Log, 7, bytes.len());
        writer.push(Kind::Entry, 1, 1, b"one");
        writer.push(Kind::HardState, 1, 2, b"");
        writer.push(Kind::Entry, 2, 2, &[9; 600]);
        bytes.extend(writer.bytes);
        bytes
    }

    fn read(bytes: &[u8], sealer: &Sealer) -> Result<Vec<Record>, Damage> {
        let mut reader = Reader::new(bytes, Purpose::Log, 7)?;
        let mut records = Vec::new();
        while let Some(record) = reader.next(sealer)? {
            records.push(record);
        }
        Ok(records)
    }

    #[test]
    fn records_read_back_as_written() {
        let sealer = Sealer::new(&[1; 32]);
        let records = read(&file(&sealer), &sealer).expect("intact");
        let seen: Vec<_> = records.iter().map(|r| (r.kind, r.index, r.term, r.body.len())).collect();
        assert_eq!(seen, [(Kind::Entry, 1, 1, 3), (Kind::HardState, 1, 2, 0), (Kind::Entry, 2, 2, 600)]);
    }

    #[test]
    fn a_flipped_bit_anywhere_is_damage_and_never_a_torn_write() {
        let sealer = Sealer::new(&[1; 32]);
        let intact = file(&sealer);
        let starts: Vec<usize> = read(&intact, &sealer).expect("intact").iter().map(|r| r.offset).collect();
        for at in 0..intact.len() {
            let mut bytes = intact.clone();
            bytes[at] ^= 0x10;
            let damage = read(&bytes, &sealer).expect_err("damaged");
            assert!(!damage.is_torn, "byte {at}: {}", damage.what);
            let start = starts.iter().copied().filter(|start| *start <= at).max().unwrap_or(0);
            assert_eq!(damage.offset, start, "byte {at}: {}", damage.what);
        }
    }

    #[test]
    fn a_cut_anywhere_within_a_record_is_a_torn_write() {
        let sealer = Sealer::new(&[1; 32]);
        let intact = file(&sealer);
        let ends: Vec<usize> = read(&intact, &sealer).expect("intact").iter().map(|r| r.offset).collect();
        for end in FILE_HEADER..intact.len() {
            match read(&intact[..end], &sealer) {
                Ok(_) => assert!(end == FILE_HEADER || ends.contains(&end), "cut at {end}"),
                Err(damage) => assert!(damage.is_torn, "cut at {end}: {}", damage.what),
            }
        }
        let mut zeros = intact.clone();
        zeros.extend([0; 4096]);
        assert!(read(&zeros, &sealer).expect_err("zeros").is_torn);
    }

    #[test]
    fn a_record_opens_only_at_its_own_place() {
        let sealer = Sealer::new(&[1; 32]);
        let bytes = file(&sealer);
        assert!(Reader::new(&bytes, Purpose::Log, 8).is_err());
        assert!(Reader::new(&bytes, Purpose::Snapshot, 7).is_err());
        let first = FILE_HEADER..FILE_HEADER + FRAME_HEADER + NONCE + TAG + 3;
        let mut repeated = bytes[..first.end].to_vec();
        repeated.extend(&bytes[first]);
        assert!(read(&repeated, &sealer).is_err());
        assert!(read(&bytes, &Sealer::new(&[2; 32])).is_err());
    }
}

//! Finds the next byte of a kind, sixteen at a time where the processor can. Pure.

#[cfg(target_arch = "x86_64")]
use crate::sys;

const BLOCK: usize = 16;

/// What is looked for.
pub(super) trait Kind {
    fn is(byte: u8) -> bool;

    /// Of the bytes of a block, those that are it: the lowest bit for the first byte.
    fn mask(block: &[u8; BLOCK]) -> u32;
}

/// The end of a line.
pub(super) struct Newline;

/// What does not stand for itself in a JSON string as Go writes it, or cannot be told without a look at its
/// neighbours: control characters, `"`, `\`, `<`, `>`, `&`, and all that is not ASCII.
pub(super) struct Special;

impl Kind for Newline {
    fn is(byte: u8) -> bool {
        byte == b'\n'
    }

    #[cfg(target_arch = "x86_64")]
    fn mask(block: &[u8; BLOCK]) -> u32 {
        sys::newlines(block)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn mask(block: &[u8; BLOCK]) -> u32 {
        one_by_one::<Self>(block)
    }
}

impl Kind for Special {
    fn is(byte: u8) -> bool {
        !(0x20..0x80).contains(&byte) || matches!(byte, b'"' | b'\\' | b'<' | b'>' | b'&')
    }

    #[cfg(target_arch = "x86_64")]
    fn mask(block: &[u8; BLOCK]) -> u32 {
        sys::json_specials(block)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn mask(block: &[u8; BLOCK]) -> u32 {
        one_by_one::<Self>(block)
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn one_by_one<K: Kind>(block: &[u8; BLOCK]) -> u32 {
    block.iter().rev().fold(0, |mask, byte| mask << 1 | u32::from(K::is(*byte)))
}

/// How many bytes at the beginning are not of the kind.
pub(super) fn until<K: Kind>(bytes: &[u8]) -> usize {
    let (blocks, tail) = bytes.as_chunks::<BLOCK>();
    for (number, block) in blocks.iter().enumerate() {
        let found = K::mask(block);
        if found != 0 {
            return number * BLOCK + found.trailing_zeros() as usize;
        }
    }
    blocks.len() * BLOCK + tail.iter().take_while(|byte| !K::is(**byte)).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn agrees<K: Kind>(bytes: &[u8]) -> bool {
        until::<K>(bytes) == bytes.iter().take_while(|byte| !K::is(**byte)).count()
    }

    #[test]
    fn every_byte_is_told_at_every_place() {
        for byte in 0..=u8::MAX {
            for at in 0..40 {
                let mut bytes = [b'x'; 40];
                bytes[at] = byte;
                assert!(agrees::<Newline>(&bytes) && agrees::<Special>(&bytes), "{byte:#x} at {at}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_told(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(agrees::<Newline>(&bytes) && agrees::<Special>(&bytes));
        }
    }
}

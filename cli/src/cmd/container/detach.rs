//! The keys that leave a terminal without ending what runs in it. The daemon acts on them; we only learn
//! from them that the end of the output is not the end of the container. Pure.

use std::fmt;

/// What Docker leaves by.
const DEFAULT: (&str, [u8; 2]) = ("ctrl-p,ctrl-q", [16, 17]);

/// A sequence of keys, and how much of it was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys {
    text: String,
    keys: Vec<u8>,
    typed: usize,
}

impl Default for DetachKeys {
    fn default() -> DetachKeys {
        DetachKeys { text: DEFAULT.0.to_owned(), keys: DEFAULT.1.to_vec(), typed: 0 }
    }
}

impl DetachKeys {
    /// Reads `ctrl-p,ctrl-q`, or single letters.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<DetachKeys, String> {
        let key = |key: &str| match (key.as_bytes(), key.strip_prefix("ctrl-").map(str::as_bytes)) {
            ([plain], _) => Some(*plain),
            (_, Some([letter])) if matches!(letter.to_ascii_lowercase(), b'a'..=b'z' | b'@' | b'['..=b'_') => {
                Some(letter.to_ascii_uppercase() - b'@')
            }
            _ => None,
        };
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        let keys =
            keys.ok_or_else(|| format!("invalid detach keys `{text}`: write them as `ctrl-p,ctrl-q`"))?;
        Ok(DetachKeys { text: text.to_owned(), keys, typed: 0 })
    }

    /// Takes in what is typed; true once the whole sequence was.
    pub fn see(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            if *byte == self.keys[self.typed] {
                self.typed += 1;
            } else {
                self.typed = usize::from(*byte == self.keys[0]);
            }
            if self.typed == self.keys.len() {
                self.typed = 0;
                return true;
            }
        }
        false
    }
}

/// As it was typed, which is how the API takes it.
impl fmt::Display for DetachKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_seen_in_any_pieces_and_only_whole() {
        let mut keys = DetachKeys::default();
        assert!(!keys.see(b"ls\n\x10"));
        assert!(!keys.see(b"x\x11"));
        assert!(!keys.see(b"\x10\x10"));
        assert!(keys.see(b"\x11"));
        assert!(!keys.see(b"\x11"));
    }

    #[test]
    fn keys_are_letters_and_control_letters() {
        assert_eq!(DetachKeys::parse("ctrl-p,ctrl-q"), Ok(DetachKeys::default()));
        assert_eq!(DetachKeys::parse("ctrl-a,d").expect("keys").keys, [1, b'd']);
        assert_eq!(DetachKeys::parse("ctrl-]").expect("keys").keys, [29]);
        for text in ["", "ctrl-", "ctrl-pp", "meta-x", "ctrl-1"] {
            assert!(DetachKeys::parse(text).is_err(), "{text}");
        }
    }
}

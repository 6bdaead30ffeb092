//! The unlock key of a cluster whose managers are locked: what a manager's own key is sealed with on its disk, so
//! that neither that nor anything sealed by it can be read without a person who knows this.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rswarm_base::id::random_bytes;
use rswarm_base::{Classify, Kind};
use subtle::ConstantTimeEq;

use super::Unsealable;

/// What people are given begins with this (swarmkit's words).
const PREFIX: &str = "SWMKEY-1-";
const BEGIN: &str = "-----BEGIN RSWARM LOCKED KEY-----";
const END: &str = "-----END RSWARM LOCKED KEY-----";
const NONCE: usize = 24;
const LINE: usize = 64;
const CONTEXT: &[u8] = b"rswarm manager, locked by its cluster's unlock key, version 1";

/// 32 random bytes; as text `SWMKEY-1-` and base64.
#[derive(Clone)]
pub struct UnlockKey([u8; 32]);

impl UnlockKey {
    /// A new one.
    #[must_use]
    pub fn generate() -> UnlockKey {
        UnlockKey(random_bytes())
    }

    /// As the cluster stores it; `None` for anything but 32 bytes, which is how a cluster says that it is not locked.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<UnlockKey> {
        bytes.try_into().ok().map(UnlockKey)
    }

    /// For the cluster to store.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    /// As people are given it, surrounding blanks aside.
    ///
    /// # Errors
    /// When the text is no such key; it is not repeated.
    pub fn parse(text: &str) -> Result<UnlockKey, UnlockKeyError> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(UnlockKeyError)?;
        let bytes = STANDARD_NO_PAD.decode(digits).map_err(|_| UnlockKeyError)?;
        UnlockKey::from_bytes(&bytes).ok_or(UnlockKeyError)
    }

    /// Seals a text, as bytes.
    #[must_use]
    pub fn seal(&self, text: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE] = random_bytes();
        let payload = Payload { msg: text, aad: CONTEXT };
        let sealed =
            self.sealer().encrypt(&XNonce::from(nonce), payload).expect("texts are far below 256 GiB");
        [nonce.as_slice(), &sealed].concat()
    }

    /// Opens what [`UnlockKey::seal`] sealed.
    ///
    /// # Errors
    /// When it was sealed with another key, or changed since.
    pub fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, Unsealable> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>().ok_or(Unsealable)?;
        let payload = Payload { msg: sealed, aad: CONTEXT };
        self.sealer().decrypt(&XNonce::from(*nonce), payload).map_err(|_| Unsealable)
    }

    /// Seals a private key for a file of its own, as text.
    pub(super) fn lock(&self, key_pem: &str) -> String {
        let digits = STANDARD_NO_PAD.encode(self.seal(key_pem.as_bytes()));
        let mut text = format!("{BEGIN}\n");
        for line in digits.as_bytes().chunks(LINE) {
            text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
            text.push('\n');
        }
        text.push_str(END);
        text.push('\n');
        text
    }

    /// Opens what [`UnlockKey::lock`] wrote.
    pub(super) fn unlock(&self, file: &str) -> Result<String, Unsealable> {
        let inner = file.trim().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END));
        let digits: String = inner.ok_or(Unsealable)?.split_whitespace().collect();
        let sealed = STANDARD_NO_PAD.decode(digits).map_err(|_| Unsealable)?;
        String::from_utf8(self.open(&sealed)?).map_err(|_| Unsealable)
    }

    fn sealer(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&self.0.into())
    }
}

/// Whether the text of a key's file needs an unlock key.
pub(super) fn is_locked(file: &str) -> bool {
    file.trim_start().starts_with(BEGIN)
}

impl fmt::Display for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", STANDARD_NO_PAD.encode(self.0))
    }
}

/// Shows no key.
impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnlockKey({PREFIX}***)")
    }
}

/// In time that does not depend on where they differ.
impl PartialEq for UnlockKey {
    fn eq(&self, other: &UnlockKey) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for UnlockKey {}

/// The text is no unlock key (swarmkit's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid key string")]
pub struct UnlockKeyError;

impl Classify for UnlockKeyError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }

    fn hint(&self) -> Option<String> {
        Some(format!(
            "it begins with `{PREFIX}`, as `rswarm swarm unlock-key` on an unlocked manager prints it"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_printed() {
        let key = UnlockKey::generate();
        assert_eq!(UnlockKey::parse(&format!(" {key}\n")), Ok(key.clone()));
        assert_eq!(UnlockKey::from_bytes(&key.to_bytes()), Some(key.clone()));
        assert!(!format!("{key:?}").contains(&key.to_string()));
        for wrong in ["", "SWMKEY-1-", "SWMKEY-1-abc", "SWMTKN-1-a-b", "SWMKEY-1-!!!"] {
            assert_eq!(UnlockKey::parse(wrong), Err(UnlockKeyError), "{wrong}");
        }
    }

    #[test]
    fn only_the_same_key_opens_a_locked_file() {
        let (key, other) = (UnlockKey::generate(), UnlockKey::generate());
        let text = "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\n";
        let file = key.lock(text);
        assert!(is_locked(&file) && !is_locked(text));
        assert!(file.lines().all(|line| line.len() <= LINE));
        assert_eq!(key.unlock(&file).as_deref(), Ok(text));
        assert_eq!(other.unlock(&file), Err(Unsealable));
        assert_eq!(key.unlock(&file.replacen('A', "B", 1).replacen('b', "c", 1)), Err(Unsealable));
    }
}

//! What a node keeps on its disk for itself alone: sealed with a key derived from the node's private key.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rswarm_base::id::random_bytes;
use sha2::{Digest, Sha256};

use super::Identity;

/// Bytes of the nonce, which a sealed text begins with.
const NONCE: usize = 24;
const CONTEXT: &[u8] = b"rswarm node, key of sealed files, version 1\0";

/// A text that this node's key does not open: another's, or changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it was not sealed by this node, or was changed since")]
pub struct Unsealable;

impl Identity {
    /// Seals a text for this node. It opens only under the same `name`, so that no file stands in for another.
    #[must_use]
    pub fn seal(&self, name: &str, text: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE] = random_bytes();
        let payload = Payload { msg: text, aad: name.as_bytes() };
        let sealed =
            self.sealer().encrypt(&XNonce::from(nonce), payload).expect("texts are far below 256 GiB");
        [nonce.as_slice(), &sealed].concat()
    }

    /// Opens what [`Identity::seal`] sealed. A renewed certificate keeps its key, so what was sealed before opens.
    ///
    /// # Errors
    /// When another node sealed it, for another name, or it was changed.
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Vec<u8>, Unsealable> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>().ok_or(Unsealable)?;
        let payload = Payload { msg: sealed, aad: name.as_bytes() };
        self.sealer().decrypt(&XNonce::from(*nonce), payload).map_err(|_| Unsealable)
    }

    fn sealer(&self) -> XChaCha20Poly1305 {
        let key: [u8; 32] =
            Sha256::new().chain_update(CONTEXT).chain_update(self.credentials().key_pem).finalize().into();
        XChaCha20Poly1305::new(&key.into())
    }
}

//! Keys of the tunnel: Curve25519 as WireGuard has it. What is secret never shows in a log.

use std::fmt;

use boringtun::x25519::{PublicKey, StaticSecret};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A node's public key.
pub type Public = [u8; 32];

/// 32 bytes that only those may know who use the tunnel: a private key, or the cluster's pre-shared key.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Of bytes that came from the system's random generator, or from those who share it.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Secret {
        Secret(bytes)
    }

    /// The public key that belongs to it as a private key.
    #[must_use]
    pub fn public(&self) -> Public {
        PublicKey::from(&self.private()).to_bytes()
    }

    /// The bytes themselves, for those who keep or send them.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn private(&self) -> StaticSecret {
        StaticSecret::from(self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        <[u8; 32]>::deserialize(deserializer).map(Secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown_and_survives_the_way_to_the_device() {
        let secret = Secret::new([7; 32]);
        assert_eq!(format!("{secret:?}"), "***");
        let text = serde_json::to_string(&secret).expect("text");
        assert_eq!(serde_json::from_str::<Secret>(&text).expect("a secret"), secret);
        assert_ne!(secret.public(), *secret.expose());
    }
}

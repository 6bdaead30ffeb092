//! This node's own key for encrypted networks: made here, kept here, and only its public half ever leaves.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rswarm_base::fsx;
use rswarm_base::id::random_bytes;
use rswarm_network::tunnel::Secret;
use rswarm_proto::wire::TunnelKey;
use serde::{Deserialize, Serialize};

/// The key on disk, readable by root alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    private: Secret,
    /// When the shared key was made that this one goes with; 0 before there was any.
    goes_with: i64,
}

/// The node's key and the port that it listens on.
#[derive(Debug)]
pub struct OwnKey {
    path: PathBuf,
    port: u16,
    /// No call holds it for longer than a small file takes.
    kept: Mutex<Option<Kept>>,
}

impl OwnKey {
    /// The key in the file `path`, which is made when it is needed first.
    #[must_use]
    pub fn new(path: PathBuf, port: u16) -> OwnKey {
        OwnKey { path, port, kept: Mutex::new(None) }
    }

    /// The UDP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What other nodes are told.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn announced(&self) -> io::Result<TunnelKey> {
        let kept = self.with(|kept| kept)?;
        Ok(TunnelKey { public_key: kept.private.public().to_vec(), port: self.port.into() })
    }

    /// The private key to use beside the shared key that was made at `made_at`: another one for each.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn beside(&self, made_at: i64) -> io::Result<Secret> {
        let kept = self.with(|kept| match kept.goes_with {
            same if same == made_at => kept,
            // The first shared key is as new as the node's own.
            0 => Kept { goes_with: made_at, ..kept },
            _ => Kept { private: Secret::new(random_bytes()), goes_with: made_at },
        })?;
        Ok(kept.private)
    }

    /// Changes what is kept; on disk first.
    fn with(&self, change: impl FnOnce(Kept) -> Kept) -> io::Result<Kept> {
        let mut held = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match held.take() {
            Some(kept) => Some(kept),
            None => fsx::read_json::<Kept>(&self.path)?,
        };
        let stored = before.as_ref().map(|kept| kept.goes_with);
        let kept =
            change(before.unwrap_or_else(|| Kept { private: Secret::new(random_bytes()), goes_with: 0 }));
        if stored != Some(kept.goes_with) {
            fsx::write_json(&self.path, &kept)?;
        }
        Ok(held.insert(kept).clone())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_node_keeps_its_key_over_restarts_and_renews_it_with_the_shared_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("tunnel.json");
        let open = || OwnKey::new(path.clone(), 51820);
        let first = open().announced().expect("announced");
        assert_eq!(open().announced().expect("announced"), first);
        let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let key = open();
        assert_eq!(key.beside(7).expect("a key").public().to_vec(), first.public_key);
        assert_eq!(open().beside(7).expect("a key").public().to_vec(), first.public_key);
        let renewed = key.beside(8).expect("a key").public().to_vec();
        assert_ne!(renewed, first.public_key);
        assert_eq!(open().announced().expect("announced").public_key, renewed);
    }
}

//! What the node was told and what it last said, on disk: `tasks/ID.json`, `networks/ID.json`,
//! `secrets/ID.sealed`, `configs/ID.sealed` and `managers.json` under the worker's directory. One small file per
//! object, each written whole.
//!
//! Secrets and configs are kept while a task that uses them has not ended, so that a daemon which starts without any
//! manager can still start what was prepared. They are sealed with a key derived from the node's private key: a copy
//! of this directory alone tells nothing. Task files only refer to them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use rswarm_base::fsx;
use rswarm_proto::model::object::Stored;
use rswarm_proto::tls::Identity;
use rswarm_proto::wire::{ObjectKind, Task, TaskStatus};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::assignments::NetworkView;

/// A task as it is kept: what the managers want, and what this node observed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredTask {
    /// The assignment.
    pub task: Task,
    /// The latest status, which may not have reached a manager yet.
    pub status: TaskStatus,
}

/// The worker's directory.
#[derive(Debug, Clone)]
pub struct Disk {
    root: PathBuf,
}

impl Disk {
    /// Opens the directory, making it when there is none.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn open(root: &Path) -> io::Result<Disk> {
        for table in ["tasks", "networks", "secrets", "configs"] {
            std::fs::create_dir_all(root.join(table))?;
        }
        Ok(Disk { root: root.to_owned() })
    }

    /// All kept tasks by id. A damaged file is set aside: the managers send again what it held.
    ///
    /// # Errors
    /// When a file cannot be read; its path is in the text.
    pub fn tasks(&self) -> io::Result<BTreeMap<String, StoredTask>> {
        self.load("tasks")
    }

    /// All kept networks by id. A damaged file is set aside: the managers send again what it held.
    ///
    /// # Errors
    /// When a file cannot be read; its path is in the text.
    pub fn networks(&self) -> io::Result<BTreeMap<String, NetworkView>> {
        self.load("networks")
    }

    /// Keeps a task.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_task(&self, task: &StoredTask) -> io::Result<()> {
        fsx::write_json(&self.path("tasks", &task.task.id), task)
    }

    /// Keeps a network.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_network(&self, view: &NetworkView) -> io::Result<()> {
        fsx::write_json(&self.path("networks", &view.network.id), view)
    }

    /// Forgets a task.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove_task(&self, id: &str) -> io::Result<()> {
        fsx::remove_all(&self.path("tasks", id))
    }

    /// Forgets a network.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove_network(&self, id: &str) -> io::Result<()> {
        fsx::remove_all(&self.path("networks", id))
    }

    /// All kept secrets, or configs, by id. One that does not open is set aside: the managers send it again.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn content<T: Stored + Message + Default>(
        &self,
        identity: &Identity,
    ) -> io::Result<BTreeMap<String, Arc<T>>> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(self.root.join(table(T::KIND)))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(id) = name.strip_suffix(".sealed").filter(|id| !id.starts_with('.')) else { continue };
            match unseal::<T>(identity, id, &std::fs::read(&path)?) {
                Ok(object) => drop(found.insert(id.to_owned(), Arc::new(object))),
                Err(error) => set_aside(&path, &error)?,
            }
        }
        Ok(found)
    }

    /// Keeps a secret or config, sealed.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_content<T: Stored + Message>(&self, identity: &Identity, object: &T) -> io::Result<()> {
        let sealed = identity.seal(&seal_name(T::KIND, object.id()), &object.encode_to_vec());
        fsx::write_atomic_mode(&self.content_path(T::KIND, object.id()), &sealed, 0o600)
    }

    /// Forgets a secret or config.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove_content(&self, kind: ObjectKind, id: &str) -> io::Result<()> {
        fsx::remove_all(&self.content_path(kind, id))
    }

    fn content_path(&self, kind: ObjectKind, id: &str) -> PathBuf {
        self.root.join(table(kind)).join(format!("{id}.sealed"))
    }

    /// Addresses of managers, as last heard.
    ///
    /// # Errors
    /// When the file cannot be read or parsed.
    pub fn managers(&self) -> io::Result<Vec<String>> {
        Ok(fsx::read_json(&self.root.join("managers.json"))?.unwrap_or_default())
    }

    /// Keeps the addresses of managers.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_managers(&self, addresses: &[String]) -> io::Result<()> {
        fsx::write_json(&self.root.join("managers.json"), &addresses)
    }

    fn path(&self, table: &str, id: &str) -> PathBuf {
        self.root.join(table).join(format!("{id}.json"))
    }

    fn load<T: DeserializeOwned>(&self, table: &str) -> io::Result<BTreeMap<String, T>> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(self.root.join(table))? {
            let path = entry?.path();
            let id =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
            let Some(id) = id.filter(|id| !id.starts_with('.')) else { continue };
            match fsx::read_json(&path) {
                Ok(Some(value)) => drop(found.insert(id.to_owned(), value)),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => set_aside(&path, &error)?,
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

/// Where objects of a kind are kept.
fn table(kind: ObjectKind) -> &'static str {
    if kind == ObjectKind::Secret { "secrets" } else { "configs" }
}

fn seal_name(kind: ObjectKind, id: &str) -> String {
    format!("{}/{id}", table(kind))
}

fn unseal<T: Stored + Message + Default>(identity: &Identity, id: &str, sealed: &[u8]) -> io::Result<T> {
    let invalid = |error: &dyn std::error::Error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} {id}: {error}", table(T::KIND)))
    };
    let bytes = identity.open(&seal_name(T::KIND, id), sealed).map_err(|error| invalid(&error))?;
    T::decode(bytes.as_slice()).map_err(|error| invalid(&error))
}

/// Keeps a file that cannot be parsed for whoever wants to know why, under a name that is not read.
fn set_aside(path: &Path, error: &io::Error) -> io::Result<()> {
    tracing::error!(%error, "a damaged file is set aside; the managers send its content again");
    std::fs::rename(path, path.with_extension("damaged"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rswarm_base::{Timestamp, id::random_bytes};
    use rswarm_proto::tls::{Authority, Credentials, Subject, new_key, signing_request};
    use rswarm_proto::wire::{Config, ContentSpec, NodeRole, Secret};

    use super::*;

    fn identity() -> Arc<Identity> {
        let now = Timestamp::now();
        let authority = Authority::generate(now).expect("root");
        let node_id = format!("n{}", u64::from_le_bytes(random_bytes()));
        let subject = Subject { node_id, role: NodeRole::Worker, cluster_id: "c".into() };
        let key_pem = new_key().expect("key");
        let request = signing_request(&key_pem).expect("request");
        let chain_pem = authority.issue(&request, &subject, Duration::from_secs(3600), now);
        let chain_pem = chain_pem.expect("certificate");
        let root_pem = authority.certificate_pem().to_owned();
        Identity::new(Credentials { key_pem, chain_pem, root_pem }).expect("identity")
    }

    #[test]
    fn a_secret_is_on_disk_only_sealed_and_only_for_this_node() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (disk, node) = (Disk::open(dir.path()).expect("open"), identity());
        let spec = ContentSpec { data: b"correct horse battery".to_vec(), ..ContentSpec::default() };
        let secret = Secret { id: "s1".into(), spec: Some(spec.clone()), ..Secret::default() };
        let config = Config { id: "c1".into(), spec: Some(spec), ..Config::default() };
        disk.put_content(&node, &secret).expect("kept");
        disk.put_content(&node, &config).expect("kept");
        let sealed = std::fs::read(dir.path().join("secrets/s1.sealed")).expect("the file");
        assert!(!sealed.windows(5).any(|part| part == b"horse"));
        assert_eq!(*disk.content::<Secret>(&node).expect("read")["s1"], secret);
        assert_eq!(*disk.content::<Config>(&node).expect("read")["c1"], config);

        // Neither another file of this node nor another node opens it.
        std::fs::write(dir.path().join("secrets/s2.sealed"), &sealed).expect("copied");
        assert_eq!(disk.content::<Secret>(&node).expect("read").into_keys().collect::<Vec<_>>(), ["s1"]);
        assert!(dir.path().join("secrets/s2.damaged").exists());
        assert!(disk.content::<Secret>(&identity()).expect("read").is_empty());

        disk.remove_content(ObjectKind::Config, "c1").expect("removed");
        assert!(disk.content::<Config>(&node).expect("read").is_empty());
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_the_others_are_read() {
        let dir = tempfile::tempdir().expect("tempdir");
        let disk = Disk::open(dir.path()).expect("open");
        let task = |id: &str| StoredTask {
            task: Task { id: id.to_owned(), ..Task::default() },
            status: TaskStatus::default(),
        };
        for id in ["good", "bad"] {
            disk.put_task(&task(id)).expect("kept");
        }
        let bad = dir.path().join("tasks/bad.json");
        let half = std::fs::read(&bad).expect("read").len() / 2;
        std::fs::File::options().write(true).open(&bad).expect("open").set_len(half as u64).expect("cut");
        assert_eq!(disk.tasks().expect("read").into_keys().collect::<Vec<_>>(), ["good"]);
        assert!(!bad.exists() && bad.with_extension("damaged").exists());
        assert_eq!(disk.tasks().expect("read again").len(), 1);
    }
}

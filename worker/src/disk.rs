//! What the node was told and what it last said, on disk: `tasks/ID.json`, `networks/ID.json` and
//! `managers.json` under the worker's directory. One small file per object, each written whole.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rswarm_base::fsx;
use rswarm_proto::wire::{Task, TaskStatus};
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
        for table in ["tasks", "networks"] {
            std::fs::create_dir_all(root.join(table))?;
        }
        Ok(Disk { root: root.to_owned() })
    }

    /// All kept tasks by id.
    ///
    /// # Errors
    /// When a file cannot be read or parsed; its path is in the text.
    pub fn tasks(&self) -> io::Result<BTreeMap<String, StoredTask>> {
        self.load("tasks")
    }

    /// All kept networks by id.
    ///
    /// # Errors
    /// When a file cannot be read or parsed; its path is in the text.
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
            if let Some(value) = fsx::read_json(&path)? {
                found.insert(id.to_owned(), value);
            }
        }
        Ok(found)
    }
}

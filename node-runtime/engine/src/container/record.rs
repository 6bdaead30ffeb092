//! What is durable of a container: `<data-root>/containers/<id>/container.json`.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rswarm_base::{Chain, fsx};
use serde::{Deserialize, Serialize};

use super::Container;
use crate::error::FileError;

const FILE: &str = "container.json";
const VERSION: u32 = 1;

/// A container as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub container: Container,
    /// Stopped or killed by somebody: `unless-stopped` leaves it alone when the daemon starts.
    #[serde(default)]
    pub stopped_by_hand: bool,
    /// Started by somebody at least once: only then a policy starts it again.
    #[serde(default)]
    pub started_by_hand: bool,
    /// How many files it was given that exist in memory only.
    #[serde(default)]
    pub files: usize,
}

/// What is on disk of all containers.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub records: Vec<Record>,
    /// The ids of those whose record cannot be read. What they have is theirs still.
    pub damaged: Vec<String>,
}

impl Record {
    pub(crate) fn new(container: Container) -> Record {
        let files = container.config.files.len();
        Record { version: VERSION, container, stopped_by_hand: false, started_by_hand: false, files }
    }

    /// Makes a container's directory. It is no container's before [`Record::store`].
    pub(crate) fn make_dir(dir: &Path) -> Result<(), FileError> {
        fs::DirBuilder::new().mode(0o710).create(dir).map_err(FileError::write(dir))?;
        fsx::sync_dir(dir.parent().unwrap_or(dir)).map_err(FileError::write(dir))
    }

    /// Writes it, durably. Blocking.
    pub(crate) fn store(&self) -> Result<(), FileError> {
        let path = self.container.dir.join(FILE);
        fsx::write_json(&path, self).map_err(FileError::write(&path))
    }

    /// Removes the container's directory, the record first: what is left over after a crash is no
    /// container's. Blocking.
    pub(crate) fn erase(dir: &Path) -> Result<(), FileError> {
        fsx::remove_all(&dir.join(FILE)).and_then(|()| fsx::remove_all(dir)).map_err(FileError::remove(dir))
    }

    /// Reads all records below `root`. Directories without one are removed; one that is damaged costs its own
    /// container only. Blocking.
    pub(crate) fn load_all(root: &Path) -> Result<Loaded, FileError> {
        fs::DirBuilder::new().recursive(true).mode(0o710).create(root).map_err(FileError::write(root))?;
        let mut loaded = Loaded::default();
        for entry in fs::read_dir(root).map_err(FileError::read(root))? {
            let entry = entry.map_err(FileError::read(root))?;
            match Record::load(&entry.path()) {
                Ok(record) => loaded.records.extend(record),
                Err(error) if error.is_damage() => {
                    let id = entry.file_name().to_string_lossy().into_owned();
                    tracing::error!(
                        container.id = id,
                        error = %Chain(&error),
                        "a damaged container is left out: mend the file and start the daemon again, or remove the directory"
                    );
                    loaded.damaged.push(id);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(loaded)
    }

    fn load(dir: &Path) -> Result<Option<Record>, FileError> {
        let path: PathBuf = dir.join(FILE);
        let Some(mut record) = fsx::read_json::<Record>(&path).map_err(FileError::read(&path))? else {
            fsx::remove_all(dir).map_err(FileError::remove(dir))?;
            return Ok(None);
        };
        if record.version > VERSION {
            let newer = std::io::Error::other(format!(
                "it has format {}, this version knows {VERSION}: use the newer version that wrote it",
                record.version
            ));
            return Err(FileError::read(&path)(newer));
        }
        record.container.dir = dir.to_owned();
        Ok(Some(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ContainerConfig, InjectedFile};

    fn record(root: &Path) -> Record {
        let config = ContainerConfig {
            files: vec![InjectedFile {
                target: "/run/secrets/x".into(),
                uid: 0,
                gid: 0,
                mode: 0o444,
                data: b"hush".to_vec(),
            }],
            ..ContainerConfig::default()
        };
        let mut container = crate::spec::tests::container(config, Vec::new());
        container.dir = root.join(&container.id);
        Record::new(container)
    }

    #[test]
    fn a_record_is_read_back_without_what_must_stay_in_memory() {
        let root = tempfile::tempdir().expect("tempdir");
        let record = record(root.path());
        Record::make_dir(&record.container.dir).expect("dir");
        record.store().expect("stored");
        let text = fs::read_to_string(record.container.dir.join(FILE)).expect("text");
        assert!(!text.contains("secrets"), "{text}");
        let loaded = Record::load_all(root.path()).expect("loaded").records;
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].container.name, "web");
        assert!(loaded[0].container.config.files.is_empty());
        Record::erase(&record.container.dir).expect("erased");
        assert!(Record::load_all(root.path()).expect("loaded").records.is_empty());
    }

    #[test]
    fn a_directory_without_a_record_goes_and_a_newer_one_is_refused() {
        let root = tempfile::tempdir().expect("tempdir");
        Record::make_dir(&root.path().join("half")).expect("dir");
        assert!(Record::load_all(root.path()).expect("loaded").records.is_empty());
        assert!(!root.path().join("half").exists());
        let mut newer = record(root.path());
        newer.version = VERSION + 1;
        Record::make_dir(&newer.container.dir).expect("dir");
        newer.store().expect("stored");
        assert!(Record::load_all(root.path()).is_err());
    }

    #[test]
    fn a_damaged_record_is_left_alone_and_holds_up_no_other() {
        let root = tempfile::tempdir().expect("tempdir");
        let record = record(root.path());
        Record::make_dir(&record.container.dir).expect("dir");
        record.store().expect("stored");
        for (name, text) in [("empty", ""), ("half", "{\"version\": 1,"), ("other", "[]")] {
            Record::make_dir(&root.path().join(name)).expect("dir");
            fs::write(root.path().join(name).join(FILE), text).expect("written");
        }
        let Loaded { records, mut damaged } = Record::load_all(root.path()).expect("loaded");
        damaged.sort_unstable();
        assert_eq!((records.len(), damaged), (1, vec!["empty".to_owned(), "half".into(), "other".into()]));
        assert!(root.path().join("half").join(FILE).exists());
    }
}

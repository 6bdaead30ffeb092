//! Named volumes of the local driver: `<data-root>/volumes/<name>/{volume.json,_data}`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rswarm_base::{Chain, Timestamp, fsx};
use serde::{Deserialize, Serialize};

use crate::error::{FileError, VolumeError};
use crate::merged;
use crate::names;
use crate::spec::VolumeSource;

/// A volume to make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeCreate {
    /// Its name; empty for an anonymous one.
    pub name: String,
    /// Its driver; empty is `local`.
    pub driver: String,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// `local`.
    pub driver: String,
    /// When it was made.
    pub created: Timestamp,
    /// Its directory on the host.
    pub mountpoint: PathBuf,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl Volume {
    /// Whether it was made for one container, without a name.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.labels.contains_key(ANONYMOUS)
    }

    /// Where its content comes from: with options, from a file system that is mounted inside each container (a
    /// `tmpfs` is therefore each container's own).
    pub(crate) fn source(&self) -> VolumeSource {
        let option = |name: &str| self.options.get(name).cloned().unwrap_or_default();
        if self.options.is_empty() {
            return VolumeSource::Directory(self.mountpoint.display().to_string());
        }
        let options: Vec<String> =
            option("o").split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
        let is_bind = options.iter().any(|option| option == "bind" || option == "rbind");
        let typ = if is_bind { "bind".to_owned() } else { option("type") };
        VolumeSource::Filesystem(typ, option("device"), options)
    }
}

/// The label that marks anonymous volumes, as Docker's.
pub const ANONYMOUS: &str = "com.docker.volume.anonymous";

const RECORD: &str = "volume.json";
const CONTENT: &str = "_data";

/// Bytes in all files below a directory, each file once. What vanishes meanwhile is not counted. Blocks.
pub(crate) fn size_of(dir: &Path) -> io::Result<u64> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let (mut size, mut seen, mut left) = (0, BTreeSet::new(), vec![dir.to_owned()]);
    while let Some(dir) = left.pop() {
        let entries = match fs::read_dir(&dir) {
            Err(error) if gone(&error) => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let meta = match entry.metadata() {
                Err(error) if gone(&error) => continue,
                meta => meta?,
            };
            if meta.is_dir() {
                left.push(entry.path());
            } else if meta.nlink() == 1 || seen.insert((meta.dev(), meta.ino())) {
                size += meta.len();
            }
        }
    }
    Ok(size)
}

/// All volumes of an engine, and which containers use them. Disk work is done by the caller's thread.
#[derive(Debug, Clone)]
pub(crate) struct Volumes {
    root: PathBuf,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    volumes: BTreeMap<String, Arc<Volume>>,
    /// Names whose record cannot be read. No other volume may take their place, and their data with it.
    damaged: BTreeSet<String>,
    /// Containers, stopped ones too, by the volume that they use.
    users: BTreeMap<String, BTreeSet<String>>,
}

impl Volumes {
    /// Reads what is stored. What a crash left half made is removed; a damaged record costs its own volume only.
    pub(crate) fn open(root: PathBuf) -> Result<Volumes, FileError> {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(&root).map_err(FileError::write(&root))?;
        let mut table = Table::default();
        for entry in fs::read_dir(&root).map_err(FileError::read(&root))?.flatten() {
            let dir = entry.path();
            match fsx::read_json::<Volume>(&dir.join(RECORD)).map_err(FileError::read(&dir)) {
                Ok(Some(volume)) => drop(table.volumes.insert(volume.name.clone(), Arc::new(volume))),
                Ok(None) => fsx::remove_all(&dir).map_err(FileError::remove(&dir))?,
                Err(error) if error.is_damage() => {
                    tracing::error!(
                        error = %Chain(&error),
                        "a damaged volume is left out: mend the file and start the daemon again, or remove the directory"
                    );
                    table.damaged.insert(entry.file_name().to_string_lossy().into_owned());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Volumes { root, table: Arc::new(Mutex::new(table)) })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a volume, or finds the one of that name; the flag says whether it was made. A container's claim
    /// is made with it, so that nobody removes it in between.
    pub(crate) fn ensure(
        &self,
        request: VolumeCreate,
        user: Option<&str>,
    ) -> Result<(Arc<Volume>, bool), VolumeError> {
        let name = request.name.clone();
        let volume = self.new_volume(request).map_err(|source| match source {
            VolumeError::NoDriver(_) | VolumeError::InvalidOption(_) | VolumeError::MissingOption(_) => {
                VolumeError::Create { name, source: Box::new(source) }
            }
            source => source,
        })?;
        let mut table = self.lock();
        if table.damaged.contains(&volume.name) {
            return Err(VolumeError::Damaged {
                record: self.root.join(&volume.name).join(RECORD),
                name: volume.name,
            });
        }
        if let Some(user) = user {
            table.users.entry(volume.name.clone()).or_default().insert(user.to_owned());
        }
        if let Some(existing) = table.volumes.get(&volume.name) {
            return Ok((existing.clone(), false));
        }
        let dir = self.root.join(&volume.name);
        let made = make(&dir, &volume);
        if let Err(error) = made {
            release(&mut table, &volume.name, user);
            return Err(VolumeError::File(FileError::write(&dir)(error)));
        }
        let volume = Arc::new(volume);
        table.volumes.insert(volume.name.clone(), volume.clone());
        Ok((volume, true))
    }

    fn new_volume(&self, request: VolumeCreate) -> Result<Volume, VolumeError> {
        let VolumeCreate { mut name, driver, options, mut labels } = request;
        if !matches!(driver.as_str(), "" | "local") {
            return Err(VolumeError::NoDriver(driver));
        }
        if name.is_empty() {
            name = rswarm_base::id::engine_id();
            labels.insert(ANONYMOUS.to_owned(), String::new());
        } else if !names::is_valid(&name) {
            return Err(VolumeError::InvalidName(name));
        }
        if let Some(unknown) =
            options.keys().find(|option| !["type", "device", "o"].contains(&option.as_str()))
        {
            return Err(VolumeError::InvalidOption(unknown.clone()));
        }
        if !options.is_empty()
            && let Some(missing) =
                ["device", "type"].into_iter().find(|option| !options.contains_key(*option))
        {
            return Err(VolumeError::MissingOption(missing));
        }
        let mountpoint = self.root.join(&name).join(CONTENT);
        Ok(Volume {
            name,
            driver: "local".to_owned(),
            created: Timestamp::now(),
            mountpoint,
            options,
            labels,
        })
    }

    /// Records that a container found on disk uses a volume.
    pub(crate) fn claim(&self, name: &str, user: &str) {
        self.lock().users.entry(name.to_owned()).or_default().insert(user.to_owned());
    }

    /// Takes back a container's claim.
    pub(crate) fn release(&self, name: &str, user: &str) {
        release(&mut self.lock(), name, Some(user));
    }

    pub(crate) fn get(&self, name: &str) -> Result<Arc<Volume>, VolumeError> {
        self.lock().volumes.get(name).cloned().ok_or_else(|| VolumeError::NotFound(name.to_owned()))
    }

    pub(crate) fn list(&self) -> Vec<Arc<Volume>> {
        self.lock().volumes.values().cloned().collect()
    }

    /// Removes a volume that nobody uses.
    pub(crate) fn remove(&self, name: &str) -> Result<Arc<Volume>, VolumeError> {
        let mut table = self.lock();
        let volume =
            table.volumes.get(name).cloned().ok_or_else(|| VolumeError::NotFound(name.to_owned()))?;
        if let Some(users) = table.users.get(name).filter(|users| !users.is_empty()) {
            let users: Vec<&str> = users.iter().map(String::as_str).collect();
            return Err(VolumeError::InUse { name: name.to_owned(), users: users.join(", ") });
        }
        let dir = self.root.join(name);
        // The record goes first: a directory without one is removed when the engine is opened.
        let record = dir.join(RECORD);
        fsx::remove_all(&record).and_then(|()| fsx::remove_all(&dir)).map_err(FileError::remove(&dir))?;
        table.volumes.remove(name);
        Ok(volume)
    }
}

fn release(table: &mut Table, name: &str, user: Option<&str>) {
    let (Some(user), Some(users)) = (user, table.users.get_mut(name)) else { return };
    users.remove(user);
    if users.is_empty() {
        table.users.remove(name);
    }
}

fn make(dir: &Path, volume: &Volume) -> io::Result<()> {
    fsx::remove_all(dir)?;
    fs::DirBuilder::new().mode(0o701).create(dir)?;
    fs::DirBuilder::new().mode(0o755).create(dir.join(CONTENT))?;
    fsx::write_json(&dir.join(RECORD), volume)?;
    fsx::sync_dir(dir.parent().unwrap_or(dir))
}

/// Fills an empty volume with what the image has at its destination, owner and mode of the directory
/// included. `lower`: the image's layers, topmost first.
pub(crate) fn copy_up(lower: &[PathBuf], destination: &str, volume: &Path) -> io::Result<()> {
    if fs::read_dir(volume)?.next().is_some() {
        return Ok(());
    }
    let Some(source) = merged::directory(lower, destination)? else { return Ok(()) };
    let meta = fs::metadata(&source.layers[0])?;
    merged::copy(&source, volume)?;
    std::os::unix::fs::chown(volume, Some(meta.uid()), Some(meta.gid()))?;
    fs::set_permissions(volume, fs::Permissions::from_mode(meta.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> VolumeCreate {
        VolumeCreate { name: name.into(), ..VolumeCreate::default() }
    }

    #[test]
    fn a_volume_is_made_once_found_again_and_removed_when_unused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let volumes = Volumes::open(dir.path().join("volumes")).expect("open");
        let (volume, made) = volumes.ensure(named("data"), Some("c1")).expect("made");
        assert!(made && volume.mountpoint.is_dir() && !volume.is_anonymous());
        assert!(!volumes.ensure(named("data"), None).expect("found").1);
        assert!(volumes.remove("data").expect_err("used").to_string().contains("volume is in use - [c1]"));
        let reopened = Volumes::open(dir.path().join("volumes")).expect("reopen");
        assert_eq!(reopened.get("data").expect("kept"), volume);
        volumes.release("data", "c1");
        volumes.remove("data").expect("removed");
        assert_eq!(volumes.get("data").expect_err("gone").to_string(), "get data: no such volume");
        assert!(!volume.mountpoint.exists());
    }

    #[test]
    fn a_damaged_record_holds_up_no_other_and_its_data_stays() {
        let dir = tempfile::tempdir().expect("tempdir");
        let volumes = Volumes::open(dir.path().to_owned()).expect("open");
        let mut files = Vec::new();
        for name in ["whole", "half"] {
            let (volume, _) = volumes.ensure(named(name), None).expect("made");
            files.push(volume.mountpoint.join("file"));
            fs::write(&files[files.len() - 1], "data").expect("written");
        }
        fs::write(dir.path().join("half").join(RECORD), "{").expect("written");
        let volumes = Volumes::open(dir.path().to_owned()).expect("open");
        assert!(volumes.get("whole").is_ok() && volumes.get("half").is_err());
        let refused = volumes.ensure(named("half"), None).expect_err("not in its place");
        assert!(matches!(refused, VolumeError::Damaged { .. }), "{refused}");
        assert!(files.iter().all(|file| file.exists()));
    }

    #[test]
    fn bad_requests_are_refused_and_nameless_ones_are_anonymous() {
        let dir = tempfile::tempdir().expect("tempdir");
        let volumes = Volumes::open(dir.path().to_owned()).expect("open");
        assert!(matches!(volumes.ensure(named("../x"), None), Err(VolumeError::InvalidName(_))));
        let driver = VolumeCreate { driver: "ceph".into(), ..named("x1") };
        assert!(
            matches!(volumes.ensure(driver, None), Err(VolumeError::Create { source, .. }) if matches!(*source, VolumeError::NoDriver(_)))
        );
        let option = VolumeCreate { options: [("colour".into(), "red".into())].into(), ..named("x1") };
        assert!(
            matches!(volumes.ensure(option, None), Err(VolumeError::Create { source, .. }) if matches!(*source, VolumeError::InvalidOption(_)))
        );
        let half = VolumeCreate { options: [("device".into(), "/srv".into())].into(), ..named("x1") };
        assert!(
            matches!(volumes.ensure(half, None), Err(VolumeError::Create { source, .. }) if matches!(*source, VolumeError::MissingOption("type")))
        );
        let (anonymous, _) = volumes.ensure(VolumeCreate::default(), None).expect("made");
        assert!(anonymous.is_anonymous() && anonymous.name.len() == 64);
    }

    #[test]
    fn options_make_it_a_mount() {
        let options = |pairs: &[(&str, &str)]| Volume {
            name: "v1".into(),
            driver: "local".into(),
            created: Timestamp::ZERO,
            mountpoint: "/v".into(),
            options: pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            labels: BTreeMap::new(),
        };
        assert_eq!(options(&[]).source(), VolumeSource::Directory("/v".into()));
        assert_eq!(
            options(&[("type", "none"), ("o", "bind,ro"), ("device", "/srv")]).source(),
            VolumeSource::Filesystem("bind".into(), "/srv".into(), vec!["bind".into(), "ro".into()])
        );
    }
}

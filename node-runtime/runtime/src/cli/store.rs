//! What is remembered of a container between two commands.
//!
//! A directory with its state, its configuration, its start FIFO and a lock. Commands that change a container
//! hold the lock; those that look do not. The state is first written before anything is made, with the path
//! of the cgroup: whatever becomes of the process that creates, `delete --force` finds what it left.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use oci_spec::runtime::{ContainerState, Spec};
use rswarm_base::Timestamp;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::replace;
use crate::cgroup::Cgroup;
use crate::failure::{Context, Failure};
use crate::hooks::State;

/// The name of the FIFO that holds init until start.
pub(super) const FIFO: &str = "exec.fifo";

const STATE: &str = "state.json";
const CONFIG: &str = "config.json";
const LOCK: &str = "lock";

/// The longest id: it is a file's name, and part of others.
const ID_MAX: usize = 255 - 32;
/// How long another command may hold a container.
const LOCKED_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks at a lock: the kernel waits for one without a deadline only.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Where all containers are remembered.
pub(super) struct Store {
    root: PathBuf,
}

/// One container.
#[derive(Debug)]
pub(super) struct Entry {
    pub dir: PathBuf,
    pub record: Record,
    /// Held by this process, which may then change the container.
    lock: Option<Lock>,
}

/// What is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub cgroup: PathBuf,
    pub created: Timestamp,
    /// The configuration's version of the specification.
    pub version: String,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Processes end with init when it has a pid namespace of its own.
    pub owns_pids: bool,
    /// Whether the configuration has to be read to start or to delete it.
    pub has_hooks: bool,
    /// Known once the container is created.
    pub init: Option<Init>,
}

/// A container's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Init {
    pub pid: i32,
    /// The process's start in clock ticks: tells it from a later one with its number.
    pub start_ticks: u64,
}

/// The states of the specification, and the usual one beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

impl Store {
    pub(super) fn at(root: &Path) -> Store {
        Store { root: root.to_owned() }
    }

    /// Refuses a place that is not there.
    pub(super) fn check_root(&self) -> Result<(), Failure> {
        fs::metadata(&self.root).map(drop).with_context(|| format!("stat {}", self.root.display()))
    }

    /// Whether a container can have this id.
    pub(super) fn check(&self, id: &str) -> Result<(), Failure> {
        self.dir(id).map(drop)
    }

    /// Takes an id, which must not be taken, and holds it: the container is about to be made.
    pub(super) fn reserve(&self, record: Record, spec: &Spec) -> Result<Entry, Failure> {
        let dir = self.dir(&record.id)?;
        let what = || format!("create `{}`", dir.display());
        let made = match fs::create_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.root)
                    .with_context(|| format!("create `{}`", self.root.display()))?;
                fs::create_dir(&dir)
            }
            made => made,
        };
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Failure::invalid("container with given ID already exists"));
            }
            made => made.with_context(what)?,
        }
        let mut entry = Entry { dir, record, lock: None };
        match entry.fill(spec) {
            Ok(()) => Ok(entry),
            Err(failure) => {
                let _ = fs::remove_dir_all(&entry.dir);
                Err(failure)
            }
        }
    }

    /// Finds a container.
    pub(super) fn find(&self, id: &str) -> Result<Entry, Failure> {
        let dir = self.dir(id)?;
        match fs::read(dir.join(STATE)) {
            Ok(bytes) => {
                let record = read(&bytes)
                    .map_err(|why| Failure::other(format!("state of container `{id}` is damaged: {why}")))?;
                Ok(Entry { dir, record, lock: None })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(does_not_exist(id)),
            Err(error) => Err(Failure::os(format!("read state of container `{id}`"), error)),
        }
    }

    /// Finds a container and keeps other commands from changing it.
    pub(super) fn hold(&self, id: &str) -> Result<Entry, Failure> {
        let dir = self.dir(id)?;
        let deadline = Instant::now() + LOCKED_WITHIN;
        let lock = loop {
            let file = match File::options().write(true).open(dir.join(LOCK)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(does_not_exist(id)),
                file => file.context("open lock")?,
            };
            if Lock::try_on(&file)? {
                // The container may be gone since, and another may have its name.
                if file.metadata().context("look at lock")?.nlink() > 0 {
                    break Lock { _file: file.into() };
                }
            } else if Instant::now() > deadline {
                return Err(Failure::other(format!("container `{id}` is held by another command")));
            } else {
                sleep(LOOK_EVERY);
            }
        };
        Ok(Entry { lock: Some(lock), ..self.find(id)? })
    }

    /// Forgets what was never a container: what a process left that was killed right after it took the id,
    /// or a state that cannot be read.
    pub(super) fn forget_remains(&self, id: &str) -> Result<(), Failure> {
        let dir = self.dir(id)?;
        rswarm_base::fsx::remove_all(&dir).with_context(|| format!("remove `{}`", dir.display()))
    }

    /// The ids of all containers, in order.
    pub(super) fn ids(&self) -> Result<Vec<String>, Failure> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("read `{}`", self.root.display()))?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.context("read the next container")?.file_name();
            // What is not text is no id either.
            ids.extend(name.into_string().ok().filter(|id| self.dir(id).is_ok()));
        }
        ids.sort();
        Ok(ids)
    }

    fn dir(&self, id: &str) -> Result<PathBuf, Failure> {
        if id.is_empty() {
            return Err(Failure::invalid("container id cannot be empty"));
        }
        let good = |letter: char| letter.is_ascii_alphanumeric() || "_+-.".contains(letter);
        if id == "." || id == ".." || id.len() > ID_MAX || !id.chars().all(good) {
            return Err(Failure::invalid(format!(
                "invalid container ID format: `{id}`: letters, digits and _ + - . only, {ID_MAX} at most"
            )));
        }
        Ok(self.root.join(id))
    }
}

// Callers look for these words.
fn does_not_exist(id: &str) -> Failure {
    Failure::invalid(format!("container does not exist: `{id}`"))
}

/// A state file's content. Whatever it is, it is a record or an error.
fn read(bytes: &[u8]) -> Result<Record, serde_json::Error> {
    serde_json::from_slice(bytes)
}

impl Entry {
    /// The new directory's first content. Init opens the FIFO as the container's user, so that everyone may
    /// enter the directory and write into the FIFO, but not look around.
    fn fill(&mut self, spec: &Spec) -> Result<(), Failure> {
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o711)).context("open state directory")?;
        let file = File::create_new(self.dir.join(LOCK)).context("make lock")?;
        if !Lock::try_on(&file)? {
            return Err(Failure::other("another command holds the new container"));
        }
        self.lock = Some(Lock { _file: file.into() });
        self.remember()?;
        let config = serde_json::to_vec(spec).map_err(io::Error::from).context("keep configuration")?;
        fs::write(self.dir.join(CONFIG), config).context("keep configuration")?;
        let fifo = self.dir.join(FIFO);
        let mode = rustix::fs::Mode::from_raw_mode(0o622);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0)
            .context("make the start FIFO")?;
        fs::set_permissions(&fifo, fs::Permissions::from_mode(0o622)).context("open the start FIFO")
    }

    /// Writes the record down.
    pub(super) fn remember(&self) -> Result<(), Failure> {
        let bytes =
            serde_json::to_vec(&self.record).map_err(io::Error::from).context("remember container")?;
        replace(&self.dir.join(STATE), &bytes).context("remember container")
    }

    /// Lets other commands change it.
    pub(super) fn release(&mut self) {
        self.lock = None;
    }

    /// Where the container is in its life.
    pub(super) fn status(&self) -> Result<Status, Failure> {
        let Some(init) = self.record.init else {
            return Ok(if self.is_held_elsewhere() { Status::Creating } else { Status::Stopped });
        };
        if !init.is_alive() {
            return Ok(Status::Stopped);
        }
        if self.dir.join(FIFO).exists() {
            return Ok(Status::Created);
        }
        Ok(if self.cgroup()?.is_frozen() { Status::Paused } else { Status::Running })
    }

    /// Whether another command is changing it. A container without init that nobody holds will never have one.
    fn is_held_elsewhere(&self) -> bool {
        // One that we hold is not looked at: a record lock goes with any descriptor of its file.
        if self.lock.is_some() {
            return false;
        }
        let file = File::options().write(true).open(self.dir.join(LOCK));
        file.is_ok_and(|file| Lock::try_on(&file).is_ok_and(|free| !free))
    }

    pub(super) fn cgroup(&self) -> Result<Cgroup, Failure> {
        Cgroup::at(&self.record.cgroup)
    }

    /// Init, in a way that outlasts its number; refused when it has ended.
    pub(super) fn init(&self) -> Result<OwnedFd, Failure> {
        // Callers look for these words.
        let gone = || Failure::other("container not running");
        let init = self.record.init.ok_or_else(gone)?;
        let pid = rustix::process::Pid::from_raw(init.pid).ok_or_else(gone)?;
        let flags = rustix::process::PidfdFlags::empty();
        let pidfd = rustix::process::pidfd_open(pid, flags).map_err(|_| gone())?;
        // The number may have been given away between the look and the open.
        if init.is_alive() { Ok(pidfd) } else { Err(gone()) }
    }

    /// Init's number, as callers are told it: zero when it has ended.
    pub(super) fn pid(&self, status: Status) -> i32 {
        match (status, self.record.init) {
            (Status::Stopped, _) | (_, None) => 0,
            (_, Some(init)) => init.pid,
        }
    }

    /// The configuration as it was when the container was created.
    pub(super) fn spec(&self) -> Result<Spec, Failure> {
        crate::spec::load(&self.dir)
    }

    /// What hooks are told.
    pub(super) fn hook_state(&self, spec: &Spec, status: ContainerState) -> State {
        let pid =
            if status == ContainerState::Stopped { 0 } else { self.record.init.map_or(0, |init| init.pid) };
        State::of(spec, &self.record.id, &self.record.bundle, status, pid)
    }
}

impl Init {
    /// The process that has this number now.
    pub(super) fn of(pid: i32) -> Option<Init> {
        start_ticks(pid).map(|start_ticks| Init { pid, start_ticks })
    }

    fn is_alive(self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }
}

/// The right to change a container. A record lock: unlike flock(2)'s it is not inherited by init, and it
/// goes with its process, however that ends.
#[derive(Debug)]
struct Lock {
    _file: OwnedFd,
}

impl Lock {
    /// Whether the lock could be had; it is released when any descriptor of the file is closed.
    // fcntl_locking(2)
    fn try_on(file: &File) -> Result<bool, Failure> {
        match rustix::fs::fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Ok(false),
            Err(error) => Err(Failure::os("lock container", error)),
        }
    }
}

/// When a living process started; a zombie lives no more.
// proc_pid_stat(5): the fields after the name, which may contain anything, are separated by spaces.
fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(id: &str) -> Record {
        Record {
            id: id.to_owned(),
            bundle: "/bundle".into(),
            rootfs: "/bundle/rootfs".into(),
            cgroup: "/none".into(),
            created: Timestamp(1),
            version: "1.2.0".into(),
            annotations: BTreeMap::from([("a.b".to_owned(), "c".to_owned())]),
            owns_pids: true,
            has_hooks: false,
            init: None,
        }
    }

    #[test]
    fn an_id_cannot_leave_the_root() {
        let store = Store::at(Path::new("/none"));
        for id in [".", "..", "a/b", "../x", "a b", &"x".repeat(300)] {
            assert!(
                store.find(id).is_err_and(|failure| failure.message.contains("invalid container ID")),
                "{id}"
            );
        }
        assert!(store.find("").is_err_and(|failure| failure.message.contains("cannot be empty")));
        assert!(store.find("c-1").is_err_and(|failure| failure.message == "container does not exist: `c-1`"));
    }

    #[test]
    fn a_living_process_has_a_start() {
        assert!(start_ticks(std::process::id().cast_signed()).is_some_and(|ticks| ticks > 0));
        assert_eq!(start_ticks(i32::MAX), None);
    }

    #[test]
    fn an_id_is_taken_once_and_what_is_remembered_is_found() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Store::at(&dir.path().join("root"));
        assert_eq!(store.ids(), Ok(Vec::new()));
        let mut entry = store.reserve(record("one"), &Spec::default()).expect("reserved");
        let taken = store.reserve(record("one"), &Spec::default()).expect_err("taken");
        assert!(taken.message.contains("already exists"));
        entry.record.init = Init::of(std::process::id().cast_signed());
        entry.remember().expect("remembered");
        assert_eq!(store.find("one").expect("found").record, entry.record);
        assert_eq!(entry.status(), Ok(Status::Created));
        assert_eq!(store.ids(), Ok(vec!["one".to_owned()]));
        store.forget_remains("one").expect("forgotten");
        assert!(store.hold("one").is_err_and(|failure| failure.message.contains("does not exist")));
    }

    #[test]
    fn a_container_whose_creator_is_gone_is_stopped() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Store::at(dir.path());
        drop(store.reserve(record("one"), &Spec::default()).expect("reserved"));
        assert_eq!(store.find("one").expect("found").status(), Ok(Status::Stopped));
        assert_eq!(store.hold("one").expect("held").status(), Ok(Status::Stopped));
    }

    proptest! {
        #[test]
        fn any_state_file_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(&bytes);
        }

        #[test]
        fn a_cut_or_changed_state_file_is_read_or_refused(cut in 0_usize..400, at in 0_usize..400, byte: u8) {
            let mut bytes = serde_json::to_vec(&record("one")).expect("json");
            bytes.truncate(cut.max(1));
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(read) = read(&bytes) {
                // What it says names a process or none; looking at it harms nothing.
                let _ = read.init.map(Init::is_alive);
            }
        }

        #[test]
        fn a_record_reads_as_it_was_written(pid in 1_i32.., ticks: u64, name in "[a-z0-9._+-]{1,40}") {
            let mut wanted = record(&name);
            wanted.init = Some(Init { pid, start_ticks: ticks });
            prop_assert_eq!(read(&serde_json::to_vec(&wanted).expect("json")).expect("read"), wanted);
        }
    }
}

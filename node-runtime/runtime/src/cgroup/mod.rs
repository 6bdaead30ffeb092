//! A container's cgroups, versions 1, 2 and both at once behind one type.
//!
//! On a hybrid machine version 1 limits, and version 2, which has no controllers there, tracks, freezes and
//! kills: it does these atomically, which version 1 cannot.

mod devices;
mod layout;
mod plan;
mod stats;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;

pub use self::layout::{Hierarchy, Layout};
use self::plan::Write;
pub use self::stats::{CpuStats, HugetlbStats, IoStats, MemoryStats, PidStats, Pressure, Stall, Stats};
use crate::failure::{Context, Failure};

/// How long the last processes of a killed cgroup may take to leave it.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);
/// How long a freeze may take.
const FROZEN_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks at something that the kernel has no event for.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// One path in every hierarchy of the machine.
#[derive(Debug, Clone)]
pub struct Cgroup {
    layout: Layout,
    /// `/parent/name`.
    path: PathBuf,
    /// A directory for each hierarchy of version 1, in the layout's order.
    v1: Vec<PathBuf>,
    unified: Option<PathBuf>,
}

/// Open doors into a cgroup, for a process about to enter it.
pub(crate) struct Entry {
    /// `cgroup.procs` of each version 1 hierarchy: writing `0` moves the writer.
    v1: Vec<OwnedFd>,
    unified: Option<OwnedFd>,
}

impl Entry {
    /// For clone3(2), which puts the child into version 2 at once.
    pub(crate) fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(OwnedFd::as_fd)
    }

    /// Moves the caller into the hierarchies of version 1.
    pub(crate) fn join_v1(&self) -> Result<(), Failure> {
        for procs in &self.v1 {
            rustix::io::write(procs, b"0").context("join cgroup")?;
        }
        Ok(())
    }
}

impl Cgroup {
    /// Names the cgroup; nothing is touched. `path` is absolute below each hierarchy's root.
    ///
    /// # Errors
    /// When the path leads elsewhere, or the machine has no cgroups.
    pub fn at(path: &Path) -> Result<Cgroup, Failure> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let plain = relative.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if relative.as_os_str().is_empty() || !plain {
            return Err(Failure::invalid(format!("cgroup path `{}` does not name a cgroup", path.display())));
        }
        let layout = Layout::detect()?;
        let v1 = layout.v1.iter().map(|hierarchy| hierarchy.mount.join(relative)).collect();
        let unified = layout.unified.as_ref().map(|mount| mount.join(relative));
        Ok(Cgroup { layout, path: Path::new("/").join(relative), v1, unified })
    }

    /// Its path below each hierarchy's root.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of a version 1 controller, or the version 2 directory when that has it.
    #[must_use]
    pub fn directory(&self, controller: &str) -> Option<&Path> {
        let has = |hierarchy: &Hierarchy| hierarchy.controllers.iter().any(|name| name == controller);
        match self.layout.v1.iter().position(has) {
            Some(index) => Some(&self.v1[index]),
            None if self.layout.is_unified() => self.unified.as_deref(),
            None => None,
        }
    }

    /// The version 2 directory, when version 2 is all there is.
    #[must_use]
    pub fn only_unified(&self) -> Option<&Path> {
        self.unified.as_deref().filter(|_| self.layout.is_unified())
    }

    /// The version 2 group's `cgroup.kill`, open: it kills whatever is in this very group, and nothing once the
    /// group is gone, even if another one has its path by then. `None` where the kernel or version 2 lacks it.
    #[must_use]
    pub fn kill_file(&self) -> Option<File> {
        let path = self.unified.as_ref()?.join("cgroup.kill");
        fs::OpenOptions::new().write(true).open(path).ok()
    }

    /// All directories by the names that they have below `/sys/fs/cgroup`.
    pub(crate) fn directories(&self) -> impl Iterator<Item = (&str, &Path)> {
        let v1 = self
            .layout
            .v1
            .iter()
            .zip(&self.v1)
            .map(|(hierarchy, dir)| (hierarchy.name.as_str(), dir.as_path()));
        v1.chain(self.unified.as_deref().map(|dir| ("unified", dir)))
    }

    /// Makes it, empty, in every hierarchy. One that is left from earlier must have no process in it.
    ///
    /// # Errors
    /// When it is in use, or cannot be made.
    pub(crate) fn create(&self) -> Result<(), Failure> {
        if !self.pids().context("read cgroup")?.is_empty() {
            return Err(Failure::other(format!(
                "cgroup `{}` has processes in it already",
                self.path.display()
            )));
        }
        self.remove().with_context(|| format!("remove old cgroup `{}`", self.path.display()))?;
        for (hierarchy, dir) in self.layout.v1.iter().zip(&self.v1) {
            make_dir(&hierarchy.mount, dir, |parent, dir| {
                if hierarchy.controllers.iter().any(|name| name == "cpuset") {
                    inherit_cpuset(parent, dir)
                } else {
                    Ok(())
                }
            })?;
        }
        if let (Some(mount), Some(dir)) = (&self.layout.unified, &self.unified) {
            let delegate = self.layout.is_unified();
            make_dir(mount, dir, |parent, _| if delegate { enable_controllers(parent) } else { Ok(()) })?;
        }
        Ok(())
    }

    /// Opens what a process needs to enter.
    pub(crate) fn entry(&self) -> Result<Entry, Failure> {
        let open = |path: PathBuf| {
            File::options()
                .write(true)
                .open(&path)
                .map(OwnedFd::from)
                .with_context(|| format!("open {}", path.display()))
        };
        let v1 = self.v1.iter().map(|dir| open(dir.join("cgroup.procs"))).collect::<Result<_, _>>()?;
        let unified = match &self.unified {
            Some(dir) => {
                Some(File::open(dir).map(OwnedFd::from).with_context(|| format!("open {}", dir.display()))?)
            }
            None => None,
        };
        Ok(Entry { v1, unified })
    }

    /// Sets limits, at creation or later.
    ///
    /// # Errors
    /// With the file that refused the value, or the controller that this machine does not have.
    pub fn apply(&self, resources: &LinuxResources) -> Result<(), Failure> {
        let writes = if self.layout.is_unified() { plan::v2(resources)? } else { plan::v1(resources)? };
        let swap_first = self.apply_memory_first(&writes);
        for write in swap_first.iter().chain(&writes) {
            self.write(write)?;
        }
        if self.layout.is_unified()
            && let Some(rules) = resources.devices()
        {
            self.filter_devices(rules)?;
        }
        Ok(())
    }

    /// Version 1 wants memory ≤ memory plus swap at every moment: a memory limit above the present sum needs
    /// the sum raised before it.
    fn apply_memory_first(&self, writes: &[Write]) -> Vec<Write> {
        let value = |file: &str| writes.iter().find(|write| write.file == file);
        let (Some(limit), Some(sum)) = (value("memory.limit_in_bytes"), value("memory.memsw.limit_in_bytes"))
        else {
            return Vec::new();
        };
        let now = self.directory("memory").and_then(|dir| read_number(&dir.join(&sum.file)));
        let raised = now.zip(limit.value.parse::<u64>().ok()).is_some_and(|(now, limit)| limit > now);
        if raised || limit.value == "-1" { vec![sum.clone()] } else { Vec::new() }
    }

    fn write(&self, write: &Write) -> Result<(), Failure> {
        let dir = match write.controller {
            "unified" => self.unified.as_deref(),
            controller => self.directory(controller),
        };
        let Some(dir) = dir else {
            return Err(Failure::invalid(format!(
                "`{}` cannot be set: this machine has no cgroup controller `{}`",
                write.file, write.controller
            )));
        };
        let path = dir.join(&write.file);
        fs::write(&path, &write.value)
            .with_context(|| format!("failed to write \"{}\" to {}", write.value, path.display()))
    }

    fn filter_devices(&self, rules: &[oci_spec::runtime::LinuxDeviceCgroup]) -> Result<(), Failure> {
        let (Some(program), Some(dir)) = (devices::program(rules)?, &self.unified) else { return Ok(()) };
        let program = crate::sys::load_device_program(&program).context("load device rules")?;
        let dir = File::open(dir).context("open cgroup")?;
        crate::sys::attach_device_program(dir, program).context("attach device rules")
    }

    /// Stops all processes where they are.
    ///
    /// # Errors
    /// When there is no freezer, or it does not get there in time.
    pub fn freeze(&self) -> io::Result<()> {
        self.set_frozen(true)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// As [`Cgroup::freeze`].
    pub fn thaw(&self) -> io::Result<()> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        let deadline = Instant::now() + FROZEN_WITHIN;
        let is_there: Box<dyn Fn() -> io::Result<bool>> = if let Some(dir) = &self.unified {
            fs::write(dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
            let wanted = if frozen { "frozen 1" } else { "frozen 0" };
            Box::new(move || {
                Ok(fs::read_to_string(dir.join("cgroup.events"))?.lines().any(|line| line == wanted))
            })
        } else if let Some(dir) = self.directory("freezer") {
            let wanted = if frozen { "FROZEN" } else { "THAWED" };
            fs::write(dir.join("freezer.state"), wanted)?;
            Box::new(move || Ok(fs::read_to_string(dir.join("freezer.state"))?.trim() == wanted))
        } else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this machine has no cgroup freezer"));
        };
        while !is_there()? {
            if Instant::now() > deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "processes did not freeze or thaw in time",
                ));
            }
            sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Whether its processes are stopped where they are, or about to be.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        match (&self.unified, self.directory("freezer")) {
            (Some(dir), _) => read_number(&dir.join("cgroup.freeze")) == Some(1),
            (None, Some(dir)) => {
                fs::read_to_string(dir.join("freezer.state")).is_ok_and(|s| s.trim() != "THAWED")
            }
            (None, None) => false,
        }
    }

    /// All processes in it and in the cgroups below it.
    ///
    /// # Errors
    /// The failing read's; a cgroup that is not there has no processes.
    pub fn pids(&self) -> io::Result<BTreeSet<i32>> {
        let mut pids = BTreeSet::new();
        for dir in self.tracking() {
            visit(dir, &mut |dir| {
                for line in read_or_gone(&dir.join("cgroup.procs"))?.lines() {
                    pids.extend(line.parse::<i32>());
                }
                Ok(())
            })?;
        }
        Ok(pids)
    }

    /// The directories that see every process: version 2 if there is one, else all of version 1.
    fn tracking(&self) -> &[PathBuf] {
        self.unified.as_ref().map_or(self.v1.as_slice(), std::slice::from_ref)
    }

    /// Sends a signal to every process.
    ///
    /// # Errors
    /// The failing call's; a process that is gone meanwhile is none.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        for pid in self.pids()? {
            match kill(Pid::from_raw(pid), signal) {
                Ok(()) | Err(nix::Error::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Kills every process, frozen or not, also those that are being made at this moment.
    ///
    /// # Errors
    /// The failing call's.
    pub fn kill(&self) -> io::Result<()> {
        if let Some(dir) = &self.unified {
            match fs::write(dir.join("cgroup.kill"), "1") {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => return Ok(()),
                // Kernels before 5.14 do not have the file.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // A fork between look and kill is met by the next look.
        while !self.pids()?.is_empty() {
            self.signal(Signal::SIGKILL)?;
            if self.unified.is_none() && self.directory("freezer").is_some_and(Path::exists) {
                self.thaw()?;
            }
            sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Whether any process is in it.
    ///
    /// # Errors
    /// The failing read's.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.pids()?.is_empty())
    }

    /// Removes it and all below it from every hierarchy; one that is not there is fine. Processes that were
    /// killed are given time to leave.
    ///
    /// # Errors
    /// When processes stay in it.
    pub fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + EMPTY_WITHIN;
        for dir in self.v1.iter().chain(&self.unified) {
            loop {
                match remove_tree(dir) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                        sleep(LOOK_EVERY);
                    }
                    done => break done?,
                }
            }
        }
        Ok(())
    }

    /// How often the kernel killed a process in it for want of memory.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let file = if self.layout.is_unified() { "memory.events" } else { "memory.oom_control" };
        let path = self.directory("memory").map(|dir| dir.join(file));
        let text = path.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
    }
}

/// Makes a directory below a hierarchy's root level by level, and calls `each(parent, dir)` on new ones.
fn make_dir(mount: &Path, dir: &Path, each: impl Fn(&Path, &Path) -> io::Result<()>) -> Result<(), Failure> {
    let what = || format!("create cgroup {}", dir.display());
    let relative = dir.strip_prefix(mount).map_err(io::Error::other).with_context(what)?;
    let mut at = mount.to_owned();
    for part in relative.components() {
        let parent = at.clone();
        at.push(part);
        match fs::create_dir(&at) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Failure::os(what(), error)),
        }
        each(&parent, &at).with_context(what)?;
    }
    Ok(())
}

/// A new cpuset has no processors and admits nobody until it is given some.
fn inherit_cpuset(parent: &Path, dir: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(dir.join(file))?.trim().is_empty() {
            fs::write(dir.join(file), fs::read_to_string(parent.join(file))?)?;
        }
    }
    Ok(())
}

/// Hands a parent's controllers down. One that cannot be handed down shows when its limit is set.
fn enable_controllers(parent: &Path) -> io::Result<()> {
    let available = fs::read_to_string(parent.join("cgroup.controllers"))?;
    for controller in available.split_whitespace() {
        let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

/// Calls `each` on a cgroup and all below it; one that goes meanwhile is passed over.
fn visit(dir: &Path, each: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    each(dir)?;
    let entries = match fs::read_dir(dir) {
        Err(error) if is_gone(&error) => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        match entry {
            Ok(entry) if entry.file_type().is_ok_and(|typ| typ.is_dir()) => visit(&entry.path(), each)?,
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Ok(()) => return Ok(()),
        Err(error) if is_gone(&error) => return Ok(()),
        Err(_) => {}
    }
    let mut below = Vec::new();
    visit(dir, &mut |dir| {
        below.push(dir.to_owned());
        Ok(())
    })?;
    for dir in below.iter().rev() {
        match fs::remove_dir(dir) {
            Err(error) if !is_gone(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn read_or_gone(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        // A version 2 cgroup in threaded mode lists no processes.
        Err(error) if is_gone(&error) || error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(String::new()),
        text => text,
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(name: &str) -> Cgroup {
        Cgroup::at(Path::new(&format!("/rswarm-test-{}-{name}", std::process::id()))).expect("cgroup")
    }

    #[test]
    fn a_cgroup_is_made_limited_entered_killed_and_removed() {
        let cgroup = cgroup("life");
        cgroup.create().expect("create");
        let limits = serde_json::json!({"pids": {"limit": 7}, "memory": {"limit": 33_554_432}});
        cgroup.apply(&serde_json::from_value(limits).expect("limits")).expect("apply");
        let dir = cgroup.directory("pids").expect("pids controller");
        assert_eq!(fs::read_to_string(dir.join("pids.max")).expect("read").trim(), "7");
        let entry = cgroup.entry().expect("entry");
        let child = crate::sys::clone_process(0, entry.unified(), || {
            let _ = entry.join_v1();
            loop {
                sleep(Duration::from_secs(1));
            }
        })
        .expect("clone");
        while cgroup.v1.iter().any(|dir| {
            !read_or_gone(&dir.join("cgroup.procs")).expect("procs").contains(&child.pid.to_string())
        }) {
            sleep(LOOK_EVERY);
        }
        assert!(cgroup.pids().expect("pids").contains(&child.pid));
        cgroup.freeze().expect("freeze");
        cgroup.kill().expect("kill");
        let status = nix::sys::wait::waitpid(Pid::from_raw(child.pid), None).expect("wait");
        assert!(matches!(status, nix::sys::wait::WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
        cgroup.remove().expect("remove");
        assert!(cgroup.v1.iter().chain(&cgroup.unified).all(|dir| !dir.exists()));
    }

    #[test]
    fn version_2_denies_devices_by_a_program() {
        let cgroup = cgroup("devices");
        let Some(dir) = cgroup.unified.clone() else { return };
        cgroup.create().expect("create");
        let rules = serde_json::json!([{"allow": false}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "w"}]);
        let rules: Vec<_> = serde_json::from_value(rules).expect("rules");
        cgroup.filter_devices(&rules).expect("attach");
        let group = File::open(&dir).expect("open");
        let child = crate::sys::clone_process(0, Some(group.as_fd()), || {
            let read = |path: &str| File::open(path).map(drop).map_err(|error| error.raw_os_error());
            let write = File::options().write(true).open("/dev/kmsg").is_ok();
            i32::from(!(read("/dev/zero") == Ok(()) && read("/dev/kmsg") == Err(Some(libc::EPERM)) && write))
        })
        .expect("clone");
        let status = nix::sys::wait::waitpid(Pid::from_raw(child.pid), None).expect("wait");
        cgroup.remove().expect("remove");
        assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)), "{status:?}");
    }

    #[test]
    fn a_memory_limit_can_be_raised_and_lowered() {
        let cgroup = cgroup("memory");
        cgroup.create().expect("create");
        for limit in [32_i64 << 20, 64 << 20, 16 << 20] {
            let limits = serde_json::json!({"memory": {"limit": limit, "swap": limit}});
            cgroup.apply(&serde_json::from_value(limits).expect("limits")).expect("apply");
        }
        let refused = serde_json::json!({"pids": {"limit": 4_000_000_000_i64}});
        let failure = cgroup.apply(&serde_json::from_value(refused).expect("limits")).expect_err("refused");
        assert!(failure.message.contains("pids.max"), "{failure}");
        cgroup.remove().expect("remove");
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused() {
        assert!(Cgroup::at(Path::new("/../x")).is_err());
        assert!(Cgroup::at(Path::new("/")).is_err());
    }
}

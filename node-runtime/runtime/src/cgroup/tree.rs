//! Making and removing a cgroup's directories, and the processes in them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;

use super::control::LOOK_EVERY;
use super::layout::Hierarchy;
use super::{Cgroup, is_gone, put};
use crate::failure::{Context, Failure};

/// How long the last processes of a killed cgroup may take to leave it.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

impl Cgroup {
    /// Makes it in every hierarchy and sets its limits. One that is left from earlier is made anew; it must
    /// have no process in it. On failure nothing of it is left but parents, which stay for whoever named them.
    ///
    /// # Errors
    /// With the field that cannot be, before anything is made; when the cgroup is in use, or cannot be made.
    pub(crate) fn create(&self, resources: Option<&LinuxResources>) -> Result<(), Failure> {
        let limits = self.limits(resources)?;
        let mut made = Vec::new();
        let done = self.make_all(&mut made).and_then(|()| self.set(&limits, true));
        done.inspect_err(|_| {
            for dir in made.iter().rev() {
                let _ = fs::remove_dir(dir);
            }
        })
    }

    /// Version 2 first: it knows best whether the cgroup is in use.
    fn make_all(&self, made: &mut Vec<PathBuf>) -> Result<(), Failure> {
        if let Some(dir) = &self.unified {
            self.make(dir, None, made)?;
            if self.layout.is_unified() {
                // Those without limits are counted too. What is missing is an error only for a limit.
                let _ = self.enable_controllers(&self.layout.unified_controllers);
            }
            refuse_invalid(dir)?;
        }
        for (hierarchy, dir) in self.layout.v1.iter().zip(&self.v1) {
            self.make(dir, Some(hierarchy), made)?;
        }
        Ok(())
    }

    /// Makes the last directory, which must be new, and the others where they are not there.
    fn make(
        &self,
        dir: &Path,
        hierarchy: Option<&Hierarchy>,
        made: &mut Vec<PathBuf>,
    ) -> Result<(), Failure> {
        let what = || format!("create cgroup {}", dir.display());
        let new = match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_parents(dir, hierarchy).with_context(what)?;
                fs::create_dir(dir)
            }
            new => new,
        };
        match new {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.refuse_in_use(dir)?;
                refuse_frozen(dir)?;
                remove_tree(dir).with_context(|| format!("remove old cgroup {}", dir.display()))?;
                fs::create_dir(dir).with_context(what)?;
            }
            new => new.with_context(what)?,
        }
        made.push(dir.to_owned());
        settle(dir, hierarchy).with_context(what)
    }

    fn refuse_in_use(&self, dir: &Path) -> Result<(), Failure> {
        let mut pids = BTreeSet::new();
        add_pids(dir, &mut pids).context("read cgroup")?;
        if pids.is_empty() {
            return Ok(());
        }
        // Callers look for the first words, which are runc's.
        Err(Failure::other(format!(
            "container's cgroup is not empty: {} process(es) found in `{}`",
            pids.len(),
            self.path.display()
        )))
    }

    /// All processes in it and in the cgroups below it.
    ///
    /// # Errors
    /// The failing read's; a cgroup that is not there has no processes.
    pub fn pids(&self) -> io::Result<BTreeSet<i32>> {
        let mut pids = BTreeSet::new();
        for dir in self.tracking() {
            add_pids(dir, &mut pids)?;
        }
        Ok(pids)
    }

    /// The directories that see every process: version 2 if there is one, else all of version 1.
    fn tracking(&self) -> &[PathBuf] {
        self.unified.as_ref().map_or(self.v1.as_slice(), std::slice::from_ref)
    }

    /// Removes it and all below it from every hierarchy; one that is not there is fine. Processes that were
    /// killed are given time to leave. Parents stay: whoever named them removes them.
    ///
    /// # Errors
    /// When processes stay in it.
    pub fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + EMPTY_WITHIN;
        for dir in self.v1.iter().chain(&self.unified) {
            loop {
                match remove_tree(dir) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                        // Once version 2 is empty, version 1 is about to be, and has no event for it.
                        if !self.wait_until_empty(deadline)? || self.unified.as_ref() != Some(dir) {
                            std::thread::sleep(LOOK_EVERY);
                        }
                    }
                    done => break done?,
                }
            }
        }
        Ok(())
    }
}

/// What somebody has frozen on purpose is not to be thawed by being made anew.
fn refuse_frozen(dir: &Path) -> Result<(), Failure> {
    let is =
        |file: &str, word: &str| fs::read_to_string(dir.join(file)).is_ok_and(|text| text.trim() == word);
    if is("cgroup.freeze", "1") || is("freezer.state", "FROZEN") {
        return Err(Failure::invalid("container's cgroup unexpectedly frozen"));
    }
    Ok(())
}

/// Documentation/admin-guide/cgroup-v2.rst, "Threads"
fn refuse_invalid(dir: &Path) -> Result<(), Failure> {
    let typ = fs::read_to_string(dir.join("cgroup.type")).unwrap_or_default();
    if typ.trim() != "domain invalid" {
        return Ok(());
    }
    Err(Failure::invalid(format!("no process can be in cgroup {}: one above it is threaded", dir.display())))
}

fn make_parents(dir: &Path, hierarchy: Option<&Hierarchy>) -> io::Result<()> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    match fs::create_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_parents(parent, hierarchy)?;
            match fs::create_dir(parent) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    settle(parent, hierarchy)
}

/// A new cpuset has no processors and admits nobody until it is given some; nor does one above it that somebody
/// else has made and left so.
fn settle(dir: &Path, hierarchy: Option<&Hierarchy>) -> io::Result<()> {
    let is_cpuset = |hierarchy: &&Hierarchy| hierarchy.controllers.iter().any(|c| c == "cpuset");
    let Some(hierarchy) = hierarchy.filter(is_cpuset) else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        fill(dir, file, &hierarchy.mount)?;
    }
    Ok(())
}

/// Gives an empty list what the parent has; the list that counts in the end.
fn fill(dir: &Path, file: &str, top: &Path) -> io::Result<String> {
    let own = fs::read_to_string(dir.join(file))?.trim().to_owned();
    let (true, true, Some(parent)) = (own.is_empty(), dir != top, dir.parent()) else { return Ok(own) };
    let given = fill(parent, file, top)?;
    put(&dir.join(file), &given)?;
    Ok(given)
}

/// Calls `each` on a cgroup and all below it; one that goes meanwhile is passed over.
pub(super) fn visit(dir: &Path, each: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
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

pub(super) fn add_pids(dir: &Path, pids: &mut BTreeSet<i32>) -> io::Result<()> {
    visit(dir, &mut |dir| {
        let text = match read_or_gone(&dir.join("cgroup.procs")) {
            // Below a threaded domain only threads are listed.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                read_or_gone(&dir.join("cgroup.threads"))?
            }
            text => text?,
        };
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        Ok(())
    })
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
        Err(error) if is_gone(&error) => Ok(String::new()),
        text => text,
    }
}

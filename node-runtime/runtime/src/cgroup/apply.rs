//! Writing limits, in whatever order the kernel takes them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use super::check::{ROOT, refuse};
use super::layout::Version;
use super::plan::{self, Write};
use super::rules::Rules;
use super::{Cgroup, devices, put, read_number};
use crate::failure::{Context, Failure, describe};

/// What is to be set, checked and planned: nothing of it is impossible as such.
pub(super) struct Limits {
    writes: Vec<Write>,
    /// `None` leaves devices as they are.
    devices: Option<Rules>,
    /// Memory, and memory with swap, that must not be below what is in use.
    memory_to_check: Option<(i64, i64)>,
}

impl Cgroup {
    /// Sets limits. Those that are not named stay as they are.
    ///
    /// # Errors
    /// With the field that cannot be, before anything is written, or that the kernel refused.
    pub fn apply(&self, resources: &LinuxResources) -> Result<(), Failure> {
        let mut limits = self.limits(Some(resources))?;
        if resources.devices().is_none() {
            limits.devices = None;
        }
        self.set(&limits, false)
    }

    /// Plans for the controllers of this machine. A new container without device rules gets the standard
    /// devices only.
    pub(super) fn limits(&self, resources: Option<&LinuxResources>) -> Result<Limits, Failure> {
        let unset = LinuxResources::default();
        let resources = resources.unwrap_or(&unset);
        let memory = resources.memory().as_ref().filter(|memory| memory.check_before_update() == Some(true));
        Ok(Limits {
            writes: plan::plan(resources, &|controller| self.layout.version_of(controller))?,
            devices: Some(Rules::collect(resources.devices().as_deref().unwrap_or_default())?),
            memory_to_check: memory.map(|m| (m.limit().unwrap_or(0), m.swap().unwrap_or(0))),
        })
    }

    pub(super) fn set(&self, limits: &Limits, is_new: bool) -> Result<(), Failure> {
        if let Some((memory, with_swap)) = limits.memory_to_check {
            self.refuse_less_than_used(memory, with_swap)?;
        }
        self.hand_down(&limits.writes)?;
        let mut undo = Undo { notes: (!is_new).then(Vec::new) };
        let done = self.write_all(&limits.writes, &mut undo).and_then(|()| match &limits.devices {
            Some(rules) => self.set_devices(rules, is_new),
            None => Ok(()),
        });
        done.inspect_err(|_| undo.run())
    }

    /// What the kernel refuses because of another value that is about to change is tried again after the
    /// others: memory and memory with swap, quota and period, burst and quota bound each other, and which
    /// must go first depends on what is there.
    fn write_all(&self, writes: &[Write], undo: &mut Undo) -> Result<(), Failure> {
        let mut left: Vec<&Write> = writes.iter().collect();
        while !left.is_empty() {
            let (before, mut first) = (left.len(), None);
            let mut refused = Vec::new();
            for write in left {
                match self.write(write, undo) {
                    Ok(()) => {}
                    Err((path, error)) if depends_on_others(&error) => {
                        refused.push(write);
                        first.get_or_insert((write, path, error));
                    }
                    Err((path, error)) => return Err(self.explain(write, &path, &error)),
                }
            }
            match first {
                Some((write, path, error)) if refused.len() == before => {
                    return Err(self.explain(write, &path, &error));
                }
                _ => left = refused,
            }
        }
        Ok(())
    }

    /// One write, into the first of its files that is there.
    fn write(&self, write: &Write, undo: &mut Undo) -> Result<(), (PathBuf, io::Error)> {
        let dir = self.directory_of(write);
        let path = dir.join(&write.file);
        let error = match undo.noting(&path, || put_planned(&path, write)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => error,
            done => return done.map_err(|error| (path, error)),
        };
        if let Some((file, value)) = &write.otherwise {
            let path = dir.join(file);
            return undo.noting(&path, || put(&path, value)).map_err(|error| (path, error));
        }
        if write.may_be_missing { Ok(()) } else { Err((path, error)) }
    }

    fn directory_of(&self, write: &Write) -> &Path {
        let found = if write.controller.is_empty() {
            self.unified.as_deref()
        } else {
            self.directory(&write.controller)
        };
        found.expect("the plan only has controllers of this machine")
    }

    fn explain(&self, write: &Write, path: &Path, error: &io::Error) -> Failure {
        let field = &write.field;
        if error.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::exists) {
            return refuse(field, format!("this kernel has no `{}`", write.file));
        }
        let mut message = format!(
            "`{ROOT}.{field}`: failed to write \"{}\" to {}: {}",
            write.value,
            path.display(),
            describe(error)
        );
        if write.file == "memory.limit_in_bytes" || write.file == "memory.max" {
            let usage = ["memory.usage_in_bytes", "memory.current"];
            let usage = usage.iter().find_map(|file| read_number(&path.with_file_name(file)));
            if let Some(usage) = usage {
                message.push_str(&format!(" (current usage: {usage})"));
            }
        }
        Failure::invalid(message)
    }

    // spec: oci-runtime config-linux.md#memory, checkBeforeUpdate
    fn refuse_less_than_used(&self, memory: i64, with_swap: i64) -> Result<(), Failure> {
        let Some(dir) = self.directory("memory") else { return Ok(()) };
        let read = |file: &str| read_number(&dir.join(file));
        let used = read("memory.usage_in_bytes").or_else(|| read("memory.current")).unwrap_or(0);
        for (field, limit) in [("memory.limit", memory), ("memory.swap", with_swap)] {
            if limit > 0 && u64::try_from(limit).is_ok_and(|limit| limit <= used) {
                return Err(refuse(field, format!("{limit} is not more than the {used} in use")));
            }
        }
        Ok(())
    }

    /// On a hybrid machine a controller of version 2 is handed down when the first limit needs it: to do so
    /// for every container would change the machine's root for nothing.
    fn hand_down(&self, writes: &[Write]) -> Result<(), Failure> {
        let of_v2 = |write: &&Write| self.layout.version_of(&write.controller) == Some(Version::V2);
        let Some(write) = writes.iter().find(of_v2) else { return Ok(()) };
        let mut needed: Vec<String> = writes.iter().filter(of_v2).map(|w| w.controller.clone()).collect();
        needed.sort();
        needed.dedup();
        self.enable_controllers(&needed).map_err(|why| refuse(&write.field, why))
    }

    /// Makes the parents hand these controllers of version 2 down to the cgroup, or says why one does not.
    pub(super) fn enable_controllers(&self, needed: &[String]) -> Result<(), String> {
        let (Some(mount), Some(dir)) = (&self.layout.unified, &self.unified) else { return Ok(()) };
        if missing_of(dir, needed).is_empty() {
            return Ok(());
        }
        let relative = dir.strip_prefix(mount).unwrap_or(Path::new(""));
        let mut parent = mount.clone();
        for part in relative {
            let missing = missing_of(&parent.join(part), needed);
            if !missing.is_empty() {
                hand_down_from(&parent, &missing)
                    .map_err(|(controller, error)| why_not_handed_down(controller, &parent, mount, &error))?;
            }
            parent.push(part);
        }
        Ok(())
    }

    fn set_devices(&self, rules: &Rules, is_new: bool) -> Result<(), Failure> {
        if let Some(dir) = self.directory("devices") {
            return set_devices_v1(dir, rules);
        }
        let Some(dir) = self.only_unified() else { return Ok(()) };
        devices::attach(dir, rules, is_new).context("attach device rules to cgroup")
    }
}

/// What files held before, for when a later one refuses. A new cgroup goes as a whole instead.
struct Undo {
    notes: Option<Vec<(PathBuf, String)>>,
}

impl Undo {
    fn noting(&mut self, path: &Path, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let before = self.notes.as_ref().and_then(|_| fs::read_to_string(path).ok());
        write()?;
        if let (Some(notes), Some(before)) = (&mut self.notes, before) {
            notes.push((path.to_owned(), before));
        }
        Ok(())
    }

    /// Backwards: each value was possible with those that were there when it was changed. Files of several lines
    /// (limits by device) do not take back what they show, and stay.
    fn run(&self) {
        for (path, before) in self.notes.iter().flatten().rev() {
            let value = before.trim_end();
            if !value.contains(['\n', ':']) && put(path, if value.is_empty() { "\n" } else { value }).is_err()
            {
                tracing::warn!(file = %path.display(), value, "limit could not be set back");
            }
        }
    }
}

/// Reads the whole list once, and opens each file once: there are a dozen rules at least.
fn set_devices_v1(dir: &Path, rules: &Rules) -> Result<(), Failure> {
    let path = dir.join("devices.list");
    let list = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut open: Option<(&str, fs::File)> = None;
    for (file, value) in rules.v1_writes(&list)? {
        let path = dir.join(file);
        if open.as_ref().is_none_or(|(name, _)| *name != file) {
            let opened = fs::File::options().write(true).open(&path);
            open = Some((file, opened.with_context(|| format!("open {}", path.display()))?));
        }
        let Some((_, file)) = &open else { continue };
        rustix::io::write(file, value.as_bytes())
            .with_context(|| format!("failed to write \"{value}\" to {}", path.display()))?;
    }
    Ok(())
}

fn put_planned(path: &Path, write: &Write) -> io::Result<()> {
    if !write.keeps_first_word {
        return put(path, &write.value);
    }
    let present = fs::read_to_string(path)?;
    let first = present.split_whitespace().next().unwrap_or("max");
    put(path, &format!("{first} {}", write.value))
}

/// `EINVAL`: out of bounds that another file sets. `EBUSY`: below what is in use, or another file's value.
fn depends_on_others(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBUSY))
}

/// All at once where that goes. One that cannot be had is no reason to leave out the others.
///
/// A parent with processes could hand some controllers down, but would become threaded by that, and its
/// children places where no process can be: nothing is tried there.
fn hand_down_from<'a>(parent: &Path, controllers: &[&'a str]) -> Result<(), (&'a str, io::Error)> {
    let busy = || (controllers[0], io::Error::from_raw_os_error(libc::EBUSY));
    // The root has no type, and may have processes.
    if parent.join("cgroup.type").exists() && has_processes(parent) {
        return Err(busy());
    }
    let file = parent.join("cgroup.subtree_control");
    let all: Vec<String> = controllers.iter().map(|controller| format!("+{controller}")).collect();
    if put(&file, &all.join(" ")).is_ok() {
        return Ok(());
    }
    let mut done = Ok(());
    for (controller, word) in controllers.iter().zip(&all) {
        done = done.and(put(&file, word).map_err(|error| (*controller, error)));
    }
    done
}

fn has_processes(dir: &Path) -> bool {
    let read = fs::File::open(dir.join("cgroup.procs")).and_then(|f| Ok(rustix::io::read(f, &mut [0; 16])?));
    read.is_ok_and(|length| length > 0)
}

fn missing_of<'a>(dir: &Path, needed: &'a [String]) -> Vec<&'a str> {
    let there = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let is_missing = |name: &&String| !there.split_whitespace().any(|word| word == *name);
    needed.iter().filter(is_missing).map(String::as_str).collect()
}

/// Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint" and "Threads"
fn why_not_handed_down(controller: &str, parent: &Path, mount: &Path, error: &io::Error) -> String {
    let name = Path::new("/").join(parent.strip_prefix(mount).unwrap_or(parent));
    let name = name.display();
    match error.raw_os_error() {
        Some(libc::EBUSY) => format!(
            "cgroup `{name}` has processes of its own, so it cannot hand controller `{controller}` down; move \
             them into a cgroup below it"
        ),
        Some(libc::EOPNOTSUPP) => {
            format!("cgroup `{name}` is threaded, and controller `{controller}` does not do threads")
        }
        Some(libc::ENOENT) => format!("controller `{controller}` is not handed down to cgroup `{name}`"),
        _ => format!("cgroup `{name}` cannot hand controller `{controller}` down: {}", describe(error)),
    }
}

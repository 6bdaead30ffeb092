//! A new file system, from its type, source and options.

use std::borrow::Cow;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountFlags};

use super::mount::Planned;
use super::options::Options;
use crate::failure::{Context, Failure, describe};
use crate::overlay::kernel_words;

/// fsconfig(2) takes values shorter than this; mount(2) takes a page of options.
const VALUE_MAX: usize = 256;

/// Whose instances share one superblock with other containers or the machine, or which must be filled
/// before they can be read-only: only the mount of it is made read-only.
const READONLY_BY_MOUNT: &[&str] = &["proc", "sysfs", "devpts", "mqueue", "tmpfs", "cgroup", "cgroup2"];

/// What is to be made.
#[derive(Debug)]
pub(super) struct Filesystem<'a> {
    typ: &'a str,
    source: Option<&'a Path>,
    superblock: Vec<&'a str>,
    pub data: Vec<(&'a str, Option<Cow<'a, str>>)>,
}

/// Why it could not be made.
#[derive(Debug)]
pub(super) struct Refused {
    pub errno: Errno,
    pub failure: Failure,
}

impl<'a> Filesystem<'a> {
    /// As a spec's mount asks for it. SELinux has no labels for procfs, sysfs and message queues.
    pub(super) fn of(planned: &'a Planned<'_>, typ: &'a str, label: Option<&'a str>) -> Filesystem<'a> {
        let options = &planned.options;
        let mut superblock = options.superblock.clone();
        if options.attributes.set & libc::MOUNT_ATTR_RDONLY != 0 && !READONLY_BY_MOUNT.contains(&typ) {
            superblock.push("ro");
        }
        let own = options.data.iter().map(|(key, value)| (key.as_str(), value.as_deref().map(Cow::Borrowed)));
        let label = label.filter(|_| !matches!(typ, "proc" | "sysfs" | "mqueue"));
        let label = label.map(|label| ("context", Some(Cow::Borrowed(label))));
        let source = planned.mount.source().as_deref();
        Filesystem { typ, source, superblock, data: own.chain(label).collect() }
    }

    /// A tmpfs.
    pub(super) fn tmpfs(options: &[(&'a str, &'a str)], label: Option<&'a str>) -> Filesystem<'a> {
        let label = label.map(|label| ("context", label));
        let data = options.iter().copied().chain(label);
        let data = data.map(|(key, value)| (key, Some(Cow::Borrowed(value)))).collect();
        Filesystem { typ: "tmpfs", source: Some(Path::new("tmpfs")), superblock: Vec::new(), data }
    }

    /// An option's value.
    pub(super) fn value(&self, key: &str) -> Option<&str> {
        self.data.iter().find(|(known, _)| *known == key)?.1.as_deref()
    }

    /// Whether only mount(2) can take these options.
    pub(super) fn is_too_long(&self) -> bool {
        let values = self.data.iter().filter_map(|(_, value)| value.as_ref()).map(|value| value.len());
        let source = self.source.map(|source| source.as_os_str().len());
        values.chain(source).any(|length| length >= VALUE_MAX)
    }

    /// Makes it, detached.
    pub(super) fn make(&self, attributes: MountAttrFlags) -> Result<OwnedFd, Refused> {
        let context = rustix::mount::fsopen(self.typ, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| {
            Refused { errno, failure: Failure::os(format!("file system of type `{}`", self.typ), errno) }
        })?;
        let explain = |what: &str, errno: Errno| {
            let why = kernel_words(&context).unwrap_or_else(|| describe(&errno.into()));
            Refused { errno, failure: Failure::other(format!("{what}: {why}")) }
        };
        if let Some(source) = self.source {
            rustix::mount::fsconfig_set_string(context.as_fd(), "source", source)
                .map_err(|error| explain("set source", error))?;
        }
        for flag in &self.superblock {
            rustix::mount::fsconfig_set_flag(context.as_fd(), *flag)
                .map_err(|error| explain(&format!("option `{flag}`"), error))?;
        }
        for (key, value) in &self.data {
            configure(&context, key, value.as_deref())
                .map_err(|error| explain(&format!("option `{key}`"), error))?;
        }
        rustix::mount::fsconfig_create(context.as_fd()).map_err(|error| explain("create", error))?;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|error| explain("mount", error))
    }

    /// Mounts it by mount(2), at a path that stands for an open descriptor.
    pub(super) fn mount_at(&self, target: &Path) -> Result<(), Failure> {
        let mut flags = MountFlags::empty();
        for word in &self.superblock {
            flags |= match *word {
                "ro" => MountFlags::RDONLY,
                "sync" => MountFlags::SYNCHRONOUS,
                "dirsync" => MountFlags::DIRSYNC,
                "lazytime" => MountFlags::LAZYTIME,
                "mand" => MountFlags::PERMIT_MANDATORY_FILE_LOCKING,
                _ => MountFlags::empty(),
            };
        }
        let words = self.data.iter().map(|(key, value)| match value {
            Some(value) => format!("{key}={value}"),
            None => (*key).to_owned(),
        });
        let invalid = |_| Failure::invalid("an option contains a zero byte");
        let data = CString::new(words.collect::<Vec<_>>().join(",")).map_err(invalid)?;
        let source = self.source.map_or(&b""[..], |source| source.as_os_str().as_bytes());
        rustix::mount::mount(source, target, self.typ, flags, &*data).context("mount")
    }
}

/// Changes the file system that is mounted where `place` is open.
pub(super) fn reconfigure(place: &OwnedFd, options: &Options) -> Result<(), Failure> {
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    let context = rustix::mount::fspick(place, "", flags).context("open the file system")?;
    let explain = |what: &str, error: Errno| {
        let why = kernel_words(&context).unwrap_or_else(|| describe(&error.into()));
        Failure::other(format!("{what}: {why}"))
    };
    for flag in &options.superblock {
        rustix::mount::fsconfig_set_flag(context.as_fd(), *flag)
            .map_err(|error| explain(&format!("option `{flag}`"), error))?;
    }
    for (key, value) in &options.data {
        configure(&context, key, value.as_deref())
            .map_err(|error| explain(&format!("option `{key}`"), error))?;
    }
    rustix::mount::fsconfig_reconfigure(context.as_fd()).map_err(|error| explain("remount", error))
}

fn configure(context: &OwnedFd, key: &str, value: Option<&str>) -> Result<(), Errno> {
    match value {
        Some(value) => rustix::mount::fsconfig_set_string(context.as_fd(), key, value),
        None => rustix::mount::fsconfig_set_flag(context.as_fd(), key),
    }
}

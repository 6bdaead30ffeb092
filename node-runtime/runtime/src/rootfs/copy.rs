//! Copies a directory into a new tmpfs (`tmpcopyup`): names, contents, owners, modes, times, attributes.
//!
//! The source is an image's: nothing in it is followed, and what is opened is looked at again.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// Deeper trees than paths can name are refused.
const DEPTH_MAX: u32 = 2048;

/// Copies what is in `from` into `to`, both open as `O_PATH`, and with `owned` gives `to` the owner of `from`. Its
/// mode is the mount's, which was made with one.
pub(super) fn contents(from: &OwnedFd, to: &OwnedFd, owned: bool) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = rustix::fs::openat(from, ".", flags, Mode::empty())?;
    let to = rustix::fs::openat(to, ".", flags, Mode::empty())?;
    directory(&from, &to, DEPTH_MAX)?;
    let (mut stat, made) = (rustix::fs::fstat(&from)?, rustix::fs::fstat(&to)?);
    stat.st_mode = made.st_mode;
    if !owned {
        (stat.st_uid, stat.st_gid) = (made.st_uid, made.st_gid);
    }
    finish(&from, &to, &stat)
}

fn directory(from: &OwnedFd, to: &OwnedFd, depth: u32) -> io::Result<()> {
    let depth = depth.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let open = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = open | OFlags::RDONLY | OFlags::DIRECTORY;
                let inner = rustix::fs::openat(from, name, flags, Mode::empty())?;
                rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                let copy = rustix::fs::openat(to, name, flags, Mode::empty())?;
                directory(&inner, &copy, depth)?;
                finish(&inner, &copy, &stat)?;
            }
            FileType::RegularFile => {
                let flags = open | OFlags::RDONLY | OFlags::NONBLOCK;
                let inner = rustix::fs::openat(from, name, flags, Mode::empty())?;
                if FileType::from_raw_mode(rustix::fs::fstat(&inner)?.st_mode) != FileType::RegularFile {
                    return Err(Errno::STALE.into());
                }
                let flags = open | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let copy = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
                let (mut reader, mut writer) = (File::from(inner), File::from(copy));
                io::copy(&mut reader, &mut writer)?;
                finish(&reader.into(), &writer.into(), &stat)?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&*target, to, name)?;
                own(to, name, &stat)?;
            }
            kind => {
                rustix::fs::mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode), stat.st_rdev)?;
                own(to, name, &stat)?;
                rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
            }
        }
    }
    Ok(())
}

/// Owner before mode, since a change of owner takes set-id bits and capabilities away.
fn finish(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> io::Result<()> {
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    attributes(from, to)?;
    let time = |sec: i64, nsec: u64| Timespec { tv_sec: sec, tv_nsec: nsec.cast_signed() };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(rustix::fs::futimens(to, &times)?)
}

fn own(dir: &OwnedFd, name: &std::ffi::CStr, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    Ok(rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Extended attributes, as far as tmpfs has that kind; SELinux labels are the mount's own.
fn attributes(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(from, &mut names) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        length => length?,
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name == b"security.selinux" {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::fgetxattr(from, name, &mut value)?;
        match rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

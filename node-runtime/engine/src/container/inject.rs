//! Puts secrets and configs into a created container: files in a memory file system of its own, each mounted
//! read-only at its place. Nothing of them is ever on a disk or in the machine's mount namespace.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::config::InjectedFile;
use crate::merge::clean_path;
use crate::merged;

/// Where the memory file system is while it is filled. `/dev` is always a container's own memory.
const STAGE: &str = "/dev/.rswarm-files";

/// Makes the places where the files get mounted, in the container's writable layer: a read-only root file
/// system can still get them. Blocking.
pub(crate) fn make_places(upper: &Path, lower: &[PathBuf], files: &[InjectedFile]) -> io::Result<()> {
    let layers: Vec<PathBuf> = [upper.to_owned()].into_iter().chain(lower.iter().cloned()).collect();
    for file in files {
        let target = clean_path(&file.target);
        let (dir, name) = target.rsplit_once('/').unwrap_or(("", &target));
        let merged = merged::directory(&layers, dir)?;
        let is_there = |dir: merged::Directory| {
            dir.layers.iter().any(|layer| layer.join(name).symlink_metadata().is_ok())
        };
        if !merged.is_some_and(is_there) {
            File::create(merged::upper_directory(upper, lower, dir)?.join(name))?;
        }
    }
    Ok(())
}

/// Mounts the files. `pid` is the container's first process, which does not run yet. Blocking.
pub(crate) fn inject(pid: i32, files: &[InjectedFile]) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
    // A thread of its own: it enters the container's mount namespace and ends there.
    std::thread::scope(|scope| {
        let work = scope.spawn(move || {
            unshare(CloneFlags::CLONE_FS)?;
            setns(namespace, CloneFlags::CLONE_NEWNS)?;
            fill(files)
        });
        work.join().unwrap_or_else(|_| Err(io::Error::other("the thread that mounts files panicked")))
    })
}

fn fill(files: &[InjectedFile]) -> io::Result<()> {
    let none: Option<&str> = None;
    let guarded = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    fs::create_dir(STAGE)?;
    mount(Some("tmpfs"), STAGE, Some("tmpfs"), guarded, Some("mode=0755"))?;
    for (number, file) in files.iter().enumerate() {
        let source = Path::new(STAGE).join(number.to_string());
        write(&source, file)?;
        let target = clean_path(&file.target);
        make_place(Path::new(&target))?;
        mount(Some(&source), target.as_str(), none, MsFlags::MS_BIND, none)?;
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | guarded;
        mount(none, target.as_str(), none, read_only, none)?;
    }
    umount2(STAGE, MntFlags::MNT_DETACH)?;
    fs::remove_dir(STAGE)
}

fn write(path: &Path, file: &InjectedFile) -> io::Result<()> {
    let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    open.write_all(&file.data)?;
    fchown(&open, Some(file.uid), Some(file.gid))?;
    open.set_permissions(fs::Permissions::from_mode(file.mode & 0o7777))
}

/// Below a mount of the container's, [`make_places`] could not help.
fn make_place(target: &Path) -> io::Result<()> {
    if target.symlink_metadata().is_ok() {
        return Ok(());
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create(target).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_made_in_a_directory_that_only_the_image_has() {
        let dir = tempfile::tempdir().expect("a directory");
        let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
        fs::create_dir_all(lower.join("etc")).expect("made");
        fs::set_permissions(lower.join("etc"), fs::Permissions::from_mode(0o750)).expect("set");
        File::create(lower.join("etc/there")).expect("made");
        fs::create_dir(&upper).expect("made");
        let file = |target: &str| InjectedFile {
            target: target.to_owned(),
            data: Vec::new(),
            uid: 0,
            gid: 0,
            mode: 0o444,
        };
        let files = [file("/etc/conf"), file("/run/secrets/key"), file("/etc/there")];
        make_places(&upper, &[lower], &files).expect("places");
        assert!(upper.join("etc/conf").is_file() && upper.join("run/secrets/key").is_file());
        assert!(!upper.join("etc/there").exists(), "what the image has is a place");
        let mode = fs::metadata(upper.join("etc")).expect("it").permissions().mode();
        assert_eq!(mode & 0o7777, 0o750, "as the image's");
    }
}

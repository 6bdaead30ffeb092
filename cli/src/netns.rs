//! Network namespaces by path: make, pin, enter. Nothing here touches the namespace that we run in.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rswarm_base::error::{Classify, Kind};

/// What failed about a namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Not made.
    #[error("network namespace `{path}` cannot be made")]
    Create {
        /// Where it was to be pinned.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not entered.
    #[error("network namespace `{path}` cannot be entered")]
    Enter {
        /// Where it is pinned.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not removed.
    #[error("network namespace `{path}` cannot be removed")]
    Remove {
        /// Where it is pinned.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program did not start.
    #[error("`{program}` cannot be started in the namespace")]
    Exec {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// `enter-netns` was called wrongly.
    #[error("usage: rswarm enter-netns PATH -- COMMAND [ARG...]")]
    Usage,
}

impl Classify for NetnsError {
    fn kind(&self) -> Kind {
        match self {
            NetnsError::Usage => Kind::InvalidArgument,
            NetnsError::Create { .. }
            | NetnsError::Enter { .. }
            | NetnsError::Remove { .. }
            | NetnsError::Exec { .. } => Kind::Internal,
        }
    }
}

/// Makes a namespace and pins it at `path` by a bind mount. Gives its inode, which tells it from others.
pub fn create(path: &Path) -> Result<u64, NetnsError> {
    let pin = || -> io::Result<u64> {
        File::create_new(path)?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        let own = Path::new("/proc/thread-self/ns/net");
        mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(path.metadata()?.ino())
    };
    on_a_thread(pin).map_err(|source| NetnsError::Create { path: path.to_owned(), source })
}

/// Unpins a namespace; the kernel ends it with its last process. One that is not there is fine.
pub fn remove(path: &Path) -> Result<(), NetnsError> {
    let unpin = || -> io::Result<()> {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(problem) => return Err(problem.into()),
        }
        rswarm_base::fsx::remove_all(path)
    };
    unpin().map_err(|source| NetnsError::Remove { path: path.to_owned(), source })
}

/// Runs `work` on a thread of its own inside the namespace; sockets made there stay in it.
pub fn inside<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let namespace = File::open(path);
    let entered = on_a_thread(|| {
        setns(namespace?, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    });
    entered.map_err(|source| NetnsError::Enter { path: path.to_owned(), source })
}

/// `rswarm enter-netns PATH -- COMMAND ARG...`: becomes COMMAND inside the namespace. Returns only to fail.
pub fn exec(mut args: impl Iterator<Item = std::ffi::OsString>) -> NetnsError {
    let (Some(path), Some(dashes), Some(program)) = (args.next(), args.next(), args.next()) else {
        return NetnsError::Usage;
    };
    if dashes != "--" {
        return NetnsError::Usage;
    }
    let path = PathBuf::from(path);
    let entered =
        File::open(&path).and_then(|ns| setns(ns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
    if let Err(source) = entered {
        return NetnsError::Enter { path, source };
    }
    let source = Command::new(&program).args(args).exec();
    NetnsError::Exec { program: program.to_string_lossy().into_owned(), source }
}

/// A thread's namespace is its own; the thread ends with the change it made.
fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let done = scope.spawn(work).join();
        done.unwrap_or_else(|_| Err(io::Error::other("the namespace's thread panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_namespace_is_another_one_and_goes_without_trace() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("n1");
        let own = std::fs::metadata("/proc/thread-self/ns/net").expect("own").ino();
        let made = create(&path).expect("root can make namespaces");
        assert_ne!(made, own);
        let seen = inside(&path, || std::fs::metadata("/proc/thread-self/ns/net").map(|meta| meta.ino()));
        assert_eq!(seen.expect("enters").expect("reads"), made);
        assert_eq!(std::fs::metadata("/proc/thread-self/ns/net").expect("own").ino(), own);
        remove(&path).expect("removes");
        remove(&path).expect("removing again is fine");
        assert!(!path.exists());
    }
}

//! The OCI runtime as a library: namespaces, mounts, cgroups and confinement of one container.
//!
//! Is not: anything that outlives a call. The shim is the container's parent and keeps its stdio; the
//! engine decides what a container is. A process that calls [`create`] must have one thread.

mod failure;
mod overlay;

pub use failure::{Failure, FailureKind};
pub use overlay::Rootfs;

/// A view of a program's file that cannot be written through, to run it from: a container's init is a copy
/// of its caller until it executes the user's command, and must not offer a way to that file (CVE-2019-5736).
///
/// # Errors
/// The failing call's.
pub fn readonly_program(_path: &std::path::Path) -> std::io::Result<std::os::fd::OwnedFd> {
    todo!("open_tree and mount_setattr")
}

pub mod cli {
    //! `rswarm runtime`: the runtime with runc's command line.

    /// The entry of `rswarm runtime`; called before any thread exists, with the arguments after `runtime`.
    #[must_use]
    pub fn main(_args: Vec<std::ffi::OsString>) -> i32 {
        todo!("the commands")
    }
}

//! The OCI runtime as a library: namespaces, mounts, cgroups and confinement of one container.
//!
//! Is not: anything that outlives a call. The shim is the container's parent and keeps its stdio; the
//! engine decides what a container is. A process that calls [`create`] must have one thread: init is a plain
//! copy of it, and does not execute anything before the user's command.
//! Start at [`create()`](fn@create) (the parent's side), then `init` (the child's, in order), then `rootfs` and
//! [`cgroup`].

mod attributes;
pub mod cgroup;
mod channel;
pub mod cli;
mod command;
mod confine;
mod create;
mod exec;
mod failure;
pub mod hooks;
mod idmap;
mod init;
mod keyring;
mod last;
mod loopback;
mod lsm;
mod namespaces;
mod netdevice;
mod netlink;
mod overlay;
mod procfs;
mod program;
mod rootfs;
pub mod seccomp;
pub mod spec;
mod sys;
mod terminal;
pub mod user;
mod validate;

pub use confine::hard_limit;
pub use create::{Create, Created, create};
pub use exec::{Added, Exec, exec, exec_process};
pub use failure::{Failure, FailureKind, describe};
pub use last::Gate;
pub use overlay::Rootfs;
pub use program::readonly_program;
pub use sys::{exit_now, fork, send_signal};
pub use terminal::{Stdio, resize};
pub use user::fill_in;

//! The session keyring that a container's processes share with each other, and not with their caller.

use std::ffi::CString;
use std::io;

use oci_spec::runtime::Process;

use crate::failure::{Context, Failure};
use crate::lsm;
use crate::procfs::Proc;
use crate::sys;

// Permissions of keyctl_setperm(3): who else may find the keyring, to join it.
const USER_SEARCH: u32 = 0x0008_0000;
const OTHER_SEARCH: u32 = 0x0000_0008;

/// Joins the container's keyring, which its first process makes. With a user namespace of its own the
/// container's users differ, and others must find it; it is not to be found outside of the namespace.
///
/// # Errors
/// The failing call's. A kernel without keyrings has nothing to keep apart, and is none.
pub(crate) fn join(id: &str, own_users: bool, proc: &Proc, process: &Process) -> Result<(), Failure> {
    lsm::label_keys(proc, process)?;
    let name = CString::new(format!("_ses.{id}")).map_err(|_| Failure::invalid("an id has no zero byte"))?;
    let key = match sys::join_session_keyring(&name) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => return Ok(()),
        joined => joined.context("unable to join session keyring")?,
    };
    let more = if own_users { OTHER_SEARCH } else { USER_SEARCH };
    let what = "unable to mod keyring permissions";
    let present = sys::describe_key(key).context(what)?;
    match permissions(&present) {
        Some(present) if present & more == more => Ok(()),
        Some(present) => sys::set_key_permissions(key, present | more).context(what),
        None => Err(Failure::os(what, io::Error::from(io::ErrorKind::InvalidData))),
    }
}

/// The fourth field of a description, hexadecimal.
fn permissions(description: &[u8]) -> Option<u32> {
    let field = description.split(|byte| *byte == b';').nth(3)?;
    u32::from_str_radix(str::from_utf8(field).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_read() {
        assert_eq!(permissions(b"keyring;0;0;3f130000;_ses.x\0"), Some(0x3f13_0000));
        assert_eq!(permissions(b"keyring;0"), None);
    }
}

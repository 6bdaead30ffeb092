//! The user's command: found as a shell would find it, executed, and the words when either fails.
//!
//! Docker's clients turn these words into exit codes 126 and 127: they are runc's.

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, eaccess};
use rustix::fs::{Access, AtFlags, CWD, FileType};
use rustix::io::Errno;

use crate::failure::{Failure, FailureKind, describe};

/// Finds the program for `name`, with the search path of the environment given.
pub(crate) fn find(name: &str, env: &[String]) -> Result<PathBuf, Failure> {
    let failed = |kind, why: &str| Failure { message: format!("exec: \"{name}\": {why}"), kind };
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(failed(FailureKind::NotFound, &format!("stat {name}: {}", describe(&error))))
            }
            Err(error) => Err(failed(FailureKind::NotExecutable, &describe(&error))),
        };
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let mut denied = false;
    for dir in path.split(':') {
        let candidate = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) => denied |= error.kind() == io::ErrorKind::PermissionDenied,
        }
    }
    if denied && !name.is_empty() {
        return Err(failed(FailureKind::NotExecutable, "permission denied"));
    }
    Err(failed(FailureKind::NotFound, "executable file not found in $PATH"))
}

fn executable(path: &Path) -> io::Result<()> {
    // The standard library would ask by statx(2), which a filter for older programs does not know.
    if FileType::from_raw_mode(rustix::fs::stat(path)?.st_mode) == FileType::Directory {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    // With the capabilities that it has now: glibc's eaccess(3) looks at users and modes only.
    match rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        // Older kernels, and filters made for them, do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => Ok(eaccess(path, AccessFlags::X_OK)?),
        done => Ok(done?),
    }
}

/// Becomes the program.
pub(crate) fn execute(program: &Path, args: &[String], env: &[String]) -> Result<Infallible, Failure> {
    use std::os::unix::ffi::OsStrExt;
    let zero = |_| Failure::invalid("arguments and environment cannot contain a zero byte");
    let strings =
        |all: &[String]| all.iter().map(|one| CString::new(one.as_str())).collect::<Result<Vec<_>, _>>();
    let path = CString::new(program.as_os_str().as_bytes()).map_err(zero)?;
    let (args, env) = (strings(args).map_err(zero)?, strings(env).map_err(zero)?);
    let error = nix::unistd::execve(&path, &args, &env).map_or_else(io::Error::from, |never| match never {});
    let kind = match error.raw_os_error() {
        Some(libc::ENOENT) => FailureKind::NotFound,
        Some(libc::EACCES | libc::ENOEXEC | libc::EISDIR | libc::EPERM) => FailureKind::NotExecutable,
        _ => FailureKind::Other,
    };
    Err(Failure { message: format!("exec {}: {}", program.display(), describe(&error)), kind })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn fails(name: &str, path: &str) -> (String, i32) {
        let failure = find(name, &[format!("PATH={path}")]).expect_err("not found");
        let code = failure.exit_code();
        (failure.message, code)
    }

    #[test]
    fn a_command_is_found_on_the_path() {
        let dir = tempfile::tempdir().expect("tempdir");
        let program = dir.path().join("tool");
        std::fs::write(&program, "").expect("write");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let path = format!("PATH=/nowhere:{}", dir.path().display());
        assert_eq!(find("tool", &[path]), Ok(program));
    }

    #[test]
    fn the_words_are_runcs() {
        assert_eq!(
            fails("foo", "/nowhere"),
            ("exec: \"foo\": executable file not found in $PATH".to_owned(), 127)
        );
        let missing = "exec: \"/none/foo\": stat /none/foo: no such file or directory".to_owned();
        assert_eq!(fails("/none/foo", ""), (missing, 127));
        assert_eq!(fails("/etc/passwd", ""), ("exec: \"/etc/passwd\": permission denied".to_owned(), 126));
        assert_eq!(fails("/etc", ""), ("exec: \"/etc\": is a directory".to_owned(), 126));
    }
}

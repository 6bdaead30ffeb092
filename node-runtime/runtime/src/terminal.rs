//! Standard input, output and error of a container's process: files, or a pseudo-terminal of its own.

use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::Process;
use rustix::fs::{FileType, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, OutputModes, Winsize};

use crate::failure::{Context, Failure};

/// What a process's standard files are.
#[derive(Debug)]
pub enum Stdio {
    /// A terminal made in the container, with this size (columns, rows) if any; its near end comes back.
    Terminal(Option<(u16, u16)>),
    /// The same for a caller who passes on what it says, to another terminal or none: lines end as the command
    /// writes them.
    PassedOn,
    /// These.
    Files {
        /// Read from.
        stdin: OwnedFd,
        /// Written to.
        stdout: OwnedFd,
        /// Written to.
        stderr: OwnedFd,
    },
    /// The caller's.
    Inherit,
}

/// Both ends of a new terminal.
pub(crate) struct Pair {
    pub near: OwnedFd,
    pub far: OwnedFd,
}

/// Gives the caller its standard files; a terminal is made from the caller's `/dev/pts`.
pub(crate) fn take(stdio: &Stdio, process: &Process) -> Result<Option<Pair>, Failure> {
    match stdio {
        Stdio::Terminal(size) => {
            let pair = open(size.or_else(|| size_of(process)))?;
            use_as_stdio(&pair.far)?;
            Ok(Some(pair))
        }
        Stdio::PassedOn => {
            let pair = open(size_of(process))?;
            keep_newlines(&pair.near)?;
            use_as_stdio(&pair.far)?;
            Ok(Some(pair))
        }
        Stdio::Files { stdin, stdout, stderr } => {
            use_files([stdin, stdout, stderr])?;
            Ok(None)
        }
        Stdio::Inherit => Ok(None),
    }
}

/// Opens a terminal from the caller's `/dev/pts`.
fn open(size: Option<(u16, u16)>) -> Result<Pair, Failure> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let near = rustix::pty::openpt(flags).context("open /dev/ptmx")?;
    rustix::pty::unlockpt(&near).context("unlock terminal")?;
    let far = rustix::pty::ioctl_tiocgptpeer(&near, flags).context("open terminal")?;
    if let Some(size) = size {
        resize(&near, size)?;
    }
    Ok(Pair { near, far })
}

/// Lines end as the process writes them, whoever reads them; what a person sees is up to the caller's terminal.
fn keep_newlines(terminal: &OwnedFd) -> Result<(), Failure> {
    let mut settings = rustix::termios::tcgetattr(terminal).context("look at terminal")?;
    settings.output_modes.remove(OutputModes::ONLCR);
    rustix::termios::tcsetattr(terminal, OptionalActions::Now, &settings).context("set terminal")
}

/// Sets columns and rows.
///
/// # Errors
/// When it is no terminal.
pub fn resize(terminal: &OwnedFd, (columns, rows): (u16, u16)) -> Result<(), Failure> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).context("set terminal size")
}

/// The size that the configuration asks for.
fn size_of(process: &Process) -> Option<(u16, u16)> {
    let size = process.console_size()?;
    Some((u16::try_from(size.width()).ok()?, u16::try_from(size.height()).ok()?))
}

/// The terminal becomes the caller's own; the caller leads a session without one.
fn use_as_stdio(far: &OwnedFd) -> Result<(), Failure> {
    rustix::process::ioctl_tiocsctty(far).context("set controlling terminal")?;
    use_files([far, far, far])
}

/// The files become descriptors 0, 1 and 2.
fn use_files([stdin, stdout, stderr]: [&OwnedFd; 3]) -> Result<(), Failure> {
    nix::unistd::dup2_stdin(stdin).context("set stdin")?;
    nix::unistd::dup2_stdout(stdout).context("set stdout")?;
    nix::unistd::dup2_stderr(stderr).context("set stderr")
}

/// Gives pipes to the root of a user namespace, who could not take them: then it can give them on.
pub(crate) fn give_pipes_to(stdio: &Stdio, (uid, gid): (u32, u32)) -> Result<(), Failure> {
    let Stdio::Files { stdin, stdout, stderr } = stdio else { return Ok(()) };
    for file in [stdin, stdout, stderr] {
        let stat = rustix::fs::fstat(file).context("look at standard files")?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            let owner = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
            rustix::fs::fchown(file, Some(owner.0), Some(owner.1))
                .context("give standard files to the user namespace")?;
        }
    }
    Ok(())
}

/// Lets the user open its own standard files again, by `/dev/stdout` and the like.
pub(crate) fn give_to(uid: u32) -> Result<(), Failure> {
    let null = rustix::fs::stat("/dev/null").ok().map(|stat| stat.st_rdev);
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for file in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let Ok(stat) = rustix::fs::fstat(file) else { continue };
        let is_null =
            FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && Some(stat.st_rdev) == null;
        let readonly = rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.contains(OFlags::PATH));
        if stat.st_uid == uid || is_null || readonly {
            continue;
        }
        match rustix::fs::fchown(file, Some(rustix::fs::Uid::from_raw(uid)), None) {
            // A file on a read-only or foreign file system keeps its owner, as with runc.
            Ok(()) | Err(rustix::io::Errno::ROFS | rustix::io::Errno::PERM | rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(Failure::os("give standard files to the user", error)),
        }
    }
    Ok(())
}

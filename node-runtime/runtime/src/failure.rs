//! Why a container could not be made or started, in words that cross process borders.

use std::fmt;
use std::io;

use rswarm_base::{Classify, Kind};
use serde::{Deserialize, Serialize};

/// What kind of failure it was, as far as the user's exit code is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The command, or a file that it needs, is not there: exit code 127.
    NotFound,
    /// The command is there and cannot be executed: exit code 126.
    NotExecutable,
    /// The request cannot be served as written.
    Invalid,
    /// Everything else: exit code 128.
    Other,
}

/// A failed create, start or exec. Its text is complete (what and why) and worded as runc words it, since
/// Docker's clients look for words in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed and why, one line.
    pub message: String,
    /// What that means.
    pub kind: FailureKind,
}

impl Failure {
    /// A failure of the machine or of us.
    #[must_use]
    pub fn other(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), kind: FailureKind::Other }
    }

    /// A request that cannot be served as written.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), kind: FailureKind::Invalid }
    }

    /// `what: why`, where why is the system's error.
    #[must_use]
    pub fn os(what: impl fmt::Display, error: impl Into<io::Error>) -> Failure {
        Failure::other(format!("{what}: {}", describe(&error.into())))
    }

    /// What a shell would report as exit code: 127, 126 or 128.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self.kind {
            FailureKind::NotFound => 127,
            FailureKind::NotExecutable => 126,
            FailureKind::Invalid | FailureKind::Other => 128,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl Classify for Failure {
    fn kind(&self) -> Kind {
        match self.kind {
            FailureKind::NotFound | FailureKind::NotExecutable | FailureKind::Invalid => {
                Kind::InvalidArgument
            }
            FailureKind::Other => Kind::Internal,
        }
    }
}

/// The system's error as runc prints it: lower case, no number.
#[must_use]
pub fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => {
            let text = nix::errno::Errno::from_raw(number).desc();
            let mut letters = text.chars();
            let is_word = text.chars().nth(1).is_some_and(char::is_lowercase);
            match letters.next() {
                Some(first) if is_word => first.to_lowercase().chain(letters).collect(),
                _ => text.to_owned(),
            }
        }
        None => error.to_string(),
    }
}

/// Names what was being done when a system call failed.
pub(crate) trait Context<T> {
    /// `what: why` as a [`Failure`].
    fn context(self, what: impl fmt::Display) -> Result<T, Failure>;
    /// The same, with words that cost something to make.
    fn with_context(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::os(what, error))
    }

    fn with_context(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::os(what(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_read_as_in_go() {
        assert_eq!(describe(&io::Error::from_raw_os_error(libc::ENOENT)), "no such file or directory");
        assert_eq!(describe(&io::Error::from_raw_os_error(libc::EACCES)), "permission denied");
        assert_eq!(describe(&io::Error::from_raw_os_error(libc::EIO)), "I/O error");
    }
}

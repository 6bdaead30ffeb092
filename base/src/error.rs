//! How failures are classified. A crate's error enum says what failed; [`Classify`] says of which
//! [`Kind`] it is and what the reader can do. Kinds become HTTP statuses, gRPC codes and exit codes in
//! one table each (`api`, `proto::status`, `cli`).

use std::error::Error;
use std::fmt;

/// What a failure means to the caller, independent of any protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request itself is wrong.
    InvalidArgument,
    /// The named object does not exist.
    NotFound,
    /// The name, port or address is taken, or the object is in a state that forbids the request.
    Conflict,
    /// Already as asked.
    NotModified,
    /// The system is in a state that the request cannot be served in, until someone changes it.
    FailedPrecondition,
    /// The caller did not prove who it is.
    Unauthenticated,
    /// The caller may not do this.
    PermissionDenied,
    /// Not now: no leader, a peer is away. Trying again can work.
    Unavailable,
    /// Took longer than allowed.
    DeadlineExceeded,
    /// A limit of ours was reached.
    ResourceExhausted,
    /// Known, not supported here.
    NotImplemented,
    /// Everything else; a bug or a broken machine.
    Internal,
}

/// Kind and remedy of a failure.
pub trait Classify: Error {
    /// What the failure means to the caller.
    fn kind(&self) -> Kind;

    /// What the reader can do about it, as one imperative sentence, when we know.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// Prints an error and all its sources, joined by `: `. The one adapter for logs and messages.
pub struct Chain<'a>(pub &'a (dyn Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(source) = next {
            write!(f, ": {source}")?;
            next = source.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("layer could not be written")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_chain_prints_every_cause_once() {
        let error = Outer(std::io::Error::other("disk is full"));
        assert_eq!(Chain(&error).to_string(), "layer could not be written: disk is full");
    }
}

//! Error kinds as gRPC codes, and back: the one table for both directions.

use rswarm_base::{Chain, Classify, Kind};
use tonic::{Code, Status};

/// What a call that needs a leader is answered while there is none (swarmkit's words, which Docker clients know).
pub const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers are online. Make \
                             sure more than half of the managers are online.";
/// On the reply to a read: nobody leads, and this is what the manager that was asked knew last.
pub const REPLICA: &str = "rswarm-replica";
/// On a manager's control call: the user of its API who asked for it ([`rswarm_base::audit::User`]).
pub const USER: &str = "rswarm-user";

/// The gRPC status of a classified error: its whole chain as the message, the hint as metadata `hint`.
pub fn to_status<E: Classify>(error: &E) -> Status {
    let mut status = Status::new(code(error.kind()), Chain(error).to_string());
    if let Some(hint) = error.hint().and_then(|hint| hint.parse().ok()) {
        status.metadata_mut().insert("hint", hint);
    }
    status
}

/// The code that carries a kind.
#[must_use]
pub fn code(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::Conflict => Code::AlreadyExists,
        Kind::NotModified | Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::Unavailable => Code::Unavailable,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::NotImplemented => Code::Unimplemented,
        Kind::Internal => Code::Internal,
    }
}

/// The kind that a code stands for.
#[must_use]
pub fn kind(code: Code) -> Kind {
    match code {
        Code::InvalidArgument | Code::OutOfRange => Kind::InvalidArgument,
        Code::NotFound => Kind::NotFound,
        Code::AlreadyExists => Kind::Conflict,
        Code::FailedPrecondition => Kind::FailedPrecondition,
        Code::Unauthenticated => Kind::Unauthenticated,
        Code::PermissionDenied => Kind::PermissionDenied,
        Code::Unavailable | Code::Aborted | Code::Cancelled => Kind::Unavailable,
        Code::DeadlineExceeded => Kind::DeadlineExceeded,
        Code::ResourceExhausted => Kind::ResourceExhausted,
        Code::Unimplemented => Kind::NotImplemented,
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => Kind::Internal,
    }
}

/// A code's name, as gRPC's documentation and other implementations spell it.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

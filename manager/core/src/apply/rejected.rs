//! Why a transaction changed nothing, in the words that users read.

use rswarm_base::{Classify, Kind};
use rswarm_proto::wire::ObjectKind;

use crate::content::{ContentInUse, ContentMissing};
use crate::publish::{IngressError, PortTaken};

/// Why a transaction changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The object has been written since it was read.
    #[error("update out of sequence")]
    Version {
        /// The object's kind.
        kind: ObjectKind,
        /// The object's id.
        id: String,
        /// The version that the writer read.
        read: u64,
        /// The version that is stored.
        stored: u64,
    },
    /// An object of this id exists already.
    #[error("{} {id} already exists", noun(*.kind))]
    Exists {
        /// The object's kind.
        kind: ObjectKind,
        /// The object's id.
        id: String,
    },
    /// No object of this id exists.
    #[error("{} {id} not found", noun(*.kind))]
    Missing {
        /// The object's kind.
        kind: ObjectKind,
        /// The object's id.
        id: String,
    },
    /// Another object of the kind has the name.
    #[error("name conflicts with an existing object: {} {name} already exists", noun(*.kind))]
    NameTaken {
        /// The object's kind.
        kind: ObjectKind,
        /// The name.
        name: String,
    },
    /// The service would be on a network that does not exist, or is being deleted.
    #[error("network {0} not found")]
    NetworkGone(String),
    /// The network to be deleted has a service on it.
    #[error("network {network} is in use by service {service}")]
    NetworkInUse {
        /// The network's id.
        network: String,
        /// The service's id.
        service: String,
    },
    /// Another service has the port.
    #[error(transparent)]
    PortTaken(PortTaken),
    /// The network of the routing mesh is missing, there already, or in use.
    #[error(transparent)]
    Ingress(IngressError),
    /// The service would use secrets or configs that do not exist.
    #[error(transparent)]
    ContentMissing(ContentMissing),
    /// A service uses the secret or config that is to be deleted.
    #[error(transparent)]
    ContentInUse(ContentInUse),
    /// The author may not write this.
    #[error("`{author}` may not write {field}")]
    Forbidden {
        /// Who tried.
        author: String,
        /// What it tried to write.
        field: &'static str,
    },
    /// The task would go back to a state that it has left.
    #[error("task {0} cannot move back")]
    MovedBack(String),
    /// A change without an object, or of an unknown kind or action.
    #[error("the change is malformed")]
    Malformed,
}

impl Classify for Rejected {
    fn kind(&self) -> Kind {
        match self {
            Rejected::Ingress(error) => error.kind(),
            Rejected::Version { .. } | Rejected::NetworkInUse { .. } => Kind::FailedPrecondition,
            Rejected::PortTaken(_) | Rejected::ContentMissing(_) | Rejected::ContentInUse(_) => {
                Kind::InvalidArgument
            }
            Rejected::Exists { .. } | Rejected::NameTaken { .. } => Kind::Conflict,
            Rejected::Missing { .. } | Rejected::NetworkGone(_) => Kind::NotFound,
            Rejected::Forbidden { .. } | Rejected::MovedBack(_) | Rejected::Malformed => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Rejected::Ingress(error) => error.hint(),
            Rejected::Version { .. } => Some("read the object again and repeat the change on it".to_owned()),
            Rejected::Exists { .. }
            | Rejected::Missing { .. }
            | Rejected::NameTaken { .. }
            | Rejected::NetworkGone(_)
            | Rejected::NetworkInUse { .. }
            | Rejected::PortTaken(_)
            | Rejected::ContentMissing(_)
            | Rejected::ContentInUse(_)
            | Rejected::Forbidden { .. }
            | Rejected::MovedBack(_)
            | Rejected::Malformed => None,
        }
    }
}

/// What users call a kind of object.
#[must_use]
pub fn noun(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Cluster => "cluster",
        ObjectKind::Node => "node",
        ObjectKind::Service => "service",
        ObjectKind::Task => "task",
        ObjectKind::Network => "network",
        ObjectKind::Secret => "secret",
        ObjectKind::Config => "config",
    }
}

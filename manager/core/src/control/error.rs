//! Why requests are refused, with Docker's status and a way out.

use std::fmt;

use rswarm_base::{Classify, Kind};
use rswarm_proto::wire::ObjectKind;

use crate::apply::noun;
use crate::content::{ContentInUse, ContentMissing};
use crate::publish::{IngressError, PortTaken};
use crate::validate::Problem;

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The spec is wrong in these ways.
    #[error("{}", Joined(.0))]
    Invalid(Vec<Problem>),
    /// The request lacks what it needs.
    #[error("{0}")]
    Incomplete(&'static str),
    /// Nothing has this id, name or prefix.
    #[error("{} {reference} not found", noun(*.kind))]
    NotFound {
        /// What was looked for.
        kind: ObjectKind,
        /// How the user called it.
        reference: String,
    },
    /// Several objects have this name or prefix.
    #[error("{} {reference} is ambiguous (2 matches found)", noun(*.kind))]
    Ambiguous {
        /// What was looked for.
        kind: ObjectKind,
        /// How the user called it.
        reference: String,
    },
    /// The name is taken.
    #[error("name conflicts with an existing object: {} {name} already exists", noun(*.kind))]
    NameTaken {
        /// The kind of both.
        kind: ObjectKind,
        /// The name.
        name: String,
    },
    /// The object has changed since it was read.
    #[error("update out of sequence")]
    OutOfSequence,
    /// A published port belongs to another service.
    #[error(transparent)]
    PortTaken(#[from] PortTaken),
    /// The network of the routing mesh is missing, there already, or in use.
    #[error(transparent)]
    Ingress(#[from] IngressError),
    /// A service keeps its mode.
    #[error("service mode change is not allowed")]
    ModeChange,
    /// A service keeps its name.
    #[error("renaming services is not supported")]
    Rename,
    /// There is nothing to roll back to.
    #[error("service {0} does not have a previous spec")]
    NoPreviousSpec(String),
    /// Something still uses the network.
    #[error("network {network} is in use by {user}")]
    NetworkInUse {
        /// The network's id.
        network: String,
        /// What uses it.
        user: String,
    },
    /// The name of a secret or config is taken.
    #[error("{} {name} already exists", noun(*.kind))]
    ContentExists {
        /// Whether it is a secret or a config.
        kind: ObjectKind,
        /// The name.
        name: String,
    },
    /// More than the labels of a secret or config would change.
    #[error("only updates to Labels are allowed")]
    LabelsOnly,
    /// The spec names secrets or configs that there are not.
    #[error(transparent)]
    ContentMissing(#[from] ContentMissing),
    /// Services use the secret or config.
    #[error(transparent)]
    ContentInUse(ContentInUse),
    /// The network is for services alone.
    #[error("network {0} not manually attachable")]
    NotAttachable(String),
    /// An address that was asked for is none of the network's.
    #[error("Invalid address {0}: It does not belong to any of this network's subnets")]
    ForeignAddress(String),
    /// The id of the attachment is taken by something else.
    #[error("task {0} already exists")]
    TaskTaken(String),
    /// A manager must become a worker before it is removed.
    #[error(
        "node {0} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
    )]
    IsManager(String),
    /// The node still answers.
    #[error("node {0} is not down and can't be removed")]
    NodeUp(String),
    /// A cluster needs a manager.
    #[error("attempting to demote the last manager of the swarm (1 of 1)")]
    LastManager,
    /// Without this member, too few would be left that answer.
    #[error(
        "can't remove member from the raft: this would result in a loss of quorum ({reachable} of the {left} other managers are reachable, {needed} are needed)"
    )]
    QuorumLoss {
        /// Members that would be left.
        left: usize,
        /// Those of them that answer.
        reachable: usize,
        /// How many must answer.
        needed: usize,
    },
}

struct Joined<'a>(&'a [Problem]);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl Classify for ControlError {
    fn kind(&self) -> Kind {
        match self {
            ControlError::Invalid(_)
            | ControlError::Incomplete(_)
            | ControlError::Ambiguous { .. }
            | ControlError::LabelsOnly
            | ControlError::ContentMissing(_)
            | ControlError::ContentInUse(_)
            | ControlError::ForeignAddress(_)
            | ControlError::PortTaken(_) => Kind::InvalidArgument,
            // As swarmkit: it might be had one day.
            ControlError::ModeChange | ControlError::Rename => Kind::NotImplemented,
            ControlError::NotAttachable(_) => Kind::PermissionDenied,
            ControlError::NotFound { .. } => Kind::NotFound,
            ControlError::NameTaken { .. }
            | ControlError::ContentExists { .. }
            | ControlError::TaskTaken(_) => Kind::Conflict,
            ControlError::Ingress(error) => error.kind(),
            ControlError::OutOfSequence
            | ControlError::NoPreviousSpec(_)
            | ControlError::NetworkInUse { .. }
            | ControlError::IsManager(_)
            | ControlError::NodeUp(_)
            | ControlError::LastManager
            | ControlError::QuorumLoss { .. } => Kind::FailedPrecondition,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            ControlError::OutOfSequence => "read the object again and repeat the change on it".to_owned(),
            ControlError::Ingress(error) => return error.hint(),
            ControlError::IsManager(node) => format!("run `rswarm node demote {node}` first"),
            ControlError::NodeUp(node) => {
                format!("stop the node or let it leave first, or run `rswarm node rm --force {node}`")
            }
            ControlError::LastManager => "promote another node first".to_owned(),
            ControlError::QuorumLoss { .. } => "bring the unreachable managers back first".to_owned(),
            ControlError::Ambiguous { .. } => "use the whole id".to_owned(),
            ControlError::LabelsOnly => {
                "`rswarm secret update` and `rswarm config update` make a new version, and so does every client where the label `rswarm.versions=true` is set".to_owned()
            }
            ControlError::NotAttachable(_) => {
                "only `network create --attachable` makes overlays for containers of their own".to_owned()
            }
            ControlError::Invalid(problems) => {
                let fixes = problems.iter().filter_map(|problem| problem.fix.as_deref());
                return Some(fixes.collect::<Vec<_>>().join("; ")).filter(|fixes| !fixes.is_empty());
            }
            ControlError::ContentMissing(missing) => {
                let noun = noun(missing.kind);
                format!("`rswarm {noun} ls` shows what there is, `rswarm {noun} create` makes one")
            }
            ControlError::PortTaken(taken) => {
                format!("publish another port, or remove it from service {}", taken.service)
            }
            ControlError::ForeignAddress(_)
            | ControlError::TaskTaken(_)
            | ControlError::Incomplete(_)
            | ControlError::NotFound { .. }
            | ControlError::NameTaken { .. }
            | ControlError::ModeChange
            | ControlError::Rename
            | ControlError::NoPreviousSpec(_)
            | ControlError::ContentExists { .. }
            | ControlError::ContentInUse(_)
            | ControlError::NetworkInUse { .. } => return None,
        })
    }
}

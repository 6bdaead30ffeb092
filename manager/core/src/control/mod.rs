//! The bodies of the control calls: what a user's request means as a transaction on the current state.
//! The shell proposes it and answers with the object it was about; `apply` has the last word.
//!
//! A module for each kind of object; [`read`] finds and shows them.

mod attachment;
mod cluster;
mod content;
#[cfg(test)]
mod content_tests;
mod error;
mod network;
mod node;
mod read;
mod service;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod version_tests;

use rswarm_base::IdGen;
use rswarm_proto::model::object::Stored;
use rswarm_proto::wire::Transaction;

pub use self::attachment::{admission, attach, withdraw};
pub use self::cluster::{Fresh, update_cluster};
pub use self::content::{
    create_config, create_secret, remove_config, remove_secret, update_config, update_secret,
};
pub use self::error::ControlError;
pub use self::network::{create_network, remove_network};
pub use self::node::{check_member_removal, leave_manager, remove_node, update_node};
pub use self::read::{get, list, shown};
pub use self::service::{create_service, remove_service, update_service};
use crate::author::Author;
use crate::reconcile::Plan;
use crate::validate::Problem;

/// A transaction to propose, and the id of the object that the reply shows once it is applied.
pub type Decision = Result<(Transaction, String), ControlError>;

fn decided(plan: Plan, id: &str, ids: &mut IdGen) -> Decision {
    decided_as(Author::Control, plan, id, ids)
}

fn decided_as(author: Author, plan: Plan, id: &str, ids: &mut IdGen) -> Decision {
    let author = author.name().to_owned();
    Ok((Transaction { id: ids.number(), author, changes: plan.into_changes() }, id.to_owned()))
}

fn valid(checked: Result<(), Vec<Problem>>) -> Result<(), ControlError> {
    checked.map_err(ControlError::Invalid)
}

fn check_version(object: &impl Stored, read: u64) -> Result<(), ControlError> {
    if object.meta().version == read { Ok(()) } else { Err(ControlError::OutOfSequence) }
}

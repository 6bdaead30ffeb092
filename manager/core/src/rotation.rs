//! When the replacement of the root certificate is over.

use rswarm_proto::tls::issuer_info;
use rswarm_proto::wire::{Node, RootRotation};

use crate::state::State;

/// The rotation under way, once every node's certificate is signed by the new root: nobody needs the old one then.
#[must_use]
pub fn renewed_by_all(state: &State) -> Option<&RootRotation> {
    let rotation = state.cluster()?.root_ca.as_ref()?.rotation.as_ref()?;
    let (subject, public_key) = issuer_info(&rotation.certificate_pem)?;
    let has_renewed = |node: &Node| {
        let tls = node.description.as_ref().and_then(|description| description.tls.as_ref());
        tls.is_some_and(|tls| tls.issuer_subject == subject && tls.issuer_public_key == public_key)
    };
    state.nodes().all(|node| has_renewed(node)).then_some(rotation)
}

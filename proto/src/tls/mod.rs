//! Who is who: node certificates, the mutual-TLS channel that checks them, and the guard every RPC uses.
//!
//! A cluster has one [`Authority`]; a node has one [`Identity`], replaceable while listeners and clients run.
//! A server learns its caller as a [`Peer`], parsed once per connection; [`require`] turns it into a right.
//! Root certificates are pinned by digest ([`connect_pinned`]) before a joiner sends its secret.

mod authority;
mod channel;
mod enroll;
mod external;
mod identity;
mod peer;
mod seal;
mod unlock;

pub use authority::{
    Authority, AuthorityError, CERTIFICATE_LIFETIME, certificate_ends_at, new_key, root_digest,
    signing_request,
};
pub use channel::{
    ConnectError, MESSAGE_BYTES_MAX, TlsConn, connect, connect_node, connect_pinned, incoming, serve,
};
pub use enroll::{EnrollError, Enrollment, join, renew};
pub use external::{AUTHORITY_TIMEOUT, IssuedError, check_issued, dial_authority};
pub use identity::{Credentials, Identity, IdentityError, issuer_info};
pub use peer::{Peer, Subject, peer, require, require_expired_too};
pub use seal::Unsealable;
pub use unlock::{UnlockKey, UnlockKeyError};

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// The one provider of cryptography; chosen here so that no process-wide default is needed.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests;

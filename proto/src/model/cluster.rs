//! The cluster's root, which may be on its way to another.

use crate::wire::RootCa;

impl RootCa {
    /// What nodes trust: the root, and while it is replaced the new one after it. The last is the one that a node's
    /// certificate shall be signed by.
    #[must_use]
    pub fn trust_bundle(&self) -> String {
        match &self.rotation {
            Some(rotation) => format!("{}{}", self.certificate_pem, rotation.certificate_pem),
            None => self.certificate_pem.clone(),
        }
    }

    /// The certificate of who signs nodes' certificates now, its key, and what goes between such a certificate and the
    /// old root, for nodes that have not heard of the new one.
    #[must_use]
    pub fn signer(&self) -> (&str, &[u8], &str) {
        match &self.rotation {
            Some(rotation) => (&rotation.certificate_pem, &rotation.key_pem, &rotation.cross_signed_pem),
            None => (&self.certificate_pem, &self.key_pem, ""),
        }
    }
}

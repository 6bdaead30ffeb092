//! The root certificates that the cluster is given one after another: real ones, made once for all seeds.

use std::sync::OnceLock;

use rswarm_base::Timestamp;
use rswarm_manager_core::State;
use rswarm_proto::tls::{Authority, issuer_info};
use rswarm_proto::wire::TlsInfo;

/// More than one is needed so that a rotation can be followed by another before it ends.
const ROOTS: usize = 4;

/// One root, and what a node says whose certificate it has signed.
pub struct Root {
    pub certificate_pem: String,
    pub info: TlsInfo,
}

fn roots() -> &'static [Root] {
    static ALL: OnceLock<Vec<Root>> = OnceLock::new();
    ALL.get_or_init(|| {
        let make = |_| {
            let authority = Authority::generate(Timestamp(1_700_000_000_000_000_000)).expect("a key");
            let certificate_pem = authority.certificate_pem().to_owned();
            let (issuer_subject, issuer_public_key) = issuer_info(&certificate_pem).expect("a certificate");
            Root {
                certificate_pem,
                info: TlsInfo { issuer_subject, issuer_public_key, ..TlsInfo::default() },
            }
        };
        (0..ROOTS).map(make).collect()
    })
}

/// A root by number; they come round again.
pub fn root(number: usize) -> &'static Root {
    &roots()[number % ROOTS]
}

/// The number of the root that signs certificates now: the new one while another is being replaced.
pub fn signer(state: &State) -> usize {
    let Some(own) = state.cluster().and_then(|cluster| cluster.root_ca.as_ref()) else { return 0 };
    let pem = own.rotation.as_ref().map_or(&own.certificate_pem, |rotation| &rotation.certificate_pem);
    roots().iter().position(|root| root.certificate_pem == *pem).expect("only these are used")
}

//! The root certificate on its way to another: begun by a change of the cluster's spec, driven by the nodes, which
//! renew their certificates as soon as they trust the new root, ended by the leader once they all have.
//!
//! ```text
//!   update ──▶ new root, cross-signed by the old ──▶ nodes trust both, renew ──▶ all by the new root ──▶ it alone,
//!              and new join tokens
//! ```

use rswarm_base::{Classify, Kind, Timestamp};
use rswarm_manager_core::State;
use rswarm_manager_core::rotation::renewed_by_all;
use rswarm_proto::tls::{Authority, AuthorityError, certificate_ends_at, issuer_info, root_digest};
use rswarm_proto::token::JoinToken;
use rswarm_proto::wire::{RootCa, RootRotation, UpdateClusterRequest};

/// The shortest life that a root of a user's own must have left (swarmkit's value).
const LIFE_MIN: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

/// What becomes of the root by a request; `None` when nothing does.
///
/// # Errors
/// When the certificate and key that the request names cannot be the cluster's root.
pub(crate) fn next_root(
    root: &RootCa,
    request: &UpdateClusterRequest,
    now: Timestamp,
) -> Result<Option<RootCa>, RotationError> {
    let forced = request.spec.as_ref().map_or(0, |spec| spec.force_rotate);
    let certificate = request.signing_ca_cert.as_str();
    if certificate.trim().is_empty() {
        if !request.signing_ca_key.is_empty() {
            return Err(RotationError::KeyAlone);
        }
        if forced == root.last_forced_rotation {
            return Ok(None);
        }
        let new = Authority::generate(now)?;
        return begin(root, new.certificate_pem(), new.key_pem().as_bytes().to_vec(), forced).map(Some);
    }
    let certificate = normalised(certificate)?;
    let key_pem = match std::str::from_utf8(&request.signing_ca_key).map(str::trim) {
        Ok("") => Vec::new(),
        Ok(key) => {
            let authority = Authority::from_pem(&certificate, key)?;
            authority.check().map_err(RotationError::Pair)?;
            authority.key_pem().as_bytes().to_vec()
        }
        Err(_) => return Err(RotationError::KeyText),
    };
    if certificate_ends_at(&certificate) < now.after(LIFE_MIN) {
        return Err(RotationError::TooSoon);
    }
    if certificate == root.certificate_pem {
        // Back to where it was: what the new root has signed is good by the old one until it is renewed.
        let key_pem = if key_pem.is_empty() { root.key_pem.clone() } else { key_pem };
        return Ok(Some(RootCa { key_pem, rotation: None, last_forced_rotation: forced, ..root.clone() }));
    }
    if issuer_info(&certificate).map(|(_, key)| key) == issuer_info(&root.certificate_pem).map(|(_, key)| key)
    {
        return Err(RotationError::SameKey);
    }
    match &root.rotation {
        Some(rotation) if rotation.certificate_pem == certificate => Ok(None),
        Some(_) | None => begin(root, &certificate, key_pem, forced).map(Some),
    }
}

/// `new_key` is empty when the key is with an external authority.
fn begin(root: &RootCa, new_pem: &str, new_key: Vec<u8>, forced: u64) -> Result<RootCa, RotationError> {
    let key = std::str::from_utf8(&root.key_pem).ok().filter(|key| !key.is_empty());
    let old = Authority::from_pem(&root.certificate_pem, key.ok_or(RotationError::NoKey)?)?;
    let rotation = RootRotation {
        certificate_pem: new_pem.to_owned(),
        key_pem: new_key,
        cross_signed_pem: old.cross_sign(new_pem)?,
    };
    Ok(RootCa { rotation: Some(rotation), last_forced_rotation: forced, ..root.clone() })
}

/// The one certificate in a text, as this program writes it: so that texts can be compared.
fn normalised(pem: &str) -> Result<String, RotationError> {
    let lines: Vec<&str> = pem.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let begins = lines.iter().filter(|line| line.starts_with("-----BEGIN ")).count();
    if begins > 1 {
        return Err(RotationError::Several);
    }
    Ok(format!("{}\n", lines.join("\n")))
}

/// The root that the cluster goes on with, when every node's certificate is signed by the new one: with new join
/// tokens, since the old ones pin the old root.
pub(crate) fn finished(state: &State) -> Option<RootCa> {
    let root = state.cluster()?.root_ca.as_ref()?;
    let rotation = renewed_by_all(state)?;
    let digest = root_digest(&rotation.certificate_pem).ok()?;
    let token = || JoinToken::generate(digest).to_string();
    Some(RootCa {
        certificate_pem: rotation.certificate_pem.clone(),
        key_pem: rotation.key_pem.clone(),
        digest: digest.to_string(),
        worker_token: token(),
        manager_token: token(),
        rotation: None,
        last_forced_rotation: root.last_forced_rotation,
    })
}

/// Why a certificate and a key cannot become the cluster's root (swarmkit's words, where it has them).
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotationError {
    #[error("if a signing CA key is provided, the signing CA cert must also be provided")]
    KeyAlone,
    #[error("the signing CA key is not text")]
    KeyText,
    #[error("the desired CA certificate cannot contain multiple certificates")]
    Several,
    #[error("CA certificate expires too soon")]
    TooSoon,
    #[error("Cannot update to a cert with an identical key")]
    SameKey,
    #[error("the key of the cluster's root is with an external CA, and cannot sign the new root")]
    NoKey,
    #[error("the CA certificate cannot sign certificates of nodes with this key")]
    Pair(#[source] AuthorityError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl Classify for RotationError {
    fn kind(&self) -> Kind {
        match self {
            RotationError::KeyAlone
            | RotationError::KeyText
            | RotationError::Several
            | RotationError::TooSoon
            | RotationError::SameKey
            | RotationError::Pair(_)
            | RotationError::Authority(_) => Kind::InvalidArgument,
            RotationError::NoKey => Kind::FailedPrecondition,
        }
    }

    fn hint(&self) -> Option<String> {
        matches!(self, RotationError::NoKey).then(|| {
            "give the managers that key first: `rswarm swarm ca --rotate --ca-cert ROOT --ca-key KEY`"
                .to_owned()
        })
    }
}

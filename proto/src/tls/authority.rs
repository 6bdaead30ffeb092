//! The cluster's certificate authority: an ECDSA P-256 root and the node certificates it signs.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DistinguishedName,
    DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SerialNumber, SubjectPublicKeyInfo,
};
use rswarm_base::id::random_bytes;
use rswarm_base::{Classify, Kind, Timestamp};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::x509::X509Name;

use super::{Credentials, Identity, Subject, identity};
use crate::token::RootDigest;

/// How long a node certificate lives when the cluster's spec says nothing (swarmkit's value).
pub const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(90 * DAY);
/// The shortest life that leaves time to renew (swarmkit's value).
const LIFETIME_MIN: Duration = Duration::from_secs(3600);
const ROOT_LIFETIME: Duration = Duration::from_secs(20 * 365 * DAY);
/// Certificates begin this long ago, so that a node whose clock is behind accepts them.
const BACKDATE: Duration = Duration::from_secs(3600);
const DAY: u64 = 24 * 3600;

/// The root certificate and its key: whoever holds it decides who is a node.
pub struct Authority {
    certificate_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
    digest: RootDigest,
}

impl Authority {
    /// A new self-signed root.
    ///
    /// # Errors
    /// When the key cannot be made or used, which no input explains.
    pub fn generate(now: Timestamp) -> Result<Authority, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Key)?;
        let key_pem = key.serialize_pem();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "swarm-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial());
        (params.not_before, params.not_after) = validity(now, ROOT_LIFETIME);
        let root = CertifiedIssuer::self_signed(params, key).map_err(AuthorityError::Sign)?;
        Authority::from_pem(&root.pem(), &key_pem)
    }

    /// The root as the cluster stores it.
    ///
    /// # Errors
    /// Which of the two cannot be read.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Authority, AuthorityError> {
        let key = KeyPair::from_pem(key_pem).map_err(AuthorityError::Key)?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key).map_err(AuthorityError::Certificate)?;
        let digest = digest_of_pem(certificate_pem)?;
        let (certificate_pem, key_pem) = (certificate_pem.to_owned(), key_pem.to_owned());
        Ok(Authority { certificate_pem, key_pem, issuer, digest })
    }

    /// The root certificate.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The root's private key.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// What join tokens pin.
    #[must_use]
    pub fn digest(&self) -> RootDigest {
        self.digest
    }

    /// The end of the root's own life.
    #[must_use]
    pub fn ends_at(&self) -> Timestamp {
        certificate_ends_at(&self.certificate_pem)
    }

    /// The root of another authority, signed by this one: whoever trusts this root alone accepts certificates of the
    /// other that come with it. The other's key is not needed.
    ///
    /// # Errors
    /// When the other's name is one that cannot be written again as it is.
    pub fn cross_sign(&self, other_pem: &str) -> Result<String, AuthorityError> {
        let der = CertificateDer::from_pem_slice(other_pem.as_bytes()).map_err(AuthorityError::Pem)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|_| AuthorityError::Name)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(parsed.subject())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial());
        let (begin, end) = identity::validity(&der).ok_or(AuthorityError::Name)?;
        (params.not_before, params.not_after) =
            (at(begin.as_secs()), at(end.as_secs().min(self.ends_at().as_secs())));
        let key =
            SubjectPublicKeyInfo::from_der(parsed.public_key().raw).map_err(AuthorityError::Certificate)?;
        let crossed = params.signed_by(&key, &self.issuer).map_err(AuthorityError::Sign)?;
        let (_, written) =
            x509_parser::parse_x509_certificate(crossed.der()).map_err(|_| AuthorityError::Name)?;
        if written.subject().as_raw() != parsed.subject().as_raw() {
            return Err(AuthorityError::Name);
        }
        Ok(crossed.pem())
    }

    /// Whether nodes would accept what this authority signs: a root of somebody else's making may be no authority, of
    /// another key, or restricted.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), AuthorityError> {
        let subject = Subject {
            node_id: "probe".to_owned(),
            role: crate::wire::NodeRole::Worker,
            cluster_id: "probe".to_owned(),
        };
        let key_pem = new_key()?;
        let csr = signing_request(&key_pem)?;
        let chain_pem = self.issue(&csr, &subject, LIFETIME_MIN, Timestamp::wall())?;
        let root_pem = self.certificate_pem.clone();
        let probe = Identity::new(Credentials { key_pem, chain_pem, root_pem });
        if probe.is_ok_and(|probe| probe.is_by_latest_root()) { Ok(()) } else { Err(AuthorityError::Unfit) }
    }

    /// Signs a node's request. Of the request only the public key counts: names, role and lifetime are ours.
    ///
    /// # Errors
    /// [`AuthorityError::Request`] for a request that is no CSR or not signed by its own key.
    pub fn issue(
        &self,
        csr_pem: &str,
        subject: &Subject,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<String, AuthorityError> {
        let mut request =
            CertificateSigningRequestParams::from_pem(csr_pem).map_err(AuthorityError::Request)?;
        let unit = subject.unit();
        let names = vec![subject.node_id.clone(), unit.to_owned()];
        let mut params = CertificateParams::new(names).map_err(AuthorityError::Sign)?;
        params.distinguished_name.push(DnType::OrganizationName, subject.cluster_id.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
        params.distinguished_name.push(DnType::CommonName, subject.node_id.as_str());
        params.serial_number = Some(serial());
        (params.not_before, params.not_after) = validity(now, lifetime.max(LIFETIME_MIN));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        request.params = params;
        Ok(request.signed_by(&self.issuer).map_err(AuthorityError::Sign)?.pem())
    }
}

/// A node's new private key (ECDSA P-256), as PEM.
///
/// # Errors
/// When the key cannot be made, which no input explains.
pub fn new_key() -> Result<String, AuthorityError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Key)?.serialize_pem())
}

/// A request for a certificate over this key. It asks for nothing: the authority decides what it says.
///
/// # Errors
/// When the key is none.
pub fn signing_request(key_pem: &str) -> Result<String, AuthorityError> {
    let key = KeyPair::from_pem(key_pem).map_err(AuthorityError::Key)?;
    let params = CertificateParams::default();
    params.serialize_request(&key).and_then(|csr| csr.pem()).map_err(AuthorityError::Sign)
}

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A private key is not usable.
    #[error("private key is not usable")]
    Key(#[source] rcgen::Error),
    /// The root certificate is not usable.
    #[error("root certificate is not usable")]
    Certificate(#[source] rcgen::Error),
    /// The root certificate's file holds none.
    #[error("root certificate is not PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// The request is not one.
    #[error("certificate request is not usable")]
    Request(#[source] rcgen::Error),
    /// The root's name has a form that is not known here.
    #[error("the name in the root certificate cannot be written again")]
    Name,
    /// The root is none, or not of this key.
    #[error("the certificate is no authority, or not of this key")]
    Unfit,
    /// Signing failed.
    #[error("certificate could not be signed")]
    Sign(#[source] rcgen::Error),
}

impl Classify for AuthorityError {
    fn kind(&self) -> Kind {
        match self {
            AuthorityError::Request(_) | AuthorityError::Name | AuthorityError::Unfit => {
                Kind::InvalidArgument
            }
            AuthorityError::Key(_)
            | AuthorityError::Certificate(_)
            | AuthorityError::Pem(_)
            | AuthorityError::Sign(_) => Kind::Internal,
        }
    }
}

/// The end of a certificate's life; the beginning of time for what is none.
#[must_use]
pub fn certificate_ends_at(certificate_pem: &str) -> Timestamp {
    let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).ok();
    der.and_then(|der| identity::validity(&der)).map_or(Timestamp::ZERO, |(_, end)| end)
}

/// What join tokens pin of a root.
///
/// # Errors
/// When there is no certificate in the text.
pub fn root_digest(certificate_pem: &str) -> Result<RootDigest, AuthorityError> {
    digest_of_pem(certificate_pem)
}

/// What join tokens pin: the digest of the first certificate in the text.
fn digest_of_pem(certificate_pem: &str) -> Result<RootDigest, AuthorityError> {
    let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(AuthorityError::Pem)?;
    Ok(digest_of_der(&der))
}

pub(super) fn digest_of_der(der: &CertificateDer<'_>) -> RootDigest {
    RootDigest(Sha256::digest(der).into())
}

/// 127 random bits: positive, and different for every certificate, also over the same key.
fn serial() -> SerialNumber {
    let mut bytes = random_bytes::<16>();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// A name as it is signed again: part by part, each in its own encoding.
fn name(name: &X509Name<'_>) -> Result<DistinguishedName, AuthorityError> {
    let mut written = DistinguishedName::new();
    for part in name.iter_attributes() {
        let oid: Vec<u64> = part.attr_type().iter().ok_or(AuthorityError::Name)?.collect();
        let text = part.as_str().map_err(|_| AuthorityError::Name)?;
        let value = match part.attr_value().tag() {
            Tag::PrintableString => {
                DnValue::PrintableString(text.try_into().map_err(|_| AuthorityError::Name)?)
            }
            Tag::Ia5String => DnValue::Ia5String(text.try_into().map_err(|_| AuthorityError::Name)?),
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            _ => return Err(AuthorityError::Name),
        };
        written.push(DnType::CustomDnType(oid), value);
    }
    Ok(written)
}

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn validity(now: Timestamp, lifetime: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let begin = now.as_secs() - i64::try_from(BACKDATE.as_secs()).unwrap_or(0);
    (at(begin), at(now.after(lifetime).as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::NodeRole;
    use rswarm_base::Chain;

    fn subject() -> Subject {
        Subject { node_id: "n1".to_owned(), role: NodeRole::Worker, cluster_id: "c1".to_owned() }
    }

    #[test]
    fn the_authority_decides_what_a_certificate_says() {
        let authority = Authority::generate(Timestamp::now()).expect("root");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
        let mut wish = CertificateParams::new(vec!["swarm-manager".to_owned()]).expect("params");
        wish.distinguished_name.push(DnType::OrganizationalUnitName, "swarm-manager");
        let csr = wish.serialize_request(&key).expect("csr").pem().expect("pem");
        let pem = authority.issue(&csr, &subject(), CERTIFICATE_LIFETIME, Timestamp::now()).expect("issued");
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("der");
        assert_eq!(Subject::of(&der), Some(subject()));
        assert!(!String::from_utf8_lossy(&der).contains("swarm-manager"));
    }

    #[test]
    fn a_stored_root_signs_like_the_one_that_was_made() {
        let made = Authority::generate(Timestamp::now()).expect("root");
        let stored = Authority::from_pem(made.certificate_pem(), made.key_pem()).expect("root");
        assert_eq!(made.digest(), stored.digest());
        let csr = signing_request(&new_key().expect("key")).expect("csr");
        stored.issue(&csr, &subject(), CERTIFICATE_LIFETIME, Timestamp::now()).expect("issued");
    }

    #[test]
    fn a_request_that_is_none_is_the_callers_fault() {
        let authority = Authority::generate(Timestamp::now()).expect("root");
        let error = authority
            .issue("hello", &subject(), CERTIFICATE_LIFETIME, Timestamp::now())
            .expect_err("no request");
        assert_eq!(error.kind(), Kind::InvalidArgument, "{}", Chain(&error));
    }
}

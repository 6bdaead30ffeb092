//! Join tokens: `SWMTKN-1-<root digest>-<secret>`. The digest pins the cluster's root certificate before the
//! secret is sent; the secret decides the role.
//!
//! Both parts are numbers in base 36 with leading zeros: 256 bits in 50 digits, 128 bits in 25.

use std::fmt;

use num_bigint::BigUint;
use rswarm_base::id::random_bytes;
use rswarm_base::{Classify, Kind};
use subtle::ConstantTimeEq;

const PREFIX: &str = "SWMTKN";
const VERSION: &str = "1";
const DIGEST_DIGITS: usize = 50;
const SECRET_DIGITS: usize = 25;

/// SHA-256 of a root certificate's DER encoding, as join tokens carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootDigest(pub [u8; 32]);

/// 50 digits of base 36.
impl fmt::Display for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base36(&self.0, DIGEST_DIGITS))
    }
}

/// What lets a node join: which cluster, and the right to become a worker or a manager of it.
#[derive(Clone)]
pub struct JoinToken {
    /// The root certificate that the cluster must show.
    pub root_digest: RootDigest,
    secret: [u8; 16],
}

impl JoinToken {
    /// A token with a fresh secret for the cluster with this root.
    #[must_use]
    pub fn generate(root_digest: RootDigest) -> JoinToken {
        JoinToken { root_digest, secret: random_bytes() }
    }

    /// Reads a token, surrounding blanks aside.
    ///
    /// # Errors
    /// What exactly is wrong with the text; it is never repeated, because it may hold a secret.
    pub fn parse(text: &str) -> Result<JoinToken, TokenError> {
        let mut parts = text.trim().split('-');
        if parts.next() != Some(PREFIX) {
            return Err(TokenError::Prefix);
        }
        match parts.next() {
            Some(VERSION) => {}
            other => return Err(TokenError::Version(other.unwrap_or_default().chars().take(8).collect())),
        }
        let (digest, secret) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let more = parts.count();
        if more > 0 {
            return Err(TokenError::Parts(4 + more));
        }
        Ok(JoinToken {
            root_digest: RootDigest(from_base36("root digest", digest, DIGEST_DIGITS)?),
            secret: from_base36("secret", secret, SECRET_DIGITS)?,
        })
    }

    /// Whether both are the same token, in time that does not depend on where they differ.
    #[must_use]
    pub fn matches(&self, other: &JoinToken) -> bool {
        let digest = self.root_digest.0.ct_eq(&other.root_digest.0);
        (digest & self.secret.ct_eq(&other.secret)).into()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{VERSION}-{}-{}", self.root_digest, base36(&self.secret, SECRET_DIGITS))
    }
}

/// Shows which cluster, never the secret.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({PREFIX}-{VERSION}-{}-***)", self.root_digest)
    }
}

/// What is wrong with the text of a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a join token at all.
    #[error("invalid join token: it does not start with `{PREFIX}-`")]
    Prefix,
    /// Another kind of token.
    #[error("invalid join token: version `{0}` is not known, only `{VERSION}` is")]
    Version(String),
    /// Too many parts.
    #[error("invalid join token: it has {0} parts between dashes instead of 4")]
    Parts(usize),
    /// A part was cut off or pasted twice.
    #[error("invalid join token: its {part} has {found} characters instead of {wanted}")]
    Length {
        /// Which part.
        part: &'static str,
        /// Its length.
        found: usize,
        /// The length it must have.
        wanted: usize,
    },
    /// A character that no token has.
    #[error("invalid join token: its {part} holds `{found}`, only 0-9 and a-z can be there")]
    Character {
        /// Which part.
        part: &'static str,
        /// The first such character.
        found: char,
    },
    /// Digits that stand for no possible value, so at least one is mistyped.
    #[error("invalid join token: its {part} is out of range, so at least one character is wrong")]
    Range {
        /// Which part.
        part: &'static str,
    },
}

impl Classify for TokenError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }

    fn hint(&self) -> Option<String> {
        Some("copy the whole token from `rswarm swarm join-token worker` on a manager".to_owned())
    }
}

fn base36(bytes: &[u8], digits: usize) -> String {
    let number = BigUint::from_bytes_be(bytes).to_str_radix(36);
    format!("{number:0>digits$}")
}

fn from_base36<const N: usize>(part: &'static str, text: &str, wanted: usize) -> Result<[u8; N], TokenError> {
    let is_digit = |c: char| c.is_ascii_digit() || c.is_ascii_lowercase();
    if let Some(found) = text.chars().find(|c| !is_digit(*c)) {
        return Err(TokenError::Character { part, found });
    }
    if text.len() != wanted {
        return Err(TokenError::Length { part, found: text.len(), wanted });
    }
    let number = BigUint::parse_bytes(text.as_bytes(), 36).ok_or(TokenError::Range { part })?.to_bytes_be();
    let mut bytes = [0; N];
    let start = N.checked_sub(number.len()).ok_or(TokenError::Range { part })?;
    bytes[start..].copy_from_slice(&number);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> JoinToken {
        JoinToken::generate(RootDigest(random_bytes()))
    }

    #[test]
    fn a_token_reads_back_as_itself() {
        for _ in 0..200 {
            let token = sample();
            let text = token.to_string();
            assert_eq!(text.len(), "SWMTKN-1-".len() + 50 + 1 + 25);
            assert!(JoinToken::parse(&format!(" {text}\n")).expect("valid").matches(&token));
        }
        let zeros = JoinToken { root_digest: RootDigest([0; 32]), secret: [0; 16] };
        assert!(JoinToken::parse(&zeros.to_string()).expect("valid").matches(&zeros));
    }

    #[test]
    fn tokens_differ_by_secret_and_by_cluster() {
        let token = sample();
        assert!(!token.matches(&JoinToken::generate(token.root_digest)));
        let elsewhere = JoinToken { root_digest: RootDigest([1; 32]), ..token.clone() };
        assert!(!token.matches(&elsewhere));
    }

    #[test]
    fn each_mistake_is_named() {
        let text = sample().to_string();
        let error = |text: &str| JoinToken::parse(text).expect_err("invalid").to_string();
        assert!(error("").contains("does not start with `SWMTKN-`"));
        assert!(error("hello").contains("does not start with"));
        assert!(error(&text.replacen("-1-", "-7-", 1)).contains("version `7`"));
        assert!(error(&text[..text.len() - 1]).contains("secret has 24 characters instead of 25"));
        assert!(error(&text[..40]).contains("root digest has 31 characters instead of 50"));
        assert!(error(&format!("{text}-x")).contains("5 parts"));
        assert!(error(&text.to_uppercase()).contains("root digest holds"));
        let too_big = format!("SWMTKN-1-{}-{}", "z".repeat(50), "0".repeat(25));
        assert!(error(&too_big).contains("root digest is out of range"));
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let token = sample();
        let text = token.to_string();
        let secret = text.rsplit('-').next().expect("secret");
        assert!(!format!("{token:?}").contains(secret));
    }
}

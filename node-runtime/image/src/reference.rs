//! Image names: `[domain[:port]/]path[:tag][@digest]`, normalised as Docker does (`web` is
//! `docker.io/library/web`) and printed back in the short familiar form. Pure.

use std::fmt;
use std::str::FromStr;

use rswarm_base::{Classify, Kind};

use crate::digest::{Digest, DigestError};

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
const NAME_LEN_MAX: usize = 255;
const TAG_LEN_MAX: usize = 128;

/// A normalised image name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no image name; the texts are Docker's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Anything that the grammar does not allow.
    #[error("invalid reference format")]
    Format,
    /// Upper case in the path.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// 64 hexadecimal digits are an image id, never a name.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
    /// More than 255 characters.
    #[error("repository name must not be more than {NAME_LEN_MAX} characters")]
    TooLong,
    /// The part after `@`.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A tag that was given on its own.
    #[error("invalid tag format")]
    Tag,
    /// `FROM scratch` is no image.
    #[error("'scratch' is a reserved name")]
    Scratch,
}

impl Classify for ReferenceError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

impl Reference {
    /// Parses and normalises a name; no tag is added (see [`Reference::with_default_tag`]).
    ///
    /// # Errors
    /// [`ReferenceError`], in Docker's words.
    pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
        if is_image_id(text) {
            return Err(ReferenceError::LooksLikeId(text.to_owned()));
        }
        let (domain, remainder) = split_domain(text);
        let (rest, digest) = match remainder.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (remainder.as_str(), None),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if path.chars().any(char::is_uppercase) {
            return Err(ReferenceError::Uppercase(path.to_owned()));
        }
        if !is_domain(&domain)
            || !is_path(path)
            || !tag.is_none_or(is_tag)
            || !digest.is_none_or(may_be_digest)
        {
            return Err(ReferenceError::Format);
        }
        if domain.len() + 1 + path.len() > NAME_LEN_MAX {
            return Err(ReferenceError::TooLong);
        }
        let digest = digest.map(str::parse).transpose()?;
        Ok(Reference { domain, path: path.to_owned(), tag: tag.map(str::to_owned), digest })
    }

    /// The registry's host, `docker.io` by default.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/web`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, when one was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, when one was given.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The whole name without tag and digest: `docker.io/library/web`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The name as people write it: `web`, `someone/web`, `registry.example/web`.
    #[must_use]
    pub fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.name();
        }
        match self.path.strip_prefix(OFFICIAL_PREFIX) {
            // `library/a/b` is no official image: without its prefix it would name another one.
            Some(short) if !short.contains('/') => short.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// The familiar name with tag and digest: `web:latest`.
    #[must_use]
    pub fn familiar(&self) -> String {
        self.suffixed(self.familiar_name())
    }

    /// This name, with `:latest` when it has neither tag nor digest.
    #[must_use]
    pub fn with_default_tag(mut self) -> Reference {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// This name with another tag and no digest.
    ///
    /// # Errors
    /// [`ReferenceError::Tag`].
    pub fn with_tag(&self, tag: &str) -> Result<Reference, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Tag);
        }
        Ok(Reference { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// This name with a digest and no tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// Whether both name the same repository.
    #[must_use]
    pub fn same_repository(&self, other: &Reference) -> bool {
        self.domain == other.domain && self.path == other.path
    }

    fn suffixed(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(digest.as_str());
        }
        text
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        Reference::parse(text)
    }
}

/// The whole normalised name; for people use [`Reference::familiar`].
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.suffixed(self.name()))
    }
}

/// Whether the text is a whole image id without its algorithm.
pub(crate) fn is_image_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The first part is a domain when it has a dot, a port or upper case, or is `localhost`.
fn split_domain(text: &str) -> (String, String) {
    let is_domain =
        |part: &str| part.contains(['.', ':']) || part == "localhost" || part.chars().any(char::is_uppercase);
    let (domain, remainder) = match text.split_once('/') {
        Some((first, rest)) if is_domain(first) => (first, rest),
        _ => (DEFAULT_DOMAIN, text),
    };
    let domain = if domain == LEGACY_DEFAULT_DOMAIN { DEFAULT_DOMAIN } else { domain };
    if domain == DEFAULT_DOMAIN && !remainder.contains('/') {
        return (domain.to_owned(), format!("{OFFICIAL_PREFIX}{remainder}"));
    }
    (domain.to_owned(), remainder.to_owned())
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let Some((address, after)) = rest.split_once(']') else { return false };
            let is_address =
                !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
            if !is_address {
                return false;
            }
            match after.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if after.is_empty() => (None, None),
                None => return false,
            }
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.is_none_or(|host| host.split('.').all(is_label))
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_path(path: &str) -> bool {
    path.split('/').all(is_path_component)
}

/// Lower-case words joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !is_word(first) || !is_word(last) {
        return false;
    }
    bytes.split(|&byte| is_word(byte)).filter(|separator| !separator.is_empty()).all(|separator| {
        matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|&byte| byte == b'-')
    })
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=TAG_LEN_MAX).contains(&tag.len())
        && tag.as_bytes().first().is_some_and(|&byte| is_word(byte))
        && tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

/// The grammar's own idea of a digest; [`Digest`] then says precisely what is wrong with it.
fn may_be_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, hex)| {
        algorithm.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
            && hex.len() >= 32
            && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn names_are_normalised_and_printed_back_familiar() {
        let digest = format!("web@sha256:{HEX}");
        let full_digest = format!("docker.io/library/web@sha256:{HEX}");
        let table = [
            ("web", "docker.io/library/web", "web"),
            ("web:1.2", "docker.io/library/web:1.2", "web:1.2"),
            ("docker.io/web", "docker.io/library/web", "web"),
            ("index.docker.io/library/web", "docker.io/library/web", "web"),
            ("someone/web", "docker.io/someone/web", "someone/web"),
            ("library/a/b", "docker.io/library/a/b", "library/a/b"),
            ("localhost/web", "localhost/web", "localhost/web"),
            ("LOCAL/web", "LOCAL/web", "LOCAL/web"),
            ("reg:5000/a/b:t", "reg:5000/a/b:t", "reg:5000/a/b:t"),
            ("127.0.0.1:5000/web", "127.0.0.1:5000/web", "127.0.0.1:5000/web"),
            ("[::1]:5000/web", "[::1]:5000/web", "[::1]:5000/web"),
            ("a__b/c-----d.e_f", "docker.io/a__b/c-----d.e_f", "a__b/c-----d.e_f"),
            (digest.as_str(), full_digest.as_str(), digest.as_str()),
        ];
        for (given, full, familiar) in table {
            let reference = Reference::parse(given).unwrap_or_else(|error| panic!("{given}: {error}"));
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.familiar(), familiar);
        }
    }

    #[test]
    fn bad_names_are_refused_in_dockers_words() {
        let long = format!("a/{}", "b".repeat(255));
        let short_digest = format!("web@sha256:{}", &HEX[..40]);
        let table = [
            ("", "invalid reference format"),
            ("-web", "invalid reference format"),
            ("web:", "invalid reference format"),
            ("web:ta g", "invalid reference format"),
            ("web::1", "invalid reference format"),
            ("a//b", "invalid reference format"),
            ("a___b", "invalid reference format"),
            ("../etc", "invalid reference format"),
            ("web@sha256:abc", "invalid reference format"),
            ("Web", "invalid reference format: repository name (library/Web) must be lowercase"),
            ("host.x/Web:T", "invalid reference format: repository name (Web) must be lowercase"),
            (HEX, &format!("invalid repository name ({HEX}), cannot specify 64-byte hexadecimal strings")),
            (&short_digest, "invalid checksum digest length"),
            (&long, "repository name must not be more than 255 characters"),
        ];
        for (given, message) in table {
            let error = Reference::parse(given).expect_err(given);
            assert_eq!(error.to_string(), message, "{given}");
        }
        assert_eq!(Reference::parse(&format!("a:{}", "t".repeat(129))), Err(ReferenceError::Format));
    }

    #[test]
    fn the_default_tag_is_added_only_where_nothing_says_which() {
        let tagged = |text: &str| Reference::parse(text).expect("valid").with_default_tag().familiar();
        assert_eq!(tagged("web"), "web:latest");
        assert_eq!(tagged("web:1"), "web:1");
        assert_eq!(tagged(&format!("web@sha256:{HEX}")), format!("web@sha256:{HEX}"));
    }

    proptest::proptest! {
        #[test]
        fn what_parses_prints_to_something_that_parses_to_the_same(text in "[a-zA-Z0-9./:@_-]{0,40}") {
            if let Ok(reference) = Reference::parse(&text) {
                proptest::prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference.clone()));
                proptest::prop_assert_eq!(Reference::parse(&reference.familiar()), Ok(reference));
            }
        }
    }
}

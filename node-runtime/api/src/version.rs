//! API versions: which one a path asks for, and whether we speak it.

use std::fmt;

use crate::error::ApiError;

/// The newest version that we speak, and what a path without a version means.
pub(crate) const MAX: ApiVersion = ApiVersion { major: 1, minor: 51 };
/// The oldest version that we speak.
pub(crate) const MIN: ApiVersion = ApiVersion { major: 1, minor: 24 };

/// `1.NN`. Fields come and go with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ApiVersion {
    major: u32,
    minor: u32,
}

impl ApiVersion {
    /// Whether the client speaks 1.`minor` or newer.
    pub fn at_least(self, minor: u32) -> bool {
        self >= ApiVersion { major: 1, minor }
    }

    fn parse(text: &str) -> Option<ApiVersion> {
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        Some(ApiVersion { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Splits `/v1.47/containers/json` into the version's text and `/containers/json`.
pub(crate) fn split(path: &str) -> (Option<&str>, &str) {
    let prefixed = path.strip_prefix("/v").and_then(|rest| {
        let end = rest.find('/')?;
        let (version, rest) = rest.split_at(end);
        let is_version = !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        is_version.then_some((version, rest))
    });
    prefixed.map_or((None, path), |(version, rest)| (Some(version), rest))
}

/// Whether a client of this version expects errors as text: only those that we do not speak with any more.
// moby: server.go, versions before 1.24
pub(crate) fn expects_text(text: &str) -> bool {
    ApiVersion::parse(text).is_some_and(|version| version < MIN)
}

/// The version to answer in, or Docker's sentence about the one that was asked for.
pub(crate) fn check(text: Option<&str>) -> Result<ApiVersion, ApiError> {
    let Some(text) = text else { return Ok(MAX) };
    let version = ApiVersion::parse(text)
        .ok_or_else(|| ApiError::invalid(format!("invalid API version '{text}': want 1.NN")))?;
    if version < MIN {
        return Err(ApiError::invalid(format!(
            "client version {text} is too old. Minimum supported API version is {MIN}, please upgrade your \
             client to a newer version"
        )));
    }
    if version > MAX {
        return Err(ApiError::invalid(format!(
            "client version {text} is too new. Maximum supported API version is {MAX}"
        )));
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_prefix_is_split_off_and_nothing_else_is() {
        assert_eq!(split("/v1.47/containers/json"), (Some("1.47"), "/containers/json"));
        assert_eq!(split("/containers/json"), (None, "/containers/json"));
        assert_eq!(split("/version"), (None, "/version"));
        assert_eq!(split("/volumes/v1.2"), (None, "/volumes/v1.2"));
        assert_eq!(split("/v1.47"), (None, "/v1.47"));
    }

    #[test]
    fn versions_outside_the_range_get_dockers_sentences() {
        assert_eq!(check(None), Ok(MAX));
        assert!(check(Some("1.24")).is_ok_and(|version| !version.at_least(25)));
        assert!(
            check(Some("1.9"))
                .is_err_and(|e| e.message.starts_with("client version 1.9 is too old. Minimum"))
        );
        let error = check(Some("1.99")).expect_err("too new");
        assert_eq!(error.message, "client version 1.99 is too new. Maximum supported API version is 1.51");
        assert!(check(Some("1..2")).is_err());
    }
}

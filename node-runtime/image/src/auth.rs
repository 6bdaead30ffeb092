//! What a client proves itself with to a registry: Docker's `X-Registry-Auth`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use serde::Deserialize;

/// Credentials of one registry; a header of more is no credential.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Credentials for one registry. Never printed.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "lowercase")]
pub struct RegistryAuth {
    /// With `password`: basic authentication, also towards the token service.
    pub username: String,
    /// See `username`.
    pub password: String,
    /// `base64(username:password)`, as configuration files hold it.
    pub auth: String,
    /// A refresh token that `docker login` got.
    pub identitytoken: String,
    /// A bearer token to be sent as it is.
    pub registrytoken: String,
    /// The registry that these are for.
    pub serveraddress: String,
}

impl RegistryAuth {
    /// Reads the header: base64url of JSON. An empty or unreadable one means "anonymous", as with Docker.
    #[must_use]
    pub fn from_header(header: &str) -> Option<RegistryAuth> {
        if header.is_empty() || header.len() > HEADER_BYTES_MAX {
            return None;
        }
        let engines = [&URL_SAFE, &URL_SAFE_NO_PAD, &STANDARD];
        let bytes = engines.iter().find_map(|engine| engine.decode(header).ok())?;
        let auth: RegistryAuth = serde_json::from_slice(&bytes).ok()?;
        let auth = auth.with_decoded_pair();
        (!auth.is_empty()).then_some(auth)
    }

    /// Whether there is nothing to prove anything with.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.username.is_empty() && self.identitytoken.is_empty() && self.registrytoken.is_empty()
    }

    /// The pair for basic authentication.
    pub(crate) fn basic(&self) -> Option<(&str, &str)> {
        (!self.username.is_empty()).then_some((self.username.as_str(), self.password.as_str()))
    }

    fn with_decoded_pair(mut self) -> RegistryAuth {
        if self.username.is_empty()
            && let Ok(bytes) = STANDARD.decode(&self.auth)
            && let Ok(text) = String::from_utf8(bytes)
            && let Some((username, password)) = text.split_once(':')
        {
            self.username = username.to_owned();
            self.password = password.trim_end_matches('\0').to_owned();
        }
        self
    }
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegistryAuth(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_read_in_all_its_spellings() {
        let json = br#"{"username":"u","password":"p?>","serveraddress":"r"}"#;
        for header in [URL_SAFE.encode(json), STANDARD.encode(json), URL_SAFE_NO_PAD.encode(json)] {
            let auth = RegistryAuth::from_header(&header).expect("credentials");
            assert_eq!(auth.basic(), Some(("u", "p?>")));
        }
        let pair = URL_SAFE.encode(format!(r#"{{"auth":"{}"}}"#, STANDARD.encode("a:b:c")));
        assert_eq!(RegistryAuth::from_header(&pair).expect("pair").basic(), Some(("a", "b:c")));
    }

    #[test]
    fn nothing_usable_means_anonymous_and_secrets_are_never_printed() {
        for header in ["", "!!", &URL_SAFE.encode("{}"), &URL_SAFE.encode("null")] {
            assert_eq!(RegistryAuth::from_header(header), None, "{header}");
        }
        let auth = RegistryAuth { password: "hunter2".to_owned(), ..RegistryAuth::default() };
        assert!(!format!("{auth:?}").contains("hunter2"));
    }
}

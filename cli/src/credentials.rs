//! Credentials of registries, from where `docker login` keeps them: `config.json`, or a helper that it names.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use rswarm_api::types::AuthConfig;
use serde::Deserialize;

use crate::cmd::CommandError;

/// Docker Hub's name in the file.
const HUB: &str = "https://index.docker.io/v1/";
/// The user that a helper gives for an identity token.
const TOKEN_USER: &str = "<token>";

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ConfigFile {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    identitytoken: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// The `X-Registry-Auth` header for an image; `None` when nobody logged in to its registry.
///
/// # Errors
/// When the file cannot be read.
pub fn header_for(image: &str) -> Result<Option<String>, CommandError> {
    let Some(path) = config_path() else { return Ok(None) };
    let failed = |source| CommandError::Read { path: path.clone(), source };
    let Some(config) = rswarm_base::fsx::read_json::<ConfigFile>(&path).map_err(failed)? else {
        return Ok(None);
    };
    let registry = registry_of(image);
    let found = match helper(&config, registry) {
        Some(helper) => ask(helper, registry).map_err(failed)?,
        None => stored(&config, registry),
    };
    Ok(found.map(|auth| encode(&auth)))
}

fn config_path() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker")))?;
    Some(dir.join("config.json"))
}

/// The registry that an image's name begins with, as the file calls it.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some(("docker.io" | "index.docker.io", _)) | None => HUB,
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        Some(_) => HUB,
    }
}

fn helper<'a>(config: &'a ConfigFile, registry: &str) -> Option<&'a str> {
    let own = config.cred_helpers.get(registry).map(String::as_str);
    own.or(Some(config.creds_store.as_str()).filter(|store| !store.is_empty()))
}

/// A helper says nothing of a registry that it does not know.
fn ask(helper: &str, registry: &str) -> io::Result<Option<AuthConfig>> {
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(registry.as_bytes())?;
    }
    let answer = child.wait_with_output()?;
    let helped: Option<Helped> = serde_json::from_slice(&answer.stdout).ok();
    Ok(helped.filter(|_| answer.status.success()).map(|Helped { username, secret }| {
        match username.as_str() {
            TOKEN_USER => AuthConfig { identitytoken: secret, ..of(registry) },
            _ => AuthConfig { username, password: secret, ..of(registry) },
        }
    }))
}

fn stored(config: &ConfigFile, registry: &str) -> Option<AuthConfig> {
    let bare = |name: &str| {
        name.trim_start_matches("https://").trim_start_matches("http://").split('/').next().map(str::to_owned)
    };
    let same = |name: &&String| name.as_str() == registry || bare(name).as_deref() == Some(registry);
    let entry = config.auths.keys().find(same).and_then(|name| config.auths.get(name))?;
    if !entry.identitytoken.is_empty() {
        return Some(AuthConfig { identitytoken: entry.identitytoken.clone(), ..of(registry) });
    }
    let pair = STANDARD.decode(entry.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok())?;
    let (username, password) = pair.split_once(':')?;
    Some(AuthConfig {
        username: username.into(),
        password: password.trim_end_matches('\0').into(),
        ..of(registry)
    })
}

fn of(registry: &str) -> AuthConfig {
    AuthConfig { serveraddress: registry.to_owned(), ..AuthConfig::default() }
}

fn encode(auth: &AuthConfig) -> String {
    URL_SAFE.encode(serde_json::to_vec(auth).expect("our own types always serialise"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_s_registry_is_what_its_name_begins_with() {
        for (image, registry) in [
            ("web", HUB),
            ("me/web:1", HUB),
            ("docker.io/library/web", HUB),
            ("r.io/web", "r.io"),
            ("localhost/web", "localhost"),
            ("r:5000/me/web", "r:5000"),
        ] {
            assert_eq!(registry_of(image), registry, "{image}");
        }
    }

    #[test]
    fn a_stored_pair_becomes_the_header_docker_sends() {
        let file = r#"{"auths": {"https://r.io/v2/": {"auth": "bWU6c2U6Y3JldA=="}, "t.io": {"identitytoken": "T"}}}"#;
        let config: ConfigFile = serde_json::from_str(file).expect("a file");
        let auth = stored(&config, "r.io").expect("stored");
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("me", "se:cret"));
        let sent: AuthConfig =
            serde_json::from_slice(&URL_SAFE.decode(encode(&auth)).expect("base64")).expect("json");
        assert_eq!(sent, auth);
        assert_eq!(stored(&config, "t.io").expect("stored").identitytoken, "T");
        assert_eq!(stored(&config, "x.io"), None);
    }

    #[test]
    fn a_registry_s_own_helper_comes_first() {
        let file = r#"{"credsStore": "all", "credHelpers": {"r.io": "own"}}"#;
        let config: ConfigFile = serde_json::from_str(file).expect("a file");
        assert_eq!((helper(&config, "r.io"), helper(&config, "x.io")), (Some("own"), Some("all")));
        assert_eq!(helper(&ConfigFile::default(), "r.io"), None);
    }
}

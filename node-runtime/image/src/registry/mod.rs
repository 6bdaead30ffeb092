//! Registries by the distribution protocol: which hosts serve a name, how they are trusted, what they
//! say. Is not: what is done with it (`pull`).

mod challenge;
mod repository;
mod trust;

use std::net::IpAddr;
use std::time::Duration;

use crate::reference::Reference;
use crate::store::{OpenError, StoreConfig};

pub(crate) use repository::{RawManifest, RegistryError, Repository};

const HUB_DOMAIN: &str = "docker.io";
const HUB_URL: &str = "https://registry-1.docker.io";
/// A registry that is away is noticed within seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A transfer that stands still for so long is broken off and resumed.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How registries are reached, as configured.
#[derive(Debug)]
pub(crate) struct Registries {
    mirrors: Vec<reqwest::Url>,
    insecure: Vec<trust::Insecure>,
    certs_dir: std::path::PathBuf,
}

/// One place that may serve a name.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// Without a path of the protocol's: `https://host:port`.
    pub(crate) url: reqwest::Url,
    /// Asked before the registry itself, and never with the user's credentials.
    pub(crate) is_mirror: bool,
    /// May speak plain HTTP or show any certificate.
    pub(crate) is_insecure: bool,
}

impl Registries {
    pub(crate) fn new(config: &StoreConfig) -> Result<Registries, OpenError> {
        let mirrors = config.mirrors.iter().map(|mirror| parse_mirror(mirror)).collect::<Result<_, _>>()?;
        let insecure = config
            .insecure_registries
            .iter()
            .map(|text| trust::Insecure::parse(text).ok_or_else(|| OpenError::Insecure(text.clone())))
            .collect::<Result<_, _>>()?;
        Ok(Registries { mirrors, insecure, certs_dir: config.certs_dir.clone() })
    }

    /// Where a name is looked for, in order.
    pub(crate) fn endpoints(&self, reference: &Reference) -> Vec<Endpoint> {
        if reference.domain() == HUB_DOMAIN {
            let mirrors = self.mirrors.iter().map(|url| self.endpoint(url.clone(), true));
            let hub = reqwest::Url::parse(HUB_URL).expect("a constant URL");
            return mirrors.chain([self.endpoint(hub, false)]).collect();
        }
        let url = reqwest::Url::parse(&format!("https://{}", reference.domain()));
        url.map(|url| self.endpoint(url, false)).into_iter().collect()
    }

    fn endpoint(&self, url: reqwest::Url, is_mirror: bool) -> Endpoint {
        let is_insecure = url.scheme() == "http"
            || is_loopback(&url)
            || self.insecure.iter().any(|insecure| insecure.matches(&url));
        Endpoint { url, is_mirror, is_insecure }
    }

    /// A client for one endpoint.
    pub(crate) fn client(&self, endpoint: &Endpoint) -> Result<reqwest::Client, RegistryError> {
        let host = trust::host_of(&endpoint.url);
        let tls = trust::tls(&self.certs_dir.join(&host), endpoint.is_insecure)
            .map_err(|source| RegistryError::Certificates { host, source })?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("rswarm/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(reqwest::redirect::Policy::limited(10))
            // One connection for each layer is faster than one for all.
            .http1_only()
            .tls_backend_preconfigured(tls);
        if is_loopback(&endpoint.url) {
            builder = builder.no_proxy();
        }
        builder.build().map_err(|source| RegistryError::Client { source })
    }
}

fn parse_mirror(text: &str) -> Result<reqwest::Url, OpenError> {
    let refused = |reason: &str| OpenError::Mirror(text.to_owned(), reason.to_owned());
    let url = reqwest::Url::parse(text).map_err(|error| refused(&error.to_string()))?;
    match url.scheme() {
        "http" | "https" if url.host().is_none() => Err(refused("no host")),
        "http" | "https" if !url.username().is_empty() || url.password().is_some() => {
            Err(refused("credentials are not allowed in a mirror's URL"))
        }
        "http" | "https" if url.query().is_some() || url.fragment().is_some() => {
            Err(refused("a query or fragment at the end of the URL is not allowed"))
        }
        "http" | "https" => Ok(url),
        other => Err(refused(&format!("unsupported scheme \"{other}\""))),
    }
}

/// This machine's own registry: plain HTTP is fine there.
fn is_loopback(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries(mirrors: &[&str], insecure: &[&str]) -> Result<Registries, OpenError> {
        let mut config = StoreConfig::new("/nowhere".into());
        config.mirrors = mirrors.iter().map(|&text| text.to_owned()).collect();
        config.insecure_registries = insecure.iter().map(|&text| text.to_owned()).collect();
        Registries::new(&config)
    }

    #[test]
    fn mirrors_stand_before_the_hub_and_before_nothing_else() {
        let registries =
            registries(&["http://127.0.0.1:5001", "https://mirror.example"], &[]).expect("valid");
        let urls = |name: &str| {
            let reference = Reference::parse(name).expect("name");
            let endpoints = registries.endpoints(&reference);
            endpoints.iter().map(|endpoint| endpoint.url.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            urls("web"),
            ["http://127.0.0.1:5001/", "https://mirror.example/", "https://registry-1.docker.io/"]
        );
        assert_eq!(urls("reg.example:5000/web"), ["https://reg.example:5000/"]);
    }

    #[test]
    fn only_this_machine_and_what_is_listed_may_be_insecure() {
        let registries =
            registries(&[], &["reg.example:5000", "10.0.0.0/8", "plain.example"]).expect("valid");
        let table = [
            ("127.0.0.1:5000/x", true),
            ("localhost/x", true),
            ("reg.example:5000/x", true),
            ("reg.example:5001/x", false),
            ("10.1.2.3:80/x", true),
            ("11.1.2.3:80/x", false),
            ("plain.example:99/x", true),
            ("web", false),
        ];
        for (name, wanted) in table {
            let reference = Reference::parse(name).expect("name");
            let endpoint = registries.endpoints(&reference).pop().expect("one");
            assert_eq!(endpoint.is_insecure, wanted, "{name}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused_at_once() {
        for mirror in ["ftp://x", "x", "https://u:p@x", "https://x/?q"] {
            assert!(registries(&[mirror], &[]).is_err(), "{mirror}");
        }
        for insecure in ["", "a b", "10.0.0.0/99"] {
            assert!(registries(&[], &[insecure]).is_err(), "{insecure}");
        }
    }
}

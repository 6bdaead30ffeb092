//! Platforms: `os/architecture[/variant]`, and which of an index's a machine can run. Pure.

use std::fmt;
use std::str::FromStr;

use rswarm_base::{Classify, Kind};
use serde::{Deserialize, Serialize};

/// What an image was built for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`, … in Go's words.
    #[serde(default)]
    pub architecture: String,
    /// `v7`, `v8`, … or nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// A text that names no platform. The words are those of containerd's parser, which Docker's clients know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    /// What stands first is no name of an operating system.
    #[error(
        "\"{part}\" is an invalid OS component of \"{text}\": OSAndVersion specifier component must match \
         \"^([A-Za-z0-9_-]+)(?:\\\\(([A-Za-z0-9_.-]*)\\\\))?$\": invalid argument"
    )]
    Os {
        /// The component.
        part: String,
        /// All of it.
        text: String,
    },
    /// Another component is no word.
    #[error(
        "\"{part}\" is an invalid component of \"{text}\": platform specifier component must match \
         \"^[A-Za-z0-9_.-]+$\": invalid argument"
    )]
    Component {
        /// The component.
        part: String,
        /// All of it.
        text: String,
    },
    /// A single word that is neither an operating system nor an architecture.
    #[error("\"{0}\": unknown operating system or architecture: invalid argument")]
    Unknown(String),
    /// More than three components.
    #[error("\"{0}\": cannot parse platform specifier: invalid argument")]
    Parts(String),
    /// A pattern of platforms.
    #[error("\"{0}\": wildcards not yet supported: invalid argument")]
    Wildcard(String),
}

/// What Go builds for.
// containerd: platforms/database.go
const SYSTEMS: [&str; 17] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];
const ARCHITECTURES: [&str; 24] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "ppc64",
    "ppc64le",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

impl Classify for PlatformError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

impl Platform {
    /// The platform of this machine.
    #[must_use]
    pub fn host() -> Platform {
        let (architecture, variant) = canonical(std::env::consts::ARCH, "");
        Platform { os: "linux".to_owned(), architecture, variant }
    }

    /// How well an image for `offered` runs where `self` is wanted: 0 is exact, larger is worse, `None`
    /// does not run. An older variant runs on a newer machine, never the other way round.
    #[must_use]
    pub fn rank(&self, offered: &Platform) -> Option<u8> {
        let wanted = canonical(&self.architecture, &self.variant);
        let offered_canonical = canonical(&offered.architecture, &offered.variant);
        if self.os != offered.os || wanted.0 != offered_canonical.0 {
            return None;
        }
        let level = |variant: &str| variant.strip_prefix('v').and_then(|level| level.parse::<u8>().ok());
        match (level(&wanted.1), level(&offered_canonical.1)) {
            (Some(wanted), Some(offered)) => wanted.checked_sub(offered),
            _ => (wanted.1 == offered_canonical.1).then_some(0),
        }
    }
}

/// One spelling for each architecture, with the variant that it implies.
fn canonical(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, implied) = match architecture {
        "x86_64" | "x86-64" | "amd64" => ("amd64", "v1"),
        "aarch64" | "arm64" => ("arm64", "v8"),
        "arm" | "armhf" => ("arm", "v7"),
        "armel" => ("arm", "v6"),
        "i386" | "i686" | "x86" | "386" => ("386", ""),
        "powerpc64le" | "ppc64le" => ("ppc64le", ""),
        other => (other, ""),
    };
    let variant = if variant.is_empty() { implied } else { variant };
    let is_numbered = variant.starts_with(|first: char| first.is_ascii_digit());
    let variant = if is_numbered { format!("v{variant}") } else { variant.to_owned() };
    (architecture.to_owned(), variant)
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Platform, PlatformError> {
        if text.contains('*') {
            return Err(PlatformError::Wildcard(text.to_owned()));
        }
        let mut parts = text.splitn(4, '/');
        let first = parts.next().unwrap_or_default();
        let os = system(first)
            .ok_or_else(|| PlatformError::Os { part: first.to_owned(), text: text.to_owned() })?;
        let mut rest = Vec::new();
        for part in parts {
            if !is_word(part, b"_-.") {
                return Err(PlatformError::Component { part: part.to_owned(), text: text.to_owned() });
            }
            rest.push(part.to_ascii_lowercase());
        }
        let (os, architecture, variant) = match rest.as_slice() {
            [] if SYSTEMS.contains(&os.as_str()) => (os, Platform::host().architecture, String::new()),
            [] => ("linux".to_owned(), known_architecture(text)?, String::new()),
            [architecture] => (os, architecture.clone(), String::new()),
            [architecture, variant] => (os, architecture.clone(), variant.clone()),
            _ => return Err(PlatformError::Parts(text.to_owned())),
        };
        let (architecture, implied) = match canonical(&architecture, &variant) {
            (architecture, _) if variant.is_empty() && architecture != "arm" => (architecture, String::new()),
            pair => pair,
        };
        Ok(Platform { os, architecture, variant: implied })
    }
}

/// One or more letters, digits and what else may be.
fn is_word(text: &str, also: &[u8]) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || also.contains(&byte))
}

/// The operating system in `OS[(VERSION)]`; the version says nothing about a machine with Linux.
fn system(part: &str) -> Option<String> {
    let name = match part.strip_suffix(')').map(|part| part.split_once('(')) {
        None => part,
        Some(Some((name, version))) if version.is_empty() || is_word(version, b"_-.") => name,
        Some(_) => return None,
    };
    let name = is_word(name, b"_-").then(|| name.to_ascii_lowercase())?;
    Some(if name == "macos" { "darwin".to_owned() } else { name })
}

/// An architecture that stands alone has to be one.
fn known_architecture(text: &str) -> Result<String, PlatformError> {
    let (architecture, _) = canonical(&text.to_ascii_lowercase(), "");
    if ARCHITECTURES.contains(&architecture.as_str()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(PlatformError::Unknown(text.to_owned()))
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().expect("a platform")
    }

    #[test]
    fn older_variants_run_on_newer_machines_only() {
        let table = [
            ("linux/amd64", "linux/amd64", Some(0)),
            ("linux/amd64", "linux/amd64/v2", None),
            ("linux/amd64/v3", "linux/amd64", Some(2)),
            ("linux/arm64", "linux/arm64/v8", Some(0)),
            ("linux/arm/v7", "linux/arm/v6", Some(1)),
            ("linux/arm/v6", "linux/arm/v7", None),
            ("linux/amd64", "linux/arm64", None),
            ("linux/amd64", "windows/amd64", None),
        ];
        for (wanted, offered, rank) in table {
            assert_eq!(platform(wanted).rank(&platform(offered)), rank, "{wanted} <- {offered}");
        }
    }

    #[test]
    fn spellings_are_normalised_and_nonsense_is_refused() {
        assert_eq!(platform("linux/aarch64").to_string(), "linux/arm64");
        assert_eq!(platform("x86_64").to_string(), "linux/amd64");
        assert_eq!(platform("linux/arm").to_string(), "linux/arm/v7");
        assert_eq!(
            platform("LINUX").to_string(),
            Platform { variant: String::new(), ..Platform::host() }.to_string()
        );
        assert_eq!(platform("macos/arm64").to_string(), "darwin/arm64");
        assert_eq!(platform("armhf").to_string(), "linux/arm/v7");
        assert_eq!(platform("windows(10.0.17763)/amd64").to_string(), "windows/amd64");
        let refused = |text: &str| text.parse::<Platform>().expect_err(text).to_string();
        assert_eq!(
            refused("/"),
            r#""" is an invalid OS component of "/": OSAndVersion specifier component must match "^([A-Za-z0-9_-]+)(?:\\(([A-Za-z0-9_.-]*)\\))?$": invalid argument"#
        );
        assert_eq!(
            refused("linux/"),
            r#""" is an invalid component of "linux/": platform specifier component must match "^[A-Za-z0-9_.-]+$": invalid argument"#
        );
        assert_eq!(
            refused("nintendo64"),
            "\"nintendo64\": unknown operating system or architecture: invalid argument"
        );
        assert_eq!(refused("a/b/c/d"), "\"a/b/c/d\": cannot parse platform specifier: invalid argument");
        assert!(refused("linux/*").contains("wildcards") && refused("a)b").contains("OS component"));
    }
}

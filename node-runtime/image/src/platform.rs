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

/// A text that names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\": unknown operating system or architecture: invalid argument")]
pub struct PlatformError(String);

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
        let refused = || PlatformError(text.to_owned());
        let parts: Vec<String> = text.split('/').map(str::to_ascii_lowercase).collect();
        let is_word = |part: &String| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
        };
        if !parts.iter().all(is_word) {
            return Err(refused());
        }
        let (os, architecture, variant) = match parts.as_slice() {
            [os] if os == "linux" => (os.clone(), Platform::host().architecture, String::new()),
            [architecture] => ("linux".to_owned(), architecture.clone(), String::new()),
            [os, architecture] => (os.clone(), architecture.clone(), String::new()),
            [os, architecture, variant] => (os.clone(), architecture.clone(), variant.clone()),
            _ => return Err(refused()),
        };
        let (architecture, implied) = match canonical(&architecture, &variant) {
            (architecture, _) if variant.is_empty() && architecture != "arm" => (architecture, String::new()),
            pair => pair,
        };
        Ok(Platform { os, architecture, variant: implied })
    }
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
        assert!("linux/".parse::<Platform>().is_err());
        assert!("a/b/c/d".parse::<Platform>().is_err());
    }
}

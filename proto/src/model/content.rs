//! Secrets and configs.

use std::fmt;

use super::object::Stored;
use crate::wire::{Config, ContentSpec, ContentVersion, Secret};

/// What secrets and configs have in common.
pub trait Content: Stored {
    /// This content under this id, as a version of its name.
    fn new(id: String, spec: ContentSpec, number: u64) -> Self;
    /// What it is.
    fn spec(&self) -> Option<&ContentSpec>;
    /// The same with another spec, which `apply` takes when only labels differ.
    #[must_use]
    fn with_spec(&self, spec: ContentSpec) -> Self;
    /// Which version of its name it is, from 1.
    fn number(&self) -> u64;
    /// For a read: the versions that there are.
    fn show_versions(&mut self, versions: Vec<ContentVersion>);

    /// What one version is called by, the latest or not: `key@2`.
    fn version_name(&self) -> String {
        format!("{}@{}", self.name(), self.number())
    }
}

macro_rules! content {
    ($type:ident) => {
        impl Content for $type {
            fn new(id: String, spec: ContentSpec, number: u64) -> $type {
                $type { id, spec: Some(spec), number, ..$type::default() }
            }
            fn spec(&self) -> Option<&ContentSpec> {
                self.spec.as_ref()
            }
            fn with_spec(&self, spec: ContentSpec) -> $type {
                $type { spec: Some(spec), ..self.clone() }
            }
            fn number(&self) -> u64 {
                self.number.max(1)
            }
            fn show_versions(&mut self, versions: Vec<ContentVersion>) {
                self.versions = versions;
            }
        }
    };
}

content!(Secret);
content!(Config);

/// Shows everything but the data: what is secret must not come into a log by accident.
impl fmt::Debug for ContentSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContentSpec")
            .field("annotations", &self.annotations)
            .field("data", &format_args!("{} bytes", self.data.len()))
            .field("templating", &self.templating)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_data_is_in_a_secrets_debug_text() {
        let spec = ContentSpec { data: b"hush".to_vec(), ..ContentSpec::default() };
        let shown = format!("{spec:?}");
        assert!(shown.contains("4 bytes") && !shown.contains("104"), "{shown}");
    }
}

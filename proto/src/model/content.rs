//! Secrets and configs.

use std::fmt;

use crate::wire::ContentSpec;

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

//! Cluster networks and the endpoint tables that describe who is on them.

pub use crate::wire::{
    IpamConfig, NetworkAttachment, NetworkEndpoint, NetworkNode, NetworkService, NetworkSpec, NetworkTable,
};

use crate::wire::Network;

/// The network option that asks for encryption.
pub const ENCRYPTED: &str = "encrypted";

impl Network {
    /// Whether the managers give its addresses and tell nodes who is on it. Each node makes the others on its own
    /// links, by its own words.
    #[must_use]
    pub fn is_overlay(&self) -> bool {
        self.spec.as_ref().is_none_or(|spec| spec.config_from.is_empty())
    }

    /// Whether its traffic between nodes is encrypted. As with Docker's driver, the option's mere presence asks for
    /// it, whatever its value.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.spec.as_ref().is_some_and(|spec| spec.options.contains_key(ENCRYPTED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_encrypts_whatever_its_value() {
        let network = |options: &[(&str, &str)]| {
            let options =
                options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            Network { spec: Some(NetworkSpec { options, ..NetworkSpec::default() }), ..Network::default() }
        };
        assert!(!network(&[]).is_encrypted() && !network(&[("mtu", "1400")]).is_encrypted());
        for value in ["", "true", "false", "0"] {
            assert!(network(&[(ENCRYPTED, value)]).is_encrypted(), "{value}");
        }
    }
}

//! Options of dockerd's that have one value here: it is accepted, any other is refused with the reason.

use clap::Args;
use serde::Deserialize;

use super::SettingsError;

/// Flags, and with the same names the keys of the file.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct FixedOptions {
    /// Pass published ports on by processes: only false, the kernel passes all of them on
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    userland_proxy: Option<bool>,
    /// Make firewall rules: only true
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    iptables: Option<bool>,
    /// Make firewall rules of IPv6: only true
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    ip6tables: Option<bool>,
    /// Have the kernel forward packets: only true
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    ip_forward: Option<bool>,
    /// Label containers for SELinux: only false
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    selinux_enabled: Option<bool>,
    /// Show what is experimental in dockerd: only false
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    experimental: Option<bool>,
    /// Map containers' users to others: only empty
    #[arg(long, value_name = "USER[:GROUP]")]
    userns_remap: Option<String>,
    /// How layers are stored: only overlay2
    #[arg(short, long, value_name = "NAME")]
    storage_driver: Option<String>,
    /// How cgroups are made: only native.cgroupdriver=cgroupfs
    #[arg(long = "exec-opt", value_name = "NAME=VALUE")]
    exec_opts: Vec<String>,
    /// Serve TLS on tcp:// addresses: only false
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    tls: Option<bool>,
    /// Serve TLS and ask clients for certificates: only false
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    tlsverify: Option<bool>,
}

impl FixedOptions {
    /// Refuses what does not hold here.
    pub(super) fn check(&self) -> Result<(), SettingsError> {
        const TLS: &str =
            "the API speaks no TLS: keep it on a unix socket or on loopback, and reach it by ssh";
        let switches = [
            (
                "userland-proxy",
                self.userland_proxy,
                false,
                "the kernel passes published ports on, no process does",
            ),
            (
                "iptables",
                self.iptables,
                true,
                "networks are kept apart by rules of nftables, which are always made",
            ),
            (
                "ip6tables",
                self.ip6tables,
                true,
                "networks are kept apart by rules of nftables, which are always made",
            ),
            (
                "ip-forward",
                self.ip_forward,
                true,
                "containers reach the world through the kernel's forwarding",
            ),
            ("selinux-enabled", self.selinux_enabled, false, "SELinux is not supported"),
            ("experimental", self.experimental, false, "there is nothing experimental to show"),
            ("tls", self.tls, false, TLS),
            ("tlsverify", self.tlsverify, false, TLS),
        ];
        for (option, given, held, why) in switches {
            if given.is_some_and(|given| given != held) {
                return Err(unsupported(option, &(!held).to_string(), why));
            }
        }
        if let Some(user) = self.userns_remap.as_deref().filter(|user| !user.is_empty()) {
            return Err(unsupported("userns-remap", user, "containers have the host's user namespace"));
        }
        if let Some(driver) =
            self.storage_driver.as_deref().filter(|name| !matches!(*name, "" | "overlay2" | "overlayfs"))
        {
            return Err(unsupported("storage-driver", driver, "layers are stored for overlay2"));
        }
        match self.exec_opts.iter().find(|option| *option != "native.cgroupdriver=cgroupfs") {
            Some(option) => Err(unsupported(
                "exec-opt",
                option,
                "the only one is native.cgroupdriver=cgroupfs: cgroups are made without systemd",
            )),
            None => Ok(()),
        }
    }
}

fn unsupported(option: &'static str, value: &str, why: &str) -> SettingsError {
    SettingsError::Invalid { option, value: value.to_owned(), why: why.to_owned() }
}

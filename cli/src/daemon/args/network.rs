//! Options of networks: the default bridge, the pools that subnets come from, and name resolution.

use std::net::IpAddr;
use std::str::FromStr;

use clap::Args;
use rswarm_base::ipam::Subnet;
use rswarm_engine::config::DnsDefaults;
use rswarm_network::{AddressPool, DefaultBridge};
use serde::Deserialize;

use super::{SettingsError, Twice};

/// Flags, and with the same names the keys of the file.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct NetworkOptions {
    /// Address of the default bridge, and the length of its subnet's prefix
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    bip: Option<String>,
    /// Part of the default bridge's subnet that containers get addresses from
    #[arg(long, value_name = "SUBNET")]
    fixed_cidr: Option<String>,
    /// Let containers on the default bridge network reach each other [default: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    icc: Option<bool>,
    /// Give what leaves the default bridge network the host's address [default: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    ip_masq: Option<bool>,
    /// MTU of the default bridge network; 0 is the usual one
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,
    /// Address of the host that ports of the default bridge network are published on
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<IpAddr>,
    /// Where networks get their subnets from, `base=SUBNET,size=LENGTH`; may be repeated
    #[arg(long = "default-address-pool", value_name = "base=SUBNET,size=LENGTH")]
    default_address_pools: Vec<PoolOption>,
    /// Name server of containers that give none; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Resolver option of containers that give none; may be repeated
    #[arg(long = "dns-opt", value_name = "OPTION")]
    dns_opts: Vec<String>,
    /// Search domain of containers that give none; may be repeated
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
}

/// One pool, as the file has it: `{"base": "10.0.0.0/8", "size": 24}`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct PoolOption {
    base: String,
    size: u8,
}

impl FromStr for PoolOption {
    type Err = String;

    fn from_str(text: &str) -> Result<PoolOption, String> {
        let wrong = || "write it as `base=172.30.0.0/16,size=24`".to_owned();
        let (mut base, mut size) = (None, None);
        for field in text.split(',') {
            match field.split_once('=').ok_or_else(wrong)? {
                ("base", value) => base = Some(value.to_owned()),
                ("size", value) => size = Some(value.parse().map_err(|_| wrong())?),
                _ => return Err(wrong()),
            }
        }
        Ok(PoolOption { base: base.ok_or_else(wrong)?, size: size.ok_or_else(wrong)? })
    }
}

impl PoolOption {
    fn pool(&self) -> Result<AddressPool, SettingsError> {
        let invalid = |why: &str| SettingsError::Invalid {
            option: "default-address-pool",
            value: format!("base={},size={}", self.base, self.size),
            why: why.to_owned(),
        };
        let base: Subnet = self.base.parse().map_err(|_| invalid("the base is no subnet"))?;
        if base.split(self.size).next().is_none() {
            return Err(invalid("no subnet of that size is in it"));
        }
        Ok(AddressPool { base, size: self.size })
    }
}

/// What the options come to.
#[derive(Debug, Clone)]
pub struct NetworkSettings {
    /// The default bridge.
    pub bridge: DefaultBridge,
    /// Where networks get their subnets from; none is Docker's pools.
    pub pools: Vec<AddressPool>,
    /// Name resolution of containers that give none.
    pub dns: DnsDefaults,
}

impl NetworkOptions {
    /// Merges flags and file.
    pub(super) fn merge(
        flags: NetworkOptions,
        file: NetworkOptions,
        twice: &mut Twice,
    ) -> Result<NetworkSettings, SettingsError> {
        let bip = twice.either("bip", flags.bip, file.bip).filter(|text| !text.is_empty());
        let range =
            twice.either("fixed-cidr", flags.fixed_cidr, file.fixed_cidr).filter(|text| !text.is_empty());
        let bridge = DefaultBridge {
            address: bip.map(|text| address(&text)).transpose()?,
            range: range.map(|text| subnet(&text)).transpose()?,
            icc: twice.either("icc", flags.icc, file.icc).unwrap_or(true),
            masquerade: twice.either("ip-masq", flags.ip_masq, file.ip_masq).unwrap_or(true),
            mtu: twice.either("mtu", flags.mtu, file.mtu).filter(|mtu| *mtu != 0),
            host_binding: twice.either("ip", flags.ip, file.ip).filter(|ip| !ip.is_unspecified()),
        };
        if let Some(mtu) = bridge.mtu.filter(|mtu| !(68..=65535).contains(mtu)) {
            let why = "it is between 68 and 65535".to_owned();
            return Err(SettingsError::Invalid { option: "mtu", value: mtu.to_string(), why });
        }
        let pools = [flags.default_address_pools, file.default_address_pools].concat();
        Ok(NetworkSettings {
            bridge,
            pools: pools.iter().map(PoolOption::pool).collect::<Result<_, _>>()?,
            dns: DnsDefaults {
                servers: [flags.dns, file.dns].concat(),
                search: [flags.dns_search, file.dns_search].concat(),
                options: [flags.dns_opts, file.dns_opts].concat(),
            },
        })
    }
}

fn address(text: &str) -> Result<(IpAddr, u8), SettingsError> {
    let invalid = || SettingsError::Invalid {
        option: "bip",
        value: text.to_owned(),
        why: "want an IPv4 address that a bridge can have, and a prefix's length, as in 192.168.1.5/24"
            .to_owned(),
    };
    let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
    let (address, prefix) = (address.parse().map_err(|_| invalid())?, prefix.parse().map_err(|_| invalid())?);
    let network = Subnet::new(address, prefix).filter(|_| address.is_ipv4()).ok_or_else(invalid)?;
    if network.address() == address { Err(invalid()) } else { Ok((address, prefix)) }
}

fn subnet(text: &str) -> Result<Subnet, SettingsError> {
    text.parse().map_err(|_| SettingsError::Invalid {
        option: "fixed-cidr",
        value: text.to_owned(),
        why: "want a subnet, as in 192.168.1.0/25".to_owned(),
    })
}

//! Docker's driver options, understood; one of Docker's own that is not known is an error.

use rswarm_base::ipam::Family;
use rswarm_network::{BridgeSpec, IpvlanFlag, IpvlanMode, LanMode, LanSpec, MacvlanMode, Pool};

use super::{Network, NetworkPool};

/// What IPv4 requires of a link (RFC 791), and the most that one can carry.
const MTUS: std::ops::RangeInclusive<u32> = 68..=65535;

/// A bridge's.
pub(super) fn bridge_spec(network: &Network) -> Result<BridgeSpec, String> {
    let mut spec = BridgeSpec::new(&network.id, &network.name);
    spec.internal = network.internal;
    spec.families = families(network);
    spec.pools = network.ipam.iter().map(pool).collect();
    for (key, value) in &network.options {
        let wrong = || format!("invalid value for network option \"{key}\": \"{value}\"");
        match key.as_str() {
            "com.docker.network.bridge.name" => spec.interface = Some(value.clone()),
            "com.docker.network.bridge.enable_icc" => spec.icc = value.parse().map_err(|_| wrong())?,
            "com.docker.network.bridge.enable_ip_masquerade" => {
                spec.masquerade = value.parse().map_err(|_| wrong())?;
            }
            "com.docker.network.bridge.host_binding_ipv4" => {
                spec.host_binding = Some(value.parse().map_err(|_| wrong())?);
            }
            "com.docker.network.driver.mtu" => {
                spec.mtu = Some(mtu(value).ok_or_else(wrong)?);
            }
            // Words of the user's own, shown again by `inspect`, as Docker's driver leaves them alone too.
            key if !key.starts_with("com.docker.network.") => {}
            key => return Err(format!("unknown network option \"{key}\"")),
        }
    }
    Ok(spec)
}

/// What macvlan and ipvlan are told.
pub(super) fn lan_spec(network: &Network) -> Result<LanSpec, String> {
    let mut spec = LanSpec {
        id: network.id.clone(),
        name: network.name.clone(),
        mode: lan_mode(network)?,
        parent: None,
        families: families(network),
        pools: network.ipam.iter().map(pool).collect(),
        internal: network.internal,
        mtu: None,
    };
    for (key, value) in &network.options {
        match key.as_str() {
            "parent" => spec.parent = Some(value.clone()),
            "com.docker.network.driver.mtu" => {
                let wrong = || format!("invalid value for network option \"{key}\": \"{value}\"");
                spec.mtu = Some(mtu(value).ok_or_else(wrong)?);
            }
            key if !key.starts_with("com.docker.network.") => {}
            key => return Err(format!("unknown network option \"{key}\"")),
        }
    }
    Ok(spec)
}

fn lan_mode(network: &Network) -> Result<LanMode, String> {
    let option = |key: &str| network.options.get(key).map_or("", String::as_str);
    let driver = network.driver.as_str();
    let invalid = |what: &str, value: &str, default: &str| {
        format!(
            "requested {driver} {what} '{value}' is not valid, '{default}' {what} is the {driver} driver default"
        )
    };
    if driver == "macvlan" {
        return Ok(LanMode::Macvlan(match option("macvlan_mode") {
            "" | "bridge" => MacvlanMode::Bridge,
            "private" => MacvlanMode::Private,
            "vepa" => MacvlanMode::Vepa,
            "passthru" => MacvlanMode::Passthru,
            other => return Err(invalid("mode", other, "bridge")),
        }));
    }
    let mode = match option("ipvlan_mode") {
        "" | "l2" => IpvlanMode::L2,
        "l3" => IpvlanMode::L3,
        "l3s" => IpvlanMode::L3s,
        other => return Err(invalid("mode", other, "l2")),
    };
    let flag = match option("ipvlan_flag") {
        "" | "bridge" => IpvlanFlag::Bridge,
        "private" => IpvlanFlag::Private,
        "vepa" => IpvlanFlag::Vepa,
        other => return Err(invalid("flag", other, "bridge")),
    };
    Ok(LanMode::Ipvlan(mode, flag))
}

fn mtu(text: &str) -> Option<u32> {
    text.parse().ok().filter(|mtu| MTUS.contains(mtu))
}

fn families(network: &Network) -> Vec<Family> {
    let wanted = |family: &Family| match family {
        Family::V4 => !network.without_ipv4,
        Family::V6 => network.enable_ipv6,
    };
    Family::ALL.into_iter().filter(wanted).collect()
}

fn pool(pool: &NetworkPool) -> Pool {
    Pool {
        subnet: pool.subnet,
        family: pool.family(),
        range: pool.ip_range,
        gateway: pool.gateway,
        reserved: pool.auxiliary.values().copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(driver: &str, options: &[(&str, &str)]) -> Network {
        let mut network = Network::new("x", driver);
        network.options =
            options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        network
    }

    #[test]
    fn modes_of_links_are_dockers() {
        let mode =
            |driver, options: &[(&str, &str)]| lan_spec(&network(driver, options)).map(|spec| spec.mode);
        assert_eq!(mode("macvlan", &[]), Ok(LanMode::Macvlan(MacvlanMode::Bridge)));
        assert_eq!(mode("macvlan", &[("macvlan_mode", "vepa")]), Ok(LanMode::Macvlan(MacvlanMode::Vepa)));
        assert_eq!(
            mode("macvlan", &[("macvlan_mode", "l2")]),
            Err("requested macvlan mode 'l2' is not valid, 'bridge' mode is the macvlan driver default"
                .into())
        );
        let l3 = [("ipvlan_mode", "l3"), ("ipvlan_flag", "private")];
        assert_eq!(mode("ipvlan", &l3), Ok(LanMode::Ipvlan(IpvlanMode::L3, IpvlanFlag::Private)));
        assert!(mode("ipvlan", &[("ipvlan_mode", "bridge")]).is_err());
        assert!(mode("macvlan", &[("com.docker.network.bridge.name", "x")]).is_err());
        let spec = lan_spec(&network(
            "macvlan",
            &[("parent", "eth0.10"), ("com.docker.network.driver.mtu", "9000")],
        ));
        let spec = spec.expect("spec");
        assert_eq!((spec.parent.as_deref(), spec.mtu), (Some("eth0.10"), Some(9000)));
    }
}

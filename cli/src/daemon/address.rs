//! Where a node listens and what it tells others: parsing of `--listen-addr`, `--advertise-addr` and
//! `--data-path-addr`, and the choice when they are not given.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use rswarm_api::ClusterError;
use rswarm_base::Kind;
use serde::{Deserialize, Serialize};

/// The port of the nodes' gRPC servers.
pub const DEFAULT_PORT: u16 = 2377;

/// A node's addresses, decided once when it enters a cluster and kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addresses {
    /// Where the gRPC server listens.
    pub listen: SocketAddr,
    /// Where others reach it.
    pub advertise: SocketAddr,
    /// Where VXLAN traffic comes from and goes to.
    pub data_path: IpAddr,
}

impl Addresses {
    /// Decides all three. `towards` is a manager that the node is about to join, if it is.
    ///
    /// # Errors
    /// When one cannot be parsed, or none was given and there is no single candidate.
    pub fn decide(
        listen: &str,
        advertise: &str,
        data_path: &str,
        towards: Option<&str>,
    ) -> Result<Addresses, ClusterError> {
        let listen = match listen {
            "" => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), DEFAULT_PORT),
            text => parse(text, "listen")?,
        };
        let advertise = match advertise {
            "" if !listen.ip().is_unspecified() => listen,
            "" => SocketAddr::new(choose(towards)?, listen.port()),
            text => advertised(text, listen.port())?,
        };
        let data_path = match data_path {
            "" => advertise.ip(),
            text => parse(text, "data path")?.ip(),
        };
        Ok(Addresses { listen, advertise, data_path })
    }

    /// Where a client on this machine reaches the server.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        if self.listen.ip().is_unspecified() {
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.listen.port())
        } else {
            self.listen
        }
    }
}

fn advertised(text: &str, port: u16) -> Result<SocketAddr, ClusterError> {
    let parsed = parse(text, "advertise")?;
    if parsed.ip().is_unspecified() {
        return Err(invalid(
            "advertise address must be a non-zero IP address or network interface (with optional port number)",
        ));
    }
    // A port is taken from the listener when the text has none.
    let has_port = text.parse::<SocketAddr>().is_ok()
        || text
            .rsplit_once(':')
            .is_some_and(|(_, p)| p.parse::<u16>().is_ok() && text.parse::<IpAddr>().is_err());
    Ok(if has_port { parsed } else { SocketAddr::new(parsed.ip(), port) })
}

/// `IP`, `IP:PORT`, `INTERFACE` or `INTERFACE:PORT`.
fn parse(text: &str, what: &str) -> Result<SocketAddr, ClusterError> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, DEFAULT_PORT));
    }
    let (interface, port) = match text.rsplit_once(':') {
        Some((interface, port)) => (
            interface,
            port.parse().map_err(|_| invalid(&format!("invalid {what} address `{text}`: bad port")))?,
        ),
        None => (text, DEFAULT_PORT),
    };
    let ips: Vec<IpAddr> = addresses(|name, _| name == interface)?.into_iter().map(|(_, ip)| ip).collect();
    match ips.as_slice() {
        [ip] => Ok(SocketAddr::new(*ip, port)),
        [] => Err(invalid(&format!(
            "invalid {what} address `{text}`: it is neither an IP address nor an interface with one"
        ))),
        many => Err(invalid(&format!(
            "interface {interface} has more than one address ({}): give one of them",
            join(many)
        ))),
    }
}

/// The address that reaches the manager, or the only one that this host has.
fn choose(towards: Option<&str>) -> Result<IpAddr, ClusterError> {
    if let Some(ip) = towards.and_then(source_towards) {
        return Ok(ip);
    }
    let found = candidates()?;
    match found.as_slice() {
        [(_, ip)] => Ok(*ip),
        [] => Err(invalid("could not find the system's IP address - specify one with --advertise-addr")),
        many => {
            let listed: Vec<String> = many.iter().map(|(name, ip)| format!("{ip} on {name}")).collect();
            Err(invalid(&format!(
                "could not choose an IP address to advertise since this system has multiple addresses on different interfaces ({}) - specify one with --advertise-addr",
                listed.join(" and ")
            )))
        }
    }
}

/// The source address that the kernel would use; connecting a UDP socket sends nothing.
fn source_towards(remote: &str) -> Option<IpAddr> {
    let remote: SocketAddr = remote.parse().ok()?;
    let any: SocketAddr = if remote.is_ipv4() { "0.0.0.0:0".parse().ok()? } else { "[::]:0".parse().ok()? };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(remote).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

/// IPv4 addresses of this host's interfaces that are not ours (bridges of containers are), nor the loopback.
fn candidates() -> Result<Vec<(String, IpAddr)>, ClusterError> {
    addresses(|name, flags| {
        !flags.contains(InterfaceFlags::IFF_LOOPBACK)
            && !["rsw", "br-", "docker", "veth"].iter().any(|ours| name.starts_with(ours))
    })
}

/// IPv4 addresses of this host's interfaces that are up and `wanted`.
fn addresses(wanted: impl Fn(&str, InterfaceFlags) -> bool) -> Result<Vec<(String, IpAddr)>, ClusterError> {
    let interfaces = getifaddrs().map_err(|error| {
        ClusterError::new(Kind::Internal, "the interfaces of this host cannot be listed").because(error)
    })?;
    let usable = interfaces.filter(|interface| {
        interface.flags.contains(InterfaceFlags::IFF_UP) && wanted(&interface.interface_name, interface.flags)
    });
    let addresses = usable.filter_map(|interface| {
        let ip = interface.address?.as_sockaddr_in()?.ip();
        Some((interface.interface_name, IpAddr::V4(ip)))
    });
    Ok(addresses.collect())
}

fn join(ips: &[IpAddr]) -> String {
    ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

fn invalid(message: &str) -> ClusterError {
    ClusterError::new(Kind::InvalidArgument, message)
}

/// A manager's address as users write it, with the default port filled in.
#[must_use]
pub fn with_default_port(text: &str) -> String {
    let bare_v6 = text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6());
    match text.rsplit_once(':') {
        _ if bare_v6 => format!("[{text}]:{DEFAULT_PORT}"),
        Some((_, port)) if port.parse::<u16>().is_ok() => text.to_owned(),
        _ => format!("{text}:{DEFAULT_PORT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_addresses_are_taken_as_they_are() {
        let decided = Addresses::decide("10.0.0.1:3000", "", "", None).expect("valid");
        assert_eq!(decided.advertise, "10.0.0.1:3000".parse().expect("address"));
        let decided = Addresses::decide("", "10.0.0.2", "10.1.0.2", None).expect("valid");
        assert_eq!(decided.listen, "0.0.0.0:2377".parse().expect("address"));
        assert_eq!(decided.advertise, "10.0.0.2:2377".parse().expect("address"));
        assert_eq!(decided.data_path, "10.1.0.2".parse::<IpAddr>().expect("address"));
        assert_eq!(decided.local(), "127.0.0.1:2377".parse().expect("address"));
    }

    #[test]
    fn an_interface_that_is_named_may_be_any() {
        let decided = Addresses::decide("0.0.0.0:3000", "lo", "", None).expect("the loopback has an address");
        assert_eq!(decided.advertise, "127.0.0.1:3000".parse().expect("address"));
    }

    #[test]
    fn the_listeners_port_is_advertised_unless_another_is_given() {
        let decided = Addresses::decide("0.0.0.0:3000", "10.0.0.2", "", None).expect("valid");
        assert_eq!(decided.advertise.port(), 3000);
        let decided = Addresses::decide("0.0.0.0:3000", "10.0.0.2:4000", "", None).expect("valid");
        assert_eq!(decided.advertise.port(), 4000);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["no-such-interface", "0.0.0.0", "10.0.0.1:x"] {
            Addresses::decide("", text, "", None).expect_err(text);
        }
    }

    #[test]
    fn a_manager_without_a_port_is_at_the_usual_one() {
        assert_eq!(with_default_port("10.0.0.1"), "10.0.0.1:2377");
        assert_eq!(with_default_port("m1:99"), "m1:99");
        assert_eq!(with_default_port("fd00::1"), "[fd00::1]:2377");
    }
}

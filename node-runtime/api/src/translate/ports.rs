//! Ports: `80/tcp` keys, what they are published on, and how a service says the same.

use rswarm_engine::container::{Container, Endpoint};
use rswarm_proto::wire;
use rswarm_proto::wire::port_config::Mode;

use crate::error::ApiError;
use crate::types;

/// The transport protocols.
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

/// `80`, `80/udp`, `8000-8010/tcp`: all its ports, and the protocol.
fn parse_ports(text: &str) -> Result<(std::ops::RangeInclusive<u16>, &str), ApiError> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !PROTOCOLS.contains(&protocol) {
        return Err(ApiError::invalid(format!(
            "invalid port specification: \"{text}\": invalid proto: {protocol}"
        )));
    }
    parse_range(range)
        .filter(|range| *range.start() > 0)
        .map(|range| (range, protocol))
        .ok_or_else(|| ApiError::invalid(format!("invalid port specification: \"{text}\"")))
}

fn parse_range(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
    (start <= end).then_some(start..=end)
}

/// The keys of `ExposedPorts`, each port by itself.
pub(crate) fn exposed<'a>(keys: impl IntoIterator<Item = &'a String>) -> Result<Vec<String>, ApiError> {
    let mut ports = Vec::new();
    for key in keys {
        let (range, protocol) = parse_ports(key)?;
        ports.extend(range.map(|port| format!("{port}/{protocol}")));
    }
    Ok(ports)
}

/// `PortBindings` as the engine takes them. A port without a binding is only exposed.
pub(crate) fn bindings(map: &types::PortMap) -> Result<Vec<wire::PortConfig>, ApiError> {
    let mut ports = Vec::new();
    for (key, bindings) in map {
        let (range, protocol) = parse_ports(key)?;
        if range.start() != range.end() {
            return Err(ApiError::invalid(format!("invalid port specification: \"{key}\": want one port")));
        }
        for binding in bindings.iter().flatten() {
            ports.push(bind(*range.start(), protocol, binding)?);
        }
    }
    Ok(ports)
}

fn bind(target: u16, protocol: &str, binding: &types::PortBinding) -> Result<wire::PortConfig, ApiError> {
    let invalid = || ApiError::invalid(format!("invalid port specification: \"{}\"", binding.host_port));
    // Of a range, the first free one.
    let (published, end) = match binding.host_port.as_str() {
        "" => (0, 0),
        text => {
            let range = parse_range(text).ok_or_else(invalid)?;
            (*range.start(), if range.start() == range.end() { 0 } else { *range.end() })
        }
    };
    if published == 0 && end > 0 {
        return Err(invalid());
    }
    if !binding.host_ip.is_empty() && binding.host_ip.parse::<std::net::IpAddr>().is_err() {
        return Err(ApiError::invalid(format!("invalid IP address: {}", binding.host_ip)));
    }
    let mut port = wire::PortConfig {
        protocol: protocol.to_owned(),
        target: target.into(),
        published: published.into(),
        published_end: end.into(),
        host_ip: binding.host_ip.clone(),
        ..wire::PortConfig::default()
    };
    port.set_mode(Mode::Host);
    Ok(port)
}

/// What was asked to be published, as `HostConfig.PortBindings`.
pub(crate) fn bindings_out(ports: &[wire::PortConfig]) -> types::PortMap {
    let mut map = types::PortMap::new();
    for port in ports {
        let host_port = match (port.published, port.published_end) {
            (0, _) => String::new(),
            (first, 0) => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        let binding = types::PortBinding { host_ip: port.host_ip.clone(), host_port };
        map.entry(key(port.target, &port.protocol)).or_default().get_or_insert_default().push(binding);
    }
    map
}

fn key(port: u32, protocol: &str) -> String {
    format!("{port}/{}", if protocol.is_empty() { "tcp" } else { protocol })
}

/// What is published right now, as `NetworkSettings.Ports`: exposed ones without a binding are `null`.
pub(crate) fn bound_out(container: &Container) -> types::PortMap {
    let mut map: types::PortMap = container.exposed.iter().map(|port| (port.clone(), None)).collect();
    for port in container.endpoints.iter().flat_map(|endpoint: &Endpoint| &endpoint.ports) {
        let binding =
            types::PortBinding { host_ip: port.host_ip.to_string(), host_port: port.host_port.to_string() };
        let entry = map.entry(key(port.container_port.into(), &port.protocol)).or_default();
        entry.get_or_insert_default().push(binding);
    }
    map
}

/// The same as rows of `GET /containers/json`.
pub(crate) fn rows_out(container: &Container) -> Vec<types::Port> {
    let mut rows = Vec::new();
    for (key, bindings) in bound_out(container) {
        let Some((port, kind)) = key.split_once('/') else { continue };
        let row = types::Port {
            private_port: port.parse().unwrap_or_default(),
            kind: kind.to_owned(),
            ..types::Port::default()
        };
        match bindings {
            None => rows.push(row),
            Some(bindings) => rows.extend(bindings.into_iter().map(|binding| types::Port {
                ip: binding.host_ip,
                public_port: binding.host_port.parse().unwrap_or_default(),
                ..row.clone()
            })),
        }
    }
    rows
}

/// A service's published port.
pub(crate) fn service_port(port: &types::PortConfig) -> Result<wire::PortConfig, ApiError> {
    let protocol = if port.protocol.is_empty() { "tcp" } else { &port.protocol };
    if !PROTOCOLS.contains(&protocol) {
        return Err(ApiError::invalid(format!("invalid protocol '{protocol}': want tcp, udp or sctp")));
    }
    if port.target_port == 0 || port.target_port > u16::MAX.into() || port.published_port > u16::MAX.into() {
        return Err(ApiError::invalid(format!(
            "invalid port {} to {}: want 1 to 65535",
            port.published_port, port.target_port
        )));
    }
    let mode = match port.publish_mode.as_str() {
        "" | "ingress" => Mode::Ingress,
        "host" => Mode::Host,
        other => {
            return Err(ApiError::invalid(format!("invalid publish mode '{other}': want ingress or host")));
        }
    };
    let mut result = wire::PortConfig {
        name: port.name.clone(),
        protocol: protocol.to_owned(),
        target: port.target_port,
        published: port.published_port,
        ..wire::PortConfig::default()
    };
    result.set_mode(mode);
    Ok(result)
}

pub(crate) fn service_port_out(port: &wire::PortConfig) -> types::PortConfig {
    let mode = match port.mode() {
        Mode::Ingress => "ingress",
        Mode::Host => "host",
    };
    types::PortConfig {
        name: port.name.clone(),
        protocol: port.protocol.clone(),
        target_port: port.target,
        published_port: port.published,
        publish_mode: mode.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposed_ranges_are_spread() {
        let keys = ["80".to_owned(), "53/udp".to_owned(), "8000-8002/tcp".to_owned()];
        let ports = exposed(&keys).expect("ports");
        assert_eq!(ports, ["80/tcp", "53/udp", "8000/tcp", "8001/tcp", "8002/tcp"]);
        for wrong in ["0/tcp", "x", "80/icmp", "9-8/tcp", "70000"] {
            assert!(exposed(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bindings_come_back_as_they_were() {
        let text = r#"{"53/udp":[{"HostIp":"127.0.0.1","HostPort":""}],"80/tcp":[{"HostIp":"","HostPort":"8080"},{"HostIp":"","HostPort":"8081-8089"}]}"#;
        let map: types::PortMap = serde_json::from_str(text).expect("map");
        let ports = bindings(&map).expect("ports");
        assert_eq!(ports.len(), 3);
        assert!(ports.iter().all(|port| port.mode() == Mode::Host));
        assert_eq!(serde_json::to_string(&bindings_out(&ports)).expect("json"), text);
    }

    #[test]
    fn a_wrong_host_port_is_invalid() {
        let bind_to = |port: &str| {
            let binding = types::PortBinding { host_port: port.into(), ..Default::default() };
            bindings(&types::PortMap::from([("80/tcp".into(), Some(vec![binding]))]))
        };
        use rswarm_base::Kind;
        for wrong in ["http", "0-80", "81-80", "8080-", "80000"] {
            assert_eq!(bind_to(wrong).expect_err(wrong).kind, Kind::InvalidArgument);
        }
        assert!(bindings(&types::PortMap::from([("80/tcp".into(), None)])).expect("exposed").is_empty());
    }

    #[test]
    fn service_ports_default_to_tcp_through_the_mesh() {
        let port = types::PortConfig { target_port: 80, published_port: 8080, ..Default::default() };
        let back = service_port_out(&service_port(&port).expect("port"));
        assert_eq!((back.protocol.as_str(), back.publish_mode.as_str()), ("tcp", "ingress"));
        assert!(service_port(&types::PortConfig { target_port: 70_000, ..port.clone() }).is_err());
        assert!(service_port(&types::PortConfig { publish_mode: "magic".into(), ..port }).is_err());
    }
}

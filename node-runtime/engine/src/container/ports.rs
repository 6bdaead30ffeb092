//! What a container publishes, as the network takes it.

use rswarm_network::{PortBinding, Protocol};
use rswarm_proto::model::container::PortConfig;

use super::Container;
use crate::config::ContainerConfig;
use crate::error::StartError;

/// Published ports, and with `publish_all` every exposed one on a free port.
pub(crate) fn bindings(container: &Container) -> Result<Vec<PortBinding>, StartError> {
    let config = &container.config;
    let mut bindings: Vec<PortBinding> = config.ports.iter().map(binding).collect::<Result<_, _>>()?;
    if config.publish_all {
        for exposed in container.exposed.iter() {
            let binding = exposed_binding(exposed)?;
            let same = |known: &PortBinding| {
                known.container_port == binding.container_port && known.protocol == binding.protocol
            };
            if !bindings.iter().any(same) {
                bindings.push(binding);
            }
        }
    }
    Ok(bindings)
}

fn binding(port: &PortConfig) -> Result<PortBinding, StartError> {
    let number =
        |port: u32| u16::try_from(port).map_err(|_| StartError::Invalid(format!("invalid port: {port}")));
    let host_ip = match port.host_ip.trim_matches(['[', ']']) {
        "" => None,
        text => Some(text.parse().map_err(|_| StartError::Invalid(format!("invalid IP address: {text}")))?),
    };
    Ok(PortBinding {
        host_ip,
        host_port: number(port.published)?,
        host_port_end: number(port.published_end)?,
        container_port: number(port.target)?,
        protocol: protocol(&port.protocol)?,
    })
}

fn exposed_binding(exposed: &str) -> Result<PortBinding, StartError> {
    let (port, name) = exposed.split_once('/').unwrap_or((exposed, "tcp"));
    let container_port =
        port.parse().map_err(|_| StartError::Invalid(format!("invalid exposed port: {exposed}")))?;
    Ok(PortBinding {
        host_ip: None,
        host_port: 0,
        host_port_end: 0,
        container_port,
        protocol: protocol(name)?,
    })
}

fn protocol(name: &str) -> Result<Protocol, StartError> {
    let known = if name.is_empty() { Some(Protocol::Tcp) } else { Protocol::named(name) };
    known.ok_or_else(|| StartError::Invalid(format!("ports of protocol {name} cannot be published")))
}

/// Checks ports before a container exists.
///
/// # Errors
/// The first that cannot be published, in one sentence.
pub(crate) fn check_ports(config: &ContainerConfig) -> Result<(), String> {
    config.ports.iter().try_for_each(|port| binding(port).map(drop)).map_err(|error| error.to_string())
}

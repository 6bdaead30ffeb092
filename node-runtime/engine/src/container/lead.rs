//! Which of its networks leads a container: default routes go through it, ports are published there, DNS asks it first.

use std::sync::Arc;

use rswarm_base::ipam::Family;
use rswarm_network::{Lead, Netns};

use super::ports::bindings;
use super::wiring::{from_kernel_port, refused};
use super::{Container, Endpoint};
use crate::error::{Cause, StartError};
use crate::network::Network;
use crate::shared::Shared;

/// Which endpoint gives a family's default route: the greatest priority, then the first by name. Internal
/// networks have no way out.
pub(crate) fn gateway_index(endpoints: &[(Endpoint, Arc<Network>)], family: Family) -> Option<usize> {
    let leads = |network: &Network| !network.internal && network.has(family);
    let open = endpoints.iter().enumerate().filter(|(_, (_, network))| leads(network));
    let best = open.min_by_key(|(_, (endpoint, network))| {
        (std::cmp::Reverse(endpoint.config.gateway_priority), network.name.clone())
    });
    best.map(|(number, _)| number)
}

/// The order in which DNS asks the networks: the one with the default route first, and the routing mesh, which may have
/// that where others are without IPv4, after all of them.
// moby: Sandbox.ResolveName
pub(crate) fn order(endpoints: &[(Endpoint, Arc<Network>)], gateway: Option<usize>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..endpoints.len()).collect();
    order.sort_by_key(|number| (endpoints[*number].1.ingress, Some(*number) != gateway));
    order
}

/// Has default routes and published ports go by the networks that should lead them, of those that a running container
/// is on now.
// moby: Sandbox.updateGateway
pub(crate) async fn anew(
    shared: &Shared,
    container: &Container,
    endpoints: &mut [Endpoint],
    netns: &Netns,
) -> Result<(), StartError> {
    let led = shared.networks.led(netns).await.map_err(Cause::new)?;
    let on = with_networks(shared, endpoints);
    for (number, (endpoint, network)) in on.iter().enumerate() {
        let has = |family| led.iter().any(|(of, link)| *of == family && *link == endpoint.interface);
        let is_next = |family: &Family| gateway_index(&on, *family) == Some(number) && !has(*family);
        let families: Vec<Family> = Family::ALL.into_iter().filter(is_next).collect();
        if families.is_empty() {
            continue;
        }
        for (other, its) in
            on.iter().filter(|(other, _)| led.iter().any(|(_, link)| *link == other.interface))
        {
            let done = shared.networks.unlead(&container.id, its.kernel_id(), families.clone());
            done.await.map_err(Cause::new)?;
            let own = endpoints.iter_mut().filter(|own| own.network_id == other.network_id);
            own.for_each(|own| own.ports.retain(|port| !families.contains(&Family::of(port.host_ip))));
        }
        let mut publish = bindings(container)?;
        publish
            .retain(|binding| binding.host_ip.is_none_or(|host_ip| families.contains(&Family::of(host_ip))));
        let lead = shared.networks.lead(&container.id, network.kernel_id(), Lead { families, publish });
        let ports = lead.await.map_err(|error| refused(container, endpoint, error))?;
        let own = endpoints.iter_mut().find(|own| own.network_id == endpoint.network_id);
        own.into_iter().for_each(|own| own.ports.extend(ports.iter().cloned().map(from_kernel_port)));
    }
    Ok(())
}

/// Endpoints with their networks, as far as those are here.
pub(crate) fn with_networks(shared: &Shared, endpoints: &[Endpoint]) -> Vec<(Endpoint, Arc<Network>)> {
    let found = |endpoint: &Endpoint| Some((endpoint.clone(), shared.local.find(&endpoint.network_id).ok()?));
    endpoints.iter().filter_map(found).collect()
}

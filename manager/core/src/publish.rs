//! Published ports: which of them belong to the whole cluster, who has them, and which are given to services
//! that did not ask for a number.
//!
//! A port in ingress mode is one service's, on every node. A port in host mode is its nodes' alone: many services
//! may have it, and the scheduler keeps them apart; but on no node may it be both.

use std::collections::{BTreeMap, BTreeSet};

use rswarm_base::{Classify, Kind};
use rswarm_proto::model::object::Stored;
use rswarm_proto::wire::balancing::Pick;
use rswarm_proto::wire::{Balancing, Endpoint, EndpointSpec, PortConfig, ServiceSpec, port_config::Mode};

use crate::state::State;

/// Where ports without a number are given from (swarmkit `portallocator.go`).
pub const DYNAMIC_PORTS: std::ops::RangeInclusive<u32> = 30_000..=32_767;

/// Service label: which task a connection goes to.
const LB: &str = "rswarm.lb";
/// Service label: whether tasks of the client's own node come first.
const LOCAL_FIRST: &str = "rswarm.local-first";
/// Service label: which nodes answer on ports in ingress mode.
const PUBLISH: &str = "rswarm.publish";
/// Service label that is refused.
const PROXY_PROTOCOL: &str = "rswarm.proxy-protocol";

/// How a service with these labels wants connections to be spread.
///
/// # Errors
/// The first label that says nothing known, and what it may say.
pub fn balancing(labels: &BTreeMap<String, String>) -> Result<Balancing, String> {
    let mut balancing = Balancing::default();
    let wrong =
        |label: &str, value: &str, want: &str| Err(format!("invalid label {label}={value}: want {want}"));
    for (label, value) in labels {
        match (label.as_str(), value.as_str()) {
            (LB, "random") => balancing.set_pick(Pick::Random),
            (LB, "source-hash") => balancing.set_pick(Pick::SourceHash),
            (LB, "sticky") => balancing.set_pick(Pick::Sticky),
            (LB, _) => return wrong(label, value, "random, source-hash or sticky"),
            (LOCAL_FIRST, "true" | "false") => balancing.local_first = value == "true",
            (LOCAL_FIRST, _) => return wrong(label, value, "true or false"),
            (PUBLISH, "all" | "local") => balancing.local_only = value == "local",
            (PUBLISH, _) => return wrong(label, value, "all or local"),
            (PROXY_PROTOCOL, "") => {}
            (PROXY_PROTOCOL, _) => {
                return Err(format!(
                    "label {label} cannot be honoured: there is no proxy on the way of a packet that could write its \
                     header. Tasks see the clients' own addresses without it"
                ));
            }
            _ => {}
        }
    }
    Ok(balancing)
}

/// The ports of an endpoint that are published on every node.
pub fn ingress_ports(ports: &[PortConfig]) -> impl Iterator<Item = &PortConfig> {
    ports.iter().filter(|port| port.mode() == Mode::Ingress)
}

/// Whether a service with this endpoint needs the ingress network.
#[must_use]
pub fn needs_ingress(endpoint: Option<&EndpointSpec>) -> bool {
    endpoint.is_some_and(|endpoint| ingress_ports(&endpoint.ports).next().is_some())
}

/// What is wrong about the network of the routing mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IngressError {
    /// The service publishes on every node, and the network for that was removed.
    #[error("service needs ingress network, but no ingress network is present")]
    Missing,
    /// A cluster has one ingress network.
    #[error("ingress network ({0}) is already present")]
    Present(String),
    /// A service publishes on the ingress network.
    #[error("ingress network cannot be removed because service {0} depends on it")]
    InUse(String),
}

impl Classify for IngressError {
    fn kind(&self) -> Kind {
        match self {
            IngressError::Missing | IngressError::InUse(_) => Kind::FailedPrecondition,
            IngressError::Present(_) => Kind::Conflict,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            IngressError::Missing => {
                Some("make one with `rswarm network create --driver overlay --ingress NAME`".to_owned())
            }
            IngressError::Present(_) | IngressError::InUse(_) => None,
        }
    }
}

/// A port that another service has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("port '{port}' is already in use by service '{service}' ({id}) as {}", if *.ingress { "an ingress port" } else { "a host-published port" })]
pub struct PortTaken {
    /// The port.
    pub port: u32,
    /// The other service's name.
    pub service: String,
    /// The other service's id.
    pub id: String,
    /// Whether the other service has it on every node.
    pub ingress: bool,
}

/// The ports that services other than `own_id` have in a way that excludes these.
pub fn conflicts<'s>(
    state: &'s State,
    ports: impl IntoIterator<Item = &'s PortConfig>,
    own_id: &str,
) -> impl Iterator<Item = PortTaken> {
    ports.into_iter().filter(|port| port.published != 0).filter_map(move |port| {
        let mut others = state.publishers(&port.protocol, port.published);
        others.find_map(|(ingress, other)| {
            let excludes = ingress || port.mode() == Mode::Ingress;
            (excludes && other.id != own_id).then(|| PortTaken {
                port: port.published,
                service: other.name().to_owned(),
                id: other.id.clone(),
                ingress,
            })
        })
    })
}

/// Why a service with this spec could not be published; `own_id` is the service that it is for.
pub fn spec_conflicts<'s>(
    state: &'s State,
    spec: &'s ServiceSpec,
    own_id: &str,
) -> impl Iterator<Item = PortTaken> {
    conflicts(state, spec.endpoint.iter().flat_map(|endpoint| &endpoint.ports), own_id)
}

/// Gives numbers to ports. What one pass gave is not given again before it is stored.
#[derive(Debug, Default)]
pub struct DynamicPorts {
    given: BTreeSet<(String, u32)>,
}

impl DynamicPorts {
    /// The ports of `spec`, each in ingress mode with a number: its own, the one that `has` gave it, or the first
    /// free one. Without a number only when all are taken.
    pub fn assign(
        &mut self,
        state: &State,
        own_id: &str,
        spec: &EndpointSpec,
        has: &Endpoint,
    ) -> Vec<PortConfig> {
        let is_fixed = |port: &PortConfig| port.published != 0 || port.mode() == Mode::Host;
        let fixed = spec.ports.iter().filter(|port| port.published != 0);
        self.given.extend(fixed.map(|port| (port.protocol.clone(), port.published)));
        let mut ports = spec.ports.clone();
        for port in ports.iter_mut().filter(|port| !is_fixed(port)) {
            let same = |kept: &&PortConfig| PortConfig { published: 0, ..PortConfig::clone(kept) } == *port;
            let kept = has.ports.iter().filter(|kept| DYNAMIC_PORTS.contains(&kept.published)).find(same);
            let kept = kept.map(|kept| kept.published);
            let published = kept
                .into_iter()
                .chain(DYNAMIC_PORTS)
                .find(|number| self.is_free(state, port, *number, own_id));
            port.published = published.unwrap_or(0);
            self.given.insert((port.protocol.clone(), port.published));
        }
        ports
    }

    fn is_free(&self, state: &State, port: &PortConfig, published: u32, own_id: &str) -> bool {
        let numbered = PortConfig { published, ..port.clone() };
        !self.given.contains(&(port.protocol.clone(), published))
            && conflicts(state, [&numbered], own_id).next().is_none()
    }
}

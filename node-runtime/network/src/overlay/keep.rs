//! The sandbox put right when others change it: at once when the kernel tells, and at each application.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::future::BoxFuture;
use rswarm_base::ipam::Family;

use super::{Keeper, OverlayNetwork, near_port};
use crate::check::{self, Examined, Finding, MeshServices, Probe};
use crate::error::KernelError;
use crate::link::Route;
use crate::model::{Attached, Overlay};
use crate::netns::Netns;
use crate::nft;
use crate::overlay::derive;
use crate::pair::{InMesh, Inside, Near, connect, pair_name, routed};
use crate::plan::{Found, Step};
use crate::watch::{self, Listen, Watch};

impl OverlayNetwork {
    /// Applies what was applied last, if that is known.
    pub async fn check(&mut self) {
        let Some(overlay) = self.wanted.clone().filter(|_| !self.removed) else { return };
        let network = self.id.clone();
        match self.apply(Overlay::clone(&overlay)).await {
            Ok(steps) if steps.is_empty() => {}
            Ok(steps) => {
                let first = format!("{:?}", steps[0]);
                tracing::warn!(network, first, "somebody else changed the sandbox; it is put right");
            }
            // The worker applies it again and again until it holds.
            Err(error) => {
                tracing::warn!(network, error = %rswarm_base::Chain(&error), "sandbox could not be put right");
            }
        }
    }

    /// Listens to changes in the sandbox, from before anything is made there.
    /// Boxed, because a look applies the network, which is what begins to listen.
    pub(super) fn keep_sandbox(&self, sandbox: &Netns) -> BoxFuture<'static, Result<(), KernelError>> {
        let (Keeper { scope, itself }, sandbox) = (self.keeper.clone(), sandbox.clone());
        Box::pin(async move {
            let watch = Watch::open(&sandbox, Listen::Sandbox).await.map_err(|source| KernelError {
                action: "changes in the sandbox could not be listened to".to_owned(),
                source,
            })?;
            watch::spawn(&scope, watch, move || {
                let itself = itself.upgrade();
                Box::pin(async move {
                    let Some(network) = itself else { return false };
                    network.call(|network| Box::pin(network.check())).await.is_ok()
                })
            });
            Ok(())
        })
    }

    /// What an endpoint needs inside its container.
    pub(super) fn inside(&self, overlay: &Overlay, attached: &Attached, default_routes: &[Family]) -> Inside {
        let places = overlay.mesh.iter().flat_map(|_| attached.ips());
        let places = places.filter_map(|address| derive::place(overlay, address));
        Inside {
            interface: attached.interface.clone(),
            mac: attached.mac,
            mtu: self.mtu,
            addresses: routed(&attached.addresses, default_routes),
            mesh: places.map(|(subnet, gateway)| InMesh { subnet, gateway }).collect(),
        }
    }

    /// Whether the kernel has what the managers' table says, and the ways to the other nodes that are left to
    /// try. Nothing is changed.
    pub async fn examine(&self) -> Result<Examined, KernelError> {
        let (Some(overlay), Some(sandbox)) = (self.wanted.clone(), self.sandbox.clone()) else {
            let remedy = "the daemon tries again each second; its log says why, look for `network table could not be applied`";
            let finding = Finding::bad("table", "was not applied yet", remedy);
            return Ok(Examined { findings: vec![finding], ..Examined::default() });
        };
        let address = overlay.local_addr;
        let find = move || Route::open()?.mtu_at(address);
        let local = match &overlay.tunnel {
            Some(tunnel) => Some(tunnel.address.into()),
            None => self.context.home.act("links could not be listed", find).await?.map(|_| address),
        };
        let (plan, held) = (self.plan(&overlay, local), self.tables.clone());
        let look = move || {
            let mut findings = check::compare(&plan, &Route::open()?.list()?);
            let is_held = !held.is_empty() && nft::are_held(&held)?;
            findings.push(if is_held {
                Finding::good("rules", "are as they should be")
            } else {
                let remedy =
                    "the daemon puts them right by itself; find out who changes them with `nft monitor`";
                Finding::bad("rules", "were changed by somebody else", remedy)
            });
            Ok(findings)
        };
        let mut findings = sandbox.act("sandbox could not be looked at", look).await?;
        if local.is_none() {
            findings.push(Finding::bad(
                format!("address {address}"),
                "is not this node's",
                "advertise an address that this node has: leave and join with `--advertise-addr`",
            ));
        }
        Ok(Examined { findings, probes: self.probes(&overlay, &sandbox) })
    }

    /// One way to each other node: between sandboxes where they are routers, else between two containers.
    fn probes(&self, overlay: &Overlay, sandbox: &Netns) -> Vec<Probe> {
        let probe = |from: &Netns, source, to, node| Probe {
            from: from.clone(),
            source,
            to,
            node,
            mtu: self.mtu,
            data_path_port: overlay.data_path_port,
        };
        if let Some(mesh) = &overlay.mesh {
            let ways = mesh.nodes.iter().filter_map(|node| Some((*node.addresses.first()?, node.node_addr)));
            // The gateway's address is that of every sandbox: to it, nobody answers another.
            let own = |to| mesh.addresses.iter().copied().find(|own| Family::of(*own) == Family::of(to));
            return ways.map(|(address, node)| probe(sandbox, own(address), address, node)).collect();
        }
        let Some(member) = self.members.values().next() else { return Vec::new() };
        let remote = overlay.endpoints.iter().filter(|endpoint| !endpoint.local && endpoint.ready);
        let nodes: BTreeMap<IpAddr, IpAddr> =
            remote.filter_map(|endpoint| Some((endpoint.node_addr, *endpoint.addresses.first()?))).collect();
        nodes.into_iter().map(|(node, address)| probe(&member.netns, None, address, node)).collect()
    }

    /// Which service has which port of the mesh.
    pub fn mesh_services(&self) -> MeshServices {
        let mesh = self.wanted.as_ref().and_then(|overlay| overlay.mesh.as_ref());
        let ports = mesh.map_or(&[][..], |mesh| &mesh.ports);
        ports.iter().map(|port| ((port.protocol, port.published), port.service_id.clone())).collect()
    }

    /// Makes pairs again that somebody deleted.
    pub(super) async fn reconnect(
        &mut self,
        sandbox: &Netns,
        overlay: &Overlay,
        found: &Found,
    ) -> Result<Vec<Step>, KernelError> {
        let there: BTreeSet<&str> = found.links.iter().map(|link| link.link.name.as_str()).collect();
        let mut steps = Vec::new();
        for (container, attached) in &self.endpoints {
            let Some(member) = self.members.get_mut(container) else { continue };
            if there.contains(pair_name(container, &self.id).as_str()) {
                continue;
            }
            let default_routes = member.default_routes.clone();
            let netns = member.netns.clone();
            let link = self.near(container);
            let near = Near { link: link.clone(), port: near_port(), is_routed: true };
            let inside = self.inside(overlay, attached, &default_routes);
            connect(sandbox, near, &netns, inside).await?;
            steps.push(Step::CreateLink(link));
        }
        Ok(steps)
    }

    /// Looks after the rules that containers of the mesh have themselves. One that just ended has none.
    pub(super) async fn keep_members(&mut self, overlay: &Overlay) {
        let containers: Vec<String> =
            if overlay.mesh.is_some() { self.members.keys().cloned().collect() } else { Vec::new() };
        for container in containers {
            let Some(attached) = self.endpoints.get(&container) else { continue };
            let Some(member) = self.members.get(&container) else { continue };
            let inside = self.inside(overlay, attached, &member.default_routes);
            let (netns, before) = (member.netns.clone(), member.rules.clone());
            let keep = move || inside.keep_mesh_rules(before);
            let kept = netns.act("rules of the container could not be looked at", keep).await;
            match (kept, self.members.get_mut(&container)) {
                (Ok(held), Some(member)) => member.rules = held,
                (Err(error), _) => {
                    let error = rswarm_base::Chain(&error).to_string();
                    tracing::warn!(container, error, "container may not be reached by the mesh");
                }
                (Ok(_), None) => {}
            }
        }
    }
}

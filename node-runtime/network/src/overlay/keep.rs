//! The sandbox put right when others change it: at once when the kernel tells, and at each application.

use std::collections::BTreeSet;

use futures_util::future::BoxFuture;
use rswarm_base::ipam::Family;

use super::{Keeper, OverlayNetwork, near_port};
use crate::bridge::{InMesh, Inside, Near, connect, pair_name, routed};
use crate::error::KernelError;
use crate::model::{Attached, Overlay};
use crate::netns::Netns;
use crate::overlay::derive;
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

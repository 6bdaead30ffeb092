//! Endpoints on nodes that the managers have lost. They may be cut off from the managers alone, and their connections
//! live on as long as packets flow; those of an endpoint that does not answer here either are ended, so that nobody
//! waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use rswarm_base::ipam::Family;

use super::{OverlayNetwork, derive, shutting_down};
use crate::conntrack::{self, Doomed, Led};
use crate::icmp::{self, SMALL, Way};
use crate::model::{Overlay, OverlayEndpoint};
use crate::netns::Netns;
use crate::reset;

/// Twice this without an answer is silence.
const PATIENCE: Duration = Duration::from_secs(1);
/// Endpoints that are asked at a time.
const AT_ONCE: usize = 16;

/// A lost endpoint, and how to find out whether it is there.
struct Suspect {
    task_id: String,
    from: Netns,
    way: Way,
    /// Who answers in any case, as long as the one that asks is on the network itself.
    near: Option<IpAddr>,
}

impl Suspect {
    async fn is_silent(&self) -> bool {
        let (way, near) = (self.way, self.near);
        let ask = move || -> io::Result<bool> {
            let can_ask = || {
                let near = near.map(|address| icmp::answers(Way { source: None, address }, SMALL, PATIENCE));
                near.unwrap_or(Ok(true))
            };
            Ok(!icmp::answers(way, SMALL, PATIENCE)? && can_ask()?)
        };
        // Who cannot ask knows nothing.
        matches!(self.from.run(ask).await, Ok(Ok(true)))
    }
}

/// What is known of endpoints whose nodes were lost.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// The addresses of those that may have connections yet, by task.
    held: BTreeMap<String, Vec<IpAddr>>,
    /// Somebody asks them.
    is_asking: bool,
}

impl OverlayNetwork {
    /// Ends connections to lost endpoints that have left the table, and asks those that are still in it.
    pub(super) async fn follow_lost(&mut self, sandbox: &Netns, overlay: &Overlay) {
        let here: BTreeSet<&str> = overlay.endpoints.iter().map(|one| one.task_id.as_str()).collect();
        let left: Vec<String> =
            self.lost.held.keys().filter(|task| !here.contains(task.as_str())).cloned().collect();
        self.sever(sandbox, left).await;
        let before = self.wanted.as_deref().map(started);
        let is_known = |one: &OverlayEndpoint| {
            let was_started = before.as_ref().map(|before| before.contains(one.task_id.as_str()));
            // What a daemon before us saw nobody knows.
            was_started.unwrap_or(true) || self.lost.held.contains_key(&one.task_id)
        };
        let lost = unheard(overlay).filter(|one| is_known(one));
        self.lost.held = lost.map(|one| (one.task_id.clone(), one.addresses.clone())).collect();
        if !self.lost.held.is_empty() && !self.lost.is_asking {
            self.ask_lost(self.suspects(sandbox, overlay));
        }
    }

    /// How to ask them: as the clients here would, or between sandboxes where they are routers.
    fn suspects(&self, sandbox: &Netns, overlay: &Overlay) -> Vec<Suspect> {
        let way = |endpoint: &OverlayEndpoint| {
            let first = *endpoint.addresses.first()?;
            let Some(mesh) = &overlay.mesh else {
                let member = self.members.values().next()?;
                let near = derive::place(overlay, first).map(|(_, gateway)| gateway);
                return Some((member.netns.clone(), Way { source: None, address: first }, near));
            };
            let node = mesh.nodes.iter().find(|node| node.node_addr == endpoint.node_addr)?;
            let of_family = |addresses: &[IpAddr]| {
                addresses.iter().copied().find(|address| Family::of(*address) == Family::of(first))
            };
            let address = of_family(&node.addresses)?;
            Some((sandbox.clone(), Way { source: of_family(&mesh.addresses), address }, None))
        };
        let held = unheard(overlay).filter(|endpoint| self.lost.held.contains_key(&endpoint.task_id));
        held.filter_map(|endpoint| {
            let (from, way, near) = way(endpoint)?;
            Some(Suspect { task_id: endpoint.task_id.clone(), from, way, near })
        })
        .collect()
    }

    /// Beside everything else: silence takes its time.
    fn ask_lost(&mut self, suspects: Vec<Suspect>) {
        self.lost.is_asking = true;
        let itself = self.keeper.itself.clone();
        self.keeper.scope.spawn(async move {
            let asked = stream::iter(suspects).map(async |suspect| {
                let is_silent = suspect.is_silent().await;
                is_silent.then_some(suspect.task_id)
            });
            let silent: Vec<String> =
                asked.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await;
            let Some(network) = itself.upgrade() else { return };
            // Without an owner there is no network any more.
            let _ = network.call(|network| Box::pin(network.end_silent(silent))).await;
        });
    }

    async fn end_silent(&mut self, silent: Vec<String>) {
        self.lost.is_asking = false;
        if let Some(sandbox) = self.sandbox.clone() {
            self.sever(&sandbox, silent).await;
        }
    }

    /// Ends what these tasks answer, and lets the clients know that were led to them. One that was heard of again
    /// meanwhile is not held any more, and nothing of its is ended.
    async fn sever(&mut self, sandbox: &Netns, tasks: Vec<String>) {
        let lost = tasks.iter().filter_map(|task| self.lost.held.remove(task));
        let addresses: BTreeSet<IpAddr> = lost.flatten().collect();
        if addresses.is_empty() {
            return;
        }
        let led = conntrack::sever(sandbox, Doomed::AnsweredBy(addresses)).await;
        // Who came by a port of this host knows nothing of the sandbox, and the host remembers whom it asked for.
        let uplink: Vec<IpAddr> =
            Family::ALL.into_iter().filter_map(|family| self.uplink_at(family)).collect();
        let (by_host, inside): (Vec<Led>, Vec<Led>) =
            led.into_iter().partition(|led| uplink.contains(&led.asked.ip()));
        reset::refuse(sandbox, inside).await;
        if !by_host.is_empty() {
            let ways = by_host.into_iter().map(|led| (led.asked, led.client)).collect();
            let refused = self.context.host.call(move |host| Box::pin(host.refuse(ways))).await;
            if refused.is_err() {
                tracing::debug!(error = %shutting_down(), "clients of published ports were not refused");
            }
        }
    }
}

/// Endpoints elsewhere that are not known to run.
fn unheard(overlay: &Overlay) -> impl Iterator<Item = &OverlayEndpoint> {
    overlay.endpoints.iter().filter(|endpoint| !endpoint.local && !endpoint.started)
}

/// The tasks that are known to run.
fn started(overlay: &Overlay) -> BTreeSet<&str> {
    let started = overlay.endpoints.iter().filter(|endpoint| endpoint.started);
    started.map(|endpoint| endpoint.task_id.as_str()).collect()
}

//! Ports that every node of the cluster publishes, on this one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use super::{Host, HostPort, port, reserve};
use crate::conntrack::{self, Doomed};
use crate::error::KernelError;
use crate::rules::{InFamily, Target};

/// What is published, and what cannot be.
#[derive(Debug, Default)]
pub struct MeshPorts {
    ports: BTreeMap<HostPort, MeshPort>,
    /// Who has a port that we should have; tried again each time.
    refused: BTreeMap<HostPort, String>,
}

#[derive(Debug)]
struct MeshPort {
    target: Target,
    /// Keeps other processes of the host from binding the port; `None` when one had it already at adoption,
    /// and for protocols that the kernel has no sockets of.
    _reserved: Option<OwnedFd>,
}

impl MeshPorts {
    /// What a daemon before us published stays until the mesh is known again. Runs in the namespace.
    pub fn inherit(ports: BTreeMap<HostPort, Target>) -> MeshPorts {
        let take = |(host, target): (HostPort, Target)| {
            let reserved = reserve(host).ok().and_then(|(socket, _)| socket);
            (host, MeshPort { target, _reserved: reserved })
        };
        MeshPorts { ports: ports.into_iter().map(take).collect(), refused: BTreeMap::new() }
    }

    /// Where each port leads.
    pub fn targets(&self) -> BTreeMap<HostPort, Target> {
        self.ports.iter().map(|(port, published)| (*port, published.target)).collect()
    }

    /// Whether a port, of whatever address, is published.
    pub fn has(&self, host: HostPort) -> bool {
        self.ports.contains_key(&HostPort::any(host.family(), host.protocol, host.port))
    }
}

impl Host {
    /// Publishes these ports, and no others, for the mesh. One that somebody else has on this node is
    /// left to him with a warning: the cluster's other nodes, and all other ports, must not suffer.
    pub async fn set_mesh(&mut self, wanted: BTreeMap<HostPort, Target>) -> Result<(), KernelError> {
        self.mesh.ports.retain(|port, _| wanted.contains_key(port));
        let mut refused = BTreeMap::new();
        let mut new = Vec::new();
        for (host, target) in wanted {
            if let Some(published) = self.mesh.ports.get_mut(&host) {
                published.target = target;
                continue;
            }
            match self.take_for_mesh(host).await {
                Ok(socket) => {
                    self.mesh.ports.insert(host, MeshPort { target, _reserved: socket });
                    new.push(host);
                }
                Err(holder) => {
                    refused.insert(host, holder);
                }
            }
        }
        for (host, holder) in &refused {
            if self.mesh.refused.get(host) != Some(holder) {
                let HostPort { address, protocol, port } = host;
                tracing::warn!(%address, port, %protocol, holder, "port is not published on this node: it is taken");
            }
        }
        self.mesh.refused = refused;
        self.apply().await?;
        self.forget_flows(&new).await;
        Ok(())
    }

    /// Withdraws what leads to this address.
    pub async fn leave_mesh(&mut self, address: IpAddr) -> Result<(), KernelError> {
        let before = self.mesh.ports.len();
        self.mesh.ports.retain(|_, port| port.target.address != address);
        if self.mesh.ports.len() == before {
            return Ok(());
        }
        self.apply().await?;
        conntrack::forget(&self.home, Doomed::AnsweredBy(BTreeSet::from([address]))).await;
        Ok(())
    }

    /// The socket that keeps a port, or the name of who has it.
    async fn take_for_mesh(&self, host: HostPort) -> Result<Option<OwnedFd>, String> {
        if let Some(owner) = self.holder(host) {
            return Err(format!("container {}", owner.container));
        }
        let bind = move || {
            reserve(host)
                .map(|(socket, _)| socket)
                .map_err(|error| port::holder(host.protocol, host.port).unwrap_or_else(|| error.to_string()))
        };
        self.home.run(bind).await.unwrap_or_else(|error| Err(error.to_string()))
    }
}

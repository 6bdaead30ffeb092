//! The handle.
use std::net::IpAddr;

use rswarm_base::Scope;

use crate::error::*;
use crate::model::*;
use crate::netns::Netns;

/// All networks of a daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Networks;

impl Networks {
    /// Starts networking: adopts what a daemon of the same identifier left, makes the default bridge. Tasks
    /// run in `scope`; when it ends, kernel objects stay.
    ///
    /// # Errors
    /// When the sandbox directory or the default bridge cannot be made.
    pub async fn open(config: Config, scope: Scope) -> Result<Networks, OpenError> {
        let _ = (config, scope);
        todo!()
    }

    /// A new network namespace, its loopback interface up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn create_netns(&self) -> Result<Netns, NetnsError> {
        todo!()
    }

    /// The network namespace of a running process.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn open_netns(&self, pid: i32) -> Result<Netns, NetnsError> {
        let _ = pid;
        todo!()
    }

    /// Makes a bridge network, or takes it over if its interface exists (give the subnet it had).
    ///
    /// # Errors
    /// When its subnet is taken or the kernel refuses.
    pub async fn create_bridge(&self, spec: BridgeSpec) -> Result<BridgeInfo, CreateBridgeError> {
        let _ = spec;
        todo!()
    }

    /// The bridge network, if it is one of ours.
    #[must_use]
    pub fn bridge(&self, id: &str) -> Option<BridgeInfo> {
        let _ = id;
        todo!()
    }

    /// Removes a bridge network; one that does not exist is no error.
    ///
    /// # Errors
    /// When containers are attached to it.
    pub async fn remove_bridge(&self, id: &str) -> Result<(), RemoveError> {
        let _ = id;
        todo!()
    }

    /// Gives a container an interface in a network, with address, routes, published ports and names.
    /// On an error nothing of it is left.
    ///
    /// # Errors
    /// When the address or a port is taken, or the kernel refuses.
    pub async fn attach(&self, netns: &Netns, request: AttachRequest) -> Result<Attached, AttachError> {
        let _ = (netns, request);
        todo!()
    }

    /// Takes a container out of one network.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn disconnect(&self, container_id: &str, network_id: &str) -> Result<(), KernelError> {
        let _ = (container_id, network_id);
        todo!()
    }

    /// Takes a container out of all networks: interfaces, ports, names, DNS. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn detach(&self, container_id: &str) -> Result<(), KernelError> {
        let _ = container_id;
        todo!()
    }

    /// Takes over a running container's endpoints after a daemon restart: addresses, ports and names are
    /// known again, DNS is served again; its traffic is not touched. Networks must exist by then.
    ///
    /// # Errors
    /// When DNS cannot be served.
    pub async fn adopt(
        &self,
        container_id: &str,
        netns: &Netns,
        endpoints: &[Attached],
        dns: Option<DnsConfig>,
    ) -> Result<(), AttachError> {
        let _ = (container_id, netns, endpoints, dns);
        todo!()
    }

    /// Says that every running container was adopted: published ports that nobody claimed are withdrawn.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn settle(&self) -> Result<(), KernelError> {
        todo!()
    }

    /// Replaces the names by which a container is found in a user-defined bridge (rename, aliases).
    pub async fn set_names(&self, container_id: &str, network_id: &str, names: Vec<String>) {
        let _ = (container_id, network_id, names);
        todo!()
    }

    /// Brings an overlay to the wanted state: makes what is missing, corrects what differs, removes what
    /// is left over. Applying the same state again changes nothing.
    ///
    /// # Errors
    /// When the state is invalid or the kernel refuses.
    pub async fn apply_overlay(&self, overlay: Overlay) -> Result<(), OverlayError> {
        let _ = overlay;
        todo!()
    }

    /// Removes an overlay's sandbox from this node; one that does not exist is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_overlay(&self, network_id: &str) -> Result<(), OverlayError> {
        let _ = network_id;
        todo!()
    }

    /// Serves DNS at 127.0.0.11 inside the namespace; a second call replaces the configuration.
    ///
    /// # Errors
    /// When the sockets cannot be opened.
    pub async fn serve_dns(
        &self,
        netns: &Netns,
        container_id: &str,
        config: DnsConfig,
    ) -> Result<(), AttachError> {
        let _ = (netns, container_id, config);
        todo!()
    }

    /// The names that a container's DNS would answer for `name`, for diagnosis.
    #[must_use]
    pub fn lookup(&self, networks: &[String], name: &str) -> Vec<IpAddr> {
        let _ = (networks, name);
        todo!()
    }

    /// Removes every kernel object of this daemon: sandboxes, bridges, rules. For uninstalling; containers
    /// must be gone.
    ///
    /// # Errors
    /// The first thing that the kernel refused; the rest is removed all the same.
    pub async fn close_all(&self) -> Result<(), KernelError> {
        todo!()
    }
}

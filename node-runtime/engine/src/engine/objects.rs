//! The objects that containers use: networks, images and volumes.

use std::sync::Arc;

use rswarm_image::{ImageUser, Removed};
use rswarm_network::{Exposure, Finding, Overlay, OverlayError, TunnelPeerStatus};

use super::Engine;
use crate::attach::Attacher;
use crate::blocking::blocking;
use crate::config::EndpointConfig;
use crate::container::{Container, Request};
use crate::error::{Cause, FileError, NetworkError, VolumeError};
use crate::network::{ByWords, Network, NetworkCreate, NetworkMember, OverlayFacts};
use crate::volume::{self, Volume, VolumeCreate};

impl Engine {
    // ---- networks -----------------------------------------------------------------------------------

    /// Makes a bridge network; returns its identifier.
    ///
    /// # Errors
    /// When the name is taken or the subnet overlaps another.
    pub async fn create_network(&self, request: NetworkCreate) -> Result<String, NetworkError> {
        let local = self.shared.local.clone();
        let network = self.detached(async move { local.create(request).await }).await?;
        self.network_event(&network, "create");
        Ok(network.id.clone())
    }

    /// Removes a network that no container is on.
    ///
    /// # Errors
    /// When there is none, or it is in use.
    pub async fn remove_network(&self, reference: &str) -> Result<(), NetworkError> {
        let network = self.shared.local.find(reference)?;
        let users: Vec<String> = self.members(&network).into_iter().map(|member| member.name).collect();
        let (local, id) = (self.shared.local.clone(), network.id.clone());
        self.detached(async move { local.remove(&id, &users).await }).await?;
        self.network_event(&network, "destroy");
        Ok(())
    }

    /// All networks that this node knows, by name.
    #[must_use]
    pub fn list_networks(&self) -> Vec<Arc<Network>> {
        self.shared.local.list()
    }

    /// A network by identifier, name or unique prefix, and the running containers on it.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn inspect_network(
        &self,
        reference: &str,
    ) -> Result<(Arc<Network>, Vec<NetworkMember>), NetworkError> {
        let network = self.shared.local.find(reference)?;
        let members = self.members(&network);
        Ok((network, members))
    }

    /// Compares what the kernel has of a network with what it should have, and tries the ways to the other
    /// nodes; `None` when the network holds nothing on this node.
    ///
    /// # Errors
    /// When there is no such network, or the kernel cannot be asked.
    pub async fn check_network(&self, reference: &str) -> Result<Option<Vec<Finding>>, NetworkError> {
        let network = self.shared.local.find(reference)?;
        Ok(self.shared.networks.check(network.kernel_id()).await.map_err(Cause::new)?)
    }

    /// What can be reached on this host, and from where.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn audit_networks(&self) -> Result<Exposure, NetworkError> {
        Ok(self.shared.networks.audit().await.map_err(Cause::new)?)
    }

    /// How the device of encrypted overlays sees other nodes; nothing where there is none.
    pub async fn tunnel_peers(&self) -> Vec<TunnelPeerStatus> {
        self.shared.networks.tunnel_peers().await
    }

    /// Puts a container on one more network, at once when it runs.
    ///
    /// # Errors
    /// When it is on it already, or its network mode excludes others.
    pub async fn connect_network(
        &self,
        container: &str,
        endpoint: EndpointConfig,
    ) -> Result<(), NetworkError> {
        self.find(container)?.ask(|reply| Request::Connect { endpoint, reply }).await?
    }

    /// Takes a container off a network.
    ///
    /// # Errors
    /// When it is not on it.
    pub async fn disconnect_network(&self, container: &str, network: &str) -> Result<(), NetworkError> {
        let network = network.to_owned();
        self.find(container)?.ask(|reply| Request::Disconnect { network, reply }).await?
    }

    /// Brings a cluster network on this node to the wanted state; driven by the worker.
    ///
    /// # Errors
    /// When the state is invalid or the kernel refuses.
    pub async fn apply_overlay(&self, overlay: Overlay, facts: OverlayFacts) -> Result<(), OverlayError> {
        let noted = overlay.clone();
        self.shared.networks.apply_overlay(overlay).await?;
        self.shared.local.note_overlay(&noted, facts);
        Ok(())
    }

    /// Makes a cluster's network of this node's own words here, if it is not.
    ///
    /// # Errors
    /// When this node has no such words, or the kernel refuses.
    pub async fn apply_by_words(&self, wanted: ByWords) -> Result<(), NetworkError> {
        self.shared.local.apply_by_words(wanted).await
    }

    /// The cluster's networks that this node made by its own words.
    #[must_use]
    pub fn held_by_words(&self) -> Vec<String> {
        self.shared.local.held_by_words()
    }

    /// Removes one of them from this node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_by_words(&self, network_id: &str) -> Result<(), NetworkError> {
        self.shared.local.remove_by_words(network_id).await
    }

    /// Says who gives containers places on the cluster's networks; nobody, while this node is in none.
    pub fn set_attacher(&self, attacher: Option<Arc<dyn Attacher>>) {
        self.shared.cluster.set(attacher);
    }

    /// Removes a cluster network from this node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_overlay(&self, network_id: &str) -> Result<(), OverlayError> {
        self.shared.networks.remove_overlay(network_id).await?;
        self.shared.local.forget_overlay(network_id);
        Ok(())
    }

    // ---- images -------------------------------------------------------------------------------------

    /// Removes an image or a name of it, unless containers use it.
    ///
    /// # Errors
    /// When there is none, or it is in use.
    pub async fn remove_image(
        &self,
        reference: &str,
        options: rswarm_image::RemoveOptions,
    ) -> Result<Vec<Removed>, rswarm_image::RemoveError> {
        let users: Vec<ImageUser> = self.list().iter().map(|container| image_user(container)).collect();
        let removed = self.shared.images.remove(reference, options, &users).await?;
        for line in &removed {
            let (action, id) = match line {
                Removed::Untagged(name) => ("untag", name),
                Removed::Deleted(id) => ("delete", id),
            };
            self.shared.events.local("image", action, id, [("name".to_owned(), reference.to_owned())].into());
        }
        Ok(removed)
    }

    // ---- volumes ------------------------------------------------------------------------------------

    /// Makes a volume, or returns the one of that name.
    ///
    /// # Errors
    /// When the name or an option is not allowed.
    pub async fn create_volume(&self, request: VolumeCreate) -> Result<Arc<Volume>, VolumeError> {
        let volumes = self.shared.volumes.clone();
        let make = blocking(move || volumes.ensure(request, None));
        let (volume, made) = make.await?;
        if made {
            self.volume_event(&volume, "create");
        }
        Ok(volume)
    }

    /// All volumes, by name.
    #[must_use]
    pub fn list_volumes(&self) -> Vec<Arc<Volume>> {
        self.shared.volumes.list()
    }

    /// A volume by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn inspect_volume(&self, name: &str) -> Result<Arc<Volume>, VolumeError> {
        self.shared.volumes.get(name)
    }

    /// Bytes in a volume's files.
    ///
    /// # Errors
    /// When there is none, or its directory cannot be read.
    pub async fn volume_size(&self, name: &str) -> Result<u64, VolumeError> {
        let dir = self.shared.volumes.get(name)?.mountpoint.clone();
        let size = blocking(move || volume::size_of(&dir).map_err(FileError::read(&dir)));
        Ok(size.await?)
    }

    /// Removes a volume that no container uses. With `force`, one that is not there is fine.
    ///
    /// # Errors
    /// When there is none, or it is in use.
    pub async fn remove_volume(&self, name: &str, force: bool) -> Result<(), VolumeError> {
        let (volumes, owned) = (self.shared.volumes.clone(), name.to_owned());
        let remove = blocking(move || volumes.remove(&owned));
        match remove.await {
            Ok(volume) => {
                self.volume_event(&volume, "destroy");
                Ok(())
            }
            Err(VolumeError::NotFound(_)) if force => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The running containers on a network.
    fn members(&self, network: &Network) -> Vec<NetworkMember> {
        let mut members = Vec::new();
        for container in self.list().into_iter().filter(|container| container.state.status.is_live()) {
            let endpoint = container.endpoints.iter().find(|endpoint| endpoint.network_id == network.id);
            members.extend(endpoint.map(|endpoint| NetworkMember {
                container_id: container.id.clone(),
                name: container.name.clone(),
                endpoint: endpoint.clone(),
            }));
        }
        members
    }

    fn network_event(&self, network: &Network, action: &str) {
        let attributes =
            [("name".to_owned(), network.name.clone()), ("type".to_owned(), network.driver.clone())];
        self.shared.events.local("network", action, &network.id, attributes.into());
    }

    fn volume_event(&self, volume: &Volume, action: &str) {
        let attributes = [("driver".to_owned(), volume.driver.clone())];
        self.shared.events.local("volume", action, &volume.name, attributes.into());
    }
}

fn image_user(container: &Container) -> ImageUser {
    ImageUser {
        image_id: container.image_id.clone(),
        container_id: container.id.clone(),
        is_running: container.state.status.is_running(),
    }
}

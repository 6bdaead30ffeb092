//! Which of its networks a container's default routes go through, when it joins or leaves one.

use rswarm_base::ipam::Family;

use super::{Network, Networks};
use crate::bridge::shutting_down;
use crate::error::{AttachError, KernelError};
use crate::link::Route;
use crate::model::{BoundPort, Lead};
use crate::netns::Netns;

impl Networks {
    /// Through which interface each family's default route goes in a container's namespace.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub async fn led(&self, netns: &Netns) -> Result<Vec<(Family, String)>, KernelError> {
        let look = || Route::open()?.default_links();
        netns.act("routes of the container could not be listed", look).await
    }

    /// Leads a container's default routes of some families through a network that it is on, and publishes its ports
    /// there. Returns those ports.
    ///
    /// # Errors
    /// When it is not on the network, a port is taken, or the kernel refuses.
    pub async fn lead(
        &self,
        container_id: &str,
        network_id: &str,
        lead: Lead,
    ) -> Result<Vec<BoundPort>, AttachError> {
        let container = container_id.to_owned();
        let led = match self.network(network_id) {
            Some(Network::Bridge(_, owner)) => {
                owner.call(move |bridge| Box::pin(bridge.lead(container, lead))).await
            }
            Some(Network::Overlay(owner)) => {
                owner.call(move |overlay| Box::pin(overlay.lead(container, lead))).await
            }
            Some(Network::Lan(_, owner)) => owner.call(move |lan| Box::pin(lan.lead(container, lead))).await,
            None => return Err(AttachError::NoSuchNetwork(network_id.to_owned())),
        };
        led.map_err(|_| AttachError::ShuttingDown)?
    }

    /// Has a network lead a container no more in some families: what it published there is withdrawn. The default
    /// route stays until another network leads.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn unlead(
        &self,
        container_id: &str,
        network_id: &str,
        families: Vec<Family>,
    ) -> Result<(), KernelError> {
        let container = container_id.to_owned();
        let done = match self.network(network_id) {
            Some(Network::Bridge(_, owner)) => {
                owner.call(move |bridge| Box::pin(bridge.unlead(container, families))).await
            }
            Some(Network::Overlay(owner)) => {
                owner.call(move |overlay| Box::pin(overlay.unlead(container, families))).await
            }
            // Nothing is published on the host's own links.
            Some(Network::Lan(..)) | None => return Ok(()),
        };
        done.map_err(|_| shutting_down())?
    }
}

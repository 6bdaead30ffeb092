//! Which of its networks a container's default routes go through, when the one that they went through is left.

use rswarm_base::ipam::Family;

use super::{Network, Networks};
use crate::error::{AttachError, KernelError};
use crate::link::Route;
use crate::model::{BoundPort, Lead};
use crate::netns::Netns;

impl Networks {
    /// The families that have a default route in a container's namespace.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub async fn led(&self, netns: &Netns) -> Result<Vec<Family>, KernelError> {
        let look = || Route::open()?.default_routes();
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
}

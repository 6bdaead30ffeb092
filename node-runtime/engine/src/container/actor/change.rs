//! What can be done to a container between its start and its end, and to a stopped one.

use std::sync::Arc;

use rswarm_base::Chain;
use rswarm_proto::model::container::ResourceLimits;
use rswarm_shim::client::Shim;

use super::Actor;
use crate::attach::Place;
use crate::blocking::blocking;
use crate::config::{EndpointConfig, RestartName};
use crate::container::wiring::{self, Mode};
use crate::container::{Endpoint, Status};
use crate::engine::{Attachment, ContainerUpdate};
use crate::error::{Cause, ControlError, ExecError, NetworkError};
use crate::links;
use crate::network::{Network, is_bare, is_default};
use crate::registry::Reservation;

// What keeps a container off a network, in moby's words (`runconfig/errors.go`, `daemon/container_operations.go`).
const CONFLICT_HOST: &str = "container cannot be disconnected from host network or connected to host network";
const CONFLICT_SHARED: &str = "container sharing network namespace with another container or host cannot be connected to any other network";
const CONFLICT_NONE: &str =
    "container cannot be connected to multiple networks with one of the networks in private (none) mode";

impl Actor {
    pub(super) fn live_shim(&self) -> Result<&Shim, ControlError> {
        let not_running = || ControlError::NotRunning(self.container().id.clone());
        self.run.as_ref().map(|run| &run.shim).ok_or_else(not_running)
    }

    pub(super) async fn pause(&mut self) -> Result<(), ControlError> {
        if self.container().state.status == Status::Paused {
            return Err(ControlError::Conflict(format!(
                "container {} is already paused",
                self.container().id
            )));
        }
        self.refuse_restarting()?;
        self.live_shim()?.pause().await.map_err(Cause::new)?;
        self.state().status = Status::Paused;
        self.save_fact().await;
        self.event("pause", &[]);
        Ok(())
    }

    pub(super) async fn unpause(&mut self) -> Result<(), ControlError> {
        if self.container().state.status != Status::Paused {
            return Err(ControlError::Conflict(format!("container {} is not paused", self.container().id)));
        }
        self.live_shim()?.resume().await.map_err(Cause::new)?;
        self.state().status = Status::Running;
        self.save_fact().await;
        self.event("unpause", &[]);
        Ok(())
    }

    pub(super) fn refuse_restarting(&self) -> Result<(), ControlError> {
        if self.container().state.status == Status::Restarting {
            return Err(ControlError::Conflict(format!(
                "container {} is restarting, wait until the container is running",
                self.container().id
            )));
        }
        Ok(())
    }

    pub(super) async fn rename(&mut self, name: Reservation) -> Result<(), ControlError> {
        self.refuse_removing()?;
        let new = name.name.clone();
        let old = std::mem::replace(&mut self.record.container.name, new.clone());
        if let Err(error) = self.save().await {
            self.record.container.name = old;
            return Err(error.into());
        }
        name.keep();
        self.shared.registry.release(&old);
        let mut endpoints = self.container().endpoints.to_vec();
        for endpoint in &mut endpoints {
            let Ok(network) = self.shared.local.find(&endpoint.network_id) else { continue };
            let container = self.container();
            endpoint.names =
                wiring::names(&network, &container.id, &new, &container.config, &endpoint.config);
            if self.run.is_some() {
                let names = endpoint.names.clone();
                self.shared.networks.set_names(&container.id, network.kernel_id(), names).await;
            }
        }
        self.record.container.endpoints = Arc::new(endpoints);
        self.save_fact().await;
        self.event("rename", &[("oldName", format!("/{old}"))]);
        Ok(())
    }

    pub(super) async fn unlink(&mut self, alias: &str) -> Result<(), ControlError> {
        let mut links = self.container().links.to_vec();
        links.retain(|link| link.alias != alias);
        self.record.container.links = Arc::new(links);
        self.save().await?;
        if self.run.is_some()
            && let Err(error) = wiring::rewrite(&self.shared, self.container()).await
        {
            let id = &self.container().id;
            tracing::warn!(container.id = id, error = %Chain(&error), "a removed link stays in its files");
        }
        Ok(())
    }

    pub(super) fn refuse_removing(&self) -> Result<(), ControlError> {
        let container = self.container();
        if matches!(container.state.status, Status::Removing | Status::Dead) {
            return Err(ControlError::Conflict(format!(
                "container {} is marked for removal and cannot be changed",
                container.id
            )));
        }
        Ok(())
    }

    pub(super) async fn update(&mut self, update: ContainerUpdate) -> Result<Vec<String>, ControlError> {
        self.refuse_removing()?;
        let mut config = (*self.container().config).clone();
        let mut asked = update.resources;
        let warnings = crate::spec::discard_unsupported(&mut asked, &self.shared.host.support);
        config.resources = crate::spec::merge_resources(&config.resources, &asked, &self.shared.host)
            .map_err(ControlError::Invalid)?;
        if let Some(restart) = update.restart {
            if config.auto_remove && restart.name != RestartName::No {
                return Err(ControlError::Conflict(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container"
                        .to_owned(),
                ));
            }
            config.restart = restart;
        }
        if self.run.is_some() {
            self.apply_limits(&config.resources).await?;
        }
        self.record.container.config = Arc::new(config);
        self.save().await?;
        self.event("update", &[]);
        Ok(warnings)
    }

    pub(super) async fn apply_limits(&self, limits: &ResourceLimits) -> Result<(), ControlError> {
        let resources =
            crate::spec::oci_resources(limits, &crate::host::block_device).map_err(ControlError::Invalid)?;
        let path = self.shared.cgroup(self.container());
        let apply = move || rswarm_runtime::cgroup::Cgroup::at(path.as_ref())?.apply(&resources);
        Ok(blocking(apply).await.map_err(Cause::new)?)
    }

    pub(super) async fn attach(&mut self) -> Result<Attachment, ControlError> {
        self.refuse_restarting()?;
        if self.container().state.status == Status::Paused {
            return Err(ControlError::Conflict(format!(
                "container {} is paused, unpause the container before attach",
                self.container().id
            )));
        }
        self.refuse_removing()?;
        let (client, attachment) = Attachment::new(self.container().config.spec.tty);
        if let Some(run) = &self.run {
            let stream = run.shim.attach().await.map_err(Cause::new)?;
            // The caller may have gone away.
            let _ = client.send(stream);
        } else {
            self.clients.retain(|client| !client.is_closed());
            self.clients.push(client);
        }
        self.event("attach", &[]);
        Ok(attachment)
    }

    pub(super) async fn resize(&mut self, width: u16, height: u16) -> Result<(), ControlError> {
        self.live_shim()?.resize(width, height).await.map_err(Cause::new)?;
        self.event("resize", &[("height", height.to_string()), ("width", width.to_string())]);
        Ok(())
    }

    pub(super) fn shim_for_exec(&self) -> Result<Shim, ExecError> {
        let container = self.container();
        let id = &container.id;
        let conflict = |why: String| Err(ExecError::Conflict(why));
        match (&self.run, container.state.status) {
            (_, Status::Paused) => {
                conflict(format!("Container {id} is paused, unpause the container before exec"))
            }
            (_, Status::Restarting) => {
                conflict(format!("Container {id} is restarting, wait until the container is running"))
            }
            (Some(run), _) => Ok(run.shim.clone()),
            (None, _) => conflict(format!("container {id} is not running")),
        }
    }

    pub(super) async fn connect(&mut self, asked: EndpointConfig) -> Result<(), NetworkError> {
        if self.run.is_none() && wiring::known(&self.shared, &asked.network)?.is_none() {
            return self.connect_later(asked).await;
        }
        self.connect_now(asked).await
    }

    /// The network may come: it is looked for when the container starts, as Docker does.
    async fn connect_later(&mut self, asked: EndpointConfig) -> Result<(), NetworkError> {
        let mut endpoints = self.container().endpoints.to_vec();
        endpoints.push(wiring::later(asked));
        self.record.container.endpoints = Arc::new(endpoints);
        Ok(self.save().await?)
    }

    fn check_connect(&self, network: &Network) -> Result<(), NetworkError> {
        let container = self.container();
        let forbidden = |reason: &str| Err(NetworkError::Forbidden(reason.to_owned()));
        if network.name == "host" {
            return forbidden(CONFLICT_HOST);
        }
        if matches!(Mode::of(&container.config.network_mode), Mode::Host | Mode::Container(_)) {
            return forbidden(CONFLICT_SHARED);
        }
        let is_alone = |endpoint: &Endpoint| is_bare(&endpoint.network_name);
        if container.endpoints.iter().any(|endpoint| is_alone(endpoint) || is_bare(&network.name)) {
            return forbidden(CONFLICT_NONE);
        }
        if container.endpoints.iter().any(|endpoint| endpoint.network_id == network.id) {
            return Err(NetworkError::Forbidden(format!(
                "endpoint with name {} already exists in network {}",
                container.name, network.name
            )));
        }
        Ok(())
    }

    async fn connect_now(&mut self, asked: EndpointConfig) -> Result<(), NetworkError> {
        let container = self.container();
        // Before the cluster is asked for a place.
        let known = wiring::known(&self.shared, &asked.network)?;
        known.map_or(Ok(()), |network| self.check_connect(&network))?;
        let (network, place) = match self.run {
            Some(_) => wiring::locate(&self.shared, container, &wiring::later(asked.clone())).await?,
            None => (self.shared.local.find(&asked.network)?, None),
        };
        let place_id = place.as_ref().map(|place| place.id.clone());
        let endpoints = self.connected(asked, &network, place).await;
        if endpoints.is_err() {
            self.shared.cluster.release(&place_id);
        }
        self.record.container.endpoints = Arc::new(endpoints?);
        self.save().await?;
        self.network_event(&network.id, &network.name, &network.driver, "connect");
        Ok(())
    }

    /// The endpoints with one on `network`, made at once when the container runs.
    async fn connected(
        &self,
        asked: EndpointConfig,
        network: &Network,
        place: Option<Place>,
    ) -> Result<Vec<Endpoint>, NetworkError> {
        let container = self.container();
        self.check_connect(network)?;
        if is_default(&network.name) && !asked.links.is_empty() {
            // The docker CLI's words.
            return Err(NetworkError::Invalid(
                "links are only supported for user-defined networks".to_owned(),
            ));
        }
        asked
            .links
            .iter()
            .try_for_each(|link| links::parse(link).map(drop))
            .map_err(NetworkError::Invalid)?;
        let endpoint =
            wiring::new_endpoint(network, &container.id, &container.name, &container.config, asked)?;
        let with = |endpoint| container.endpoints.iter().cloned().chain([endpoint]).collect();
        if self.run.is_none() {
            return Ok(with(endpoint));
        }
        if is_bare(&network.name) {
            return Ok(with(wiring::seated(&endpoint)));
        }
        wiring::connect(&self.shared, container, endpoint, network, place)
            .await
            .map_err(|error| NetworkError::Below(Cause::new(error)))
    }

    pub(super) async fn disconnect(&mut self, reference: &str) -> Result<(), NetworkError> {
        let container = self.container();
        let is_named =
            |endpoint: &Endpoint| endpoint.network_id.is_empty() && endpoint.network_name == reference;
        if container.endpoints.iter().any(is_named) {
            // It has never been there: the network was not.
            let mut endpoints = container.endpoints.to_vec();
            endpoints.retain(|endpoint| !is_named(endpoint));
            self.record.container.endpoints = Arc::new(endpoints);
            return Ok(self.save().await?);
        }
        let network = self.shared.local.find(reference)?;
        if container.endpoints.iter().all(|endpoint| endpoint.network_id != network.id) {
            return Err(NetworkError::NotConnected {
                container: container.id.clone(),
                network: network.name.clone(),
            });
        }
        if network.name == "host" {
            return Err(NetworkError::Forbidden(CONFLICT_HOST.to_owned()));
        }
        let endpoints = if self.run.is_some() {
            wiring::disconnect(&self.shared, container, &network)
                .await
                .map_err(|error| NetworkError::Below(Cause::new(error)))?
        } else {
            let others = container.endpoints.iter().filter(|endpoint| endpoint.network_id != network.id);
            others.cloned().collect()
        };
        self.record.container.endpoints = Arc::new(endpoints);
        self.save().await?;
        self.network_event(&network.id, &network.name, &network.driver, "disconnect");
        Ok(())
    }

    pub(super) fn network_event(&self, id: &str, name: &str, driver: &str, action: &str) {
        let attributes = [
            ("container".to_owned(), self.container().id.clone()),
            ("name".to_owned(), name.to_owned()),
            ("type".to_owned(), driver.to_owned()),
        ];
        self.shared.events.local("network", action, id, attributes.into());
    }
}

//! What all actors of an engine work with. Nothing in it changes but through handles that have one owner each.

use std::path::PathBuf;
use std::sync::Arc;

use rswarm_base::Scope;
use rswarm_image::ImageStore;
use rswarm_network::Networks;
use rswarm_runtime::cgroup::parent_path;

use crate::attach::Cluster;
use crate::config::EngineConfig;
use crate::container::{Attributes, Container};
use crate::error::StartError;
use crate::events::Events;
use crate::exec::Execs;
use crate::metrics::Instruments;
use crate::network::LocalNetworks;
use crate::registry::Registry;
use crate::spec::Host;
use crate::volume::Volumes;

#[derive(Debug)]
pub(crate) struct Shared {
    pub config: EngineConfig,
    pub host: Host,
    pub images: ImageStore,
    pub networks: Networks,
    pub local: LocalNetworks,
    pub cluster: Cluster,
    pub volumes: Volumes,
    pub registry: Registry,
    pub execs: Execs,
    pub events: Events,
    pub instruments: Instruments,
    /// The actors run in it; when it ends, containers go on.
    pub scope: Scope,
}

impl Shared {
    /// `<data-root>/containers`.
    pub(crate) fn containers_dir(&self) -> PathBuf {
        self.config.data_root.join("containers")
    }

    /// `<exec-root>/containers/<id>`: the shim's.
    pub(crate) fn state_dir(&self, id: &str) -> PathBuf {
        self.config.exec_root.join("containers").join(id)
    }

    /// `<cgroup-parent>/<id>`, below the container's own parent when it asked for one.
    pub(crate) fn cgroup(&self, container: &Container) -> String {
        let asked = &container.config.cgroup_parent;
        // It was checked when the container was made.
        let asked = (!asked.is_empty()).then(|| parent_path(asked).ok()).flatten();
        match asked {
            Some(parent) => parent.join(&container.id).to_string_lossy().into_owned(),
            None => self.default_cgroup(&container.id),
        }
    }

    /// The same for a container that is known by its id only.
    pub(crate) fn default_cgroup(&self, id: &str) -> String {
        format!("{}/{id}", self.config.cgroup_parent.trim_end_matches('/'))
    }

    /// A container that another one shares a namespace with.
    pub(crate) fn running(&self, reference: &str, what: &str) -> Result<Arc<Container>, StartError> {
        let other = self.registry.find(reference)?.container();
        if other.state.status.is_live() {
            Ok(other)
        } else {
            Err(StartError::Conflict(format!(
                "cannot join {what} namespace of a non running container: {}",
                other.id
            )))
        }
    }

    /// Announces something about a container: its labels, image and name go along.
    pub(crate) fn event(&self, container: &Container, action: &str, more: &[(&str, String)]) {
        let mut attributes: Attributes = container.config.spec.labels.clone();
        attributes.insert("image".to_owned(), container.config.spec.image.clone());
        attributes.insert("name".to_owned(), container.name.clone());
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.events.local("container", action, &container.id, attributes);
    }

    /// `exec_create` and `exec_start` carry the command line in the action, as Docker's do: the program, a blank,
    /// the arguments.
    pub(crate) fn exec_event(&self, container: &Container, action: &str, id: &str, command: &[String]) {
        let (program, arguments) = command.split_first().map_or(("", &[][..]), |(p, a)| (p.as_str(), a));
        let action = format!("{action}: {program} {}", arguments.join(" "));
        self.event(container, &action, &[("execID", id.to_owned())]);
    }

    /// The end of a process in a container.
    pub(crate) fn exec_died(&self, container: &Container, id: &str, exit_code: i32) {
        self.event(container, "exec_die", &[("execID", id.to_owned()), ("exitCode", exit_code.to_string())]);
    }

    /// Announces that a container came onto or left its networks.
    pub(crate) fn network_events(&self, container: &Container, action: &str) {
        for endpoint in container.endpoints.iter().filter(|endpoint| !endpoint.endpoint_id.is_empty()) {
            let driver = self.local.find(&endpoint.network_id).map(|network| network.driver.clone());
            let attributes = [
                ("container".to_owned(), container.id.clone()),
                ("name".to_owned(), endpoint.network_name.clone()),
                ("type".to_owned(), driver.unwrap_or_default()),
            ];
            self.events.local("network", action, &endpoint.network_id, attributes.into());
        }
    }
}

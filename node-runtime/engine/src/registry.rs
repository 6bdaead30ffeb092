//! All containers of an engine by identifier and by name. Names are reserved before a container exists and
//! freed when its removal has ended, so that no two ever share one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};

use crate::container::{Container, Request};
use crate::error::{LookupError, NameError};

/// A container's actor, as others hold it.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub id: Arc<str>,
    pub requests: mpsc::Sender<Request>,
    pub state: watch::Receiver<Arc<Container>>,
}

impl Handle {
    /// The container as it is now.
    pub(crate) fn container(&self) -> Arc<Container> {
        self.state.borrow().clone()
    }
}

/// The index. Cloning gives another handle on the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registry {
    index: Arc<Mutex<Index>>,
}

#[derive(Debug, Default)]
struct Index {
    /// Also names whose container is still being made.
    names: BTreeMap<String, String>,
    containers: BTreeMap<String, Handle>,
}

impl Index {
    fn linked(&self, parent: &str, alias: &str) -> Option<&Handle> {
        let parent = self.containers.get(self.names.get(parent)?)?;
        let container = parent.container();
        let link = container.links.iter().find(|link| link.alias == alias)?;
        self.containers.get(&link.target)
    }
}

/// A name that is held for a container that does not exist yet; let go of unless [`Reservation::keep`] is called.
#[derive(Debug)]
pub(crate) struct Reservation {
    registry: Registry,
    pub name: String,
    kept: bool,
}

impl Reservation {
    /// Leaves the name with its container.
    pub(crate) fn keep(mut self) -> String {
        self.kept = true;
        std::mem::take(&mut self.name)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept {
            self.registry.release(&self.name);
        }
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds `name` for the container `id`.
    pub(crate) fn reserve(&self, name: &str, id: &str) -> Result<Reservation, NameError> {
        let mut index = self.lock();
        if let Some(holder) = index.names.get(name) {
            return Err(NameError::Taken { name: name.to_owned(), holder: holder.clone() });
        }
        index.names.insert(name.to_owned(), id.to_owned());
        Ok(Reservation { registry: self.clone(), name: name.to_owned(), kept: false })
    }

    /// Lets go of a name.
    pub(crate) fn release(&self, name: &str) {
        self.lock().names.remove(name);
    }

    /// Makes a container visible.
    pub(crate) fn insert(&self, handle: Handle) {
        self.lock().containers.insert(handle.id.to_string(), handle);
    }

    /// Forgets a container and its name.
    pub(crate) fn remove(&self, id: &str, name: &str) {
        let mut index = self.lock();
        index.containers.remove(id);
        index.names.remove(name);
    }

    /// By full identifier, else by name (its own, or `parent/alias` of a link to it), else by unique prefix of the
    /// identifier.
    pub(crate) fn find(&self, reference: &str) -> Result<Handle, LookupError> {
        let index = self.lock();
        if let Some(handle) = index.containers.get(reference) {
            return Ok(handle.clone());
        }
        let name = reference.strip_prefix('/').unwrap_or(reference);
        if let Some(handle) = index.names.get(name).and_then(|id| index.containers.get(id)) {
            return Ok(handle.clone());
        }
        if let Some(handle) = name.split_once('/').and_then(|(parent, alias)| index.linked(parent, alias)) {
            return Ok(handle.clone());
        }
        let not_found = || LookupError::NotFound(reference.to_owned());
        if reference.is_empty() {
            return Err(not_found());
        }
        let from = index.containers.range(reference.to_owned()..);
        let mut matches = from.take_while(|(id, _)| id.starts_with(reference)).map(|(_, handle)| handle);
        match (matches.next(), matches.next()) {
            (Some(handle), None) => Ok(handle.clone()),
            (Some(_), Some(_)) => Err(LookupError::Ambiguous(reference.to_owned())),
            (None, _) => Err(not_found()),
        }
    }

    /// The containers with a link to this one.
    pub(crate) fn linked_to(&self, id: &str) -> Vec<Handle> {
        let index = self.lock();
        let links = |handle: &&Handle| handle.state.borrow().links.iter().any(|link| link.target == id);
        index.containers.values().filter(links).cloned().collect()
    }

    /// Every container's handle.
    pub(crate) fn handles(&self) -> Vec<Handle> {
        self.lock().containers.values().cloned().collect()
    }

    /// Every container, newest first.
    pub(crate) fn list(&self) -> Vec<Arc<Container>> {
        let mut containers: Vec<Arc<Container>> = self.handles().iter().map(Handle::container).collect();
        containers.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        containers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ContainerConfig;
    use crate::container::Link;

    fn add(registry: &Registry, id: &str, name: &str) {
        add_linked(registry, id, name, Vec::new());
    }

    fn add_linked(registry: &Registry, id: &str, name: &str, links: Vec<Link>) {
        let mut container = crate::spec::tests::container(ContainerConfig::default(), Vec::new());
        container.id = id.to_owned();
        container.name = name.to_owned();
        container.links = Arc::new(links);
        registry.reserve(name, id).expect("free").keep();
        registry.insert(Handle {
            id: id.into(),
            requests: mpsc::channel(1).0,
            state: watch::channel(Arc::new(container)).1,
        });
    }

    fn found(registry: &Registry, reference: &str) -> String {
        registry.find(reference).expect("found").container().name.clone()
    }

    #[test]
    fn full_identifier_beats_name_beats_prefix() {
        let registry = Registry::default();
        let (first, second) = ("aa11".repeat(16), "aa22".repeat(16));
        add(&registry, &first, "aa2");
        add(&registry, &second, "web");
        assert_eq!(found(&registry, &second), "web");
        assert_eq!(found(&registry, "aa2"), "aa2", "a name that looks like another's prefix");
        assert_eq!(found(&registry, "/web"), "web");
        assert_eq!(found(&registry, "aa22"), "web");
        assert_eq!(registry.find("aa").expect_err("two"), LookupError::Ambiguous("aa".into()));
        assert_eq!(registry.find("zz").expect_err("none").to_string(), "No such container: zz");
        assert!(registry.find("").is_err());
    }

    #[test]
    fn a_link_is_a_name_too() {
        let registry = Registry::default();
        add(&registry, "1", "db");
        add_linked(&registry, "2", "web", vec![Link { target: "1".into(), alias: "data".into() }]);
        assert_eq!(found(&registry, "/web/data"), "db");
        assert_eq!(found(&registry, "web/data"), "db");
        assert!(registry.find("web/db").is_err() && registry.find("db/data").is_err());
        assert_eq!(registry.linked_to("1").len(), 1);
        assert!(registry.linked_to("2").is_empty());
    }

    #[test]
    fn a_name_is_held_from_reservation_to_removal() {
        let registry = Registry::default();
        let reservation = registry.reserve("web", "1").expect("free");
        let error = registry.reserve("web", "2").expect_err("taken");
        assert_eq!(
            error.to_string(),
            "Conflict. The container name \"/web\" is already in use by container \"1\". \
             You have to remove (or rename) that container to be able to reuse that name."
        );
        drop(reservation);
        registry.reserve("web", "2").expect("free again").keep();
        assert!(registry.reserve("web", "3").is_err());
        registry.remove("2", "web");
        assert!(registry.reserve("web", "3").is_ok());
    }
}

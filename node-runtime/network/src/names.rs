//! What names lead to: one immutable table per network, replaced as a whole, read without a lock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::model::{Overlay, OverlayEndpoint, OverlayService};

/// One network's names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NameTable {
    /// The network's name, which may follow a name after a dot.
    pub network: String,
    /// Addresses by lower-case name.
    forward: HashMap<String, Vec<IpAddr>>,
    /// The name to print for an address.
    reverse: HashMap<IpAddr, String>,
}

impl NameTable {
    /// An empty table.
    #[must_use]
    pub fn new(network: &str) -> NameTable {
        NameTable { network: network.to_ascii_lowercase(), ..NameTable::default() }
    }

    /// A container's names; the first one answers for its addresses.
    pub fn add_container(&mut self, names: &[String], addresses: &[IpAddr]) {
        names.iter().for_each(|name| self.add(name, addresses));
        if let Some(first) = names.first() {
            self.reverse.extend(addresses.iter().map(|address| (*address, first.clone())));
        }
    }

    /// The names of an overlay's services and endpoints. Those that are not ready keep their own names, so
    /// that they can be reached for a look, but get none of their service's traffic.
    #[must_use]
    pub fn of_overlay(overlay: &Overlay) -> NameTable {
        let mut table = NameTable::new(&overlay.name);
        let mut balanced = HashSet::new();
        for service in &overlay.services {
            balanced.insert(service.id.as_str());
            table.add_service(service);
        }
        for endpoint in &overlay.endpoints {
            table.add_endpoint(endpoint, balanced.contains(endpoint.service_id.as_str()));
        }
        table
    }

    /// A service with virtual addresses answers with them, also while no task is ready: it is refused there.
    fn add_service(&mut self, service: &OverlayService) {
        for name in [&service.name].into_iter().chain(&service.aliases).filter(|name| !name.is_empty()) {
            self.add(name, &service.addresses);
            self.add(&format!("tasks.{name}"), &[]);
        }
        self.reverse.extend(service.addresses.iter().map(|address| (*address, service.name.clone())));
    }

    fn add_endpoint(&mut self, endpoint: &OverlayEndpoint, is_balanced: bool) {
        let own =
            endpoint.container_names.iter().chain([&endpoint.slot_name]).filter(|name| !name.is_empty());
        for name in own.clone() {
            self.add(name, &endpoint.addresses);
        }
        if let Some(name) = own.clone().next() {
            self.reverse.extend(endpoint.addresses.iter().map(|address| (*address, name.clone())));
        }
        let service = [&endpoint.service_name].into_iter().chain(&endpoint.aliases);
        for name in service.filter(|name| !name.is_empty()) {
            // A service with no ready task is still known: an empty answer, not a wrong one from elsewhere.
            let addresses: &[IpAddr] = if endpoint.ready { &endpoint.addresses } else { &[] };
            if !is_balanced {
                self.add(name, addresses);
            }
            self.add(&format!("tasks.{name}"), addresses);
        }
    }

    fn add(&mut self, name: &str, addresses: &[IpAddr]) {
        let list = self.forward.entry(name.to_ascii_lowercase()).or_default();
        for address in addresses {
            if !list.contains(address) {
                list.push(*address);
            }
        }
    }

    fn get(&self, name: &str) -> Option<&[IpAddr]> {
        self.forward.get(name).map(Vec::as_slice)
    }
}

/// All networks' names, by network identifier.
#[derive(Debug, Clone, Default)]
pub struct Names(Arc<ArcSwap<BTreeMap<String, Arc<NameTable>>>>);

impl Names {
    /// Replaces a network's table.
    pub fn publish(&self, network_id: &str, table: NameTable) {
        let table = Arc::new(table);
        self.0.rcu(|all| {
            let mut all = BTreeMap::clone(all);
            all.insert(network_id.to_owned(), Arc::clone(&table));
            all
        });
    }

    /// Forgets a network.
    pub fn remove(&self, network_id: &str) {
        self.0.rcu(|all| {
            let mut all = BTreeMap::clone(all);
            all.remove(network_id);
            all
        });
    }

    /// The addresses that a name has for a container on `networks`; `None` when nobody knows the name,
    /// empty when it is known and has no address now.
    #[must_use]
    pub fn resolve(&self, networks: &[String], name: &str) -> Option<Vec<IpAddr>> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let all = self.0.load();
        let tables = || networks.iter().filter_map(|id| all.get(id));
        if let Some(found) = tables().find_map(|table| table.get(&name)) {
            return Some(found.to_vec());
        }
        // `web.backend` is `web` in the network `backend`, whose name may have dots of its own.
        tables().find_map(|table| {
            let rest = name.strip_suffix(table.network.as_str())?.strip_suffix('.')?;
            table.get(rest).map(<[IpAddr]>::to_vec)
        })
    }

    /// The name of an address on `networks`, as PTR answers print it: `web.1.backend`.
    #[must_use]
    pub fn reverse(&self, networks: &[String], address: IpAddr) -> Option<String> {
        let all = self.0.load();
        let tables = networks.iter().filter_map(|id| all.get(id));
        tables
            .into_iter()
            .find_map(|table| table.reverse.get(&address).map(|name| format!("{name}.{}", table.network)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Mac;

    fn endpoint(slot: u8, ready: bool) -> OverlayEndpoint {
        OverlayEndpoint {
            task_id: format!("task{slot}"),
            service_id: "service".into(),
            service_name: "Web".into(),
            slot_name: format!("web.{slot}"),
            container_names: vec![format!("web.{slot}.task{slot}")],
            aliases: vec!["www".into()],
            addresses: vec![IpAddr::from([10, 0, 1, slot])],
            mac: Mac([2, 0, 0, 0, 0, slot]),
            node_addr: IpAddr::from([192, 0, 2, 1]),
            local: true,
            ready,
        }
    }

    fn names(endpoints: Vec<OverlayEndpoint>) -> Names {
        publish(endpoints, Vec::new())
    }

    fn publish(endpoints: Vec<OverlayEndpoint>, services: Vec<OverlayService>) -> Names {
        let overlay = Overlay {
            network_id: "n".into(),
            name: "Back.End".into(),
            vni: 1,
            subnets: Vec::new(),
            mtu: None,
            data_path_port: 4789,
            local_addr: IpAddr::from([192, 0, 2, 1]),
            internal: false,
            endpoints,
            services,
            mesh: None,
            tunnel: None,
        };
        let names = Names::default();
        names.publish("n", NameTable::of_overlay(&overlay));
        names
    }

    fn resolve(names: &Names, name: &str) -> Option<Vec<String>> {
        let found = names.resolve(&["n".into()], name)?;
        Some(found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn only_ready_endpoints_answer_for_their_service() {
        let names = names(vec![endpoint(1, true), endpoint(2, false), endpoint(3, true)]);
        for name in ["web", "WEB.", "tasks.web", "www", "tasks.www", "web.back.end"] {
            let found = resolve(&names, name);
            assert_eq!(found.as_deref(), Some(&["10.0.1.1".to_owned(), "10.0.1.3".to_owned()][..]), "{name}");
        }
        assert_eq!(resolve(&names, "web.2"), Some(vec!["10.0.1.2".to_owned()]));
        assert_eq!(resolve(&names, "db"), None);
        assert_eq!(names.resolve(&[], "web"), None);
    }

    #[test]
    fn a_service_without_ready_tasks_is_known_and_empty() {
        let names = names(vec![endpoint(1, false)]);
        assert_eq!(resolve(&names, "web"), Some(Vec::new()));
    }

    #[test]
    fn a_virtual_address_answers_for_its_service() {
        let service = |name: &str| OverlayService {
            id: "service".into(),
            name: name.into(),
            aliases: vec!["www".into()],
            addresses: vec![IpAddr::from([10, 0, 1, 200])],
            balancing: Default::default(),
        };
        let names = publish(vec![endpoint(1, true), endpoint(2, false)], vec![service("Web")]);
        for name in ["web", "www", "web.back.end"] {
            assert_eq!(resolve(&names, name), Some(vec!["10.0.1.200".to_owned()]), "{name}");
        }
        for name in ["tasks.web", "tasks.www", "web.1"] {
            assert_eq!(resolve(&names, name), Some(vec!["10.0.1.1".to_owned()]), "{name}");
        }
        let reverse = names.reverse(&["n".into()], IpAddr::from([10, 0, 1, 200]));
        assert_eq!(reverse.as_deref(), Some("Web.back.end"));

        let names = publish(Vec::new(), vec![service("web")]);
        assert_eq!(resolve(&names, "web"), Some(vec!["10.0.1.200".to_owned()]), "without any task");
        assert_eq!(resolve(&names, "tasks.web"), Some(Vec::new()));
    }

    #[test]
    fn an_address_has_its_containers_name() {
        let names = names(vec![endpoint(1, true)]);
        let reverse = names.reverse(&["n".into()], IpAddr::from([10, 0, 1, 1]));
        assert_eq!(reverse.as_deref(), Some("web.1.task1.back.end"));
    }
}

//! What names lead to: one immutable table per network, replaced as a whole, read without a lock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::model::{NamedPort, Overlay, OverlayEndpoint, OverlayService};

/// One network's names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NameTable {
    /// The network's name, which may follow a name after a dot.
    pub network: String,
    /// Addresses by lower-case name.
    forward: HashMap<String, Answer>,
    /// The name to print for an address.
    reverse: HashMap<IpAddr, String>,
    /// Who serves a named port, by lower-case `_port._protocol.name`.
    served: HashMap<String, Vec<Served>>,
}

/// What a name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// In no order.
    pub addresses: Vec<IpAddr>,
    /// Whether a client may remember it for a while: none of the addresses is a task's whose service has a virtual
    /// one. Such a task stops without waiting for clients who found it by another way.
    pub lasts: bool,
}

/// Who serves a named port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Its name, without the network's.
    pub name: String,
    /// The port.
    pub port: u16,
}

impl NameTable {
    /// An empty table.
    #[must_use]
    pub fn new(network: &str) -> NameTable {
        NameTable { network: network.to_ascii_lowercase(), ..NameTable::default() }
    }

    /// A container's names; the first one answers for its addresses.
    pub fn add_container(&mut self, names: &[String], addresses: &[IpAddr]) {
        names.iter().for_each(|name| self.add(name, addresses, true));
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
            if !service.addresses.is_empty() {
                balanced.insert(service.id.as_str());
                table.add_service(service);
            }
            service.ports.iter().for_each(|port| table.add_port(overlay, service, port));
        }
        for endpoint in &overlay.endpoints {
            table.add_endpoint(endpoint, balanced.contains(endpoint.service_id.as_str()));
        }
        table
    }

    /// One service with one address and one named port.
    #[cfg(test)]
    pub fn of_service(network: &str, name: &str, address: IpAddr, port: NamedPort) -> NameTable {
        let mut table = NameTable::new(network);
        table.add(name, &[address], true);
        let question = format!("_{}._{}.{name}", port.name, port.protocol);
        table.served.insert(question, vec![Served { name: name.to_owned(), port: port.port }]);
        table
    }

    /// A service with virtual addresses answers with them, also while no task is ready: it is refused there.
    fn add_service(&mut self, service: &OverlayService) {
        for name in [&service.name].into_iter().chain(&service.aliases).filter(|name| !name.is_empty()) {
            self.add(name, &service.addresses, true);
            self.add(&format!("tasks.{name}"), &[], false);
            self.add(&format!("started.{name}"), &[], false);
        }
        self.reverse.extend(service.addresses.iter().map(|address| (*address, service.name.clone())));
    }

    /// A named port is served by the service, where it has an address of its own, and by each ready task.
    fn add_port(&mut self, overlay: &Overlay, service: &OverlayService, port: &NamedPort) {
        let served_by = |name: &String| Served { name: name.clone(), port: port.port };
        let ready = overlay.endpoints.iter().filter(|one| one.ready && one.service_id == service.id);
        let tasks: Vec<Served> = ready.filter_map(|one| one.container_names.first()).map(served_by).collect();
        for name in [&service.name].into_iter().chain(&service.aliases).filter(|name| !name.is_empty()) {
            let whole = if service.addresses.is_empty() { tasks.clone() } else { vec![served_by(name)] };
            let question = format!("_{}._{}", port.name, port.protocol).to_ascii_lowercase();
            let name = name.to_ascii_lowercase();
            self.served.insert(format!("{question}.tasks.{name}"), tasks.clone());
            self.served.insert(format!("{question}.{name}"), whole);
        }
    }

    fn add_endpoint(&mut self, endpoint: &OverlayEndpoint, is_balanced: bool) {
        let own =
            endpoint.container_names.iter().chain([&endpoint.slot_name]).filter(|name| !name.is_empty());
        for name in own.clone() {
            self.add(name, &endpoint.addresses, !is_balanced);
        }
        if let Some(name) = own.clone().next() {
            self.reverse.extend(endpoint.addresses.iter().map(|address| (*address, name.clone())));
        }
        let service = [&endpoint.service_name].into_iter().chain(&endpoint.aliases);
        for name in service.filter(|name| !name.is_empty()) {
            // A service with no ready task is still known: an empty answer, not a wrong one from elsewhere.
            let addresses: &[IpAddr] = if endpoint.ready { &endpoint.addresses } else { &[] };
            if !is_balanced {
                self.add(name, addresses, true);
            }
            self.add(&format!("tasks.{name}"), addresses, !is_balanced);
            // For peers that must find each other before they can be ready.
            let started: &[IpAddr] = if endpoint.started { &endpoint.addresses } else { &[] };
            self.add(&format!("started.{name}"), started, !is_balanced);
        }
    }

    fn add(&mut self, name: &str, addresses: &[IpAddr], lasts: bool) {
        let nothing = || Answer { addresses: Vec::new(), lasts: true };
        let answer = self.forward.entry(name.to_ascii_lowercase()).or_insert_with(nothing);
        answer.lasts &= lasts;
        for address in addresses {
            if !answer.addresses.contains(address) {
                answer.addresses.push(*address);
            }
        }
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
    pub fn resolve(&self, networks: &[String], name: &str) -> Option<Answer> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let all = self.0.load();
        let tables = || networks.iter().filter_map(|id| all.get(id));
        if let Some(found) = tables().find_map(|table| table.forward.get(&name)) {
            return Some(found.clone());
        }
        // `web.backend` is `web` in the network `backend`, whose name may have dots of its own.
        tables().find_map(|table| {
            let rest = name.strip_suffix(table.network.as_str())?.strip_suffix('.')?;
            table.forward.get(rest).cloned()
        })
    }

    /// Who serves what an SRV question asks for, each under its full name; `None` when nobody knows it.
    #[must_use]
    pub fn served(&self, networks: &[String], question: &str) -> Option<Vec<Served>> {
        let question = question.trim_end_matches('.').to_ascii_lowercase();
        let all = self.0.load();
        let tables = || networks.iter().filter_map(|id| all.get(id));
        let plain = tables().find_map(|table| Some((table, table.served.get(&question)?)));
        let (table, found) = plain.or_else(|| {
            tables().find_map(|table| {
                let rest = question.strip_suffix(table.network.as_str())?.strip_suffix('.')?;
                Some((table, table.served.get(rest)?))
            })
        })?;
        let full = |served: &Served| Served { name: format!("{}.{}", served.name, table.network), ..*served };
        Some(found.iter().map(full).collect())
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
    use crate::model::{Mac, Protocol};

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
            started: true,
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
        Some(found.addresses.iter().map(ToString::to_string).collect())
    }

    fn lasts(names: &Names, name: &str) -> Option<bool> {
        names.resolve(&["n".into()], name).map(|answer| answer.lasts)
    }

    #[test]
    fn only_ready_endpoints_answer_for_their_service() {
        let names = names(vec![endpoint(1, true), endpoint(2, false), endpoint(3, true)]);
        for name in ["web", "WEB.", "tasks.web", "www", "tasks.www", "web.back.end"] {
            let found = resolve(&names, name);
            assert_eq!(found.as_deref(), Some(&["10.0.1.1".to_owned(), "10.0.1.3".to_owned()][..]), "{name}");
        }
        assert_eq!(resolve(&names, "web.2"), Some(vec!["10.0.1.2".to_owned()]));
        assert_eq!(resolve(&names, "started.web").map(|found| found.len()), Some(3));
        assert_eq!(lasts(&names, "web.1"), Some(true), "it stays while it is remembered");
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
            ports: Vec::new(),
        };
        let names = publish(vec![endpoint(1, true), endpoint(2, false)], vec![service("Web")]);
        for name in ["web", "www", "web.back.end"] {
            assert_eq!(resolve(&names, name), Some(vec!["10.0.1.200".to_owned()]), "{name}");
        }
        for name in ["tasks.web", "tasks.www", "web.1"] {
            assert_eq!(resolve(&names, name), Some(vec!["10.0.1.1".to_owned()]), "{name}");
        }
        assert_eq!(["web", "www"].map(|name| lasts(&names, name)), [Some(true); 2]);
        let of_tasks = ["tasks.web", "started.web", "web.1", "web.1.task1"];
        assert_eq!(of_tasks.map(|name| lasts(&names, name)), [Some(false); 4]);
        let reverse = names.reverse(&["n".into()], IpAddr::from([10, 0, 1, 200]));
        assert_eq!(reverse.as_deref(), Some("Web.back.end"));

        let names = publish(Vec::new(), vec![service("web")]);
        assert_eq!(resolve(&names, "web"), Some(vec!["10.0.1.200".to_owned()]), "without any task");
        assert_eq!(resolve(&names, "tasks.web"), Some(Vec::new()));
    }

    #[test]
    fn a_named_port_is_served_by_its_service_or_its_ready_tasks() {
        let port = NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 };
        let service = |addresses| OverlayService {
            id: "service".into(),
            name: "Web".into(),
            aliases: Vec::new(),
            addresses,
            balancing: Default::default(),
            ports: vec![port.clone()],
        };
        let served = |names: &Names, question: &str| {
            let found = names.served(&["n".into()], question)?;
            Some(
                found
                    .into_iter()
                    .map(|served| format!("{}:{}", served.name, served.port))
                    .collect::<Vec<_>>(),
            )
        };
        let endpoints = || vec![endpoint(1, true), endpoint(2, false)];
        let task = Some(vec!["web.1.task1.back.end:80".to_owned()]);
        let names = publish(endpoints(), vec![service(vec![IpAddr::from([10, 0, 1, 200])])]);
        for question in ["_http._tcp.web.", "_HTTP._tcp.Web.back.end"] {
            assert_eq!(served(&names, question), Some(vec!["Web.back.end:80".to_owned()]), "{question}");
        }
        assert_eq!(served(&names, "_http._tcp.tasks.web"), task);
        assert_eq!(served(&names, "_http._udp.web"), None);
        let names = publish(endpoints(), vec![service(Vec::new())]);
        assert_eq!(served(&names, "_http._tcp.web"), task, "without a virtual address");
        assert_eq!(resolve(&names, "web"), Some(vec!["10.0.1.1".to_owned()]));
    }

    #[test]
    fn an_address_has_its_containers_name() {
        let names = names(vec![endpoint(1, true)]);
        let reverse = names.reverse(&["n".into()], IpAddr::from([10, 0, 1, 1]));
        assert_eq!(reverse.as_deref(), Some("web.1.task1.back.end"));
    }
}

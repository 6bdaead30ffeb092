//! Addresses: subnets and VXLAN ids for networks, virtual addresses for services, addresses for tasks.
//!
//! What is taken is read from the state each time, so nothing can leak. An address is free again once its
//! task has ended; the next one is looked for after the one given last, so that it is not reused at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rswarm_base::Timestamp;
use rswarm_base::ipam::{self, Subnet};
use rswarm_proto::model::object::Stored;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{
    Endpoint, IpamConfig, Network, NetworkAttachment, NetworkAttachmentConfig, Service, Task, TaskStatus,
    VirtualIp, endpoint_spec,
};

use crate::author::Author;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::state::{State, address_of};

/// The VXLAN ids that networks get (as swarmkit): below are those that people set up by hand.
const VNIS: std::ops::Range<u32> = 4096..1 << 24;
/// The network option that asks for a VXLAN id (as Docker's overlay driver).
const VNI_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";
/// Networks that every node has of its own: nothing is allocated on them.
pub const NODE_NETWORKS: [&str; 3] = ["host", "bridge", "none"];

/// Hands out addresses.
#[derive(Debug)]
pub struct Allocate;

impl Reconciler for Allocate {
    fn author(&self) -> Author {
        Author::Allocate
    }

    fn reconcile(&self, view: &State, env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        let fresh = networks(view);
        fresh.values().for_each(|network| plan.update(network.clone()));
        let mut pools = Pools { view, fresh, networks: BTreeMap::new() };
        for service in view.services().filter(|service| !service.pending_delete) {
            if let Some(endpoint) = pools.endpoint(service) {
                plan.update(Service { endpoint: Some(endpoint), ..Service::clone(service) });
            }
        }
        for task in view.unsettled_tasks() {
            if task.observed() == TaskState::New && task.desired() <= TaskState::Running {
                pools.admit(task, env.now, &mut plan);
            }
        }
        plan
    }
}

/// Every new network with its subnets and its VXLAN id, by network id.
fn networks(view: &State) -> BTreeMap<String, Network> {
    let mut fresh = BTreeMap::new();
    let new: Vec<_> = view.networks().filter(|network| network.vni == 0 && !network.pending_delete).collect();
    if new.is_empty() {
        return fresh;
    }
    let mut taken: Vec<Subnet> = view.networks().flat_map(|network| subnets(&network.ipam)).collect();
    // Subnets that other new networks ask for by name are not given away.
    new.iter().for_each(|network| taken.extend(subnets(&spec_ipam(network))));
    let mut vnis: BTreeSet<u32> = view.networks().map(|network| network.vni).collect();
    let (pools, size) = view.address_pools();
    for network in new {
        let Some(ipam) = network_ipam(network, &pools, size, &mut taken) else { continue };
        let wanted = network.spec.as_ref().and_then(|spec| spec.options.get(VNI_OPTION));
        let wanted = wanted.and_then(|list| list.split(',').next()?.trim().parse().ok());
        let free = |vni: &u32| !vnis.contains(vni);
        let Some(vni) = wanted.filter(free).or_else(|| VNIS.clone().find(free)) else { continue };
        vnis.insert(vni);
        fresh.insert(network.id.clone(), Network { ipam, vni, ..Network::clone(network) });
    }
    fresh
}

fn spec_ipam(network: &Network) -> Vec<IpamConfig> {
    network.spec.as_ref().map(|spec| spec.ipam.clone()).unwrap_or_default()
}

fn subnets(ipam: &[IpamConfig]) -> impl Iterator<Item = Subnet> {
    ipam.iter().filter_map(|config| config.subnet.parse().ok())
}

/// The network's subnets as asked for, each with a gateway; `None` when the pools are exhausted.
fn network_ipam(
    network: &Network,
    pools: &[Subnet],
    size: u8,
    taken: &mut Vec<Subnet>,
) -> Option<Vec<IpamConfig>> {
    let mut configs = spec_ipam(network);
    if configs.is_empty() {
        configs.push(IpamConfig::default());
    }
    for config in &mut configs {
        let subnet = match config.subnet.parse() {
            Ok(subnet) => subnet,
            Err(_) => {
                let subnet = ipam::free_subnet(pools, size, taken)?;
                taken.push(subnet);
                subnet
            }
        };
        config.subnet = subnet.to_string();
        if config.gateway.is_empty() {
            config.gateway = subnet.nth(1)?.to_string();
        }
    }
    Some(configs)
}

/// Addresses of all networks that were asked for in this pass.
struct Pools<'a> {
    view: &'a State,
    /// Networks that this pass gave their subnets.
    fresh: BTreeMap<String, Network>,
    networks: BTreeMap<String, Vec<Pool>>,
}

/// The addresses of one subnet of a network.
struct Pool {
    subnet: Subnet,
    /// Where addresses are handed out from: the subnet, or a part of it.
    range: Subnet,
    taken: BTreeSet<IpAddr>,
    cursor: u128,
}

impl Pool {
    /// The next free address.
    fn next(&mut self) -> Option<IpAddr> {
        let mut tries = self.range.size();
        while tries > 0 {
            let (address, cursor) = ipam::next_address(self.range, &self.taken, self.cursor)?;
            self.cursor = cursor;
            self.taken.insert(address);
            // A range may end where its subnet does: the subnet's own last address is its broadcast.
            let last = self.subnet.nth(self.subnet.size() - 1);
            if !(address.is_ipv4() && self.subnet.prefix() < 31 && last == Some(address)) {
                return Some(address);
            }
            tries -= 1;
        }
        None
    }

    fn cidr(&self, address: IpAddr) -> String {
        format!("{address}/{}", self.subnet.prefix())
    }
}

impl Pools<'_> {
    /// The pools of a network; `None` when it does not exist or has no subnets yet.
    fn of(&mut self, network_id: &str) -> Option<&mut Vec<Pool>> {
        if !self.networks.contains_key(network_id) {
            let stored = || self.view.network(network_id).map(|network| network.as_ref());
            let network = self.fresh.get(network_id).or_else(stored).filter(|network| network.vni != 0)?;
            self.networks.insert(network_id.to_owned(), pools(self.view, network));
        }
        self.networks.get_mut(network_id)
    }

    /// The service's endpoint as it should be, when that is not how it is.
    fn endpoint(&mut self, service: &Service) -> Option<Endpoint> {
        let spec = service.spec.as_ref().and_then(|spec| spec.endpoint.clone()).unwrap_or_default();
        let has = service.endpoint.clone().unwrap_or_default();
        let mut virtual_ips = Vec::new();
        if spec.mode() == endpoint_spec::Mode::Vip {
            for network in &service.task_spec().networks {
                let kept = has.virtual_ips.iter().find(|vip| vip.network_id == network.target).cloned();
                virtual_ips.extend(kept.or_else(|| self.virtual_ip(&network.target)));
            }
        }
        let endpoint = Endpoint { ports: spec.ports.clone(), spec: Some(spec), virtual_ips };
        (service.endpoint.as_ref() != Some(&endpoint)).then_some(endpoint)
    }

    fn virtual_ip(&mut self, network_id: &str) -> Option<VirtualIp> {
        let pools = self.of(network_id)?;
        let pool = pools.iter_mut().find(|pool| pool.subnet.address().is_ipv4())?;
        let address = pool.next()?;
        Some(VirtualIp { network_id: network_id.to_owned(), address: pool.cidr(address) })
    }

    /// A new task gets its addresses and becomes *pending*, or says what it waits for.
    fn admit(&mut self, task: &Task, now: Timestamp, plan: &mut Plan) {
        let wanted = task.spec.as_ref().map_or(&[][..], |spec| &spec.networks);
        let attachments: Result<Vec<_>, String> =
            wanted.iter().map(|config| self.attachment(config)).collect();
        let status = task.status.clone().unwrap_or_default();
        match attachments {
            Ok(networks) => {
                let status = TaskStatus {
                    state: TaskState::Pending.into(),
                    timestamp: now.0,
                    message: "pending task scheduling".to_owned(),
                    err: String::new(),
                    ..status
                };
                plan.update(Task { networks, status: Some(status), ..task.clone() });
            }
            Err(err) if status.err != err => {
                plan.update(Task { status: Some(TaskStatus { err, ..status }), ..task.clone() });
            }
            Err(_) => {}
        }
    }

    fn attachment(&mut self, config: &NetworkAttachmentConfig) -> Result<NetworkAttachment, String> {
        let mut attachment = NetworkAttachment {
            network_id: config.target.clone(),
            aliases: config.aliases.clone(),
            ..NetworkAttachment::default()
        };
        if NODE_NETWORKS.contains(&config.target.as_str()) {
            return Ok(attachment);
        }
        let waits = || format!("network {} has no subnet yet", config.target);
        for pool in self.of(&config.target).ok_or_else(waits)? {
            let asked = config.addresses.iter().filter_map(|text| address_of(text));
            let asked = asked.into_iter().find(|address| pool.subnet.contains(*address));
            let address = match asked {
                Some(address) if pool.taken.insert(address) => address,
                Some(address) => return Err(format!("address {address} is already in use")),
                None => pool.next().ok_or_else(|| {
                    format!(
                        "could not find an available IP in subnet {} of network {}",
                        pool.subnet, config.target
                    )
                })?,
            };
            attachment.addresses.push(pool.cidr(address));
            if let (IpAddr::V4(v4), true) = (address, attachment.mac.is_empty()) {
                attachment.mac = mac(ipam::mac_for(v4));
            }
        }
        Ok(attachment)
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

fn pools(view: &State, network: &Network) -> Vec<Pool> {
    let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
    for config in &network.ipam {
        taken.extend(address_of(&config.gateway));
        taken.extend(config.aux_addresses.values().filter_map(|address| address_of(address)));
    }
    let vips = view.services().filter_map(|service| service.endpoint.as_ref());
    let vips = vips.flat_map(|endpoint| &endpoint.virtual_ips).filter(|vip| vip.network_id == network.id);
    taken.extend(vips.filter_map(|vip| address_of(&vip.address)));
    let held = view.tasks_on_network(&network.id).filter(|task| !task.observed().is_terminal());
    taken.extend(held.flat_map(|task| addresses(task, &network.id)));
    let newest = view.tasks_on_network(&network.id).max_by_key(|task| (task.meta().created_at, &task.id));
    let last: Vec<IpAddr> = newest.map(|task| addresses(task, &network.id).collect()).unwrap_or_default();
    network.ipam.iter().filter_map(|config| pool(config, &taken, &last)).collect()
}

fn pool(config: &IpamConfig, taken: &BTreeSet<IpAddr>, last: &[IpAddr]) -> Option<Pool> {
    let subnet: Subnet = config.subnet.parse().ok()?;
    let range = config.ip_range.parse().unwrap_or(subnet);
    let taken = taken.iter().copied().filter(|address| subnet.contains(*address)).collect();
    let last = last.iter().find(|address| range.contains(**address));
    let cursor = last.map_or(0, |address| offset(range, *address));
    Some(Pool { subnet, range, taken, cursor })
}

fn offset(range: Subnet, address: IpAddr) -> u128 {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    bits(address) - bits(range.address())
}

/// A task's addresses on one network.
pub fn addresses<'t>(task: &'t Task, network_id: &'t str) -> impl Iterator<Item = IpAddr> + 't {
    let attachments = task.networks.iter().filter(move |attachment| attachment.network_id == network_id);
    attachments.flat_map(|attachment| &attachment.addresses).filter_map(|address| address_of(address))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::world::{World, attach, spec};
    use rswarm_proto::wire::{Annotations, CreateNetworkRequest, NetworkSpec, RemoveRequest};

    #[test]
    fn networks_get_subnets_and_vxlan_ids_of_their_own() {
        let mut world = World::new(1);
        let (a, b) = (world.network("a"), world.network("b"));
        world.reconcile();
        let shown = |id: &str| {
            let network = world.state.network(id).expect("network");
            (network.ipam[0].subnet.clone(), network.ipam[0].gateway.clone(), network.vni)
        };
        let mut both = [shown(&a), shown(&b)];
        both.sort();
        assert_eq!(
            both,
            [
                ("10.0.0.0/24".to_owned(), "10.0.0.1".to_owned(), 4096),
                ("10.0.1.0/24".to_owned(), "10.0.1.1".to_owned(), 4097)
            ]
        );
    }

    #[test]
    fn services_get_a_virtual_address_and_tasks_their_own() {
        let mut world = World::new(2);
        let network = world.network("net");
        let mut web = spec("web", 2);
        attach(&mut web, "net");
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        let endpoint = world.service(&id).endpoint.clone().expect("endpoint");
        assert_eq!(
            endpoint.virtual_ips,
            [VirtualIp { network_id: network, address: "10.0.0.2/24".to_owned() }]
        );
        let attachments: Vec<_> = world.live(&id).iter().map(|task| task.networks[0].clone()).collect();
        assert_eq!(attachments[0].addresses, ["10.0.0.3/24"]);
        assert_eq!(attachments[0].mac, "02:42:0a:00:00:03");
        assert_eq!(attachments[1].addresses, ["10.0.0.4/24"]);
    }

    #[test]
    fn an_address_is_not_reused_while_others_are_free() {
        let mut world = World::new(1);
        world.network("net");
        let mut web = spec("web", 1);
        attach(&mut web, "net");
        let id = world.create(web);
        let mut seen = BTreeSet::new();
        for _ in 0..4 {
            world.run(Duration::from_secs(3));
            let task = world.live(&id)[0].clone();
            assert!(seen.insert(task.networks[0].addresses[0].clone()), "reused at once");
            world.report(&task.id, TaskState::Failed);
        }
    }

    #[test]
    fn a_full_network_says_so_and_goes_on_when_there_is_room() {
        let mut world = World::new(1);
        let ipam = vec![IpamConfig { subnet: "10.9.0.0/29".to_owned(), ..IpamConfig::default() }];
        let annotations = Some(Annotations { name: "tiny".to_owned(), ..Annotations::default() });
        let request =
            CreateNetworkRequest { spec: Some(NetworkSpec { annotations, ipam, ..NetworkSpec::default() }) };
        world.control(|state, _, ids| crate::control::create_network(state, &request, ids)).expect("created");
        let mut web = spec("web", 5);
        attach(&mut web, "tiny");
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        assert_eq!(world.running(&id), 4, "six addresses, less the gateway and the virtual one");
        let waiting =
            world.live(&id).into_iter().find(|task| task.observed() == TaskState::New).expect("one waits");
        let err = waiting.status.clone().unwrap_or_default().err;
        assert!(err.starts_with("could not find an available IP in subnet 10.9.0.0/29"), "{err}");
        world.change(&id, |spec| {
            spec.mode =
                Some(rswarm_proto::wire::service_spec::Mode::Replicated(rswarm_proto::wire::Replicated {
                    replicas: 4,
                }));
        });
        world.run(Duration::from_secs(2));
        assert_eq!((world.running(&id), world.tasks(&id).len()), (4, 4));
    }

    #[test]
    fn a_removed_network_goes_with_the_last_task_on_it() {
        let mut world = World::new(1);
        let network = world.network("net");
        let mut web = spec("web", 1);
        attach(&mut web, "net");
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        let request = RemoveRequest { id: "net".to_owned(), force: false };
        let refused = world.control(|state, _, ids| crate::control::remove_network(state, &request, ids));
        assert_eq!(
            refused.map_err(|error| error.to_string()),
            Err(format!("network {network} is in use by service {id}"))
        );
        world.remove_service(&id);
        world.control(|state, _, ids| crate::control::remove_network(state, &request, ids)).expect("removed");
        let again = world.network("net");
        world.reconcile();
        assert!(world.state.network(&network).is_some(), "a task is still on it");
        world.run(Duration::from_secs(2));
        assert!(world.state.network(&network).is_none());
        assert!(world.state.network(&again).is_some());
    }

    #[test]
    fn networks_of_the_node_need_no_addresses() {
        let mut world = World::new(1);
        let mut web = spec("web", 1);
        attach(&mut web, "host");
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        assert_eq!(world.running(&id), 1);
        assert_eq!(world.live(&id)[0].networks[0].addresses, Vec::<String>::new());
    }
}

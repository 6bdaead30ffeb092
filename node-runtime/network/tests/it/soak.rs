//! Many changes, one after the other: afterwards the kernel has what the last table says, and nothing else.
//! `RSWARM_SOAK_TASKS=10000 RSWARM_SOAK_NETWORKS=1000 cargo test -p rswarm-network --test it soak` is the whole
//! of it; the default is a short one.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use rswarm_network::{AttachRequest, BridgeSpec, Mac, Networks, Overlay, OverlayEndpoint, OverlayService};

use crate::lab::{Container, Daemon, Dir, Lab, Space, assert_clean, config, request};

/// Networks that tasks come and go on.
const NETWORKS: u8 = 20;
/// Task starts and stops; `RSWARM_SOAK_TASKS` makes it more.
const CHANGES: usize = 120;
/// Networks made and removed; `RSWARM_SOAK_NETWORKS` makes it more.
const ROUNDS: usize = 12;
/// Tasks that a network has at most.
const TASKS: u8 = 6;

fn rounds(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().expect(variable))
}

fn id(network: u8) -> String {
    format!("n{network:03}soak3x5z7b9d1f3h5k")
}

fn address(network: u8, task: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 60, network, 10 + task)
}

fn vip(network: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 60, network, 2)
}

/// Task `n` runs on host 1 or 2, by whether `n` is odd.
fn host_of(task: u8) -> u8 {
    2 - task % 2
}

/// The network as host `here` sees it, with these tasks.
fn table(network: u8, here: u8, tasks: &BTreeSet<u8>) -> Overlay {
    let endpoint = |task: &u8| OverlayEndpoint {
        task_id: format!("t{network}-{task}"),
        service_id: "service".into(),
        service_name: "web".into(),
        slot_name: format!("web.{task}"),
        container_names: Vec::new(),
        aliases: Vec::new(),
        addresses: vec![address(network, *task).into()],
        mac: Mac([0x02, 0x42, 10, 60, network, 10 + *task]),
        node_addr: IpAddr::from([10, 88, 0, host_of(*task)]),
        local: host_of(*task) == here,
        ready: true,
    };
    Overlay {
        network_id: id(network),
        name: format!("net{network}"),
        vni: 5000 + u32::from(network),
        subnets: vec![(
            format!("10.60.{network}.0/24").parse().expect("subnet"),
            IpAddr::from([10, 60, network, 1]),
        )],
        mtu: None,
        data_path_port: 4789,
        local_addr: IpAddr::from([10, 88, 0, here]),
        internal: false,
        endpoints: tasks.iter().map(endpoint).collect(),
        services: vec![OverlayService {
            id: "service".into(),
            name: "web".into(),
            aliases: Vec::new(),
            addresses: vec![vip(network).into()],
            balancing: Default::default(),
        }],
        mesh: None,
        tunnel: None,
    }
}

async fn apply(daemons: &[Daemon; 2], network: u8, tasks: &BTreeSet<u8>) {
    for (here, daemon) in (1..).zip(daemons) {
        daemon.networks.apply_overlay(table(network, here, tasks)).await.expect("apply");
    }
}

/// A sequence that jumps about, the same each time.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// What the sandbox has that the table does not, or the other way round.
async fn assert_equal(
    networks: &Networks,
    pin: &std::path::Path,
    network: u8,
    here: u8,
    tasks: &BTreeSet<u8>,
) {
    let findings = networks.check(&id(network)).await.expect("check").expect("it is here");
    // A node without a task here has nobody who could ping.
    let wrong: Vec<_> = findings.iter().filter(|finding| finding.remedy.is_some()).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    let sandbox = Space::at(pin);
    let lines = |command: &str| -> BTreeSet<String> {
        sandbox.sh(command).lines().map(|line| line.trim().to_owned()).collect()
    };
    let remote = || tasks.iter().filter(|task| host_of(**task) != here);
    let destinations = remote()
        .map(|task| format!("02:42:0a:3c:{network:02x}:{:02x} 10.88.0.{}", 10 + task, host_of(*task)));
    assert_eq!(
        lines("bridge fdb show dev vxlan0 | awk '/ dst / { print $1, $3 }'"),
        destinations.collect(),
        "destinations"
    );
    let neighbours = tasks.iter().map(|task| address(network, *task).to_string());
    assert_eq!(
        lines("ip neigh show dev br0 nud permanent | awk '{ print $1 }' | grep -v :"),
        neighbours.collect(),
        "neighbours"
    );
    let backends = lines("nft list map ip rswarm backends | grep -o ': 10[.0-9]*' | cut -c3-");
    assert_eq!(backends, tasks.iter().map(|task| address(network, *task).to_string()).collect(), "backends");
    let pairs = lines("ip -o link show master br0 type veth | wc -l");
    let local = tasks.iter().filter(|task| host_of(**task) == here).count();
    assert_eq!(pairs, BTreeSet::from([local.to_string()]), "pairs");
    let tracked = lines("grep -o 'src=10.60[.0-9]*' /proc/net/nf_conntrack | cut -c5- | sort -u");
    let gone = |text: &&String| {
        let last = text.rsplit('.').next().and_then(|last| last.parse().ok()).unwrap_or(0u8);
        last >= 10 && !tasks.contains(&(last - 10))
    };
    assert_eq!(tracked.iter().find(gone), None, "connections of a task that has gone");
    let names: BTreeSet<IpAddr> =
        networks.lookup(&[id(network)], "tasks.web").unwrap_or_default().into_iter().collect();
    assert_eq!(names, tasks.iter().map(|task| address(network, *task).into()).collect(), "names");
}

#[tokio::test]
async fn soak_tasks_come_and_go_on_many_networks() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let hosts = [lab.host(1), lab.host(2)];
    let configs = [config("ba000001", dir.path()), config("ba000002", dir.path())];
    let daemons = [0, 1].map(|n: usize| Daemon::start(&hosts[n], configs[n].clone()));
    let mut running: Vec<BTreeSet<u8>> = vec![BTreeSet::new(); usize::from(NETWORKS)];
    let mut containers = std::collections::BTreeMap::new();
    for network in 0..NETWORKS {
        apply(&daemons, network, &BTreeSet::new()).await;
    }
    let mut state = 7;
    for _ in 0..rounds("RSWARM_SOAK_TASKS", CHANGES) {
        let network = (next(&mut state) % u64::from(NETWORKS)) as u8;
        let task = (next(&mut state) % u64::from(TASKS)) as u8;
        let tasks = &mut running[usize::from(network)];
        let networks = &daemons[usize::from(host_of(task)) - 1].networks;
        let name = format!("t{network}-{task}");
        if tasks.remove(&task) {
            apply(&daemons, network, tasks).await;
            networks.detach(&name).await.expect("detach");
            containers.remove(&name);
        } else {
            tasks.insert(task);
            apply(&daemons, network, tasks).await;
            let attach = AttachRequest {
                addresses: vec![address(network, task).into()],
                ..request(&name, &id(network))
            };
            let container = Container::start(networks, attach).await;
            // Whoever it meets refuses it: nobody listens. A connection is tracked all the same.
            container.space.asks(vip(network), 80);
            containers.insert(name, container);
        }
    }
    for (network, tasks) in (0..).zip(&running) {
        for (here, daemon) in (1..).zip(&daemons) {
            let pin = configs[usize::from(here) - 1].netns_dir.join(id(network));
            assert_equal(&daemon.networks, &pin, network, here, tasks).await;
        }
    }
    containers.clear();
    for network in 0..NETWORKS {
        for daemon in &daemons {
            daemon.networks.remove_overlay(&id(network)).await.expect("remove");
        }
    }
    for n in 0..2 {
        assert_eq!(std::fs::read_dir(&configs[n].netns_dir).expect("pins").count(), 0);
        daemons[n].networks.close_all().await.expect("close");
        assert_clean(&hosts[n], &configs[n]);
    }
}

#[tokio::test]
async fn soak_networks_come_and_go() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let host = lab.host(1);
    let config = config("ba000003", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let networks = &daemon.networks;
    let state = || {
        let links = host.sh("ip -o link | awk -F': ' '{ print $2 }' | cut -d@ -f1 | sort");
        let pins = std::fs::read_dir(&config.netns_dir).expect("pins").count();
        (links, host.sh("nft list ruleset; ip route | sed 's/ linkdown//'; ip rule"), pins)
    };
    let before = state();
    let mut first = None;
    for _ in 0..rounds("RSWARM_SOAK_NETWORKS", ROUNDS) {
        networks.apply_overlay(table(1, 1, &BTreeSet::from([1]))).await.expect("apply");
        let attach = AttachRequest { addresses: vec![address(1, 1).into()], ..request("t", &id(1)) };
        let task = Container::start(networks, attach).await;
        let bridge = networks.create_bridge(BridgeSpec::new("soak00000000", "soak")).await.expect("bridge");
        let local = Container::start(networks, request("c", "soak00000000")).await;
        // Subnets and addresses are given back: else they would run out.
        let given = (bridge.subnets, local.attached.addresses.clone());
        assert_eq!(*first.get_or_insert(given.clone()), given);
        for name in ["t", "c"] {
            networks.detach(name).await.expect("detach");
        }
        drop((task, local));
        networks.remove_overlay(&id(1)).await.expect("remove");
        networks.remove_bridge("soak00000000").await.expect("remove");
    }
    assert_eq!(state(), before);
    networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

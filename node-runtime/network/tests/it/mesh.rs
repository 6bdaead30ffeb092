//! The routing mesh: what is published on every node, asked for from outside and on the nodes themselves.

use std::net::{IpAddr, Ipv4Addr, TcpListener};

use rswarm_base::ipam::Family;
use rswarm_network::{
    AttachRequest, BridgeSpec, Config, Mac, Mesh, MeshNode, MeshPort, Overlay, OverlayEndpoint, PortBinding,
    Protocol,
};

use crate::echo::{Echo, Talk, meets, meets_udp};
use crate::lab::{Container, Daemon, Dir, Lab, Space, assert_clean, config, request};
use crate::overlay::transfer;

const ID: &str = "n3ov8wj2k0c3x5z7b9d1f3h5k";
const OUTSIDE: &str = "10.88.0.9";

fn inside(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

fn node(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, n)
}

/// The mesh as host `here` of `nodes` sees it: a task `10.0.0.(10 + n)` on each host of `tasks`; 8080 leads to
/// their port 80.
fn ingress(here: u8, nodes: &[u8], tasks: &[u8], ports: &[(u16, u16)]) -> Overlay {
    let endpoint = |n: u8| OverlayEndpoint {
        task_id: format!("task{n}"),
        service_id: "s1".into(),
        service_name: "web".into(),
        slot_name: format!("web.{n}"),
        container_names: Vec::new(),
        aliases: Vec::new(),
        addresses: vec![inside(10 + n)],
        mac: Mac([0x02, 0x42, 10, 0, 0, 10 + n]),
        node_addr: node(n).into(),
        local: n == here,
        ready: true,
        started: true,
    };
    let mac = |n: u8| Mac([0x02, 0x42, 10, 0, 0, 200 + n]);
    let router =
        |n: &u8| MeshNode { addresses: vec![inside(200 + n)], mac: mac(*n), node_addr: node(*n).into() };
    let port = |protocol| {
        move |(published, target): &(u16, u16)| MeshPort {
            protocol,
            published: *published,
            target: *target,
            service_id: "s1".into(),
            balancing: Default::default(),
        }
    };
    Overlay {
        network_id: ID.into(),
        name: "ingress".into(),
        vni: 4096,
        subnets: vec![("10.0.0.0/24".parse().expect("subnet"), inside(1))],
        mtu: None,
        data_path_port: 4789,
        local_addr: node(here).into(),
        internal: false,
        endpoints: tasks.iter().map(|n| endpoint(*n)).collect(),
        services: Vec::new(),
        mesh: Some(Mesh {
            addresses: vec![inside(200 + here)],
            mac: mac(here),
            nodes: nodes.iter().filter(|n| **n != here).map(router).collect(),
            ports: ports
                .iter()
                .map(port(Protocol::Tcp))
                .chain(ports.iter().map(port(Protocol::Udp)))
                .collect(),
        }),
        tunnel: None,
    }
}

const PORTS: &[(u16, u16)] = &[(8080, 80)];

/// A cluster of hosts 1, 2 and so on.
struct Cluster {
    hosts: Vec<Space>,
    configs: Vec<Config>,
    daemons: Vec<Daemon>,
    outside: Space,
    lab: Lab,
    _dir: Dir,
}

impl Cluster {
    fn start(id: &str, count: u8) -> Cluster {
        let (lab, dir) = (Lab::new(), Dir::new());
        let hosts: Vec<Space> = (1..=count).map(|n| lab.host(n)).collect();
        let configs: Vec<Config> = (1..=count).map(|n| config(&format!("{id}{n}"), dir.path())).collect();
        let daemons =
            hosts.iter().zip(&configs).map(|(host, config)| Daemon::start(host, config.clone())).collect();
        let outside = lab.host(9);
        Cluster { hosts, configs, daemons, outside, lab, _dir: dir }
    }

    async fn apply(&self, tasks: &[u8], ports: &[(u16, u16)]) {
        let nodes: Vec<u8> = (1..=self.daemons.len() as u8).collect();
        for (here, daemon) in (1..).zip(&self.daemons) {
            daemon.networks.apply_overlay(ingress(here, &nodes, tasks, ports)).await.expect("apply");
        }
    }

    /// A task on that host, its default route by the network `first` if there is one.
    async fn task(&self, n: u8, first: Option<&str>) -> Container {
        let networks = &self.daemons[usize::from(n) - 1].networks;
        let name = format!("task{n}");
        let mesh = AttachRequest {
            addresses: vec![inside(10 + n)],
            default_routes: first.is_none().then_some(Family::V4).into_iter().collect(),
            ..request(&name, ID)
        };
        let Some(first) = first else { return Container::start(networks, mesh).await };
        let container = Container::start(networks, request(&name, first)).await;
        let mesh = AttachRequest { interface: "eth1".into(), ..mesh };
        networks.attach(&container.netns, mesh).await.expect("attach");
        container
    }

    async fn close(self) {
        for (n, daemon) in self.daemons.iter().enumerate() {
            daemon.networks.close_all().await.expect("close");
            assert_clean(&self.hosts[n], &self.configs[n]);
        }
    }
}

fn seen(by: &[&str], client: &str) -> Vec<(String, String)> {
    by.iter().map(|name| ((*name).to_owned(), client.to_owned())).collect()
}

#[tokio::test]
async fn every_node_leads_to_every_task_and_the_client_keeps_its_address() {
    let cluster = Cluster::start("a100000", 3);
    cluster.apply(&[1, 2], PORTS).await;
    // One with no network but the mesh, one whose default route goes elsewhere.
    let [one, two] = [cluster.task(1, None).await, cluster.task(2, Some("bridge")).await];
    let _servers = [Echo::start(&one.space, "one", 80), Echo::start(&two.space, "two", 80)];
    for n in 1..=3 {
        let both = ["one", "two"];
        assert_eq!(meets(&cluster.outside, node(n).into(), 8080, &both), seen(&both, OUTSIDE), "by node {n}");
        assert_eq!(meets_udp(&cluster.outside, node(n), 8080, &both), seen(&both, OUTSIDE), "by node {n}");
    }
    // Nodes themselves, by loopback and their own and each other's addresses.
    let own = &cluster.hosts[0];
    for address in [Ipv4Addr::LOCALHOST, node(1)] {
        meets(own, address.into(), 8080, &["one", "two"]);
        meets_udp(own, address, 8080, &["one", "two"]);
    }
    let both = ["one", "two"];
    assert_eq!(meets(own, node(3).into(), 8080, &both), seen(&both, "10.88.0.1"));
    // Tasks by their nodes, and each other directly.
    meets(&one.space, node(1).into(), 8080, &both);
    meets(&two.space, node(2).into(), 8080, &both);
    assert_eq!(meets(&one.space, inside(12), 80, &["two"]), seen(&["two"], "10.0.0.11"));
    assert!(one.space.pings(inside(12)) && two.space.pings(inside(11)));
    assert!(two.space.pings(IpAddr::from([10, 88, 0, 9])), "the way out");

    for daemon in &cluster.daemons {
        let findings = daemon.networks.check(ID).await.expect("check").expect("it is here");
        assert_eq!(findings.iter().filter(|finding| finding.subject.starts_with("node ")).count(), 2);
        let wrong: Vec<_> = findings.iter().filter(|finding| finding.remedy.is_some()).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    // No node list in containers, and rules that can be read.
    let inside_rules = two.space.sh("nft list ruleset; ip rule; ip route show table all");
    assert!(inside_rules.contains("table ip rswarm-mesh") && !inside_rules.contains("10.0.0.20"));
    let sandbox = cluster.configs[1].netns_dir.join(ID);
    let rules = cluster.hosts[1].sh(&format!("nsenter --net={} nft list ruleset", sandbox.display()));
    assert!(
        rules.contains("map @entries") && rules.contains("numgen random mod 2 map @mesh_backends"),
        "{rules}"
    );
    cluster.close().await;
}

#[tokio::test]
async fn large_answers_and_refusals_find_back() {
    let cluster = Cluster::start("a200000", 2);
    cluster.apply(&[2], &[(8080, 80), (7000, 7000)]).await;
    let two = cluster.task(2, Some("bridge")).await;
    transfer(&cluster.outside, &two.space, node(1).into());
    transfer(&cluster.outside, &two.space, node(2).into());
    for n in [1, 2] {
        let error = Talk::start(&cluster.outside, node(n), 8080).err().expect("nobody listens");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "by node {n}: {error}");
    }
    // No task is ready, or nothing is published any more.
    for (tasks, ports) in [(&[][..], PORTS), (&[2], &[])] {
        cluster.apply(tasks, ports).await;
        let error = Talk::start(&cluster.outside, node(1), 8080).err().expect("nobody there");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    }
    cluster.close().await;
}

#[tokio::test]
async fn a_port_of_somebody_else_stays_his_and_the_rest_is_published() {
    let cluster = Cluster::start("a300000", 1);
    let host = &cluster.hosts[0];
    let networks = &cluster.daemons[0].networks;
    let taken = host.run(|| TcpListener::bind("0.0.0.0:8080").expect("bind"));
    let publish = |host_port, container_port| PortBinding {
        host_ip: None,
        host_port,
        host_port_end: 0,
        container_port,
        protocol: Protocol::Tcp,
    };
    networks.create_bridge(BridgeSpec::new("other0000000", "other")).await.expect("bridge");
    let mut own = request("own", "other0000000");
    own.publish = vec![publish(8082, 80)];
    let own = Container::start(networks, own).await;
    let _own = Echo::start(&own.space, "own", 80);

    let ports = [(8080, 80), (8081, 80), (8082, 80)];
    cluster.apply(&[1], &ports).await;
    // A port at the uplink that the mesh has is not given to a container of the same network.
    let mesh = AttachRequest {
        addresses: vec![inside(11)],
        publish: vec![publish(9000, 8081)],
        ..request("task1", ID)
    };
    let one = Container::start(networks, mesh).await;
    let _one = [Echo::start(&one.space, "one", 80), Echo::start(&one.space, "one by host", 8081)];
    assert_eq!(Talk::start(&cluster.outside, node(1), 8081).expect("mesh").server, "one");
    assert_eq!(Talk::start(&cluster.outside, node(1), 9000).expect("host").client, "by host 10.88.0.9");
    assert_eq!(Talk::start(&cluster.outside, node(1), 8082).expect("host").server, "own");
    let allocated = AttachRequest { publish: vec![publish(8081, 80)], ..request("late", "other0000000") };
    let netns = networks.create_netns().await.expect("netns");
    let refused = networks.attach(&netns, allocated).await.expect_err("the mesh has it");
    assert!(refused.to_string().contains("port is already allocated"), "{refused}");

    drop(taken);
    cluster.apply(&[1], &ports).await;
    assert_eq!(Talk::start(&cluster.outside, node(1), 8080).expect("free by now").server, "one");
    let bound = host.run(|| TcpListener::bind("0.0.0.0:8080").map_err(|error| error.kind()).err());
    assert_eq!(bound, Some(std::io::ErrorKind::AddrInUse), "held against other processes");
    cluster.close().await;
}

/// A client outside that waits for a task on a node that has died, by a node that has not.
#[tokio::test]
async fn who_came_by_another_node_learns_that_its_server_is_dead() {
    let cluster = Cluster::start("a700000", 2);
    cluster.apply(&[1, 2], PORTS).await;
    let [one, two] = [cluster.task(1, None).await, cluster.task(2, None).await];
    let _servers = [Echo::start(&one.space, "one", 80), Echo::start(&two.space, "two", 80)];
    let talk = |server| loop {
        let talk = Talk::start(&cluster.outside, node(1), 8080).expect("connection");
        if talk.server == server {
            break talk;
        }
    };
    let (mut to_one, mut to_two) = (talk("one"), talk("two"));
    cluster.lab.cut(2);
    let mut wanted = ingress(1, &[1, 2], &[1, 2], PORTS);
    for endpoint in wanted.endpoints.iter_mut().filter(|endpoint| !endpoint.local) {
        (endpoint.ready, endpoint.started) = (false, false);
    }
    cluster.daemons[0].networks.apply_overlay(wanted).await.expect("apply");
    let error = to_two.hears().expect_err("its server is dead");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    to_one.goes_on().expect("everybody else is left alone");
    cluster.lab.mend(2);
    cluster.close().await;
}

#[tokio::test]
async fn the_mesh_outlives_the_daemon() {
    let mut cluster = Cluster::start("a400000", 2);
    cluster.apply(&[1, 2], PORTS).await;
    let [one, two] = [cluster.task(1, None).await, cluster.task(2, None).await];
    let _servers = [Echo::start(&one.space, "one", 80), Echo::start(&two.space, "two", 80)];
    let mut talks: Vec<Talk> =
        (0..8).map(|_| Talk::start(&cluster.outside, node(1), 8080).expect("connection")).collect();
    let both = ["one", "two"];
    let (host, config) = (cluster.hosts[0].clone(), cluster.configs[0].clone());
    let networks = Daemon::restart(&host, config, &mut cluster.daemons[0]);
    meets(&cluster.outside, node(1).into(), 8080, &both);
    networks.adopt("task1", &one.netns, std::slice::from_ref(&one.attached), None).await.expect("adopt");
    networks.settle().await.expect("settle");
    meets(&cluster.outside, node(1).into(), 8080, &both);
    let bound = host.run(|| TcpListener::bind("0.0.0.0:8080").map_err(|error| error.kind()).err());
    assert_eq!(bound, Some(std::io::ErrorKind::AddrInUse), "held again");
    let again = networks.apply_overlay(ingress(1, &[1, 2], &[1, 2], PORTS)).await.expect("apply");
    assert_eq!(again, 0, "nothing to correct");
    meets(&cluster.outside, node(1).into(), 8080, &both);
    talks.iter_mut().for_each(|talk| talk.goes_on().expect("an old connection"));

    // A daemon that has heard nothing of the mesh yet takes it away whole.
    let (host, config) = (cluster.hosts[1].clone(), cluster.configs[1].clone());
    let networks = Daemon::restart(&host, config, &mut cluster.daemons[1]);
    networks.remove_overlay(ID).await.expect("remove");
    let bound = host.run(|| TcpListener::bind("0.0.0.0:8080").map_err(|error| error.kind()).err());
    assert_eq!(bound, None, "nothing of it is left");
    cluster.close().await;
}

/// Connects from a port of its own choice.
fn connect_from(outside: &Space, port: u16, to: Ipv4Addr) -> std::io::Result<std::net::TcpStream> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd;
    outside.run(move || {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        setsockopt(&socket, sockopt::ReusePort, &true)?;
        setsockopt(&socket, sockopt::SendTimeout, &nix::sys::time::TimeVal::new(10, 0))?;
        bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port))?;
        let [a, b, c, d] = to.octets();
        connect(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 8080))?;
        let stream = std::net::TcpStream::from(socket);
        stream.set_read_timeout(Some(crate::lab::PATIENCE))?;
        Ok(stream)
    })
}

/// A client may use one port for connections to several nodes: to the client they differ by the node's address,
/// to the task, which all of them may reach, by nothing.
#[tokio::test]
async fn a_clients_port_may_be_used_at_several_nodes_at_once() {
    use std::io::{BufRead, BufReader, Write};
    let cluster = Cluster::start("a600000", 4);
    cluster.apply(&[2], PORTS).await;
    let task = cluster.task(2, None).await;
    let _server = Echo::start(&task.space, "two", 80);
    let mut streams: Vec<_> = [node(1), node(3), node(2), node(4)]
        .into_iter()
        .map(|to| BufReader::new(connect_from(&cluster.outside, 40_001, to).expect("connect")))
        .collect();
    for (n, stream) in streams.iter_mut().enumerate() {
        let mut line = String::new();
        stream.read_line(&mut line).expect("greeting");
        assert_eq!(line.trim(), format!("two {OUTSIDE}"), "connection {n}");
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        let said = format!("line of {n}\n");
        stream.get_mut().write_all(said.as_bytes()).expect("say");
        let mut line = String::new();
        stream.read_line(&mut line).expect("answer");
        assert_eq!(line, said);
    }

    // Each is forgotten with the task, whatever zone it is in.
    let sandbox = Space::at(&cluster.configs[1].netns_dir.join(ID));
    // What a client still acknowledges after that is a flow anew, which nobody answers.
    let answered = "grep 'dport=80 ' /proc/net/nf_conntrack | grep -vc UNREPLIED || true";
    let tracked = || sandbox.sh(answered).trim().to_owned();
    assert_ne!(tracked(), "0");
    cluster.daemons[1].networks.detach("task2").await.expect("detach");
    assert_eq!(tracked(), "0");
    drop(streams);
    cluster.close().await;
}

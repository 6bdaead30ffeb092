//! Networks of both families: bridges, overlays, virtual addresses, the mesh.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rswarm_base::ipam::Family;
use rswarm_network::{
    AttachError, AttachRequest, Balancing, BridgeSpec, Config, CreateBridgeError, Mac, Mesh, MeshNode,
    MeshPort, Overlay, OverlayEndpoint, OverlayService, Pick, Pool, PortBinding, Protocol,
};

use crate::echo::{Echo, Talk, meets, meets_udp};
use crate::lab::{Container, Daemon, Dir, Lab, Space, assert_clean, config, request};
use crate::overlay::transfer;

const BRIDGE: &str = "d00000000000";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn dual(id: &str, subnet: Option<&str>) -> BridgeSpec {
    let pool = Pool {
        subnet: subnet.map(|subnet| subnet.parse().expect("subnet")),
        reserved: subnet.map(|_| ip("fd00:7::2")).into_iter().collect(),
        ..Pool::any(Family::V6)
    };
    BridgeSpec { families: Family::ALL.to_vec(), pools: vec![pool], ..BridgeSpec::new(id, "dual") }
}

fn port(host_ip: Option<&str>, host_port: u16) -> PortBinding {
    let protocol = Protocol::Tcp;
    PortBinding { host_ip: host_ip.map(ip), host_port, host_port_end: 0, container_port: 80, protocol }
}

#[tokio::test]
async fn a_bridge_gives_both_addresses_and_publishes_on_both() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (host, outside) = (lab.host(1), lab.host(9));
    let config = config("b0000061", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let networks = &daemon.networks;
    networks.create_bridge(dual(BRIDGE, Some("fd00:7::/64"))).await.expect("bridge");
    let publish = vec![port(None, 8080), port(None, 0), port(Some("fd88::1"), 8081)];
    let a = Container::start(networks, AttachRequest { publish, ..request("a", BRIDGE) }).await;
    let b = Container::start(networks, request("b", BRIDGE)).await;

    let (a6, b6) = (a.address_of(Family::V6), b.address_of(Family::V6));
    assert_eq!((a6, b6), (ip("fd00:7::3"), ip("fd00:7::4")), "the second address is reserved");
    assert!(!a.space.sh("ip -6 addr show dev eth0 scope global").contains("tentative"));
    assert!(a.space.pings(b6) && a.space.pings(ip("fd00:7::1")));
    assert_eq!(networks.lookup(&[BRIDGE.to_owned()], "b"), Some(vec![b.address(), b6]));
    let _world = outside.whoami_at(ip("::"), 80);
    assert_eq!(a.space.asks(ip("fd88::9"), 80).as_deref(), Some("fd88::1"), "masqueraded as the host");

    let bound: Vec<_> = a.attached.ports.iter().map(|port| (port.host_ip, port.host_port)).collect();
    let chosen = bound[2].1;
    let wanted = [
        (ip("0.0.0.0"), 8080),
        (ip("::"), 8080),
        (ip("0.0.0.0"), chosen),
        (ip("::"), chosen),
        (ip("fd88::1"), 8081),
    ];
    assert_eq!(bound, wanted);
    let _server = a.space.whoami_at(ip("::"), 80);
    for port in [8080, chosen, 8081] {
        let seen = outside.asks(ip("fd88::1"), port);
        assert_eq!(seen.as_deref(), Some("fd88::9"), "the client's own address, on {port}");
    }
    assert!(outside.asks([10, 88, 0, 1], 8080).is_some());
    assert_eq!(outside.asks([10, 88, 0, 1], 8081), None, "published on the IPv6 address only");
    assert!(host.asks(ip("fd88::1"), 8080).is_some(), "the host itself");
    assert!(b.space.asks(ip("fd88::1"), 8080).is_some(), "hairpin from a neighbour");
    assert!(a.space.asks(ip("fd88::1"), 8080).is_some(), "hairpin to itself");
    outside.sh("ip route add fd00:7::/64 via fd88::1");
    assert_eq!(outside.asks(a6, 80), None, "past the published port");

    networks.detach("a").await.expect("detach");
    assert_eq!(outside.asks(ip("fd88::1"), 8080), None);
    networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

#[tokio::test]
async fn bridges_are_kept_apart_in_ipv6_too() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let host = lab.host(1);
    let config = config("b0000062", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let networks = &daemon.networks;
    networks.create_bridge(dual(BRIDGE, Some("fd00:7::/64"))).await.expect("bridge");
    let six = BridgeSpec { families: vec![Family::V6], ..dual("d60000000000", None) };
    let info = networks.create_bridge(six).await.expect("IPv6 alone");
    let [(subnet, gateway)] = info.subnets[..] else { panic!("one subnet, not {:?}", info.subnets) };
    assert!(subnet.prefix() == 64 && subnet.to_string().starts_with("fd"), "{subnet}");
    assert_eq!(subnet.nth(1), Some(gateway));
    let inner = BridgeSpec { internal: true, ..dual("di0000000000", None) };
    networks.create_bridge(inner).await.expect("internal");
    let a = Container::start(networks, request("a", BRIDGE)).await;
    let s = Container::start(networks, request("s", "d60000000000")).await;
    let t = Container::start(networks, request("t", "d60000000000")).await;
    let i = Container::start(networks, request("i", "di0000000000")).await;

    assert_eq!(s.attached.addresses.len(), 1);
    assert!(s.space.pings(t.address()));
    let a6 = a.address_of(Family::V6);
    assert!(!s.space.pings(a6) && !a.space.pings(s.address()), "bridges do not reach each other");
    i.space.sh(&format!(
        "ip route add default via {}",
        i.attached
            .of(Family::V6)
            .map(|_| {
                networks.bridge("di0000000000").and_then(|info| info.of(Family::V6)).expect("a gateway").1
            })
            .expect("an address")
    ));
    assert!(!i.space.pings(ip("fd88::1")) || !i.space.pings(a6), "an internal network has no way out");
    assert!(!i.space.pings(a6));

    let overlap = networks.create_bridge(dual("x00000000000", Some("fd00:7::/80"))).await;
    assert!(matches!(overlap, Err(CreateBridgeError::Overlap(_))));
    let mtu = BridgeSpec { mtu: Some(1000), ..dual("x00000000000", None) };
    assert!(matches!(networks.create_bridge(mtu).await, Err(CreateBridgeError::Mtu(1000))));
    let v4 = BridgeSpec { families: vec![Family::V4], ..dual("x00000000000", Some("fd00:8::/64")) };
    assert!(matches!(networks.create_bridge(v4).await, Err(CreateBridgeError::Family(_))));
    let mut twice = dual("x00000000000", Some("fd00:8::/64"));
    twice.pools[0].reserved.clear();
    twice.pools.push(twice.pools[0].clone());
    assert!(matches!(networks.create_bridge(twice).await, Err(CreateBridgeError::Subnets)));
    let netns = networks.create_netns().await.expect("netns");
    let outside = AttachRequest { addresses: vec![ip("fd00:9::2")], ..request("z", BRIDGE) };
    let refused = networks.attach(&netns, outside).await.expect_err("outside");
    assert!(refused.to_string().contains("no configured subnet"), "{refused}");
    let v4_only =
        AttachRequest { publish: vec![port(Some("10.88.0.1"), 80)], ..request("z", "d60000000000") };
    let refused = networks.attach(&netns, v4_only).await.expect_err("no IPv4");
    assert!(matches!(refused, AttachError::PortFamily(_)), "{refused}");
    networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

const OVERLAY: &str = "n6ov8wj2k0c3x5z7b9d1f3h5k";

fn inside(n: u8) -> Vec<IpAddr> {
    vec![IpAddr::from([10, 0, 6, n]), ip(&format!("fd00:6::{n:x}"))]
}

/// Two hosts, a task on each, a virtual address of both families, and port 8080 of every node.
fn overlay(here: u8) -> Overlay {
    let mac = |n: u8| Mac([0x02, 0x42, 10, 0, 6, n]);
    let node = |n: u8| IpAddr::from([10, 88, 0, n]);
    let endpoint = |n: u8| OverlayEndpoint {
        task_id: format!("task{n}"),
        service_id: "s".into(),
        service_name: "web".into(),
        slot_name: format!("web.{n}"),
        container_names: Vec::new(),
        aliases: Vec::new(),
        addresses: inside(10 + n),
        mac: mac(10 + n),
        node_addr: node(n),
        local: n == here,
        ready: true,
        started: true,
    };
    let there = 3 - here;
    let port = |protocol| MeshPort {
        protocol,
        published: 8080,
        target: 80,
        service_id: "s".into(),
        balancing: Default::default(),
    };
    Overlay {
        network_id: OVERLAY.into(),
        name: "six".into(),
        vni: 4106,
        subnets: vec![
            ("10.0.6.0/24".parse().expect("subnet"), ip("10.0.6.1")),
            ("fd00:6::/64".parse().expect("subnet"), ip("fd00:6::1")),
        ],
        mtu: None,
        data_path_port: 4789,
        local_addr: node(here),
        internal: false,
        endpoints: vec![endpoint(1), endpoint(2)],
        tunnel: None,
        services: vec![OverlayService {
            id: "s".into(),
            name: "web".into(),
            aliases: Vec::new(),
            addresses: inside(100),
            balancing: Default::default(),
            ports: Vec::new(),
        }],
        mesh: Some(Mesh {
            addresses: inside(200 + here),
            mac: mac(200 + here),
            nodes: vec![MeshNode {
                addresses: inside(200 + there),
                mac: mac(200 + there),
                node_addr: node(there),
            }],
            ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
        }),
    }
}

/// Clients stay with a task in either family, and go to any again when nobody wants that any more.
async fn stick(host: &Space, config: &Config, daemon: &Daemon, inner: &Space, outer: &Space) {
    let sticky = Balancing { pick: Pick::Sticky, ..Balancing::default() };
    let mut wanted = overlay(1);
    wanted.services[0].balancing = sticky;
    wanted.mesh.iter_mut().flat_map(|mesh| &mut mesh.ports).for_each(|port| port.balancing = sticky);
    daemon.networks.apply_overlay(wanted).await.expect("apply");
    let places = inside(100).into_iter().map(|vip| (inner, vip, 80));
    let published = ["10.88.0.1", "fd88::1"].map(|node| (outer, ip(node), 8080));
    for (client, address, port) in places.chain(published) {
        let met: BTreeSet<String> =
            (0..12).map(|_| Talk::start(client, address, port).expect("connection").server).collect();
        assert_eq!(met.len(), 1, "one client of {address}, one task: {met:?}");
    }
    let sandbox = config.netns_dir.join(OVERLAY);
    let rules = host.sh(&format!("nsenter --net={} nft list ruleset", sandbox.display()));
    for (source, map) in
        [("ip", "backends"), ("ip6", "backends"), ("ip", "mesh_backends"), ("ip6", "mesh_backends")]
    {
        let draw = format!("jhash {source} saddr mod 128 seed 0x7273776d map @{map}");
        assert!(rules.contains(&draw), "{draw} in {rules}");
    }
    daemon.networks.apply_overlay(overlay(1)).await.expect("apply");
}

#[tokio::test]
async fn an_overlay_carries_both_families_to_tasks_services_and_published_ports() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (hosts, outside) = ([lab.host(1), lab.host(2)], lab.host(9));
    let configs = [1, 2].map(|n| config(&format!("b000007{n}"), dir.path()));
    let daemons = [0, 1].map(|n| Daemon::start(&hosts[n], configs[n].clone()));
    let mut tasks = Vec::new();
    for (here, daemon) in (1..).zip(&daemons) {
        daemon.networks.apply_overlay(overlay(here)).await.expect("apply");
        let request =
            AttachRequest { addresses: inside(10 + here), ..request(&format!("task{here}"), OVERLAY) };
        tasks.push(Container::start(&daemon.networks, request).await);
    }
    let names = ["one", "two"];
    let _servers = [0, 1].map(|n| Echo::start_dual(&tasks[n].space, names[n], 80));

    for (from, to) in [(0, 1), (1, 0)] {
        for address in inside(11 + to as u8) {
            let (from, to) = (&tasks[from].space, &tasks[to].space);
            assert!(from.pings(address), "{address}");
            let (ok, output) = from.try_sh(&format!("busybox ping -c1 -W2 -s 4000 {address}"));
            assert!(ok, "fragments: {output}");
            transfer(from, to, address);
        }
    }
    for (n, vip) in inside(100).into_iter().enumerate() {
        assert!(tasks[0].space.pings(vip));
        let itself = [ip("10.0.6.1"), ip("fd00:6::1")][n].to_string();
        let client = inside(11)[n].to_string();
        let seen = vec![("one".to_owned(), itself), ("two".to_owned(), client)];
        assert_eq!(meets(&tasks[0].space, vip, 80, &names), seen, "TCP to {vip}");
        assert_eq!(meets_udp(&tasks[0].space, vip, 80, &names), seen, "UDP to {vip}");
    }
    let known = daemons[0].networks.lookup(&[OVERLAY.to_owned()], "web");
    assert_eq!(known, Some(inside(100)));
    let world = outside.whoami_at(ip("::"), 81);
    assert_eq!(tasks[0].space.asks(ip("fd88::9"), 81).as_deref(), Some("fd88::1"), "the way out");

    for (node, client) in [
        ("10.88.0.1", "10.88.0.9"),
        ("fd88::1", "fd88::9"),
        ("10.88.0.2", "10.88.0.9"),
        ("fd88::2", "fd88::9"),
    ] {
        let seen: Vec<_> = names.iter().map(|name| ((*name).to_owned(), client.to_owned())).collect();
        assert_eq!(meets(&outside, ip(node), 8080, &names), seen, "TCP through {node}");
        assert_eq!(meets_udp(&outside, ip(node), 8080, &names), seen, "UDP through {node}");
    }

    stick(&hosts[0], &configs[0], &daemons[0], &tasks[0].space, &outside).await;

    // A daemon that comes back changes nothing, and breaks no connection.
    let mut talk = Talk::start(&outside, ip("fd88::1"), 8080).expect("connection");
    let [first, second] = daemons;
    let mut first = first;
    let networks = Daemon::restart(&hosts[0], configs[0].clone(), &mut first);
    let endpoint = tasks[0].attached.clone();
    networks.adopt("task1", &tasks[0].netns, &[endpoint], None).await.expect("adopt");
    talk.goes_on().expect("before the network is applied");
    assert_eq!(networks.apply_overlay(overlay(1)).await.expect("apply"), 0, "nothing to correct");
    talk.goes_on().expect("after");
    drop((talk, world));
    for (n, daemon) in [first, second].iter().enumerate() {
        daemon.networks.close_all().await.expect("close");
        assert_clean(&hosts[n], &configs[n]);
    }
}

/// A MAC of somebody's choice is not what the next owner of the address has.
#[tokio::test]
async fn the_next_owner_of_an_address_is_reached_at_once() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let host = lab.host(1);
    let config = config("b0000067", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let networks = &daemon.networks;
    networks.create_bridge(dual(BRIDGE, Some("fd00:7::/64"))).await.expect("bridge");
    let neighbour = Container::start(networks, request("neighbour", BRIDGE)).await;
    let chosen = AttachRequest { mac: Some(Mac([2, 0, 0, 0, 0, 7])), ..request("chosen", BRIDGE) };
    let chosen = Container::start(networks, chosen).await;
    let reached = |container: &Container| {
        let all = [&neighbour.space, &host];
        container.attached.ips().all(|address| all.iter().all(|space| space.pings(address)))
    };
    assert!(reached(&chosen));
    networks.detach("chosen").await.expect("detach");
    let next = Container::start(networks, request("next", BRIDGE)).await;
    assert_eq!(next.address(), chosen.address());
    assert_ne!(next.attached.mac, chosen.attached.mac);
    assert!(reached(&next));
    daemon.networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

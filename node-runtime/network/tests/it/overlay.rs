//! Overlay networks over two hosts.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};

use rswarm_network::{
    AttachError, AttachRequest, Mac, Overlay, OverlayEndpoint, OverlayError, PortBinding, Protocol,
};

use crate::lab::{Container, Daemon, Dir, Lab, Space, assert_clean, config, request};

pub const ID: &str = "n1ov8wj2k0c3x5z7b9d1f3h5k";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// The network as host `here` sees it: containers `10.0.1.(10 + n)` on host `n`.
pub fn overlay(here: u8, on: &[u8]) -> Overlay {
    let endpoint = |n: u8| OverlayEndpoint {
        task_id: format!("task{n}"),
        service_id: "service".into(),
        service_name: "web".into(),
        slot_name: format!("web.{n}"),
        container_names: vec![format!("web.{n}.task{n}")],
        aliases: Vec::new(),
        addresses: vec![IpAddr::from([10, 0, 1, 10 + n])],
        mac: Mac([0x02, 0x42, 10, 0, 1, 10 + n]),
        node_addr: IpAddr::from([10, 88, 0, n]),
        local: n == here,
        ready: true,
        started: true,
    };
    Overlay {
        network_id: ID.into(),
        name: "backend".into(),
        vni: 4097,
        subnets: vec![("10.0.1.0/24".parse().expect("subnet"), ip("10.0.1.1"))],
        mtu: None,
        data_path_port: 4789,
        local_addr: IpAddr::from([10, 88, 0, here]),
        internal: false,
        endpoints: on.iter().map(|n| endpoint(*n)).collect(),
        services: Vec::new(),
        mesh: None,
        tunnel: None,
    }
}

pub fn task(n: u8) -> AttachRequest {
    AttachRequest { addresses: vec![IpAddr::from([10, 0, 1, 10 + n])], ..request(&format!("task{n}"), ID) }
}

/// Sends as much as would stall on a wrong MTU.
pub fn transfer(from: &Space, to: &Space, address: IpAddr) -> usize {
    const BYTES: usize = 16 << 20;
    let any = if address.is_ipv4() { "0.0.0.0:7000" } else { "[::]:7000" };
    let listener = to.run(move || TcpListener::bind(any).expect("bind"));
    let receiving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("read");
        all.len()
    });
    from.run(move || {
        let mut stream = TcpStream::connect((address, 7000)).expect("connect");
        stream.write_all(&vec![7; BYTES]).expect("write");
    });
    let received = receiving.join().expect("receiver");
    assert_eq!(received, BYTES);
    received
}

#[tokio::test]
async fn two_hosts_share_a_network() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (h1, h2, world) = (lab.host(1), lab.host(2), lab.host(9));
    let (config1, config2) = (config("d0000001", dir.path()), config("d0000002", dir.path()));
    let (d1, d2) = (Daemon::start(&h1, config1.clone()), Daemon::start(&h2, config2.clone()));
    assert!(d1.networks.apply_overlay(overlay(1, &[1, 2])).await.expect("apply") > 0);
    d2.networks.apply_overlay(overlay(2, &[1, 2])).await.expect("apply");
    let c1 = Container::start(&d1.networks, task(1)).await;
    let c2 = Container::start(&d2.networks, task(2)).await;
    assert_eq!(d1.networks.apply_overlay(overlay(1, &[1, 2])).await.expect("apply"), 0, "idempotent");

    let placed = c1.attached.addresses[0];
    assert_eq!((placed.prefix, placed.gateway), (24, Some(ip("10.0.1.1"))));
    assert!(c1.space.sh("ip link show eth0").contains("mtu 1450"));
    assert!(c1.space.pings(c2.address()));
    assert!(c2.space.pings(c1.address()));
    assert!(c1.space.pings(ip("10.0.1.1")), "the gateway is on every node");
    transfer(&c1.space, &c2.space, c2.address());

    let _server = world.whoami(80);
    assert_eq!(c1.space.asks([10, 88, 0, 9], 80).as_deref(), Some("10.88.0.1"), "the way out");
    let local = Container::start(&d1.networks, request("local", "bridge")).await;
    assert!(!c1.space.pings(local.address()), "containers of the bridge are out of reach");
    assert!(!h1.sh("ip -o link").contains("vxlan"), "the device is only in the sandbox");

    // Host 2's task goes away; its entries go with it, and come back with it.
    assert_eq!(d1.networks.apply_overlay(overlay(1, &[1])).await.expect("apply"), 3);
    assert!(!c1.space.pings(c2.address()));
    d1.networks.apply_overlay(overlay(1, &[1, 2])).await.expect("apply");
    assert!(c1.space.pings(c2.address()));

    d1.networks.detach(&c1.id).await.expect("detach");
    assert_eq!(
        d1.networks.apply_overlay(overlay(1, &[1, 2])).await.expect("apply"),
        0,
        "a detach leaves nothing for the next application to tidy up"
    );

    for (daemon, host, config) in [(&d1, &h1, &config1), (&d2, &h2, &config2)] {
        daemon.networks.remove_overlay(ID).await.expect("remove");
        daemon.networks.remove_overlay(ID).await.expect("removing again is fine");
        assert_eq!(daemon.networks.overlays().await.expect("list"), Vec::<String>::new());
        assert_eq!(std::fs::read_dir(&config.netns_dir).expect("dir").count(), 0);
        daemon.networks.close_all().await.expect("close");
        assert_clean(host, config);
    }
}

#[tokio::test]
async fn a_restarted_daemon_adopts_the_sandbox() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (h1, h2, client) = (lab.host(1), lab.host(2), lab.host(9));
    let (config1, config2) = (config("d0000011", dir.path()), config("d0000012", dir.path()));
    let (d1, d2) = (Daemon::start(&h1, config1.clone()), Daemon::start(&h2, config2.clone()));
    d1.networks.apply_overlay(overlay(1, &[1, 2])).await.expect("apply");
    d2.networks.apply_overlay(overlay(2, &[1, 2])).await.expect("apply");
    let publish = |host_port, protocol| PortBinding {
        host_ip: None,
        host_port,
        host_port_end: 0,
        container_port: 80,
        protocol,
    };
    let ports = vec![publish(8080, Protocol::Tcp), publish(8081, Protocol::Tcp)];
    let c1 = Container::start(&d1.networks, AttachRequest { publish: ports, ..task(1) }).await;
    let c2 = Container::start(&d2.networks, task(2)).await;
    let _server = c1.space.whoami(80);
    assert_eq!(client.asks([10, 88, 0, 1], 8080).as_deref(), Some("10.88.0.9"));
    assert!(h1.asks([127, 0, 0, 1], 8081).is_some());
    assert!(c1.space.asks([10, 88, 0, 1], 8080).is_some(), "hairpin through the sandbox");

    d1.stop();
    assert!(c1.space.pings(c2.address()), "while no daemon runs");
    let d1 = Daemon::start(&h1, config1.clone());
    assert_eq!(d1.networks.overlays().await.expect("list"), [ID]);
    let endpoints = [c1.attached.clone()];
    d1.networks.adopt("task1", &c1.netns, &endpoints, None).await.expect("adopt before the managers speak");
    d1.networks.settle().await.expect("settle");
    assert!(c1.space.pings(c2.address()));
    assert!(client.asks([10, 88, 0, 1], 8080).is_some());
    assert_eq!(d1.networks.apply_overlay(overlay(1, &[1, 2])).await.expect("apply"), 0, "nothing to correct");
    assert!(client.asks([10, 88, 0, 1], 8080).is_some());

    // Damage is healed, by itself.
    let sandbox = format!("nsenter --net={}", config1.netns_dir.join(ID).display());
    h1.sh(&format!("{sandbox} ip neigh flush dev vxlan0 nud permanent; {sandbox} ip link del vxlan0"));
    let healed = (0..20).any(|_| c1.space.pings(c2.address()));
    assert!(healed, "the device and the way to the other host");

    // Teardown by a daemon that knows nothing yet.
    d1.stop();
    let d1 = Daemon::start(&h1, config1.clone());
    d1.networks.close_all().await.expect("close");
    d2.networks.close_all().await.expect("close");
    assert_clean(&h1, &config1);
    assert_clean(&h2, &config2);
}

#[tokio::test]
async fn an_internal_overlay_has_no_way_out_and_bad_ones_are_refused() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let host = lab.host(1);
    let config = config("d0000021", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let networks = &daemon.networks;
    let netns = networks.create_netns().await.expect("netns");
    assert!(matches!(networks.attach(&netns, task(1)).await, Err(AttachError::NoSuchNetwork(_))));
    let bad = [
        Overlay { vni: 1 << 24, ..overlay(1, &[1]) },
        Overlay { subnets: Vec::new(), ..overlay(1, &[1]) },
        Overlay { network_id: "../x".into(), ..overlay(1, &[1]) },
        Overlay {
            subnets: vec![("10.0.1.0/24".parse().expect("subnet"), ip("10.0.2.1"))],
            ..overlay(1, &[1])
        },
    ];
    for overlay in bad {
        assert!(matches!(networks.apply_overlay(overlay).await, Err(OverlayError::Invalid { .. })));
    }
    assert!(networks.overlays().await.expect("list").is_empty());

    // From a network with a way out to an internal one.
    networks.apply_overlay(overlay(1, &[1])).await.expect("apply");
    assert!(host.sh("ip -o link").contains("veth"));
    let internal = Overlay { internal: true, mtu: Some(1400), ..overlay(1, &[1]) };
    networks.apply_overlay(internal).await.expect("apply");
    assert!(!host.sh("ip -o link").contains("veth"));
    let missing = networks.attach(&netns, AttachRequest { addresses: Vec::new(), ..task(1) }).await;
    assert!(matches!(missing, Err(AttachError::AddressMissing(_))));
    let outside = networks.attach(&netns, AttachRequest { addresses: vec![ip("10.9.9.9")], ..task(1) }).await;
    assert!(matches!(outside, Err(AttachError::AddressOutside { .. })));
    let attached = networks.attach(&netns, task(1)).await.expect("attach");
    assert_eq!(attached.addresses[0].gateway, None);
    let space = Space::of(&netns);
    assert!(space.sh("ip link show eth0").contains("mtu 1400"));
    assert_eq!(space.sh("ip route show default"), "");
    networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

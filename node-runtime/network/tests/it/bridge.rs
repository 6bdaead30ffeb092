//! Bridge networks.

use std::net::IpAddr;

use rswarm_base::ipam::Family;
use rswarm_network::{AttachError, BridgeSpec, CreateBridgeError, DEFAULT_BRIDGE, Pool, RemoveError};

use crate::lab::{Container, Daemon, Dir, Lab, assert_clean, config, request};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

#[tokio::test]
async fn containers_reach_each_other_the_host_and_the_world() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (host, outside) = (lab.host(1), lab.host(9));
    let config = config("b0000001", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let a = Container::start(&daemon.networks, request("a", DEFAULT_BRIDGE)).await;
    let b = Container::start(&daemon.networks, request("b", DEFAULT_BRIDGE)).await;

    assert_eq!((a.address(), b.address()), (ip("172.17.0.2"), ip("172.17.0.3")));
    assert_eq!(a.attached.mac.to_string(), "02:42:ac:11:00:02");
    assert!(a.space.sh("ip -br link show eth0").contains("02:42:ac:11:00:02"));
    assert!(a.space.pings(b.address()));
    assert!(a.space.pings(ip("172.17.0.1")));
    let _server = outside.whoami(80);
    assert_eq!(a.space.asks([10, 88, 0, 9], 80).as_deref(), Some("10.88.0.1"), "masqueraded as the host");
    outside.sh("ip route add 172.17.0.0/16 via 10.88.0.1");
    let _inside = a.space.whoami(8080);
    assert_eq!(outside.asks(a.address(), 8080), None, "a port that is not published");

    daemon.networks.detach("a").await.expect("detach");
    daemon.networks.detach("a").await.expect("detaching again is fine");
    let c = Container::start(&daemon.networks, request("c", DEFAULT_BRIDGE)).await;
    assert_eq!(c.address(), ip("172.17.0.2"), "the lowest free address");
    daemon.networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

#[tokio::test]
async fn bridges_are_kept_apart() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (host, outside) = (lab.host(1), lab.host(9));
    let config = config("b0000002", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let networks = &daemon.networks;
    let internal = BridgeSpec { internal: true, ..BridgeSpec::new("internal00000", "internal") };
    let silent = BridgeSpec { icc: false, ..BridgeSpec::new("silent0000000", "silent") };
    let info = networks.create_bridge(internal).await.expect("internal");
    assert_eq!(
        (info.interface.as_str(), info.subnets[0].0.to_string()),
        ("br-internal0000", "172.18.0.0/16".into())
    );
    networks.create_bridge(silent).await.expect("silent");

    let a = Container::start(networks, request("a", DEFAULT_BRIDGE)).await;
    let i1 = Container::start(networks, request("i1", "internal00000")).await;
    let i2 = Container::start(networks, request("i2", "internal00000")).await;
    let s1 = Container::start(networks, request("s1", "silent0000000")).await;
    let s2 = Container::start(networks, request("s2", "silent0000000")).await;

    assert!(i1.space.pings(i2.address()));
    assert_eq!(i1.attached.addresses[0].gateway, None);
    i1.space.sh("ip route add default via 172.18.0.1");
    assert!(!i1.space.pings(ip("10.88.0.9")), "an internal network has no way out");
    assert!(!i1.space.pings(a.address()));
    assert!(!a.space.pings(i1.address()));
    assert!(!a.space.pings(s1.address()), "bridges do not reach each other");
    assert!(!s1.space.pings(s2.address()), "icc is off");
    let neighbour = s2.address();
    s1.space.sh(&format!("ip route add {neighbour}/32 via 172.19.0.1"));
    assert!(!s1.space.pings(neighbour), "nor by way of the host");
    assert!(s1.space.pings(ip("10.88.0.9")));
    s1.space.sh(&format!("ip route del {neighbour}/32"));

    let _neighbours = s2.space.whoami(80);
    let IpAddr::V4(v4) = neighbour else { panic!("IPv4") };
    assert!(s1.space.asks(v4.octets(), 80).is_none());
    let opening = rswarm_network::Opening {
        target: "s2".to_owned(),
        from: s1.address(),
        to: neighbour,
        protocol: rswarm_network::Protocol::Tcp,
        port: 80,
    };
    networks.open_links("s1", vec![opening]).await.expect("open");
    assert!(s1.space.asks(v4.octets(), 80).is_some(), "what is open is reached");
    assert!(!s1.space.pings(neighbour), "and nothing else");
    networks.open_links("s1", Vec::new()).await.expect("shut");
    assert!(s1.space.asks(v4.octets(), 80).is_none());

    let _server = outside.whoami(80);
    assert!(s1.space.asks([10, 88, 0, 9], 80).is_some());
    let refused = networks.remove_local("silent0000000").await;
    assert!(matches!(refused, Err(RemoveError::InUse { .. })));
    networks.detach("s1").await.expect("detach");
    networks.detach("s2").await.expect("detach");
    networks.remove_local("silent0000000").await.expect("remove");
    assert!(!host.sh("ip -o link").contains("br-silent"));
    networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

#[tokio::test]
async fn bad_requests_change_nothing() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let host = lab.host(1);
    host.sh("ip route add 172.17.0.0/16 via 10.88.0.9");
    let config = config("b0000003", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let networks = &daemon.networks;
    let default = networks.bridge(DEFAULT_BRIDGE).expect("default bridge");
    assert_eq!(default.subnets[0].0.to_string(), "172.18.0.0/16", "172.17.0.0/16 is routed elsewhere");

    let spec = |subnet: &str, gateway: Option<&str>| BridgeSpec {
        pools: vec![Pool {
            subnet: Some(subnet.parse().expect("subnet")),
            gateway: gateway.map(ip),
            ..Pool::any(Family::V4)
        }],
        ..BridgeSpec::new("x000000000000", "x")
    };
    let created = networks.create_bridge(spec("172.18.5.0/24", None)).await;
    assert!(matches!(created, Err(CreateBridgeError::Overlap(_))));
    let created = networks.create_bridge(spec("10.5.0.0/24", Some("10.6.0.1"))).await;
    assert!(matches!(created, Err(CreateBridgeError::Gateway(_))));
    let created = networks.create_bridge(spec("fd00::/64", None)).await;
    assert!(matches!(created, Err(CreateBridgeError::Family(_))));
    let foreign = BridgeSpec { interface: Some("eth0".into()), ..spec("10.5.0.0/24", None) };
    assert!(matches!(networks.create_bridge(foreign).await, Err(CreateBridgeError::Interface(_))));

    networks.create_bridge(spec("10.5.0.0/30", None)).await.expect("a small one");
    let a = Container::start(networks, request("a", "x000000000000")).await;
    assert_eq!(a.address(), ip("10.5.0.2"));
    let netns = networks.create_netns().await.expect("netns");
    let attach = async |change: &dyn Fn(&mut rswarm_network::AttachRequest)| {
        let mut request = request("b", "x000000000000");
        change(&mut request);
        networks.attach(&netns, request).await.expect_err("refused")
    };
    let full = attach(&|_| {}).await;
    assert_eq!(
        full.to_string(),
        "no available IPv4 addresses on this network's address pools: x (x000000000000)"
    );
    let used = attach(&|request| request.addresses = vec![ip("10.5.0.2")]).await;
    assert_eq!(used.to_string(), "Address already in use");
    assert!(matches!(
        attach(&|request| request.addresses = vec![ip("10.7.0.2")]).await,
        AttachError::AddressOutside { .. }
    ));
    assert!(matches!(
        attach(&|request| request.network_id = "none".into()).await,
        AttachError::NoSuchNetwork(_)
    ));
    assert!(matches!(
        attach(&|request| request.container_id = "a".into()).await,
        AttachError::AlreadyAttached { .. }
    ));
    assert_eq!(host.sh("ip -o link | grep -c veth").trim(), "1");
    networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

//! Networks on a host's own link. Of the kernel's kinds, macvlan is tested with packets; what a kernel has not is
//! refused in words.

use std::net::IpAddr;

use rswarm_base::ipam::Family;
use rswarm_network::{
    AttachError, BridgeSpec, CreateLanError, DnsConfig, IpvlanFlag, IpvlanMode, LanMode, LanSpec, Mac,
    MacvlanMode, Pool,
};

use crate::lab::{Container, Daemon, Dir, Lab, Space, assert_clean, config, request};

const ID: &str = "1a0000000000";

fn macvlan(id: &str, mode: MacvlanMode, range: &str) -> LanSpec {
    let v4 = Pool {
        subnet: "10.88.0.0/24".parse().ok(),
        range: range.parse().ok(),
        gateway: Some(IpAddr::from([10, 88, 0, 9])),
        reserved: vec![IpAddr::from([10, 88, 0, 64]), IpAddr::from([10, 88, 0, 128])],
        ..Pool::any(Family::V4)
    };
    let v6 = Pool {
        subnet: "fd88::/64".parse().ok(),
        // Hosts do not know of each other: each has a part of its own.
        range: range.split(['.', '/']).nth(3).and_then(|last| format!("fd88::{last}:0/112").parse().ok()),
        gateway: "fd88::9".parse().ok(),
        ..Pool::any(Family::V6)
    };
    LanSpec {
        id: id.into(),
        name: "lan".into(),
        mode: LanMode::Macvlan(mode),
        parent: Some("eth0".into()),
        families: Family::ALL.to_vec(),
        pools: vec![v4, v6],
        internal: false,
        mtu: None,
    }
}

/// Whether the kernel can make a link of a kind.
fn has(kind: &str) -> bool {
    let space = Space::new();
    space.sh("ip link add e0 type veth peer name e1");
    space.try_sh(&format!("ip link add link e0 name probe type {kind}")).0
}

#[tokio::test]
async fn containers_are_on_the_hosts_own_segment() {
    if !has("macvlan") {
        return eprintln!("skipped: this kernel has no macvlan");
    }
    let (lab, dir) = (Lab::new(), Dir::new());
    let hosts = [lab.host(1), lab.host(2)];
    // A router of the segment, and a server behind it.
    let router = lab.host(9);
    router.sh("ip addr add 192.0.2.1/32 dev lo");
    let configs = [config("1a000001", dir.path()), config("1a000002", dir.path())];
    let daemons: Vec<Daemon> =
        hosts.iter().zip(&configs).map(|(host, config)| Daemon::start(host, config.clone())).collect();
    for (daemon, range) in daemons.iter().zip(["10.88.0.64/26", "10.88.0.128/26"]) {
        let info =
            daemon.networks.create_lan(macvlan(ID, MacvlanMode::Bridge, range)).await.expect("macvlan");
        assert_eq!((info.parent.as_str(), info.internal), ("eth0", false));
    }
    let near = Container::start(&daemons[0].networks, request("near", ID)).await;
    let next = Container::start(&daemons[0].networks, request("next", ID)).await;
    let mut asked = request("far", ID);
    asked.mac = Some(Mac([2, 0, 0, 0, 0, 7]));
    let far = Container::start(&daemons[1].networks, asked).await;
    assert_eq!(near.address().to_string(), "10.88.0.65", "the range's first is taken");
    assert!(far.space.sh("ip -d link show eth0").contains("link/ether 02:00:00:00:00:07"));

    for family in Family::ALL {
        let [first, second, third] = [&near, &next, &far].map(|one| one.address_of(family));
        assert!(near.space.pings(second) && far.space.pings(first) && next.space.pings(third), "{family}");
    }
    let _server = near.space.whoami(80);
    assert_eq!(router.asks(near.address(), 80), Some("10.88.0.9".to_owned()), "the client's own address");
    assert!(far.space.pings(IpAddr::from([192, 0, 2, 1])), "by the segment's router");
    assert!(
        !hosts[0].pings(near.address()) && !near.space.pings(IpAddr::from([10, 88, 0, 1])),
        "not the host"
    );
    let dns = DnsConfig { networks: vec![ID.into()], ..DnsConfig::default() };
    daemons[0].networks.serve_dns(&near.netns, "near", dns).await.expect("dns");
    assert_eq!(daemons[0].networks.lookup(&[ID.into()], "next"), Some(next.attached.ips().collect()));

    // A daemon that comes back knows who is there; what leaves takes its interface along.
    let [first, second] = <[Daemon; 2]>::try_from(daemons).unwrap_or_else(|_| panic!("two"));
    first.stop();
    let first = Daemon::start(&hosts[0], configs[0].clone());
    first.networks.create_lan(macvlan(ID, MacvlanMode::Bridge, "10.88.0.64/26")).await.expect("macvlan");
    for container in [&near, &next] {
        let endpoints = std::slice::from_ref(&container.attached);
        first.networks.adopt(&container.id, &container.netns, endpoints, None).await.expect("adopt");
    }
    assert!(matches!(
        first.networks.remove_local(ID).await,
        Err(rswarm_network::error::RemoveError::InUse { .. })
    ));
    first.networks.disconnect("next", ID).await.expect("disconnect");
    assert!(!next.space.sh("ip -o link").contains("eth0") && near.space.pings(far.address()));
    let again = Container::start(&first.networks, request("again", ID)).await;
    assert_eq!(again.address(), next.address());
    for (daemon, id) in [(&first, "near"), (&first, "again"), (&second, "far")] {
        daemon.networks.detach(id).await.expect("detach");
    }
    for ((daemon, host), config) in [first, second].into_iter().zip(&hosts).zip(&configs) {
        daemon.networks.remove_local(ID).await.expect("remove");
        daemon.networks.close_all().await.expect("close");
        assert_clean(host, config);
    }
}

#[tokio::test]
async fn modes_say_who_hears_whom_and_who_has_the_link() {
    if !has("macvlan") {
        return eprintln!("skipped: this kernel has no macvlan");
    }
    let (lab, dir) = (Lab::new(), Dir::new());
    let host = lab.host(1);
    let config = config("1a000003", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let networks = &daemon.networks;
    let spec = macvlan(ID, MacvlanMode::Private, "10.88.0.64/26");
    networks.create_lan(spec.clone()).await.expect("macvlan");
    let one = Container::start(networks, request("one", ID)).await;
    let two = Container::start(networks, request("two", ID)).await;
    assert!(!one.space.pings(two.address()), "private");
    let details = one.space.sh("ip -d link show eth0");
    assert!(details.contains("macvlan mode private") && details.contains("mtu 1500"), "{details}");

    let passthru = LanSpec {
        pools: Vec::new(),
        families: vec![Family::V4],
        ..macvlan("2a0000000000", MacvlanMode::Passthru, "10.88.0.128/26")
    };
    let refused = networks.create_lan(passthru.clone()).await.expect_err("the link is in use");
    assert_eq!(
        refused.to_string(),
        "cannot use mode passthru, macvlan network lan is already using parent interface eth0"
    );
    let overlapping = LanSpec { id: "3a0000000000".into(), ..spec };
    let refused = networks.create_lan(overlapping).await.expect_err("overlap");
    assert_eq!(refused.to_string(), "Pool overlaps with other one on this address space");
    for id in ["one", "two"] {
        networks.detach(id).await.expect("detach");
    }
    networks.remove_local(ID).await.expect("remove");
    networks.create_lan(passthru).await.expect("passthru");
    let alone = Container::start(networks, request("alone", "2a0000000000")).await;
    assert!(alone.space.sh("ip -d link show eth0").contains("macvlan mode passthru"));
    networks.detach("alone").await.expect("detach");
    networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let host = lab.host(1);
    let config = config("1a000004", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let networks = &daemon.networks;
    let on = |parent: Option<&str>| LanSpec {
        parent: parent.map(str::to_owned),
        ..macvlan(ID, MacvlanMode::Bridge, "10.88.0.64/26")
    };
    let refusal = async |parent| networks.create_lan(on(parent)).await.expect_err("refused").to_string();
    assert_eq!(refusal(Some("lo")).await, "loopback interface is not a valid macvlan parent link");
    assert_eq!(
        refusal(Some("eth7")).await,
        "invalid subinterface vlan name eth7, example formatting is eth0.10"
    );
    assert_eq!(refusal(Some("eth0.4095")).await, "vlan id must be between 1-4094, received: 4095");
    assert_eq!(refusal(Some("eth7.10")).await, "failed to find master interface eth7 on the Docker host");
    for (parent, kind, made) in
        [(Some("eth0.10"), "vlan id 10", "eth0.10"), (None, "dummy", "dm-1a0000000000")]
    {
        if !has(kind) {
            let refused = networks.create_lan(on(parent)).await.expect_err("no such kind");
            assert!(matches!(refused, CreateLanError::NoParentKind { .. }), "{refused}");
            continue;
        }
        // Made with the network, and gone with it.
        let info = networks.create_lan(on(parent)).await.expect("made");
        assert_eq!((info.parent.as_str(), info.internal), (made, parent.is_none()));
        assert!(host.sh("ip -o link").contains(made));
        networks.remove_local(ID).await.expect("remove");
        assert!(!host.sh("ip -o link").contains(made));
    }
    let l2 = LanMode::Ipvlan(IpvlanMode::L2, IpvlanFlag::Bridge);
    let ipvlan = LanSpec { mode: l2, ..on(Some("eth0")) };
    if has("ipvlan") {
        networks.create_lan(ipvlan).await.expect("ipvlan");
        let one = Container::start(networks, request("one", ID)).await;
        let two = Container::start(networks, request("two", ID)).await;
        assert!(one.space.pings(two.address()));
        let asked = rswarm_network::AttachRequest { mac: Some(Mac([2; 6])), ..request("three", ID) };
        let netns = networks.create_netns().await.expect("netns");
        assert!(matches!(networks.attach(&netns, asked).await, Err(AttachError::NoOwnMac)));
    } else {
        let refused = networks.create_lan(ipvlan).await.expect_err("no ipvlan").to_string();
        assert_eq!(refused, "kernel does not support ipvlan");
    }
    // Nothing of what was refused is in the way of others.
    networks.create_bridge(BridgeSpec::new("app0000000000", "app")).await.expect("bridge");
    networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

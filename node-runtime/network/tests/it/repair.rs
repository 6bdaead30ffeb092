//! What others do to our objects is put right, without anybody asking; what is theirs stays as it is.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use rswarm_network::{
    AttachRequest, Mac, Mesh, Overlay, OverlayEndpoint, OverlayService, PortBinding, Protocol,
};

use crate::lab::{Container, Daemon, Dir, Lab, Space, assert_clean, config, request};

const ID: &str = "n1repair0c3x5z7b9d1f3h5k";
/// Long enough for a machine that is busy; the repair itself takes a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not put right");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn published(port: u16) -> AttachRequest {
    let binding = PortBinding {
        host_ip: None,
        host_port: port,
        host_port_end: port,
        container_port: 80,
        protocol: Protocol::Tcp,
    };
    AttachRequest { publish: vec![binding], ..request("c1", "bridge") }
}

#[tokio::test]
async fn the_daemons_rules_and_links_are_put_right() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (host, client) = (lab.host(1), lab.host(9));
    let config = config("d0000051", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let container = Container::start(&daemon.networks, published(8080)).await;
    let _server = container.space.whoami(80);
    let asks = || client.asks([10, 88, 0, 1], 8080).as_deref() == Some("10.88.0.9");
    until("published", asks);
    let table = || host.sh("nft list table ip rswarm-d0000051");
    let whole = table();

    for damage in [
        "nft flush ruleset",
        "nft delete table ip rswarm-d0000051",
        "nft flush map ip rswarm-d0000051 any",
        "nft insert rule ip rswarm-d0000051 forward drop",
        "nft flush chain ip rswarm-d0000051 postrouting",
        "nft add set ip rswarm-d0000051 theirs '{ type ipv4_addr; }'",
        "nft add element ip rswarm-d0000051 any '{ tcp . 9999 : 192.0.2.1 . 1 }'",
    ] {
        host.sh(damage);
        until(damage, || host.try_sh("nft list table ip rswarm-d0000051") == (true, whole.clone()));
        assert!(asks(), "{damage}");
    }
    until("the administrator's table", || host.try_sh("nft list table ip rswarm-user").0);

    for damage in [
        "ip link del rsw-d0000051",
        "ip link set rsw-d0000051 down",
        "ip addr flush dev rsw-d0000051",
        "ip link del $(ip -o link show master rsw-d0000051 | awk -F': ' '{print $2}' | cut -d@ -f1)",
        "ip link set $(ip -o link show master rsw-d0000051 | awk -F': ' '{print $2}' | cut -d@ -f1) nomaster",
        "echo 0 > /proc/sys/net/ipv4/ip_forward",
    ] {
        host.sh(damage);
        until(damage, || {
            let forwards = host.sh("cat /proc/sys/net/ipv4/ip_forward").trim() == "1";
            forwards && asks()
        });
    }
    daemon.networks.detach("c1").await.expect("detach");
    daemon.networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

/// A network with a service and, on this host, its only task.
fn overlay(mesh: bool) -> Overlay {
    let endpoint = OverlayEndpoint {
        task_id: "task1".into(),
        service_id: "service".into(),
        service_name: "web".into(),
        slot_name: "web.1".into(),
        container_names: vec!["web.1.task1".into()],
        aliases: Vec::new(),
        addresses: vec![IpAddr::from([10, 0, 1, 11])],
        mac: Mac([0x02, 0x42, 10, 0, 1, 11]),
        node_addr: IpAddr::from([10, 88, 0, 1]),
        local: true,
        ready: true,
    };
    let other = OverlayEndpoint {
        task_id: "task2".into(),
        slot_name: "web.2".into(),
        container_names: vec!["web.2.task2".into()],
        addresses: vec![IpAddr::from([10, 0, 1, 12])],
        mac: Mac([0x02, 0x42, 10, 0, 1, 12]),
        node_addr: IpAddr::from([10, 88, 0, 2]),
        local: false,
        ready: false,
        ..endpoint.clone()
    };
    Overlay {
        network_id: ID.into(),
        name: "backend".into(),
        vni: 4097,
        subnets: vec![("10.0.1.0/24".parse().expect("subnet"), IpAddr::from([10, 0, 1, 1]))],
        mtu: None,
        data_path_port: 4789,
        local_addr: IpAddr::from([10, 88, 0, 1]),
        internal: false,
        endpoints: vec![endpoint, other],
        services: vec![OverlayService {
            id: "service".into(),
            name: "web".into(),
            aliases: Vec::new(),
            addresses: vec![IpAddr::from([10, 0, 1, 2])],
            balancing: Default::default(),
        }],
        mesh: mesh.then(|| Mesh {
            addresses: vec![IpAddr::from([10, 0, 1, 3])],
            mac: Mac([0x02, 0x42, 10, 0, 1, 3]),
            nodes: Vec::new(),
            ports: Vec::new(),
        }),
        tunnel: None,
    }
}

#[tokio::test]
async fn a_sandbox_is_put_right() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let host = lab.host(1);
    let config = config("d0000052", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    daemon.networks.apply_overlay(overlay(false)).await.expect("apply");
    let task = AttachRequest { addresses: vec![[10, 0, 1, 11].into()], ..request("task1", ID) };
    let container = Container::start(&daemon.networks, task).await;
    let _server = container.space.whoami(80);
    let pin = config.netns_dir.join(ID);
    let sandbox = Space::at(&pin);
    let asks = || container.space.asks(Ipv4Addr::new(10, 0, 1, 2), 80).as_deref() == Some("10.0.1.1");
    until("virtual address", asks);
    let state = || {
        let rules = sandbox.sh("nft list ruleset");
        let addresses = sandbox.sh("ip -o -4 addr | awk '{print $2, $4}' | sort");
        let neighbours = sandbox.sh("ip neigh show nud permanent | sort");
        let forwards = sandbox.sh("bridge fdb show dev vxlan0 | grep dst | sort");
        let forwarding =
            sandbox.sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/all/rp_filter");
        [rules, addresses, neighbours, forwards, forwarding]
    };
    let whole = state();
    assert!(whole[3].contains("10.88.0.2"), "{whole:?}");

    for damage in [
        "nft flush ruleset",
        "nft flush map ip rswarm backends",
        "nft delete element ip rswarm services '{ 10.0.1.2 }'",
        "nft insert rule ip rswarm prerouting drop",
        "ip link del br0",
        "ip link del vxlan0",
        "ip link del uplink0",
        "ip link del $(ip -o link show master br0 | awk -F': ' '{print $2}' | cut -d@ -f1 | grep veth)",
        "ip addr flush dev br0",
        "ip neigh flush nud permanent",
        "bridge fdb del 02:42:0a:00:01:0c dev vxlan0 dst 10.88.0.2",
        "ip route del default",
        "echo 0 > /proc/sys/net/ipv4/ip_forward",
    ] {
        sandbox.sh(damage);
        until(damage, || state() == whole && asks());
    }

    // The pin is looked at when the network is applied.
    nix::mount::umount2(&pin, nix::mount::MntFlags::MNT_DETACH).expect("unmount");
    daemon.networks.apply_overlay(overlay(false)).await.expect("apply");
    assert!(Space::at(&pin).sh("ip -o link show br0").contains("br0"));
    std::fs::remove_file(&pin).expect_err("a mount point");

    daemon.networks.detach("task1").await.expect("detach");
    daemon.networks.remove_overlay(ID).await.expect("remove");
    daemon.networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

#[tokio::test]
async fn a_containers_rules_are_put_right() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let host = lab.host(1);
    let config = config("d0000053", dir.path());
    let mut daemon = Daemon::start(&host, config.clone());
    daemon.networks.apply_overlay(overlay(true)).await.expect("apply");
    let task = AttachRequest {
        addresses: vec![[10, 0, 1, 11].into()],
        default_routes: Vec::new(),
        ..request("task1", ID)
    };
    let container = Container::start(&daemon.networks, task).await;
    let dns = rswarm_network::DnsConfig { networks: vec![ID.into()], upstream: Vec::new() };
    daemon.networks.serve_dns(&container.netns, "task1", dns.clone()).await.expect("dns");
    let names = || container.space.try_sh("busybox nslookup web 127.0.0.11").0;
    until("name", names);
    let rules = || container.space.sh("nft list ruleset");
    let whole = rules();
    assert!(whole.contains("rswarm-mesh") && whole.contains("rswarm-dns"), "{whole}");

    container.space.sh("nft delete table ip rswarm-dns");
    until("name server's rules", || rules().contains("rswarm-dns") && names());
    container.space.sh("nft flush ruleset");
    daemon.networks.apply_overlay(overlay(true)).await.expect("apply");
    until("all rules", || rules().len() == whole.len());

    // A daemon that comes later looks after a container that it did not start.
    let networks = Daemon::restart(&host, config.clone(), &mut daemon);
    container.space.sh("nft flush ruleset");
    networks
        .adopt("task1", &container.netns, std::slice::from_ref(&container.attached), Some(dns))
        .await
        .expect("adopt");
    networks.apply_overlay(overlay(true)).await.expect("apply");
    assert!(container.space.sh("nft list tables").contains("rswarm-mesh"));
    until("names after the restart", names);

    networks.detach("task1").await.expect("detach");
    networks.remove_overlay(ID).await.expect("remove");
    networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

#[tokio::test]
async fn tables_of_others_stay_as_they_are() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let host = lab.host(1);
    host.sh(
        "nft -f - <<'END'
table inet theirs {
    set blocked { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.9 } }
    map ports { type inet_service : verdict; elements = { 22 : accept, 23 : drop } }
    chain input { type filter hook input priority 0; policy accept; ip saddr @blocked drop; tcp dport vmap @ports }
    chain any { counter packets 7 bytes 9 }
}
table ip rswarm-other { map any { type inet_proto . inet_service : ipv4_addr . inet_service; } }
table bridge b { chain c { type filter hook forward priority 0; } }
END
iptables-nft -N MINE; iptables-nft -A MINE -p tcp --dport 25 -j REJECT; iptables-nft -A FORWARD -j MINE
iptables-nft -t nat -A POSTROUTING -s 198.51.100.0/24 -j MASQUERADE
ip6tables-nft -A INPUT -p icmpv6 -j ACCEPT",
    );
    // With their handles and, in iptables' own words, with its comments.
    let theirs =
        || host.sh("nft -a list ruleset; iptables-nft-save | grep -v '^#' | sed 's/\\[[0-9:]*\\]//'");
    let before = theirs();
    let config = config("d0000054", dir.path());
    let mut daemon = Daemon::start(&host, config.clone());
    daemon.networks.apply_overlay(overlay(true)).await.expect("apply");
    let container = Container::start(&daemon.networks, published(8080)).await;
    let networks = Daemon::restart(&host, config.clone(), &mut daemon);
    networks
        .adopt("c1", &container.netns, std::slice::from_ref(&container.attached), None)
        .await
        .expect("adopt");
    host.sh("nft flush chain ip rswarm-d0000054 postrouting");
    until("our rules", || host.sh("nft list chain ip rswarm-d0000054 postrouting").contains("masquerade"));
    networks.apply_overlay(overlay(true)).await.expect("apply");
    let while_running = theirs();
    for line in before.lines() {
        assert!(while_running.contains(line), "{line}");
    }
    networks.detach("c1").await.expect("detach");
    networks.remove_overlay(ID).await.expect("remove");
    networks.close_all().await.expect("close");
    assert_eq!(theirs(), before);
}

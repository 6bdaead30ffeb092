//! `network check` and `network audit`: what they say of networks that are whole, and of broken ones.

use std::net::IpAddr;

use rswarm_network::{AttachRequest, Filter, Finding, Networks, Owned, PortBinding, Protocol};

use crate::lab::{Container, Daemon, Dir, Lab, assert_clean, config, request};
use crate::overlay::{ID, overlay, task};

async fn check(networks: &Networks) -> Vec<Finding> {
    networks.check(ID).await.expect("check").expect("it is here")
}

/// The only trouble that there is: what was found, and what to do.
async fn trouble(networks: &Networks) -> (String, String) {
    let mut found: Vec<Finding> = check(networks).await;
    found.retain(|finding| finding.remedy.is_some());
    assert_eq!(found.len(), 1, "{found:?}");
    let Finding { subject, found, remedy } = found.remove(0);
    (format!("{subject}: {found}"), remedy.expect("kept for it"))
}

#[tokio::test]
async fn broken_ways_between_nodes_are_told_apart() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (h1, h2) = (lab.host(1), lab.host(2));
    let (config1, config2) = (config("d0000061", dir.path()), config("d0000062", dir.path()));
    let (d1, d2) = (Daemon::start(&h1, config1.clone()), Daemon::start(&h2, config2.clone()));
    assert!(d1.networks.check(ID).await.expect("check").is_none(), "not here yet");
    d1.networks.apply_overlay(overlay(1, &[1, 2])).await.expect("apply");
    d2.networks.apply_overlay(overlay(2, &[1, 2])).await.expect("apply");
    let _c1 = Container::start(&d1.networks, task(1)).await;
    let _c2 = Container::start(&d2.networks, task(2)).await;

    let whole = check(&d1.networks).await;
    assert!(whole.iter().all(|finding| finding.remedy.is_none()), "{whole:?}");
    let node = whole.iter().find(|finding| finding.subject == "node 10.88.0.2").expect("the other node");
    assert_eq!(node.found, "10.0.1.12 answers, packets of 1450 bytes pass");

    lab.narrow(2, 1300);
    let (found, remedy) = trouble(&d1.networks).await;
    // A bridge lets four bytes more pass, for a VLAN tag.
    assert!(found.starts_with("node 10.88.0.2: 10.0.1.12 answers, but of 1450 bytes only 125"), "{found}");
    assert!(remedy.contains("driver.mtu=125"), "{remedy}");
    lab.narrow(2, 1500);

    h2.sh("nft add table ip wall; nft add chain ip wall in '{ type filter hook input priority 0; }'; nft add rule ip wall in udp dport 4789 drop");
    let (found, remedy) = trouble(&d1.networks).await;
    assert_eq!(found, "node 10.88.0.2: 10.0.1.12 does not answer, its node 10.88.0.2 does");
    assert!(remedy.contains("UDP port 4789"), "{remedy}");
    h2.sh("nft delete table ip wall; ip link set eth0 down");
    let (found, _) = trouble(&d1.networks).await;
    assert_eq!(found, "node 10.88.0.2: neither 10.0.1.12 nor its node 10.88.0.2 answers");
    h2.sh("ip link set eth0 up");
    lab.await_port(2);

    h1.sh("iptables-nft -P FORWARD DROP");
    let (found, remedy) = trouble(&d1.networks).await;
    assert!(found.starts_with("chain ip filter FORWARD: drops"), "{found}");
    assert!(remedy.contains("ACCEPT"), "{remedy}");
    h1.sh("nft delete table ip filter");

    for (daemon, host, config) in [(&d1, &h1, &config1), (&d2, &h2, &config2)] {
        daemon.networks.close_all().await.expect("close");
        assert_clean(host, config);
    }
}

#[tokio::test]
async fn an_audit_tells_ports_owners_and_filters() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let host = lab.host(1);
    let config = config("d0000063", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    host.sh("iptables-nft -P INPUT DROP");
    // Where the kernel has such tables, that makes one.
    let legacy = host.sh("iptables-legacy -t nat -S > /dev/null 2>&1; cat /proc/net/ip_tables_names || true");
    let port = |host_ip: Option<IpAddr>, host_port| PortBinding {
        host_ip,
        host_port,
        host_port_end: 0,
        container_port: 80,
        protocol: Protocol::Tcp,
    };
    let publish = vec![port(None, 8080), port(Some([127, 0, 0, 1].into()), 8081)];
    let container =
        Container::start(&daemon.networks, AttachRequest { publish, ..request("c1", "bridge") }).await;
    let audit = daemon.networks.audit().await.expect("audit");
    let told: Vec<String> = audit
        .ports
        .iter()
        .map(|port| format!("{}:{}/{}", port.host_ip, port.host_port, port.protocol))
        .collect();
    assert_eq!(told, ["0.0.0.0:8080/tcp", "127.0.0.1:8081/tcp"]);
    let owner = Owned::Container { id: "c1".into(), network_id: "bridge".into() };
    assert!(
        audit
            .ports
            .iter()
            .all(|port| port.owner == owner && port.target == (container.attached.addresses[0].address, 80))
    );
    let input =
        Filter { family: "ip", table: "filter".into(), chain: "INPUT".into(), input: true, drops: true };
    assert_eq!(audit.legacy, legacy.lines().map(|name| format!("ip {name}")).collect::<Vec<_>>());
    assert!(audit.filters.contains(&input), "{:?}", audit.filters);
    assert!(audit.filters.iter().any(|filter| filter.table == "rswarm-user"), "the administrator's own");
    host.sh("nft delete table ip filter");
    daemon.networks.detach("c1").await.expect("detach");
    daemon.networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

//! Beside firewalls of others: what they drop stays dropped, what they have stays as it is, and the daemon
//! can be told to be as closed as they are.

use std::time::{Duration, Instant};

use rswarm_network::{AttachRequest, Config, FirewallMode, PortBinding, Protocol};

use crate::lab::{Container, Daemon, Dir, Lab, Space, assert_clean, config, request};

fn published(name: &str) -> AttachRequest {
    let binding = PortBinding {
        host_ip: None,
        host_port: 8080,
        host_port_end: 0,
        container_port: 80,
        protocol: Protocol::Tcp,
    };
    AttachRequest { publish: vec![binding], ..request(name, "bridge") }
}

fn reaches(client: &Space) -> bool {
    client.asks([10, 88, 0, 1], 8080).is_some()
}

/// Waits until it is, or is not, reached.
fn until(is_reached: bool, client: &Space) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while reaches(client) != is_reached {
        assert!(Instant::now() < deadline, "reached: {}", !is_reached);
    }
}

#[tokio::test]
async fn ports_are_as_closed_as_the_host_when_asked_to_be() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (host, friend, stranger) = (lab.host(1), lab.host(8), lab.host(9));
    let config = Config { firewall: FirewallMode::Input, ..config("f0000001", dir.path()) };
    let daemon = Daemon::start(&host, config.clone());
    let container = Container::start(&daemon.networks, published("c1")).await;
    let other = Container::start(&daemon.networks, request("c2", "bridge")).await;
    let _server = container.space.whoami(80);
    assert!(reaches(&stranger), "the host lets in all");

    for (close, open) in [
        ("iptables-nft -P INPUT DROP", "iptables-nft -P INPUT ACCEPT"),
        ("iptables-nft -A INPUT -j REJECT", "iptables-nft -F INPUT"),
        (
            "nft add table inet fw; nft add chain inet fw in '{ type filter hook input priority 0; }'; nft add rule inet fw in tcp dport 22 accept; nft add rule inet fw in counter reject",
            "nft delete table inet fw",
        ),
    ] {
        host.sh(close);
        until(false, &stranger);
        host.sh(open);
        until(true, &stranger);
    }
    host.sh("nft add table inet fw; nft add chain inet fw in '{ type filter hook input priority 0; policy drop; }'; nft add rule inet fw in ct state established accept");
    until(false, &stranger);
    assert!(host.asks([127, 0, 0, 1], 8080).is_some(), "this host");
    assert!(other.space.asks([10, 88, 0, 1], 8080).is_some(), "its containers");
    assert!(other.space.pings([10, 88, 0, 9].into()), "the way out");
    host.sh("nft add rule ip rswarm-user forward meta l4proto tcp ct original proto-dst 8080 ip saddr 10.88.0.8 meta mark set 0x72737779");
    until(true, &friend);
    assert!(!reaches(&stranger));

    host.sh("nft delete table ip filter; nft delete table inet fw");
    for name in ["c1", "c2"] {
        daemon.networks.detach(name).await.expect("detach");
    }
    daemon.networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

/// As docker, ufw and firewalld leave it: what nobody accepts is not forwarded.
#[tokio::test]
async fn what_others_do_not_forward_is_not_forwarded_until_they_do() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (host, client) = (lab.host(1), lab.host(9));
    // Docker's own chains, as dockerd 28 makes them.
    host.sh(
        "iptables-nft -N DOCKER-USER; iptables-nft -N DOCKER-FORWARD
iptables-nft -A FORWARD -j DOCKER-USER; iptables-nft -A FORWARD -j DOCKER-FORWARD; iptables-nft -P FORWARD DROP
iptables-nft -A DOCKER-FORWARD -i docker0 -j ACCEPT
iptables-nft -t nat -N DOCKER; iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
    );
    let theirs = || host.sh("iptables-nft-save | grep -v '^#' | sed 's/\\[[0-9:]*\\]//'");
    let before = theirs();
    let config = config("f0000002", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let container = Container::start(&daemon.networks, published("c1")).await;
    let _server = container.space.whoami(80);
    assert!(!reaches(&client), "documented: another table's drop is final");
    assert!(host.asks([127, 0, 0, 1], 8080).is_some(), "nothing is forwarded on the way from this host");
    let findings = daemon.networks.check("bridge").await.expect("check").expect("here");
    let told = findings.iter().find(|finding| finding.subject == "chain ip filter FORWARD").expect("told");
    assert!(told.remedy.as_ref().is_some_and(|remedy| remedy.contains("-i rsw+ -j ACCEPT")));

    // What the check says to do.
    host.sh("iptables-nft -I DOCKER-USER -i rsw+ -j ACCEPT; iptables-nft -I DOCKER-USER -o rsw+ -j ACCEPT");
    assert!(reaches(&client));
    assert!(container.space.pings([10, 88, 0, 9].into()), "the way out");
    host.sh("iptables-nft -D DOCKER-USER -i rsw+ -j ACCEPT; iptables-nft -D DOCKER-USER -o rsw+ -j ACCEPT");
    daemon.networks.detach("c1").await.expect("detach");
    daemon.networks.close_all().await.expect("close");
    assert_eq!(theirs(), before);
    host.sh("nft delete table ip filter; nft delete table ip nat");
    assert_clean(&host, &config);
}

//! Published ports.

use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};

use rswarm_network::{AttachRequest, BridgeSpec, DEFAULT_BRIDGE, PortBinding, Protocol};

use crate::lab::{Container, Daemon, Dir, Lab, assert_clean, config, request};

fn port(host_ip: Option<[u8; 4]>, host_port: u16, container_port: u16, protocol: Protocol) -> PortBinding {
    PortBinding { host_ip: host_ip.map(IpAddr::from), host_port, host_port_end: 0, container_port, protocol }
}

fn publishing(container: &str, publish: Vec<PortBinding>) -> AttachRequest {
    AttachRequest { publish, ..request(container, DEFAULT_BRIDGE) }
}

#[tokio::test]
async fn a_published_port_is_reached_from_everywhere_it_should_be() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (host, client) = (lab.host(1), lab.host(9));
    let config = config("c0000001", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let ports = vec![
        port(None, 8080, 80, Protocol::Tcp),
        port(Some([127, 0, 0, 1]), 8081, 80, Protocol::Tcp),
        port(Some([10, 88, 0, 1]), 8082, 80, Protocol::Tcp),
    ];
    let web = Container::start(&daemon.networks, publishing("web", ports)).await;
    let neighbour = Container::start(&daemon.networks, request("neighbour", DEFAULT_BRIDGE)).await;
    let server = web.space.whoami(80);

    assert_eq!(client.asks([10, 88, 0, 1], 8080).as_deref(), Some("10.88.0.9"), "the client's own address");
    assert!(host.asks([127, 0, 0, 1], 8080).is_some());
    assert!(host.asks([127, 0, 0, 2], 8080).is_some());
    assert!(host.asks([10, 88, 0, 1], 8080).is_some());
    assert!(web.space.asks([10, 88, 0, 1], 8080).is_some(), "hairpin to itself");
    assert!(neighbour.space.asks([10, 88, 0, 1], 8080).is_some(), "hairpin from a neighbour");
    assert!(host.asks([127, 0, 0, 1], 8081).is_some());
    assert_eq!(client.asks([10, 88, 0, 1], 8081), None, "published on loopback only");
    assert!(client.asks([10, 88, 0, 1], 8082).is_some());
    assert_eq!(host.asks([127, 0, 0, 1], 8082), None, "published on one address only");

    // A container that routes 127.0.0.0/8 to the host must not reach the host's loopback.
    let secret = host.whoami_at(Ipv4Addr::LOCALHOST.into(), 9999);
    neighbour
        .space
        .sh("ip addr del 127.0.0.1/8 dev lo; echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet; \
         ip route del local 127.0.0.0/8 table local 2>/dev/null; ip route add 127.0.0.0/8 via 172.17.0.1");
    assert_eq!(neighbour.space.asks([127, 0, 0, 1], 9999), None);

    drop((secret, server));
    daemon.networks.detach("web").await.expect("detach");
    assert_eq!(client.asks([10, 88, 0, 1], 8080), None);
    daemon.networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

#[tokio::test]
async fn conflicts_are_told_in_dockers_words() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let host = lab.host(1);
    let config = config("c0000002", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let networks = &daemon.networks;
    let one = publishing("one", vec![port(None, 80, 80, Protocol::Tcp)]);
    let one = Container::start(networks, one).await;
    let netns = networks.create_netns().await.expect("netns");
    let error_of =
        async |publish| networks.attach(&netns, publishing("two", publish)).await.expect_err("refused");
    let refused = async |publish| rswarm_base::Chain(&error_of(publish).await).to_string();
    assert_eq!(
        refused(vec![port(None, 80, 8080, Protocol::Tcp)]).await,
        "Bind for 0.0.0.0:80 failed: port is already allocated"
    );
    assert_eq!(
        refused(vec![port(Some([127, 0, 0, 1]), 80, 80, Protocol::Tcp)]).await,
        "Bind for 127.0.0.1:80 failed: port is already allocated"
    );
    let _squatter = host.run(|| TcpListener::bind("0.0.0.0:81").expect("bind"));
    assert_eq!(
        refused(vec![port(None, 81, 80, Protocol::Tcp)]).await,
        "failed to bind host port for 0.0.0.0:81:172.17.0.3:80/tcp: address already in use"
    );
    let hint = rswarm_base::Classify::hint(&error_of(vec![port(None, 81, 80, Protocol::Tcp)]).await);
    assert!(hint.is_some_and(|hint| hint.contains(&format!(" ({}) has port 81", std::process::id()))));
    // The first port is given back when the second one fails.
    refused(vec![port(None, 90, 90, Protocol::Tcp), port(None, 80, 80, Protocol::Tcp)]).await;
    let spare = host.run(|| TcpListener::bind("0.0.0.0:90").is_ok());
    assert!(spare);
    assert!(host.run(|| TcpListener::bind("0.0.0.0:80").is_err()), "the port is reserved on the host too");

    let range = PortBinding { host_port_end: 83, ..port(None, 80, 80, Protocol::Tcp) };
    let mut two =
        publishing("two", vec![range, port(None, 0, 80, Protocol::Tcp), port(None, 80, 80, Protocol::Udp)]);
    two.publish.push(port(None, 0, 81, Protocol::Udp));
    two.publish.push(port(None, 80, 80, Protocol::Sctp));
    two.publish.push(port(None, 0, 82, Protocol::Sctp));
    let two = networks.attach(&netns, two).await.expect("attach");
    assert_eq!(two.ports[0].host_port, 82, "80 is ours, 81 another process's");
    assert!(two.ports[1].host_port > 1024 && two.ports[3].host_port > 1024);
    assert_eq!(two.ports[2].host_port, 80, "UDP is not TCP");
    assert!(two.ports[4].host_port == 80 && two.ports[5].host_port > 1024, "and SCTP is neither");
    let rules = host.sh("nft list ruleset");
    let inside = two.addresses[0].address;
    assert!(rules.contains(&format!("sctp . 80 : {inside} . 80")), "{rules}");
    drop(one);
    networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

#[tokio::test]
async fn udp_goes_to_the_new_owner_of_a_port_at_once() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (host, client) = (lab.host(1), lab.host(9));
    let config = config("c0000003", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    // One client socket all along: its flow is remembered by the kernel.
    let socket = client.run(|| UdpSocket::bind("0.0.0.0:5000").expect("bind"));
    socket.set_read_timeout(Some(crate::lab::PATIENCE)).expect("timeout");
    // The flow exists before the port is published: nobody listens yet.
    socket.send_to(b"?", "10.88.0.1:5353").expect("send");
    for name in ["first", "second"] {
        let wanted = publishing(name, vec![port(None, 5353, 53, Protocol::Udp)]);
        let container = Container::start(&daemon.networks, wanted).await;
        let server = container.space.run(|| UdpSocket::bind("0.0.0.0:53").expect("bind"));
        let answer = name.as_bytes().to_vec();
        let serving = std::thread::spawn(move || {
            let mut buffer = [0; 16];
            let (_, from) = server.recv_from(&mut buffer).expect("question");
            server.send_to(&answer, from).expect("answer");
            from.ip().to_string()
        });
        socket.send_to(b"?", "10.88.0.1:5353").expect("send");
        let mut buffer = [0; 16];
        let length = socket.recv(&mut buffer).expect("an answer");
        assert_eq!(&buffer[..length], name.as_bytes());
        assert_eq!(serving.join().expect("server"), "10.88.0.9");
        // Another container first takes the address that the next would get.
        let keep = format!("keep-{name}");
        Container::start(&daemon.networks, request(&keep, DEFAULT_BRIDGE)).await;
        daemon.networks.detach(name).await.expect("detach");
        Container::start(&daemon.networks, request(&format!("after-{name}"), DEFAULT_BRIDGE)).await;
    }
    daemon.networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

#[tokio::test]
async fn a_restarted_daemon_keeps_what_is_published() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (host, client) = (lab.host(1), lab.host(9));
    let config = config("c0000004", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let kept = publishing("kept", vec![port(None, 8080, 80, Protocol::Tcp)]);
    let kept = Container::start(&daemon.networks, kept).await;
    let gone = publishing("gone", vec![port(None, 8081, 80, Protocol::Tcp)]);
    let gone = Container::start(&daemon.networks, gone).await;
    let _server = kept.space.whoami(80);
    let _other = gone.space.whoami(80);
    daemon.stop();
    assert!(client.asks([10, 88, 0, 1], 8080).is_some(), "while no daemon runs");

    let daemon = Daemon::start(&host, config.clone());
    assert!(client.asks([10, 88, 0, 1], 8080).is_some(), "before it is adopted");
    let endpoints = [kept.attached.clone()];
    daemon.networks.adopt("kept", &kept.netns, &endpoints, None).await.expect("adopt");
    daemon.networks.settle().await.expect("settle");
    assert!(client.asks([10, 88, 0, 1], 8080).is_some(), "after it");
    assert_eq!(client.asks([10, 88, 0, 1], 8081), None, "nobody claimed it");
    let next = Container::start(&daemon.networks, request("next", DEFAULT_BRIDGE)).await;
    assert_ne!(next.address(), kept.address());
    daemon.networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

#[tokio::test]
async fn many_containers_come_and_go_at_once_and_leave_nothing() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let host = lab.host(1);
    let config = config("c0000005", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    for round in 0..3 {
        let started = (0..20).map(|n| {
            let wanted = publishing(&format!("r{round}n{n}"), vec![port(None, 0, 80, Protocol::Tcp)]);
            Container::start(&daemon.networks, wanted)
        });
        let started = futures_util::future::join_all(started).await;
        let distinct: std::collections::BTreeSet<_> = started
            .iter()
            .map(|container| (container.address(), container.attached.ports[0].host_port))
            .collect();
        assert_eq!(distinct.len(), 20);
        let gone = started.iter().map(|container| daemon.networks.detach(&container.id));
        futures_util::future::join_all(gone).await.into_iter().collect::<Result<(), _>>().expect("detach");
    }
    assert_eq!(host.sh("ip -o link").lines().count(), 3, "lo, eth0 and the bridge");
    assert!(!host.sh("nft list ruleset").contains("elements = { tcp"));
    daemon.networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

#[tokio::test]
async fn the_administrators_rules_come_first_and_stay() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (host, client, other) = (lab.host(1), lab.host(9), lab.host(8));
    let config = config("c0000031", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let publish = vec![port(None, 8080, 80, Protocol::Tcp)];
    let web = Container::start(&daemon.networks, publishing("web", publish)).await;
    let _server = web.space.whoami(80);
    assert!(client.asks([10, 88, 0, 1], 8080).is_some());
    host.sh("nft add rule ip rswarm-user forward meta l4proto tcp ct original proto-dst 8080 ip saddr 10.88.0.9 drop");
    let rules = host.sh("nft list table ip rswarm-user");
    assert_eq!(client.asks([10, 88, 0, 1], 8080), None);
    assert_eq!(other.asks([10, 88, 0, 1], 8080).as_deref(), Some("10.88.0.8"));

    // Our own table is made anew, by another network and by another daemon.
    daemon.networks.create_bridge(BridgeSpec::new("app0000000000", "app")).await.expect("bridge");
    daemon.stop();
    let daemon = Daemon::start(&host, config.clone());
    daemon.networks.create_bridge(BridgeSpec::new("app0000000000", "app")).await.expect("bridge");
    daemon.networks.adopt("web", &web.netns, std::slice::from_ref(&web.attached), None).await.expect("adopt");
    assert_eq!(client.asks([10, 88, 0, 1], 8080), None);
    assert!(other.asks([10, 88, 0, 1], 8080).is_some());
    assert_eq!(host.sh("nft list table ip rswarm-user"), rules);
    daemon.networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

#[tokio::test]
async fn connections_of_a_container_that_ended_unseen_are_forgotten() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (host, client) = (lab.host(1), lab.host(9));
    let config = config("c0000041", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let web = publishing("web", vec![port(None, 8080, 80, Protocol::Tcp)]);
    let web = Container::start(&daemon.networks, web).await;
    let server = web.space.whoami(80);
    assert!(client.asks([10, 88, 0, 1], 8080).is_some());
    let remembered = || host.sh("cat /proc/net/nf_conntrack").contains("src=172.17.0.2");
    assert!(remembered());
    daemon.stop();
    drop((server, web));
    let daemon = Daemon::start(&host, config.clone());
    assert!(remembered(), "it may be adopted yet");
    daemon.networks.settle().await.expect("settle");
    assert!(!remembered());
    daemon.networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

#[tokio::test]
async fn a_container_that_leaves_takes_its_own_connections_and_no_others() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (host, client) = (lab.host(1), lab.host(9));
    let config = config("c0000042", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let mut containers = Vec::new();
    for (name, published) in [("web", 8080), ("api", 8081)] {
        let container = publishing(name, vec![port(None, published, 80, Protocol::Tcp)]);
        let container = Container::start(&daemon.networks, container).await;
        let server = container.space.whoami(80);
        assert!(client.asks([10, 88, 0, 1], published).is_some());
        containers.push((container, server));
    }
    let remembered =
        |n: u8| host.sh("cat /proc/net/nf_conntrack").contains(&format!("src=172.17.0.{n} dst=10.88.0.9"));
    assert!(remembered(2) && remembered(3));
    daemon.networks.detach("web").await.expect("detach");
    assert!(!remembered(2) && remembered(3));
    drop(containers);
    daemon.networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

//! Virtual addresses of services, over two hosts.

use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use rswarm_network::{AttachRequest, Balancing, Mac, Overlay, OverlayEndpoint, OverlayService, Pick};

use crate::echo::{Echo, Talk, meets, meets_udp};
use crate::lab::{Container, Daemon, Dir, Lab, PATIENCE, Space, assert_clean, config, request};
use crate::overlay::transfer;

const ID: &str = "n2ov8wj2k0c3x5z7b9d1f3h5k";
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 200);

fn inside(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 2, n])
}

/// A task of the service, `10.0.2.n`, on a host.
#[derive(Clone, Copy)]
struct Task {
    n: u8,
    host: u8,
    ready: bool,
    started: bool,
}

fn overlay(here: u8, tasks: &[Task]) -> Overlay {
    let endpoint = |task: &Task| OverlayEndpoint {
        task_id: format!("task{}", task.n),
        service_id: "s1".into(),
        service_name: "web".into(),
        slot_name: format!("web.{}", task.n),
        container_names: Vec::new(),
        aliases: Vec::new(),
        addresses: vec![inside(task.n)],
        mac: Mac([0x02, 0x42, 10, 0, 2, task.n]),
        node_addr: IpAddr::from([10, 88, 0, task.host]),
        local: task.host == here,
        ready: task.ready,
        started: task.started,
    };
    // The clients are containers of their own.
    let client = |host: u8| OverlayEndpoint {
        service_id: String::new(),
        service_name: String::new(),
        ..endpoint(&Task { n: 100 + host, host, ready: true, started: true })
    };
    Overlay {
        network_id: ID.into(),
        name: "backend".into(),
        vni: 4098,
        subnets: vec![("10.0.2.0/24".parse().expect("subnet"), inside(1))],
        mtu: None,
        data_path_port: 4789,
        local_addr: IpAddr::from([10, 88, 0, here]),
        internal: false,
        endpoints: tasks.iter().map(endpoint).chain([client(1), client(2)]).collect(),
        services: vec![OverlayService {
            id: "s1".into(),
            name: "web".into(),
            aliases: vec!["www".into()],
            addresses: vec![VIP.into()],
            balancing: Default::default(),
            ports: Vec::new(),
        }],
        mesh: None,
        tunnel: None,
    }
}

/// Two hosts, a client on the first one, a task `10.0.2.11` on the first and `10.0.2.12` on the second.
struct Pair {
    hosts: [Space; 2],
    configs: [rswarm_network::Config; 2],
    daemons: [Daemon; 2],
    client: Container,
    tasks: [Container; 2],
    lab: Lab,
    _dir: Dir,
}

impl Pair {
    async fn start(id: &str) -> Pair {
        let (lab, dir) = (Lab::new(), Dir::new());
        let hosts = [lab.host(1), lab.host(2)];
        let configs = [1, 2].map(|n| config(&format!("{id}{n}"), dir.path()));
        let daemons = [0, 1].map(|n| Daemon::start(&hosts[n], configs[n].clone()));
        for (here, daemon) in (1..).zip(&daemons) {
            daemon.networks.apply_overlay(overlay(here, &both())).await.expect("apply");
        }
        let attach = async |n: u8, daemon: &Daemon| {
            let request = AttachRequest { addresses: vec![inside(n)], ..request(&format!("task{n}"), ID) };
            Container::start(&daemon.networks, request).await
        };
        let client = attach(101, &daemons[0]).await;
        let tasks = [attach(11, &daemons[0]).await, attach(12, &daemons[1]).await];
        Pair { hosts, configs, daemons, client, tasks, lab, _dir: dir }
    }

    async fn apply(&self, tasks: &[Task]) {
        for (here, daemon) in (1..).zip(&self.daemons) {
            daemon.networks.apply_overlay(overlay(here, tasks)).await.expect("apply");
        }
    }

    async fn apply_balanced(&self, tasks: &[Task], balancing: Balancing) {
        for (here, daemon) in (1..).zip(&self.daemons) {
            let mut wanted = overlay(here, tasks);
            wanted.services[0].balancing = balancing;
            daemon.networks.apply_overlay(wanted).await.expect("apply");
        }
    }

    async fn close(self) {
        for (n, daemon) in self.daemons.iter().enumerate() {
            daemon.networks.close_all().await.expect("close");
            assert_clean(&self.hosts[n], &self.configs[n]);
        }
    }
}

fn both() -> [Task; 2] {
    [11, 12].map(|n| Task { n, host: n - 10, ready: true, started: true })
}

fn seen_as(client: &str) -> Vec<(String, String)> {
    ["near", "far"].iter().map(|name| ((*name).to_owned(), client.to_owned())).rev().collect()
}

#[tokio::test]
async fn a_virtual_address_leads_to_every_ready_task_and_keeps_the_client() {
    let pair = Pair::start("f000000").await;
    let [near, far] = [&pair.tasks[0].space, &pair.tasks[1].space];
    let _servers = [Echo::start(near, "near", 80), Echo::start(far, "far", 80)];
    let client = &pair.client.space;

    assert_eq!(meets(client, VIP.into(), 80, &["near", "far"]), seen_as("10.0.2.101"));
    assert_eq!(meets_udp(client, VIP, 80, &["near", "far"]), seen_as("10.0.2.101"));
    assert!(client.pings(VIP.into()));

    // A task that is led to itself sees the gateway; it would not take packets from its own address.
    let to_itself = vec![("far".to_owned(), "10.0.2.11".into()), ("near".to_owned(), "10.0.2.1".into())];
    assert_eq!(meets(near, VIP.into(), 80, &["near", "far"]), to_itself);
    assert_eq!(meets_udp(near, VIP, 80, &["near", "far"]), to_itself);

    let names = &pair.daemons[0].networks;
    assert_eq!(names.lookup(&[ID.into()], "www"), Some(vec![VIP.into()]));
    assert_eq!(names.lookup(&[ID.into()], "tasks.web"), Some(vec![inside(11), inside(12)]));

    // An administrator can read the rules.
    let sandbox = pair.configs[0].netns_dir.join(ID);
    let rules = pair.hosts[0].sh(&format!("nsenter --net={} nft list ruleset", sandbox.display()));
    assert!(rules.contains("dnat to ip daddr . numgen random mod 2 map @backends"), "{rules}");

    // Large packets, to the far one alone.
    pair.apply(&both()[1..]).await;
    transfer(client, far, VIP.into());
    pair.close().await;
}

/// Who answers a client that asks again and again.
fn met(client: &Space) -> Vec<String> {
    let mut met: Vec<String> =
        (0..12).map(|_| Talk::start(client, VIP, 80).expect("connection").server).collect();
    met.sort();
    met.dedup();
    met
}

#[tokio::test]
async fn connections_are_spread_as_the_service_wants() {
    let pair = Pair::start("f000003").await;
    let [near, far] = [&pair.tasks[0].space, &pair.tasks[1].space];
    let _servers = [Echo::start(near, "near", 80), Echo::start(far, "far", 80)];
    let client = &pair.client.space;
    let [task1, task2] = both();
    for pick in [Pick::SourceHash, Pick::Sticky] {
        let balancing = Balancing { pick, ..Balancing::default() };
        pair.apply_balanced(&both(), balancing).await;
        let own = met(client);
        assert_eq!(own.len(), 1, "{pick:?}: one client, one task: {own:?}");
        // The other task goes and comes back: nobody of this one's notices.
        let (stays, goes) = if own == ["near"] { (task1, task2) } else { (task2, task1) };
        pair.apply_balanced(&[stays, Task { ready: false, ..goes }], balancing).await;
        assert_eq!(met(client), own, "{pick:?}");
        pair.apply_balanced(&both(), balancing).await;
        assert_eq!(met(client), own, "{pick:?}");
        // Its own goes: it is served all the same.
        pair.apply_balanced(&[goes, Task { ready: false, ..stays }], balancing).await;
        assert_ne!(met(client), own, "{pick:?}");
    }
    let rules = pair.hosts[0]
        .sh(&format!("nsenter --net={} nft list ruleset", pair.configs[0].netns_dir.join(ID).display()));
    assert!(rules.contains("jhash ip saddr mod 128 seed 0x7273776d map @backends"), "{rules}");

    let local_first = Balancing { local_first: true, ..Balancing::default() };
    pair.apply_balanced(&both(), local_first).await;
    assert_eq!(met(client), ["near"]);
    pair.apply_balanced(&[Task { ready: false, ..task1 }, task2], local_first).await;
    assert_eq!(met(client), ["far"], "the node has no ready task of its own");
    pair.apply_balanced(&both(), Balancing::default()).await;
    assert_eq!(meets(client, VIP.into(), 80, &["near", "far"]), seen_as("10.0.2.101"));
    pair.close().await;
}

#[tokio::test]
async fn connections_stay_with_a_task_until_it_has_gone() {
    let pair = Pair::start("f000001").await;
    let [near, far] = [&pair.tasks[0].space, &pair.tasks[1].space];
    let _servers = [Echo::start(near, "near", 80), Echo::start(far, "far", 80)];
    let client = &pair.client.space;
    let mut to_far = loop {
        let talk = Talk::start(client, VIP, 80).expect("connection");
        if talk.server == "far" {
            break talk;
        }
    };
    let [task1, task2] = both();
    let socket = |to: Ipv4Addr| {
        let socket = client.run(|| UdpSocket::bind("0.0.0.0:0").expect("bind"));
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        socket.connect((to, 80)).expect("connect");
        socket
    };
    let hears = |socket: &UdpSocket| {
        let mut buffer = [0; 64];
        socket.send(b"?").expect("send");
        let length = socket.recv(&mut buffer).expect("an answer");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let (led, asked) = loop {
        let led = socket(VIP);
        if hears(&led).starts_with("far") {
            break (led, socket(Ipv4Addr::new(10, 0, 2, task2.n)));
        }
    };
    assert!(hears(&asked).starts_with("far"));
    let draining = Task { ready: false, ..task2 };
    pair.apply(&[task1, draining]).await;
    assert!(hears(&led).starts_with("near"), "a datagram has no connection that could end");
    assert!(hears(&asked).starts_with("far"), "whoever asks for a task by its address gets it");
    for _ in 0..16 {
        assert_eq!(Talk::start(client, VIP, 80).expect("connection").server, "near");
    }
    to_far.goes_on().expect("an old connection lives on");

    pair.apply(&[task1]).await;
    let error = to_far.goes_on().expect_err("its server has gone");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");

    // Nobody is ready: refused, not lost.
    pair.apply(&[Task { ready: false, ..task1 }]).await;
    let started = Instant::now();
    let error = Talk::start(client, VIP, 80).err().expect("nobody there");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
    assert!(started.elapsed() < Duration::from_secs(2));
    let socket = socket(VIP);
    socket.send(b"?").expect("send");
    let mut buffer = [0; 64];
    assert_eq!(socket.recv(&mut buffer).map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionRefused));

    // The same socket is heard as soon as somebody is.
    pair.apply(&[task1]).await;
    socket.send(b"?").expect("send");
    let length = socket.recv(&mut buffer).expect("an answer");
    assert_eq!(&buffer[..length], b"near 10.0.2.101");
    pair.close().await;
}

/// A node that only the managers have lost goes on serving whom it serves; one that is dead leaves nobody waiting.
#[tokio::test]
async fn a_client_that_waits_learns_that_its_server_is_dead_and_no_sooner() {
    let pair = Pair::start("f000004").await;
    let [near, far] = [&pair.tasks[0].space, &pair.tasks[1].space];
    let _servers = [Echo::start(near, "near", 80), Echo::start(far, "far", 80)];
    let talk = |server| loop {
        let talk = Talk::start(&pair.client.space, VIP, 80).expect("connection");
        if talk.server == server {
            break talk;
        }
    };
    let (mut to_near, mut to_far, waits) = (talk("near"), talk("far"), talk("far"));
    let asked = || far.sh("grep ^Icmp: /proc/net/snmp");
    let before = asked();
    let [task1, task2] = both();
    let lost = [task1, Task { ready: false, started: false, ..task2 }];
    pair.apply(&lost).await;
    let deadline = Instant::now() + PATIENCE;
    while asked() == before {
        assert!(Instant::now() < deadline, "nobody asks the lost task");
    }
    to_far.goes_on().expect("it answers, so it is not dead");

    pair.lab.cut(2);
    pair.apply(&lost).await;
    for mut talk in [to_far, waits] {
        let error = talk.hears().expect_err("its server is dead");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    }
    to_near.goes_on().expect("everybody else is left alone");
    pair.lab.mend(2);
    pair.close().await;
}

#[tokio::test]
async fn virtual_addresses_outlive_the_daemon() {
    let mut pair = Pair::start("f000002").await;
    let [near, far] = [&pair.tasks[0].space, &pair.tasks[1].space];
    let _servers = [Echo::start(near, "near", 80), Echo::start(far, "far", 80)];
    let mut talks: Vec<Talk> =
        (0..8).map(|_| Talk::start(&pair.client.space, VIP, 80).expect("connection")).collect();
    let restarted = Daemon::restart(&pair.hosts[0], pair.configs[0].clone(), &mut pair.daemons[0]);
    meets(&pair.client.space, VIP.into(), 80, &["near", "far"]);
    for container in [&pair.client, &pair.tasks[0]] {
        let endpoints = [container.attached.clone()];
        restarted.adopt(&container.id, &container.netns, &endpoints, None).await.expect("adopt");
    }
    restarted.settle().await.expect("settle");
    meets(&pair.client.space, VIP.into(), 80, &["near", "far"]);
    assert_eq!(restarted.apply_overlay(overlay(1, &both())).await.expect("apply"), 0, "nothing to correct");
    meets(&pair.client.space, VIP.into(), 80, &["near", "far"]);
    talks.iter_mut().for_each(|talk| talk.goes_on().expect("an old connection"));
    pair.close().await;
}

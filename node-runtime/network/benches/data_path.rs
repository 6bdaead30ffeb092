//! What overlays, virtual addresses and the mesh cost: throughput and connections beside VXLAN set up by hand and
//! the direct way, and the time that a change takes.
//!
//! `cargo bench -p rswarm-network --bench data_path [-- changes services ways vxlan]` as root. Ways that are compared take
//! turns; figures are medians, of a way's ratio to the first that of each round's ratios.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

#[path = "../tests/it/lab.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod lab;
mod measure;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rswarm_network::{
    AttachRequest, Mac, Mesh, MeshNode, MeshPort, Networks, Overlay, OverlayEndpoint, OverlayService,
    PortBinding, Protocol,
};

use lab::{Container, Daemon, Dir, Lab, Space, config, request};
use measure::{median, throughput};

const ID: &str = "n9ov8wj2k0c3x5z7b9d1f3h5k";
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 200);
/// Streams send until the client leaves; every connection to it counts.
const STREAM: u16 = 7000;
/// Connections are answered with a byte and closed.
const GREET: u16 = 7001;
/// Each way has servers of its own, this many ports apart: connections by two ways from one port of the
/// client to the same server would be in each other's way in conntrack.
const APART: u16 = 10;
/// Many and short: what else the machine does then meets all ways of a round alike.
const ROUNDS: usize = 31;
const ROUND: Duration = Duration::from_millis(150);
/// How many make connections at the same time.
const CLIENTS: usize = 8;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is_asked = |name: &str| asked.is_empty() || asked.iter().any(|word| word == name);
    if is_asked("changes") {
        changes().await;
    }
    if is_asked("services") {
        services().await;
    }
    if is_asked("ways") {
        ways().await;
    }
    if is_asked("vxlan") {
        vxlan().await;
    }
}

// === vxlan ===

/// Two nodes with an overlay, and beside it a bridge on VXLAN that somebody made by hand.
async fn vxlan() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let hosts = [1, 2].map(|n| lab.host(n));
    let daemons = [1u8, 2]
        .map(|n| Daemon::start(&hosts[usize::from(n) - 1], config(&format!("be00000{}", n + 4), dir.path())));
    let mut ours = Vec::new();
    for (here, daemon) in (1..).zip(&daemons) {
        let endpoints = vec![endpoint(11, 1, here, ""), endpoint(12, 2, here, "")];
        daemon.networks.apply_overlay(overlay(here, endpoints)).await.expect("apply");
        ours.push(start(&daemon.networks, 10 + here).await);
    }
    let by_hand = [1, 2].map(|n| by_hand(&hosts[n - 1], n, 3 - n));
    let ways = [
        (&by_hand, Ipv4Addr::new(10, 77, 0, 2), "made by hand"),
        (&[ours[0].space.clone(), ours[1].space.clone()], Ipv4Addr::new(10, 0, 0, 12), "an overlay"),
    ];
    let servers = ways.map(|([_, server], ..)| Servers::start(server));
    let ways = ways.map(|([client, _], address, name)| (name, client, address.into(), 0));
    compare("VXLAN", &ways);
    drop(servers);
    for daemon in &daemons {
        daemon.networks.close_all().await.expect("close");
    }
}

/// A namespace behind a bridge with a VXLAN device whose only peer is the other host.
fn by_hand(host: &Space, here: usize, there: usize) -> Space {
    let inside = Space::new();
    host.sh(&format!(
        "ip link add hand type bridge && ip link set hand up mtu 1450 &&
         ip link add handv type vxlan id 77 local 10.88.0.{here} remote 10.88.0.{there} dstport 4790 &&
         ip link set handv mtu 1450 master hand up &&
         ip link add handp type veth peer name handc && ip link set handp mtu 1450 master hand up &&
         ip link set handc netns {}",
        inside.path()
    ));
    inside.sh(&format!("ip addr add 10.77.0.{here}/24 dev handc && ip link set handc mtu 1450 up"));
    inside
}

// === ways ===

/// Two nodes; the task is on the second, clients are on both and outside.
async fn ways() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let [first, second, outside] = [1, 2, 9].map(|n| lab.host(n));
    let d1 = Daemon::start(&first, config("be000001", dir.path()));
    let d2 = Daemon::start(&second, config("be000002", dir.path()));
    let endpoints =
        |here: u8| vec![endpoint(11, 1, here, ""), endpoint(12, 2, here, "s0"), endpoint(13, 2, here, "")];
    for (here, daemon) in [(1, &d1), (2, &d2)] {
        let network = Overlay {
            services: vec![service(0, VIP)],
            mesh: Some(mesh(here)),
            ..overlay(here, endpoints(here))
        };
        daemon.networks.apply_overlay(network).await.expect("apply");
    }
    let host_port = |port| PortBinding {
        host_ip: None,
        host_port: port + 1000,
        host_port_end: 0,
        container_port: port,
        protocol: Protocol::Tcp,
    };
    let publish = vec![host_port(STREAM + 2 * APART), host_port(GREET + 2 * APART)];
    let task = AttachRequest { publish, ..attach(12) };
    let task = Container::start(&d2.networks, task).await;
    let (far, near) = (start(&d1.networks, 11).await, start(&d2.networks, 13).await);
    let servers = Servers::start(&task.space);
    let direct: IpAddr = task.address();
    let [node1, node2] = [[10, 88, 0, 1], [10, 88, 0, 2]].map(IpAddr::from);

    for (what, client) in [("task on the other node", &far), ("task on the same node", &near)] {
        let client = &client.space;
        compare(what, &[("direct", client, direct, 0), ("virtual address", client, VIP.into(), APART)]);
    }
    let ways = [
        ("port of the host", &outside, node2, 1000 + 2 * APART),
        ("mesh, by the task's node", &outside, node2, 2000 + 3 * APART),
        ("mesh, by another node", &outside, node1, 2000 + 4 * APART),
    ];
    compare("from outside", &ways);
    drop(servers);
    for daemon in [&d1, &d2] {
        daemon.networks.close_all().await.expect("close");
    }
}

/// Ways to like servers: name, client, address, what is added to the ports.
fn compare(what: &str, ways: &[(&str, &Space, IpAddr, u16)]) {
    let mut bytes = vec![Vec::new(); ways.len()];
    let mut connections = vec![Vec::new(); ways.len()];
    for round in 0..ROUNDS {
        for turn in 0..ways.len() {
            let way = (round + turn) % ways.len();
            let (_, client, address, added) = ways[way];
            bytes[way].push(throughput(client, SocketAddr::new(address, STREAM + added), ROUND));
            connections[way].push(setups(client, SocketAddr::new(address, GREET + added)));
        }
    }
    println!("{what}:");
    for (way, (name, ..)) in ways.iter().enumerate() {
        println!(
            "    {name}: {:.1} Gbit/s ({:.2}), {:.0} connections/s ({:.2})",
            median(bytes[way].clone()) * 8e-9,
            ratio(&bytes[way], &bytes[0]),
            median(connections[way].clone()),
            ratio(&connections[way], &connections[0]),
        );
    }
}

/// The middle of the rounds' ratios.
fn ratio(of: &[f64], to: &[f64]) -> f64 {
    median(of.iter().zip(to).map(|(of, to)| of / to).collect())
}

/// Connections per second. One client after the other would measure how fast threads wake: some at once keep
/// the processors busy. The server closes first, so that no port of the client's waits for its time to end.
fn setups(client: &Space, to: SocketAddr) -> f64 {
    let one = move || {
        let (started, mut count) = (Instant::now(), 0);
        while started.elapsed() < ROUND {
            let mut stream = TcpStream::connect(to).expect("connect");
            stream.read_to_end(&mut Vec::new()).expect("greeting");
            count += 1;
        }
        f64::from(count) / started.elapsed().as_secs_f64()
    };
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let client = client.clone();
            std::thread::spawn(move || client.run(one))
        })
        .collect();
    clients.into_iter().map(|client| client.join().expect("a client")).sum()
}

/// What clients talk to; ends with the value.
struct Servers {
    space: Space,
    ended: Arc<AtomicBool>,
}

impl Servers {
    fn start(space: &Space) -> Servers {
        let ended = Arc::new(AtomicBool::new(false));
        for port in ports() {
            let listener = space.run(move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("bind"));
            let ended = Arc::clone(&ended);
            std::thread::spawn(move || serve(&listener, port % APART == STREAM % APART, &ended));
        }
        Servers { space: space.clone(), ended }
    }
}

/// The servers' ports.
fn ports() -> impl Iterator<Item = u16> {
    (0..5).flat_map(|way| [STREAM + way * APART, GREET + way * APART])
}

fn serve(listener: &TcpListener, streams: bool, ended: &AtomicBool) {
    for stream in listener.incoming() {
        let mut stream = stream.expect("accept");
        if ended.load(Ordering::SeqCst) {
            return;
        }
        if streams {
            let buffer = vec![7; 256 << 10];
            while stream.write_all(&buffer).is_ok() {}
        } else {
            let _ = stream.write_all(b"!");
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        self.space
            .run(|| [STREAM, GREET].map(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()));
    }
}

// === changes ===

/// A node with a hundred containers on a network: one endpoint elsewhere comes and goes.
async fn changes() {
    const CONTAINERS: u8 = 100;
    let (lab, dir) = (Lab::new(), Dir::new());
    let host = lab.host(1);
    let daemon = Daemon::start(&host, config("be000003", dir.path()));
    let networks = &daemon.networks;
    let here: Vec<u8> = (2..2 + CONTAINERS).collect();
    let network = |others: &[u8]| {
        let local = here.iter().map(|n| endpoint(*n, 1, 1, "s0"));
        let endpoints = local.chain(others.iter().map(|n| endpoint(*n, 2, 1, "s0"))).collect();
        Overlay { services: vec![service(0, VIP)], ..overlay(1, endpoints) }
    };
    networks.apply_overlay(network(&[])).await.expect("apply");
    let mut containers = Vec::new();
    let mut attaching = Vec::new();
    for n in &here {
        let started = Instant::now();
        containers.push(start(networks, *n).await);
        attaching.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let (mut took, mut cpu) = (Vec::new(), Vec::new());
    for round in 0..40 {
        let others: &[u8] = if round % 2 == 0 { &[150] } else { &[] };
        let (started, used) = (Instant::now(), cpu_time());
        networks.apply_overlay(network(others)).await.expect("apply");
        took.push(started.elapsed().as_secs_f64() * 1e3);
        cpu.push((cpu_time() - used).as_secs_f64() * 1e3);
    }
    println!(
        "one endpoint more or less beside {CONTAINERS} containers: {:.1} ms, {:.1} ms of CPU; a container attached: {:.1} ms",
        median(took),
        median(cpu),
        median(attaching)
    );
    networks.close_all().await.expect("close");
}

/// The processor time of this process, the kernel's work for it included.
fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("getrusage");
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros.unsigned_abs())
}

/// A thousand services of five tasks, all elsewhere, on a network that has none; then one task less.
async fn services() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let host = lab.host(1);
    let daemon = Daemon::start(&host, config("be000004", dir.path()));
    let networks = &daemon.networks;
    let address = |n: u16| Ipv4Addr::from_bits(Ipv4Addr::new(10, 16, 0, 0).to_bits() + u32::from(n));
    let endpoints: Vec<OverlayEndpoint> = (0..5000)
        .map(|n| {
            let known = endpoint(2, 2, 1, &format!("s{}", n / 5));
            let mac = Mac(rswarm_base::ipam::mac_for(address(1000 + n).into()));
            OverlayEndpoint { addresses: vec![address(1000 + n).into()], mac, ..known }
        })
        .collect();
    let services: Vec<OverlayService> = (0..1000).map(|n| service(n, address(20000 + n))).collect();
    let large = |endpoints: &[OverlayEndpoint], services: &[OverlayService]| Overlay {
        subnets: vec![("10.16.0.0/16".parse().expect("subnet"), address(1).into())],
        services: services.to_vec(),
        ..overlay(1, endpoints.to_vec())
    };
    for (what, overlay) in [
        ("an empty network", large(&[], &[])),
        ("5000 endpoints", large(&endpoints, &[])),
        ("1000 services over them", large(&endpoints, &services)),
        ("the same again", large(&endpoints, &services)),
        ("one task less", large(&endpoints[1..], &services)),
    ] {
        let (started, used) = (Instant::now(), cpu_time());
        networks.apply_overlay(overlay).await.expect("apply");
        let (took, used) = (started.elapsed().as_secs_f64() * 1e3, (cpu_time() - used).as_secs_f64() * 1e3);
        println!("{what}: {took:.0} ms, {used:.0} ms of CPU");
    }
    networks.close_all().await.expect("close");
}

// === the network ===

fn inside(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

fn mac(n: u8) -> Mac {
    Mac([0x02, 0x42, 10, 0, 0, n])
}

fn endpoint(n: u8, host: u8, here: u8, service: &str) -> OverlayEndpoint {
    OverlayEndpoint {
        task_id: format!("task{n}"),
        service_id: service.to_owned(),
        service_name: String::new(),
        slot_name: String::new(),
        container_names: Vec::new(),
        aliases: Vec::new(),
        addresses: vec![inside(n)],
        mac: mac(n),
        node_addr: IpAddr::from([10, 88, 0, host]),
        local: host == here,
        ready: true,
        started: true,
    }
}

fn service(n: u16, address: Ipv4Addr) -> OverlayService {
    OverlayService {
        id: format!("s{n}"),
        name: format!("s{n}"),
        aliases: Vec::new(),
        addresses: vec![address.into()],
        balancing: Default::default(),
        ports: Vec::new(),
    }
}

fn mesh(here: u8) -> Mesh {
    let there = 3 - here;
    let node_addr = IpAddr::from([10, 88, 0, there]);
    let port = |target| MeshPort {
        protocol: Protocol::Tcp,
        published: target + 2000,
        target,
        service_id: "s0".into(),
        balancing: Default::default(),
    };
    Mesh {
        addresses: vec![inside(210 + here)],
        mac: mac(210 + here),
        nodes: vec![MeshNode { addresses: vec![inside(210 + there)], mac: mac(210 + there), node_addr }],
        ports: [3, 4]
            .iter()
            .flat_map(|way| [port(STREAM + way * APART), port(GREET + way * APART)])
            .collect(),
    }
}

fn overlay(here: u8, endpoints: Vec<OverlayEndpoint>) -> Overlay {
    Overlay {
        network_id: ID.into(),
        name: "bench".into(),
        vni: 4100,
        subnets: vec![("10.0.0.0/24".parse().expect("subnet"), inside(1))],
        mtu: None,
        data_path_port: 4789,
        local_addr: IpAddr::from([10, 88, 0, here]),
        internal: false,
        endpoints,
        services: Vec::new(),
        mesh: None,
        tunnel: None,
    }
}

fn attach(n: u8) -> AttachRequest {
    AttachRequest { addresses: vec![inside(n)], ..request(&format!("task{n}"), ID) }
}

async fn start(networks: &Networks, n: u8) -> Container {
    Container::start(networks, attach(n)).await
}

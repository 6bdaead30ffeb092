//! What encryption in user space costs: throughput between two nodes beside plain VXLAN.
//!
//! `cargo bench -p rswarm-network --bench tunnel` as root. Both ways take turns; figures are medians. Both nodes' devices
//! and both ends of the stream share this machine's cores.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

#[path = "../tests/it/lab.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod lab;
mod measure;

use std::ffi::OsString;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use rswarm_network::tunnel::{Secret, process};
use rswarm_network::{
    AttachRequest, Mac, Networks, Overlay, OverlayEndpoint, OverlayTunnel, TUNNEL_PORT, TunnelPeer,
};

use lab::{Container, Daemon, Dir, Lab, Space, config, request};
use measure::{median, throughput};

const PORT: u16 = 7000;
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(1);

fn main() {
    let args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|word| word == "tunnel") {
        let code = process::main(args[2..].to_vec());
        assert_eq!(code, 0, "the device serves");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(compare());
}

/// The two networks: what an address in it begins with, and whether it is encrypted.
const PLAIN: (u8, bool) = (1, false);
const ENCRYPTED: (u8, bool) = (2, true);

async fn compare() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let hosts = [1, 2].map(|n| lab.host(n));
    let daemons = [1u8, 2]
        .map(|n| Daemon::start(&hosts[usize::from(n) - 1], config(&format!("be00001{n}"), dir.path())));
    let mut ways = Vec::new();
    for network in [PLAIN, ENCRYPTED] {
        let mut containers = Vec::new();
        for here in [1, 2] {
            let networks = &daemons[usize::from(here) - 1].networks;
            networks.apply_overlay(overlay(network, here)).await.expect("apply");
            containers.push(start(networks, network, here).await);
        }
        serve(&containers[1].space);
        ways.push((containers, address(network, 2)));
    }
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for turn in [round % 2, (round + 1) % 2] {
            let (containers, to) = &ways[turn];
            rates[turn].push(throughput(&containers[0].space, SocketAddr::new(*to, PORT), ROUND));
        }
    }
    let [plain, encrypted] = rates.map(median);
    println!(
        "plain VXLAN {:.2} Gbit/s, encrypted in user space {:.2} Gbit/s ({:.3})",
        plain * 8e-9,
        encrypted * 8e-9,
        encrypted / plain
    );
    drop(ways);
    for daemon in &daemons {
        daemon.networks.close_all().await.expect("close");
    }
}

/// Sends to whoever connects, for as long as this process lives.
fn serve(space: &Space) {
    let listener = space.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("bind"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accept");
            let buffer = vec![7; 256 << 10];
            while stream.write_all(&buffer).is_ok() {}
        }
    });
}

fn id(network: (u8, bool)) -> String {
    format!("n9ov8wj2k0c3x5z7b9d1f3h5{}", network.0)
}

fn address(network: (u8, bool), node: u8) -> IpAddr {
    IpAddr::from([10, 9, network.0, 10 + node])
}

fn node(n: u8) -> IpAddr {
    IpAddr::from([10, 88, 0, n])
}

fn inside_tunnel(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

fn overlay(network: (u8, bool), here: u8) -> Overlay {
    let endpoint = |n: u8| OverlayEndpoint {
        task_id: format!("task{n}"),
        service_id: String::new(),
        service_name: String::new(),
        slot_name: String::new(),
        container_names: Vec::new(),
        aliases: Vec::new(),
        addresses: vec![address(network, n)],
        mac: Mac([0x02, 0x42, 10, 9, network.0, 10 + n]),
        node_addr: if network.1 { inside_tunnel(n).into() } else { node(n) },
        local: n == here,
        ready: true,
        started: true,
    };
    let there = 3 - here;
    let private = |n: u8| Secret::new([n; 32]);
    let tunnel = OverlayTunnel {
        version: 1,
        private: private(here),
        psk: Secret::new([9; 32]),
        port: TUNNEL_PORT,
        address: inside_tunnel(here),
        peers: vec![TunnelPeer {
            node: there.to_string(),
            public: private(there).public(),
            address: inside_tunnel(there),
            endpoint: SocketAddr::new(node(there), TUNNEL_PORT),
        }],
    };
    let gateway = IpAddr::from([10, 9, network.0, 1]);
    Overlay {
        network_id: id(network),
        name: "bench".into(),
        vni: 4100 + u32::from(network.0),
        subnets: vec![(format!("10.9.{}.0/24", network.0).parse().expect("a subnet"), gateway)],
        mtu: None,
        data_path_port: 4789,
        local_addr: node(here),
        internal: true,
        endpoints: vec![endpoint(1), endpoint(2)],
        services: Vec::new(),
        mesh: None,
        tunnel: network.1.then_some(tunnel),
    }
}

async fn start(networks: &Networks, network: (u8, bool), n: u8) -> Container {
    let name = format!("task{n}-{}", network.0);
    let wanted = AttachRequest { addresses: vec![address(network, n)], ..request(&name, &id(network)) };
    Container::start(networks, wanted).await
}

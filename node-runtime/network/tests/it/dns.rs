//! DNS in a container's namespace.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use rswarm_network::{BridgeSpec, DnsConfig};

use crate::lab::{Container, Daemon, Dir, Lab, Space, assert_clean, config, request};

const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// A question for an A record, by hand: the crate's own encoder must not vouch for itself.
fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// The code, and the last answer's address.
fn ask(space: &Space, name: &str) -> (u8, u16, Option<IpAddr>) {
    let answer = space.asks_udp(SERVER, 53, &question(name)).expect("an answer");
    assert_eq!(answer[..2], [0x12, 0x34]);
    let count = u16::from_be_bytes([answer[6], answer[7]]);
    let address = (count > 0).then(|| {
        let tail: [u8; 4] = answer[answer.len() - 4..].try_into().expect("four bytes");
        IpAddr::from(tail)
    });
    (answer[3] & 0x0f, count, address)
}

/// The last answer's address, by TCP.
fn ask_tcp(space: &Space, name: &str) -> Option<IpAddr> {
    let question = question(name);
    space.run(move || {
        let mut stream = TcpStream::connect((SERVER, 53)).expect("connect");
        stream.set_read_timeout(Some(crate::lab::PATIENCE)).expect("timeout");
        stream.write_all(&(question.len() as u16).to_be_bytes()).expect("length");
        stream.write_all(&question).expect("question");
        let mut length = [0; 2];
        stream.read_exact(&mut length).expect("length");
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer).expect("answer");
        answer.last_chunk::<4>().map(|bytes| IpAddr::from(*bytes))
    })
}

#[tokio::test]
async fn containers_find_each_other_and_ask_upstream_for_the_rest() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let (host, upstream, silent) = (lab.host(1), lab.host(9), lab.host(8));
    let config = config("e0000001", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let networks = daemon.networks.clone();
    networks.create_bridge(BridgeSpec::new("app0000000000", "app")).await.expect("bridge");
    let web = Container::start(&networks, request("web", "app0000000000")).await;
    let db = Container::start(&networks, request("db", "app0000000000")).await;
    let _deaf = silent.run(|| UdpSocket::bind("0.0.0.0:53").expect("bind"));
    let server = upstream.run(|| UdpSocket::bind("0.0.0.0:53").expect("bind"));
    let answering = std::thread::spawn(move || {
        let mut buffer = [0; 512];
        let (length, from) = server.recv_from(&mut buffer).expect("question");
        buffer[2] |= 0x80;
        buffer[7] = 1;
        let mut answer = buffer[..length].to_vec();
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 77]);
        server.send_to(&answer, from).expect("answer");
        from.ip()
    });

    let dns = |upstream: &[[u8; 4]]| DnsConfig {
        networks: vec!["app0000000000".into()],
        upstream: upstream.iter().copied().map(IpAddr::from).collect(),
        ..DnsConfig::default()
    };
    networks.serve_dns(&web.netns, &web.id, dns(&[[10, 88, 0, 8], [10, 88, 0, 9]])).await.expect("dns");
    let space = web.space.clone();
    let db_address = db.address();
    let (found, dotted, forwarded) = tokio::task::spawn_blocking(move || {
        (ask(&space, "db"), ask(&space, "DB.app"), ask(&space, "example.org"))
    })
    .await
    .expect("questions");
    assert_eq!(found, (0, 1, Some(db_address)));
    assert_eq!(dotted, (0, 1, Some(db_address)));
    assert_eq!(forwarded, (0, 1, Some(IpAddr::from([192, 0, 2, 77]))), "past a silent server");
    assert_eq!(answering.join().expect("upstream"), IpAddr::from([10, 88, 0, 1]));

    let space = web.space.clone();
    let by_tcp = tokio::task::spawn_blocking(move || ask_tcp(&space, "db")).await.expect("question");
    assert_eq!(by_tcp, Some(db_address));

    // A container may run a name server of its own beside ours.
    web.space.run(|| UdpSocket::bind("0.0.0.0:53").expect("port 53 is free"));

    networks.set_names("db", "app0000000000", vec!["database".into()]).await;
    networks.serve_dns(&web.netns, &web.id, dns(&[])).await.expect("dns");
    let space = web.space.clone();
    let started = Instant::now();
    let (old, new) = tokio::task::spawn_blocking(move || (ask(&space, "db"), ask(&space, "database")))
        .await
        .expect("questions");
    assert_eq!((old.0, new.2), (3, Some(db_address)));
    assert!(started.elapsed() < Duration::from_secs(1), "no upstream server, no waiting");
    networks.detach("web").await.expect("detach");
    assert_eq!(web.space.asks_udp(SERVER, 53, &question("db")), None, "DNS ends with the container");
    networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

/// One container asks as fast as it can, and holds all connections that it gets; the other one is answered.
#[tokio::test]
async fn a_flood_of_one_container_is_bounded() {
    let (lab, dir) = (Lab::new(), Dir::new());
    let host = lab.host(1);
    let config = config("e0000011", dir.path());
    let daemon = Daemon::start(&host, config.clone());
    let networks = daemon.networks.clone();
    networks.create_bridge(BridgeSpec::new("app0000000000", "app")).await.expect("bridge");
    let mut containers = Vec::new();
    for name in ["loud", "quiet"] {
        let container = Container::start(&networks, request(name, "app0000000000")).await;
        let dns = DnsConfig { networks: vec!["app0000000000".into()], ..DnsConfig::default() };
        networks.serve_dns(&container.netns, name, dns).await.expect("dns");
        containers.push(container);
    }
    let connections = containers[0].space.run(|| {
        let connect = |_| TcpStream::connect((SERVER, 53)).ok();
        (0..200).filter_map(connect).collect::<Vec<_>>()
    });
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let flood = containers[0].space.start(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
        let mut sent = 0u64;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            // Beyond what the server's socket holds they are lost: that is the bound.
            sent += u64::from(socket.send_to(&question("quiet"), (SERVER, 53)).is_ok());
        }
        sent
    });
    let address = containers[1].attached.addresses[0].address;
    let deadline = Instant::now() + Duration::from_secs(60);
    for _ in 0..20 {
        while containers[1].space.asks_udp(SERVER, 53, &question("loud")).is_none() {
            assert!(Instant::now() < deadline, "the quiet one is answered");
        }
        assert_eq!(ask_tcp(&containers[1].space, "quiet"), Some(address));
    }
    stop.send(()).expect("the flood goes on");
    assert!(flood.join().expect("flood") > 0);
    // Those beyond the bound were hung up on, and once the loud one lets go it is served again.
    drop(connections);
    let deadline = Instant::now() + Duration::from_secs(10);
    while containers[0].space.asks_udp(SERVER, 53, &question("quiet")).is_none() {
        assert!(Instant::now() < deadline, "served again");
    }
    networks.close_all().await.expect("close");
    assert_clean(&host, &config);
}

//! An encrypted network over three hosts: nothing of it can be read or forged between them, and neither new keys nor
//! the daemon's death cost a packet.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::CloneFlags;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use rswarm_tests::harness::{Lab, eventually, run};
use rswarm_tests::host::Host;

use crate::support::converged;

const PATIENCE: Duration = Duration::from_secs(90);
/// How long a reader waits before it looks whether it shall end.
const LOOK: Duration = Duration::from_millis(200);
const MARKER: &[u8] = b"this-must-not-be-read-by-anybody";
const FORGED: &[u8] = b"this-was-sent-by-nobody";
const UDP_PORT: u16 = 7000;
const TCP_PORT: u16 = 7001;
const VXLAN_PORT: u16 = 4789;
const TUNNEL_PORT: u16 = 51820;

#[test]
fn an_encrypted_network_shows_nothing_takes_nothing_forged_and_loses_nothing() -> Result<()> {
    let mut lab = Lab::start(3)?;
    lab.form_cluster(1)?;
    lab.every_host(Host::import_demo)?;
    let first = &lab.hosts[0];
    first.docker(&["network", "create", "-d", "overlay", "app"])?;
    first.docker(&["network", "create", "-d", "overlay", "--opt", "encrypted", "vault"])?;
    let options = first.docker(&["network", "inspect", "vault", "--format", "{{json .Options}}"])?;
    ensure!(options.contains("\"encrypted\":\"\""), "`network inspect` shows {options}");
    let create = ["service", "create", "--detach", "--name", "web", "--mode", "global"];
    first.docker(&[&create[..], &["--network", "app", "--network", "vault", "demo:latest"]].concat())?;
    converged(first, "web", lab.hosts.len(), PATIENCE)?;
    let places: Vec<Place> = lab.hosts.iter().map(Place::of).collect::<Result<_>>()?;
    let echo = Echo::start(&places[1])?;

    nothing_can_be_read(&lab, &places, &echo)?;
    sessions_are_shown(&lab)?;
    nothing_forged_is_taken(&lab, &places, &echo)?;
    mtu_leaves_room(&places)?;
    new_keys_and_a_dead_daemon_lose_nothing(&mut lab, &places)?;
    who_is_removed_is_no_peer(&mut lab, &places)?;

    drop(echo);
    let first = &lab.hosts[0];
    first.docker(&["service", "rm", "web"])?;
    eventually(PATIENCE, "all containers are gone", || {
        Ok(lab.hosts.iter().all(|host| host.docker(&["ps", "-aq"]).is_ok_and(|ids| ids.trim().is_empty())))
    })?;
    eventually(PATIENCE, "the device goes with the last network", || {
        Ok(lab.hosts.iter().all(|host| !host.dir.join("run/tunnel").exists()))
    })?;
    first.docker(&["network", "rm", "app", "vault"])?;
    lab.finish()
}

/// A task's container, where it runs and how it is found.
struct Place {
    netns: PathBuf,
    app: Address,
    vault: Address,
}

/// Its address on one network, by which others send to it.
struct Address {
    ip: String,
    mac: [u8; 6],
    vni: u32,
}

impl Place {
    fn of(host: &Host) -> Result<Place> {
        let id = host.docker(&["ps", "-q", "--no-trunc"])?.trim().to_owned();
        let pid = host.docker(&["inspect", "--format", "{{.State.Pid}}", &id])?;
        let netns = format!("/proc/{}/ns/net", pid.trim()).into();
        Ok(Place { netns, app: Address::of(host, &id, "app")?, vault: Address::of(host, &id, "vault")? })
    }
}

impl Address {
    fn of(host: &Host, container: &str, network: &str) -> Result<Address> {
        let network = format!("(index .NetworkSettings.Networks \"{network}\")");
        let format = format!(
            "{{{{with {network}}}}}{{{{.IPAddress}}}} {{{{.MacAddress}}}} {{{{.NetworkID}}}}{{{{end}}}}"
        );
        let shown = host.docker(&["inspect", "--format", &format, container])?;
        let mut words = shown.split_whitespace();
        let mut word = || words.next().map(str::to_owned).context("an address, a MAC and a network");
        let (ip, mac, id) = (word()?, word()?, word()?);
        let bytes =
            mac.split(':').map(|byte| Ok(u8::from_str_radix(byte, 16)?)).collect::<Result<Vec<u8>>>()?;
        let kept = std::fs::read(host.dir.join(format!("data/swarm/worker/networks/{id}.json")))?;
        let kept: serde_json::Value = serde_json::from_slice(&kept)?;
        let vni = kept["network"]["vni"].as_u64().context("a VNI")?;
        let mac = bytes.try_into().map_err(|_| anyhow!("`{mac}` is no MAC"))?;
        Ok(Address { ip, mac, vni: u32::try_from(vni)? })
    }

    fn at(&self, port: u16) -> Result<SocketAddr> {
        Ok(format!("{}:{port}", self.ip).parse()?)
    }
}

/// Does `work` on a thread of its own inside a network namespace.
fn inside<T: Send + 'static>(
    netns: &Path,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<JoinHandle<Result<T>>> {
    let netns = File::open(netns)?;
    Ok(std::thread::spawn(move || {
        nix::sched::setns(&netns, CloneFlags::CLONE_NEWNET)?;
        work()
    }))
}

fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}

/// Servers in a container's namespace that send back what they get, until they are dropped.
struct Echo {
    end: Arc<AtomicBool>,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Echo {
    fn start(place: &Place) -> Result<Echo> {
        let (end, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (ready, begun) = std::sync::mpsc::channel();
        let (over, noted, bound) = (end.clone(), heard.clone(), ready.clone());
        let udp = inside(&place.netns, move || {
            let socket = UdpSocket::bind(("0.0.0.0", UDP_PORT))?;
            socket.set_read_timeout(Some(LOOK))?;
            bound.send(())?;
            let mut buffer = [0; 2048];
            while !over.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                if !buffer.starts_with(b"#") {
                    noted.lock().expect("no test panics with it").push(buffer[..length].to_vec());
                }
                let _ = socket.send_to(&buffer[..length], from);
            }
            Ok(())
        })?;
        let over = end.clone();
        let tcp = inside(&place.netns, move || {
            let listener = TcpListener::bind(("0.0.0.0", TCP_PORT))?;
            listener.set_nonblocking(true)?;
            ready.send(())?;
            let mut stream = loop {
                match listener.accept() {
                    Ok((stream, _)) => break stream,
                    Err(_) if over.load(Ordering::Relaxed) => return Ok(()),
                    // One look after the other: a listener has no timeout.
                    Err(_) => std::thread::sleep(Duration::from_millis(20)),
                }
            };
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(LOOK))?;
            let mut buffer = [0; 2048];
            while !over.load(Ordering::Relaxed) {
                match stream.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => stream.write_all(&buffer[..length])?,
                    Err(_) => {}
                }
            }
            Ok(())
        })?;
        (0..2).try_for_each(|_| begun.recv_timeout(PATIENCE))?;
        Ok(Echo { end, heard, threads: vec![udp, tcp] })
    }

    fn has_heard(&self, text: &[u8]) -> bool {
        let heard = self.heard.lock().expect("no test panics with it");
        heard.iter().any(|packet| contains(packet, text))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Asks the echo until it answers.
fn ask(from: &Place, to: SocketAddr, text: &'static [u8]) -> Result<()> {
    join(inside(&from.netns, move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(LOOK))?;
        eventually(PATIENCE, &format!("{to} answers"), || {
            socket.send_to(text, to)?;
            let mut buffer = [0; 2048];
            let length = socket.recv(&mut buffer)?;
            Ok(&buffer[..length] == text)
        })
    })?)
}

/// What went over the lab's switch.
#[derive(Default)]
struct Wire {
    marked: u64,
    to_tunnel: u64,
    to_vxlan: u64,
}

/// Everything that crosses the switch while `work` is done.
fn captured(lab: &Lab, work: impl FnOnce() -> Result<()>) -> Result<Wire> {
    let end = Arc::new(AtomicBool::new(false));
    let (ready, begun) = std::sync::mpsc::channel();
    let over = end.clone();
    let switch = PathBuf::from(format!("/run/netns/{}-sw", lab.name));
    let reader = inside(&switch, move || {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000))?;
        ready.send(())?;
        let (mut wire, mut frame) = (Wire::default(), vec![0; 1 << 16]);
        loop {
            match recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) => wire.see(&frame[..length]),
                // Silence, after the end.
                Err(_) if over.load(Ordering::Relaxed) => return Ok(wire),
                Err(_) => {}
            }
        }
    })?;
    begun.recv_timeout(PATIENCE)?;
    let done = work();
    end.store(true, Ordering::Relaxed);
    let wire = join(reader)?;
    done.map(|()| wire)
}

impl Wire {
    fn see(&mut self, frame: &[u8]) {
        self.marked += u64::from(contains(frame, MARKER));
        let is_udp = frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&17);
        let port = frame.get(36..38).map(|port| u16::from_be_bytes([port[0], port[1]]));
        self.to_tunnel += u64::from(is_udp && port == Some(TUNNEL_PORT));
        self.to_vxlan += u64::from(is_udp && port == Some(VXLAN_PORT));
    }
}

fn nothing_can_be_read(lab: &Lab, places: &[Place], echo: &Echo) -> Result<()> {
    let (near, far) = (&places[0], &places[1]);
    let plain = captured(lab, || ask(near, far.app.at(UDP_PORT)?, MARKER))?;
    ensure!(plain.marked > 0 && plain.to_vxlan > 0, "the wire shows what is not encrypted");
    let wire = captured(lab, || (0..5).try_for_each(|_| ask(near, far.vault.at(UDP_PORT)?, MARKER)))?;
    ensure!(echo.has_heard(MARKER));
    ensure!(wire.marked == 0, "{} frames of an encrypted network are in clear", wire.marked);
    ensure!(wire.to_tunnel > 0 && wire.to_vxlan == 0, "{} {}", wire.to_tunnel, wire.to_vxlan);
    Ok(())
}

/// A frame of `network` for its container, as any machine on the way can send it.
fn forged(to: &Address, from: &Address) -> Result<Vec<u8>> {
    let mut packet = vec![8, 0, 0, 0];
    packet.extend((to.vni << 8).to_be_bytes());
    packet.extend(to.mac);
    packet.extend(from.mac);
    packet.extend([8, 0]);
    let udp = u16::try_from(8 + FORGED.len())?;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    for address in [from, to] {
        ip.extend(address.ip.parse::<std::net::Ipv4Addr>()?.octets());
    }
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((folded & 0xffff) + (folded >> 16))?;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(ip);
    for field in [40_000, UDP_PORT, udp, 0] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend(FORGED);
    Ok(packet)
}

fn nothing_forged_is_taken(lab: &Lab, places: &[Place], echo: &Echo) -> Result<()> {
    let target = SocketAddr::from((lab.hosts[1].address, VXLAN_PORT));
    let attacker = PathBuf::from(format!("/run/netns/{}", lab.hosts[2].netns));
    let send = |packet: Vec<u8>| {
        join(inside(&attacker, move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            (0..5).try_for_each(|_| socket.send_to(&packet, target).map(drop))?;
            Ok(())
        })?)
    };
    send(forged(&places[1].vault, &places[0].vault)?)?;
    // What came before this has been heard, or never will be.
    ask(&places[0], places[1].app.at(UDP_PORT)?, b"after that")?;
    ask(&places[0], places[1].vault.at(UDP_PORT)?, b"after that")?;
    ensure!(!echo.has_heard(FORGED), "a frame in clear was taken for one of an encrypted network");
    // The same frame on a network that is not encrypted shows that it is well made.
    eventually(PATIENCE, "a forged frame is taken where nothing is encrypted", || {
        send(forged(&places[1].app, &places[0].app)?)?;
        Ok(echo.has_heard(FORGED))
    })
}

/// 1500 less WireGuard's 60 and VXLAN's 50, and the largest packet arrives.
fn mtu_leaves_room(places: &[Place]) -> Result<()> {
    const LARGEST: &[u8] = &[b'x'; 1390 - 28];
    let namespace = format!("--net={}", places[0].netns.display());
    let links = run(Command::new("nsenter").args([&namespace, "--", "ip", "-o", "link"]))?;
    for mtu in ["mtu 1390 ", "mtu 1450 "] {
        ensure!(links.contains(mtu), "no link has {mtu}: {links}");
    }
    ask(&places[0], places[1].vault.at(UDP_PORT)?, LARGEST)
}

/// Numbered packets to the echo and back, until dropped or ended.
struct Flow {
    end: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<Result<(u64, u64)>>,
}

impl Flow {
    /// A packet every 10 ms, and one byte each on a connection that must live.
    fn start(from: &Place, udp: SocketAddr, tcp: SocketAddr) -> Result<Flow> {
        let (end, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (over, count) = (end.clone(), answered.clone());
        let thread = inside(&from.netns, move || {
            let mut stream = TcpStream::connect_timeout(&tcp, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(udp)?;
            // Between two packets; the last ones are waited for longer.
            socket.set_read_timeout(Some(Duration::from_millis(10)))?;
            let (mut sent, mut buffer) = (0u64, [0; 64]);
            let mut take = |socket: &UdpSocket| {
                let answer = socket.recv(&mut buffer).is_ok();
                count.fetch_add(u64::from(answer), Ordering::Relaxed);
                answer
            };
            while !over.load(Ordering::Relaxed) {
                socket.send(format!("#{sent}").as_bytes()).context("a packet cannot be sent")?;
                sent += 1;
                while take(&socket) {}
                stream.write_all(b"x")?;
                stream.read_exact(&mut [0])?;
            }
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            while take(&socket) {}
            Ok((sent, count.load(Ordering::Relaxed)))
        })?;
        Ok(Flow { end, answered, thread })
    }

    /// Waits until this many more packets came back.
    fn goes_on(&self, more: u64) -> Result<()> {
        let goal = self.answered.load(Ordering::Relaxed) + more;
        eventually(PATIENCE, "packets flow", || Ok(self.answered.load(Ordering::Relaxed) >= goal))
    }

    /// How many were sent, and how many came back.
    fn finish(self) -> Result<(u64, u64)> {
        self.end.store(true, Ordering::Relaxed);
        join(self.thread)
    }
}

/// By a manager with all that it knows of its peers, by a worker with whom it has a way to.
fn sessions_are_shown(lab: &Lab) -> Result<()> {
    for host in &lab.hosts[..2] {
        let (status, body) = host.api("GET", "/networks/vault?verbose=true", "")?;
        ensure!(status == 200, "{body}");
        let shown: serde_json::Value = serde_json::from_str(&body)?;
        let peers = shown["Peers"].as_array().context("peers")?;
        let with_session = |peer: &&serde_json::Value| peer["Tunnel"]["HandshakeSeconds"].is_u64();
        let addresses: Vec<&str> =
            peers.iter().filter(with_session).filter_map(|peer| peer["IP"].as_str()).collect();
        let others = lab.hosts.iter().filter(|other| other.address != host.address);
        for other in others {
            ensure!(addresses.contains(&other.address.to_string().as_str()), "{}: {body}", host.name);
        }
    }
    Ok(())
}

/// The node's own key, and which shared key it goes with.
fn own_key(host: &Host) -> Result<(String, i64)> {
    let kept: serde_json::Value =
        serde_json::from_slice(&std::fs::read(host.dir.join("data/swarm/tunnel.json"))?)?;
    Ok((kept["private"].to_string(), kept["goes_with"].as_i64().context("a time")?))
}

/// How the device of a host sees its peers: their sessions have the newest keys.
fn all_current(host: &Host, peers: usize) -> Result<bool> {
    let mut stream = std::os::unix::net::UnixStream::connect(host.dir.join("run/tunnel/socket"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"\"Status\"\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let shown = said["Status"].as_array().context("a list of peers")?;
    Ok(shown.len() == peers && shown.iter().all(|peer| peer["is_current"] == true))
}

fn device(host: &Host) -> Result<i64> {
    let mut stream = std::os::unix::net::UnixStream::connect(host.dir.join("run/tunnel/socket"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"\"Hello\"\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    said["Hello"]["pid"].as_i64().context("a process")
}

fn new_keys_and_a_dead_daemon_lose_nothing(lab: &mut Lab, places: &[Place]) -> Result<()> {
    let flow = Flow::start(&places[0], places[1].vault.at(UDP_PORT)?, places[1].vault.at(TCP_PORT)?)?;
    flow.goes_on(20)?;
    let before: Vec<_> = lab.hosts.iter().map(own_key).collect::<Result<_>>()?;
    lab.hosts[0].rswarm(&["swarm", "update", "--tunnel-key-period", "10s"])?;
    // The second new key comes while the first one is in use.
    for round in 1..=2 {
        let shared = own_key(&lab.hosts[0])?.1;
        eventually(PATIENCE, &format!("new keys on all hosts, {round}"), || {
            let now: Vec<_> = lab.hosts.iter().map(own_key).collect::<Result<_>>()?;
            Ok(now.iter().zip(&before).all(|(now, then)| now.0 != then.0 && now.1 > shared.max(then.1)))
        })?;
        flow.goes_on(20)?;
    }
    lab.hosts[0].rswarm(&["swarm", "update", "--tunnel-key-period", "12h"])?;
    eventually(PATIENCE, "all sessions have the newest keys", || {
        Ok(all_current(&lab.hosts[0], 2)? && all_current(&lab.hosts[1], 2)?)
    })?;
    // The device outlives its daemon, and the next one takes it over.
    let device_before = device(&lab.hosts[1])?;
    lab.hosts[1].kill()?;
    flow.goes_on(50)?;
    lab.hosts[1].start()?;
    lab.hosts[1].ready()?;
    flow.goes_on(50)?;
    ensure!(device(&lab.hosts[1])? == device_before, "the device was taken over");
    let (sent, answered) = flow.finish()?;
    ensure!(sent == answered, "{} of {sent} packets are lost", sent - answered);
    ensure!(sent > 100);
    Ok(())
}

fn who_is_removed_is_no_peer(lab: &mut Lab, places: &[Place]) -> Result<()> {
    ensure!(all_current(&lab.hosts[0], 2)?);
    let shared = own_key(&lab.hosts[0])?.1;
    lab.hosts[0].docker(&["node", "rm", "--force", &lab.hosts[2].name])?;
    eventually(PATIENCE, "the removed node is no peer, and the shared key is another", || {
        let hosts = &lab.hosts[..2];
        let mut renewed = true;
        for host in hosts {
            renewed &= all_current(host, 1)? && own_key(host)?.1 > shared;
        }
        Ok(renewed)
    })?;
    ask(&places[0], places[1].vault.at(UDP_PORT)?, b"still here")?;
    // Its own key, which nobody takes any more, stays until it leaves.
    eventually(PATIENCE, "the removed node has no device", || {
        Ok(!lab.hosts[2].dir.join("run/tunnel").exists())
    })
}

//! Hosts for tests: network namespaces on one switch, each with room for a daemon's networks.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use rswarm_base::Scope;
use rswarm_base::ipam::Family;
use rswarm_network::{AttachRequest, Attached, Config, Netns, Networks, OpenError};

pub const PATIENCE: Duration = Duration::from_secs(5);

/// A network namespace that lives as long as the value.
#[derive(Clone)]
pub struct Space(Arc<File>);

impl Space {
    pub fn new() -> Space {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root is needed");
            Space(Arc::new(File::open("/proc/thread-self/ns/net").expect("own namespace")))
        });
        let space = made.join().expect("thread");
        space.sh("ip link set lo up");
        space
    }

    pub fn of(netns: &Netns) -> Space {
        Space(Arc::new(File::open(netns.fd_path()).expect("namespace")))
    }

    /// A namespace that is pinned to a file.
    pub fn at(path: &std::path::Path) -> Space {
        Space(Arc::new(File::open(path).expect("pin")))
    }

    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs blocking work on a thread inside.
    pub fn start<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> JoinHandle<R> {
        let file = Arc::clone(&self.0);
        std::thread::spawn(move || {
            setns(&*file, CloneFlags::CLONE_NEWNET).expect("setns");
            work()
        })
    }

    pub fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> R {
        self.start(work).join().expect("work inside the namespace")
    }

    /// A shell command that must succeed; its output.
    pub fn sh(&self, command: &str) -> String {
        let (ok, output) = self.try_sh(command);
        assert!(ok, "`{command}` failed: {output}");
        output
    }

    pub fn try_sh(&self, command: &str) -> (bool, String) {
        let command = command.to_owned();
        self.run(move || {
            let output = Command::new("sh").args(["-c", &command]).output().expect("sh");
            let text = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&text).into_owned())
        })
    }

    pub fn pings(&self, address: IpAddr) -> bool {
        self.try_sh(&format!("busybox ping -c1 -W1 {address}")).0
    }

    /// A TCP server that tells each client its address; ends with the value.
    pub fn whoami(&self, port: u16) -> Whoami {
        self.whoami_at(Ipv4Addr::UNSPECIFIED.into(), port)
    }

    pub fn whoami_at(&self, address: IpAddr, port: u16) -> Whoami {
        let listener = self.run(move || TcpListener::bind((address, port)).expect("bind"));
        let bound = listener.local_addr().expect("address");
        let handle = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let peer = stream.peer_addr().expect("peer").ip().to_string();
                if stream.write_all(peer.as_bytes()).is_err() {
                    continue;
                }
                let mut byte = [0];
                // A client that sends a byte ends the server.
                if stream.read(&mut byte).unwrap_or(0) == 1 {
                    return;
                }
            }
        });
        Whoami { space: self.clone(), bound, handle: Some(handle) }
    }

    /// What the server at that address says; `None` when it cannot be reached.
    pub fn asks(&self, address: impl Into<IpAddr>, port: u16) -> Option<String> {
        let to = SocketAddr::new(address.into(), port);
        self.run(move || {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
            let mut said = [0; 64];
            let length = stream.read(&mut said).ok()?;
            Some(String::from_utf8_lossy(&said[..length]).into_owned())
        })
    }

    /// A UDP question and its answer.
    pub fn asks_udp(&self, address: impl Into<IpAddr>, port: u16, question: &[u8]) -> Option<Vec<u8>> {
        let (address, question) = (address.into(), question.to_vec());
        self.run(move || {
            let socket = UdpSocket::bind((Family::of(address).unspecified(), 0)).expect("bind");
            socket.set_read_timeout(Some(Duration::from_secs(3))).expect("timeout");
            socket.send_to(&question, (address, port)).ok()?;
            let mut buffer = [0; 4096];
            let length = socket.recv(&mut buffer).ok()?;
            Some(buffer[..length].to_vec())
        })
    }
}

pub struct Whoami {
    space: Space,
    bound: SocketAddr,
    handle: Option<JoinHandle<()>>,
}

impl Drop for Whoami {
    fn drop(&mut self) {
        let address =
            if self.bound.ip().is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { self.bound.ip() };
        let to = SocketAddr::new(address, self.bound.port());
        let handle = self.handle.take();
        let _ = self
            .space
            .start(move || {
                let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(1)) else { return };
                let _ = stream.write_all(b"x");
                let _ = handle.map(JoinHandle::join);
            })
            .join();
    }
}

/// A directory whose mounts go with it, also when a test fails.
pub struct Dir(tempfile::TempDir);

impl Dir {
    pub fn new() -> Dir {
        Dir(tempfile::tempdir().expect("dir"))
    }

    pub fn path(&self) -> &std::path::Path {
        self.0.path()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        for point in points.iter().rev().filter(|point| std::path::Path::new(point).starts_with(self.path()))
        {
            let _ = nix::mount::umount2(*point, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// A switch with hosts 10.88.0.1, 10.88.0.2, ..., and fd88::1, fd88::2, ...
pub struct Lab {
    switch: Space,
}

impl Lab {
    pub fn new() -> Lab {
        let switch = Space::new();
        switch.sh("ip link add br0 type bridge forward_delay 0 && ip link set br0 up");
        Lab { switch }
    }

    /// Lets only frames with packets of this size through to a host.
    pub fn narrow(&self, number: u8, mtu: u32) {
        self.switch.sh(&format!("ip link set p{number} mtu {mtu}"));
    }

    /// Lets nothing through to a host.
    pub fn cut(&self, number: u8) {
        self.switch.sh(&format!("ip link set p{number} nomaster"));
    }

    /// Ends a [`Lab::cut`].
    pub fn mend(&self, number: u8) {
        self.switch.sh(&format!("ip link set p{number} master br0"));
    }

    pub fn host(&self, number: u8) -> Space {
        let host = Space::new();
        let path = host.path();
        self.switch.sh(&format!(
            "ip link add p{number} type veth peer name eth0 netns {path} && ip link set p{number} master br0 up"
        ));
        host.sh(&format!(
            "ip addr add 10.88.0.{number}/24 dev eth0 && ip addr add fd88::{number}/64 dev eth0 nodad && \
             ip link set eth0 up"
        ));
        self.await_port(number);
        host
    }

    /// Waits until the kernel has noticed that a host's link is up: the switch passes nothing on before.
    pub fn await_port(&self, number: u8) {
        let is_up = || self.switch.sh(&format!("ip -o link show p{number}")).contains("state UP");
        assert!((0..1000).any(|_| is_up()), "the switch's port p{number} is not up");
    }
}

/// A daemon's networks, on a runtime whose only thread is inside the host.
pub struct Daemon {
    pub networks: Networks,
    scope: Scope,
    thread: Option<JoinHandle<()>>,
}

pub fn config(id: &str, dir: &std::path::Path) -> Config {
    Config {
        daemon_id: id.to_owned(),
        netns_dir: dir.join(id),
        tunnel_dir: dir.join(format!("{id}-tunnel")),
        tunnel_exe: std::env::current_exe().expect("a running test has a path"),
        default_bridge: true,
        bridge: rswarm_network::DefaultBridge::default(),
        default_bridge_ipv6: false,
        fixed_cidr_v6: None,
        bridge_pools: Vec::new(),
        firewall: rswarm_network::FirewallMode::Open,
    }
}

impl Daemon {
    pub fn start(host: &Space, config: Config) -> Daemon {
        let (ready, opened) = std::sync::mpsc::channel::<Result<Networks, OpenError>>();
        let scope = Scope::root("daemon");
        let inside = scope.clone();
        let thread = host.start(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let opened = Networks::open(config, inside.clone()).await;
                ready.send(opened).expect("the test waits");
                inside.cancelled().await;
                inside.shutdown(PATIENCE).await;
            });
        });
        let networks = opened.recv().expect("daemon").expect("networks open");
        Daemon { networks, scope, thread: Some(thread) }
    }

    /// Ends the daemon, and starts another one in its place.
    pub fn restart(host: &Space, config: Config, daemon: &mut Daemon) -> Networks {
        daemon.end();
        *daemon = Daemon::start(host, config);
        daemon.networks.clone()
    }

    /// Ends the daemon as a crash would: kernel objects stay.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.scope.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("daemon thread");
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

/// A container: a namespace with one endpoint.
pub struct Container {
    pub id: String,
    pub netns: Netns,
    pub space: Space,
    pub attached: Attached,
}

impl Container {
    pub async fn start(networks: &Networks, request: AttachRequest) -> Container {
        let netns = networks.create_netns().await.expect("netns");
        let id = request.container_id.clone();
        let attached = networks.attach(&netns, request).await.expect("attach");
        Container { id, space: Space::of(&netns), netns, attached }
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.attached.addresses[0].address
    }

    /// Its address of a family.
    pub fn address_of(&self, family: Family) -> IpAddr {
        self.attached.of(family).expect("an address of the family").address
    }
}

pub fn request(container: &str, network: &str) -> AttachRequest {
    AttachRequest {
        container_id: container.to_owned(),
        network_id: network.to_owned(),
        interface: "eth0".to_owned(),
        addresses: Vec::new(),
        mac: None,
        default_routes: Family::ALL.to_vec(),
        publish: Vec::new(),
        names: vec![container.to_owned()],
    }
}

/// Fails when the host holds more than it was born with.
pub fn assert_clean(host: &Space, config: &Config) {
    let links = host.sh("ip -o link 2>/dev/null | awk -F': ' '{print $2}' | cut -d@ -f1 | tr '\\n' ' '");
    assert_eq!(links.trim(), "lo eth0");
    assert_eq!(host.sh("nft list tables"), "");
    assert!(!config.netns_dir.exists(), "sandbox directory left");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&config.netns_dir.display().to_string()), "mount left");
}

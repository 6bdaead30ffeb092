//! The owner of this node's device: makes it for the first encrypted network, keeps it as the networks want it, and
//! takes it down after the last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rswarm_base::{Chain, Scope};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::Command;

use super::control::{Answer, Config, PeerConfig, PeerStatus, Request, VERSION, ask, pid_of};
use super::process::READY;
use super::{OverlayTunnel, kernel};
use crate::actor::Owner;
use crate::error::TunnelError;
use crate::link::Route;
use crate::netns::{Netns, Pins};
use crate::plan::{Address, Link, LinkKind, Plan};

/// The pin of the tunnel's namespace. No network has such an identifier.
const PIN: &str = ".tunnel";
/// The device's interface.
const INTERFACE: &str = "wg0";
/// All nodes' addresses inside the tunnel; nothing else is in its namespace.
const PREFIX: u8 = 8;
/// MTU of a host's link that cannot be found out.
const UNDERLAY_MTU: u32 = 1500;
/// IP, UDP, and WireGuard's header and tag.
const ENCAPSULATION_V4: u32 = 60;
/// The same, on an IPv6 underlay.
const ENCAPSULATION_V6: u32 = 80;
/// How long the process may take to begin or to end; a loaded machine is slow.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where encrypted networks have their VXLAN sockets.
#[derive(Debug, Clone)]
pub struct Way {
    /// The tunnel's namespace.
    pub netns: Netns,
    /// This node's address in it.
    pub address: Ipv4Addr,
    /// The largest packet that passes.
    pub mtu: u32,
}

/// The device's owner.
#[derive(Debug)]
pub struct Tunnel {
    /// The program whose another life the process is.
    exe: PathBuf,
    /// Holds the process' socket, and a file for each network that needs the device: what a daemon finds that was
    /// not told of all networks yet.
    dir: PathBuf,
    alias: String,
    home: Netns,
    pins: Pins,
    /// What each network wants, and this node's own address in the data path.
    wanted: BTreeMap<String, (OverlayTunnel, IpAddr)>,
    /// What the device was last told.
    told: Option<Told>,
    /// To watch the process, and to be told of its end.
    watch: Option<(Scope, Owner<Tunnel>)>,
    watched: Option<i32>,
}

#[derive(Debug, PartialEq, Eq)]
struct Told {
    device: Device,
    config: Config,
}

/// Which device there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Device {
    Kernel,
    /// The process with this number.
    Process(i32),
}

impl Tunnel {
    /// No device yet. `dir` is made when one is needed.
    pub fn new(exe: PathBuf, dir: PathBuf, alias: String, home: Netns, pins: Pins) -> Tunnel {
        let wanted = BTreeMap::new();
        Tunnel { exe, dir, alias, home, pins, wanted, told: None, watch: None, watched: None }
    }

    /// From now on a device that ends is made anew at once, not when a network asks next.
    pub fn watch(&mut self, scope: Scope, own: Owner<Tunnel>) {
        self.watch = Some((scope, own));
    }

    /// Makes the device what this network needs, and all others. `underlay` is this node's own address in the data
    /// path.
    pub async fn apply(
        &mut self,
        network: &str,
        wanted: OverlayTunnel,
        underlay: IpAddr,
    ) -> Result<Way, TunnelError> {
        self.note(network)?;
        let (address, port) = (wanted.address, wanted.port);
        self.wanted.insert(network.to_owned(), (wanted, underlay));
        let netns = self.netns().await?;
        let device = self.device(&netns, port).await?;
        self.configure(device, &netns, port).await?;
        self.watch_device(device);
        let find = move || Route::open()?.mtu_at(underlay);
        let found = self.home.act("links could not be listed", find).await?;
        let encapsulation = if underlay.is_ipv4() { ENCAPSULATION_V4 } else { ENCAPSULATION_V6 };
        let mtu = found.unwrap_or(UNDERLAY_MTU).saturating_sub(encapsulation);
        let plan = self.plan(address, mtu);
        let work = move || Route::open()?.reconcile(&plan, None).map(drop);
        netns.act("the tunnel's interface could not be set up", work).await?;
        Ok(Way { netns, address, mtu })
    }

    /// A network needs the device no more; one that never did is no error.
    pub async fn release(&mut self, network: &str) -> Result<(), TunnelError> {
        self.wanted.remove(network);
        let marker = self.networks().join(network);
        match fs::remove_file(&marker) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(TunnelError::Directory { path: marker, source }),
        }
        if self.users()?.is_empty() {
            return self.close().await;
        }
        match (&self.told, self.pins.find(PIN)) {
            (Some(Told { device, .. }), Ok(Some(netns))) if !self.wanted.is_empty() => {
                let (device, port) = (*device, self.port());
                self.configure(device, &netns, port).await
            }
            _ => Ok(()),
        }
    }

    /// What is known of the peers; of the kernel's device, nothing yet.
    pub async fn status(&self) -> Vec<PeerStatus> {
        match self.ask(Request::Status).await {
            Ok(Answer::Status(peers)) => peers,
            Ok(_) | Err(_) => Vec::new(),
        }
    }

    /// Takes the device down, and all that belongs to it.
    pub async fn close(&mut self) -> Result<(), TunnelError> {
        self.stop_process().await?;
        self.told = None;
        self.wanted.clear();
        // The interface goes with its namespace, and the VXLAN sockets that would still be there.
        self.pins.unpin(PIN).map_err(|source| TunnelError::Pin { path: self.pins.path(PIN), source })?;
        match fs::remove_dir_all(&self.dir) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(TunnelError::Directory { path: self.dir.clone(), source })
            }
            _ => Ok(()),
        }
    }

    fn networks(&self) -> PathBuf {
        self.dir.join("networks")
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    fn port(&self) -> u16 {
        self.wanted.values().next().map_or(super::TUNNEL_PORT, |(wanted, _)| wanted.port)
    }

    /// Notes that the network needs the device, before it does.
    fn note(&self, network: &str) -> Result<(), TunnelError> {
        let dir = self.networks();
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        let made = made.and_then(|()| fs::write(dir.join(network), b""));
        made.map_err(|source| TunnelError::Directory { path: dir, source })
    }

    fn users(&self) -> Result<BTreeSet<String>, TunnelError> {
        let dir = self.networks();
        let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        let list = || fs::read_dir(&dir)?.map(name).collect::<io::Result<_>>();
        list().map_err(|source| TunnelError::Directory { path: dir.clone(), source })
    }

    async fn netns(&self) -> Result<Netns, TunnelError> {
        let pin = |source| TunnelError::Pin { path: self.pins.path(PIN), source };
        match self.pins.find(PIN).map_err(pin)? {
            Some(netns) => Ok(netns),
            None => {
                let netns = Netns::create().await?;
                self.pins.pin(PIN, &netns).map_err(pin)?;
                Ok(netns)
            }
        }
    }

    /// The device: the one that is there, the kernel's, or a new process.
    async fn device(&mut self, netns: &Netns, port: u16) -> Result<Device, TunnelError> {
        if let Some(process) = self.adopt(netns, port).await {
            return Ok(Device::Process(process));
        }
        let raw = netns.clone();
        let make = move || kernel::make(INTERFACE, &raw);
        match self.home.act("a WireGuard interface could not be made", make).await {
            Ok(true) => return Ok(Device::Kernel),
            Ok(false) => {}
            // What the kernel cannot, a process can.
            Err(error) => tracing::warn!(error = %Chain(&error), "the kernel's WireGuard is not used"),
        }
        self.stop_process().await?;
        self.start_process(netns, port).await.map(Device::Process)
    }

    /// The process that a daemon before us left, or this one, if it is what is wanted.
    async fn adopt(&self, netns: &Netns, port: u16) -> Option<i32> {
        let inode = rustix::fs::fstat(netns).ok()?.st_ino;
        match self.ask(Request::Hello).await {
            Ok(Answer::Hello { version, pid, port: its, netns })
                if version == VERSION && its == port && netns == inode =>
            {
                Some(pid)
            }
            _ => None,
        }
    }

    async fn start_process(&self, netns: &Netns, port: u16) -> Result<i32, TunnelError> {
        // What was installed in its place meanwhile speaks another version.
        let is_self = std::env::current_exe().is_ok_and(|own| own == self.exe);
        let program = if is_self { Path::new("/proc/self/exe") } else { &self.exe };
        let failed = |source| TunnelError::Spawn { exe: self.exe.clone(), source };
        let mut child = Command::new(program)
            .arg0(&self.exe)
            .arg("tunnel")
            .arg("--socket")
            .arg(self.socket())
            .arg("--netns")
            .arg(self.pins.path(PIN))
            .args(["--port", &port.to_string(), "--interface", INTERFACE])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()
            .map_err(failed)?;
        debug_assert!(netns.fd_path().exists());
        let mut said = Vec::new();
        if let Some(mut stdout) = child.stdout.take() {
            let line = async {
                let mut byte = [0];
                while !said.ends_with(b"\n") && stdout.read(&mut byte).await? == 1 {
                    said.extend(byte);
                }
                Ok::<_, io::Error>(())
            };
            let heard = tokio::time::timeout(PATIENCE, line).await;
            heard.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)?;
        }
        match child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // tokio reaps it when it ends; if the daemon ends first, init does.
            Some(pid) if said == READY.as_bytes() => Ok(pid),
            _ => {
                let _ = child.wait().await;
                Err(TunnelError::Device(String::from_utf8_lossy(&said).trim().to_owned()))
            }
        }
    }

    /// Ends the process behind the socket, whether or not it listens to reason.
    async fn stop_process(&self) -> Result<(), TunnelError> {
        let socket = self.socket();
        let Ok(pid) = pid_of(&socket) else { return self.remove_socket() };
        let stuck = |source| TunnelError::Stop { pid, source };
        let Some(process) = Pid::from_raw(pid) else { return self.remove_socket() };
        let pidfd = match pidfd_open(process, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return self.remove_socket(),
            Err(errno) => return Err(stuck(errno.into())),
        };
        if self.ask(Request::Quit).await.is_err() {
            pidfd_send_signal(&pidfd, Signal::KILL).map_err(|errno| stuck(errno.into()))?;
        }
        let ended = tokio::task::spawn_blocking(move || {
            if !has_ended(&pidfd)? {
                pidfd_send_signal(&pidfd, Signal::KILL)?;
                has_ended(&pidfd)?;
            }
            Ok(())
        });
        ended.await.unwrap_or_else(|_| Err(io::Error::other("waiting panicked"))).map_err(stuck)?;
        self.remove_socket()
    }

    fn remove_socket(&self) -> Result<(), TunnelError> {
        match fs::remove_file(self.socket()) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(TunnelError::Directory { path: self.socket(), source })
            }
            _ => Ok(()),
        }
    }

    /// Tells the device keys and peers, unless it knows them.
    async fn configure(&mut self, device: Device, netns: &Netns, port: u16) -> Result<(), TunnelError> {
        let Some(config) = merged(self.wanted.values().map(|(wanted, _)| wanted)) else { return Ok(()) };
        let told = Told { device, config };
        if self.told.as_ref() == Some(&told) {
            return Ok(());
        }
        self.told = None;
        match device {
            Device::Process(_) => match self.ask(Request::Configure(told.config.clone())).await {
                Ok(Answer::Done) => {}
                Ok(other) => return Err(TunnelError::Device(format!("it answers {other:?}"))),
                Err(source) => return Err(TunnelError::Ask(source)),
            },
            Device::Kernel => {
                let config = told.config.clone();
                let work = move || kernel::configure(INTERFACE, port, &config);
                netns.act("the WireGuard interface could not be configured", work).await?;
            }
        }
        self.told = Some(told);
        Ok(())
    }

    fn watch_device(&mut self, device: Device) {
        let Device::Process(pid) = device else { return };
        let Some((scope, own)) = self.watch.clone().filter(|_| self.watched != Some(pid)) else { return };
        self.watched = Some(pid);
        let (cancel, socket) = (scope.token(), self.socket());
        scope.spawn(async move {
            // A connection without a request: it ends with the process.
            let mut nothing = [0];
            if let Ok(mut stream) = UnixStream::connect(socket).await {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => return,
                    _ = stream.read(&mut nothing) => {}
                }
            }
            // The owner is gone only when the daemon stops.
            let _ = own.call(move |tunnel| Box::pin(tunnel.revive(pid))).await;
        });
    }

    /// The process has ended: unless that was asked for, there is another one.
    async fn revive(&mut self, pid: i32) {
        if !self.told.as_ref().is_some_and(|told| told.device == Device::Process(pid)) {
            return;
        }
        self.told = None;
        let Some((network, (wanted, underlay))) = self.wanted.first_key_value() else { return };
        tracing::warn!(pid, "the WireGuard device in user space has ended and is started again");
        let (network, wanted, underlay) = (network.clone(), wanted.clone(), *underlay);
        if let Err(error) = self.apply(&network, wanted, underlay).await {
            tracing::error!(error = %Chain(&error), "the WireGuard device could not be started again");
        }
    }

    async fn ask(&self, request: Request) -> io::Result<Answer> {
        let socket = self.socket();
        let asked = tokio::task::spawn_blocking(move || ask(&socket, &request)).await;
        asked.unwrap_or_else(|_| Err(io::Error::other("asking the device panicked")))
    }

    fn plan(&self, address: Ipv4Addr, mtu: u32) -> Plan {
        let link = Link {
            name: INTERFACE.to_owned(),
            kind: LinkKind::Other,
            mtu,
            mac: None,
            port: None,
            alias: self.alias.clone(),
        };
        let address = Address { link: INTERFACE.to_owned(), address: address.into(), prefix: PREFIX };
        Plan { links: vec![link], addresses: BTreeSet::from([address]), ..Plan::default() }
    }
}

/// Waits for the end of a process, for [`PATIENCE`].
fn has_ended(pidfd: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let most = u16::try_from(PATIENCE.as_millis()).unwrap_or(u16::MAX);
    Ok(poll(&mut fds, PollTimeout::from(most))? > 0)
}

/// What all networks together want; `None` when there is none.
fn merged<'a>(wanted: impl Iterator<Item = &'a OverlayTunnel>) -> Option<Config> {
    let mut all: Vec<&OverlayTunnel> = wanted.collect();
    all.sort_by_key(|wanted| wanted.version);
    let newest = all.last()?;
    let peers: BTreeMap<&str, &PeerConfig> =
        all.iter().flat_map(|wanted| &wanted.peers).map(|peer| (peer.node.as_str(), peer)).collect();
    Some(Config {
        private: newest.private.clone(),
        psk: newest.psk.clone(),
        peers: peers.into_values().cloned().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::Secret;

    fn wanted(version: u64, psk: u8, peers: &[(&str, u8)]) -> OverlayTunnel {
        let peer = |(node, key): &(&str, u8)| PeerConfig {
            node: (*node).to_owned(),
            public: [*key; 32],
            address: Ipv4Addr::new(10, 0, 0, 1),
            endpoint: ([192, 0, 2, 1], 51820).into(),
        };
        OverlayTunnel {
            version,
            private: Secret::new([1; 32]),
            psk: Secret::new([psk; 32]),
            port: 51820,
            address: Ipv4Addr::new(10, 0, 0, 9),
            peers: peers.iter().map(peer).collect(),
        }
    }

    #[test]
    fn the_newest_table_is_right_about_what_networks_share() {
        let (old, new) = (wanted(3, 3, &[("a", 1), ("b", 1)]), wanted(7, 7, &[("b", 2), ("c", 2)]));
        for order in [[&old, &new], [&new, &old]] {
            let config = merged(order.into_iter()).expect("a configuration");
            assert_eq!(config.psk, Secret::new([7; 32]));
            let peers: Vec<_> =
                config.peers.iter().map(|peer| (peer.node.as_str(), peer.public[0])).collect();
            assert_eq!(peers, [("a", 1), ("b", 2), ("c", 2)]);
        }
        assert_eq!(merged(std::iter::empty()), None);
    }
}

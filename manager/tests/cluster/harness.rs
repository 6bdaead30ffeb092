//! Managers to test with: start, kill, restart, ask.

use std::env;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rswarm_base::audit::Audit;
use rswarm_base::telemetry::{self, Format};
use rswarm_base::{Scope, Timestamp};
use rswarm_manager::{Boot, Calls, Founding, Manager, ManagerConfig, NewCluster, StartError, found};
use rswarm_manager_core::State;
use rswarm_proto::tls::{self, Enrollment, Identity};
use rswarm_proto::token::JoinToken;
use rswarm_proto::wire::control_client::ControlClient;
use rswarm_proto::wire::{
    Annotations, Cluster, ClusterSpec, CreateNetworkRequest, GetRequest, Network, NetworkSpec, Node,
    NodeAvailability, Object, ObjectKind,
};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Channel;

/// Nothing in these tests takes longer on a machine that works.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Raft's tick, unless [`TICKING`] says otherwise: elections are waited for.
const TICK: Duration = Duration::from_millis(50);

/// The tick of all managers of this process; benchmarks set the product's own.
pub static TICKING: OnceLock<Duration> = OnceLock::new();

/// What the managers log is shown as `RSWARM_LOG` says.
static LOG: OnceLock<Result<(), String>> = OnceLock::new();

/// One manager with its disk; it outlives its process.
pub struct Host {
    pub identity: Arc<Identity>,
    pub dir: TempDir,
    pub addr: String,
    pub running: Option<Running>,
    /// Where it listens, when a link stands between that and its address.
    listen: Option<String>,
}

/// The manager's process, so to speak.
pub struct Running {
    pub manager: Manager,
    scope: Scope,
}

/// A loopback address that nothing else uses: while a host is down its port must not become that of somebody's
/// outgoing connection, which come from 127.0.0.1.
fn own_loopback() -> Ipv4Addr {
    static HOSTS: AtomicU16 = AtomicU16::new(0);
    let [high, low] = HOSTS.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 1 + (std::process::id() % 250) as u8, high, low)
}

impl Host {
    /// The first manager of a new cluster.
    pub async fn bootstrap(spec: ClusterSpec) -> Host {
        let request = NewCluster { spec, hostname: "m1".to_owned(), ..NewCluster::default() };
        let (founding, identity) = found(request, Timestamp::now()).expect("founded");
        let host = Host::new(identity).await;
        Host::found_on(host, founding).await
    }

    /// The first manager of a new cluster, and the link through which all others reach it.
    pub async fn bootstrap_behind_link(spec: ClusterSpec) -> (Host, Link) {
        let request = NewCluster { spec, hostname: "m1".to_owned(), ..NewCluster::default() };
        let (founding, identity) = found(request, Timestamp::now()).expect("founded");
        let mut host = Host::new(identity).await;
        let link = Link::to(host.addr.clone()).await;
        host.listen = Some(std::mem::replace(&mut host.addr, link.addr.clone()));
        (Host::found_on(host, founding).await, link)
    }

    /// The first manager of a cluster that the test has made itself.
    pub async fn found_by(founding: Founding, identity: Arc<Identity>) -> Host {
        Host::found_on(Host::new(identity).await, founding).await
    }

    async fn found_on(mut host: Host, founding: Founding) -> Host {
        host.start(Boot::Bootstrap(Box::new(founding))).await.expect("started");
        host.wait("it leads", |manager| manager.is_leading()).await;
        host
    }

    /// Another manager, let in by token.
    pub async fn join(via: &Host) -> Host {
        let cluster = via.cluster();
        let mut host = Host::new(enroll(via, &cluster.root_ca.expect("root").manager_token).await).await;
        host.start(Boot::Join { via: vec![via.addr.clone()] }).await.expect("joined");
        let raft_id = host.identity.subject().node_id;
        host.wait("it votes", move |manager| is_voter(manager, &raft_id)).await;
        host
    }

    /// A host with an identity, nothing running.
    pub async fn new(identity: Arc<Identity>) -> Host {
        // The first test sets it up, for all that run in this process.
        let _ =
            LOG.get_or_init(|| telemetry::init(&env::var("RSWARM_LOG").unwrap_or_default(), Format::Text));
        let listener = TcpListener::bind((own_loopback(), 0)).await.expect("port");
        let addr = listener.local_addr().expect("address").to_string();
        Host { identity, dir: tempfile::tempdir().expect("tempdir"), addr, running: None, listen: None }
    }

    pub fn raft_dir(&self) -> PathBuf {
        self.dir.path().join("raft")
    }

    pub async fn start(&mut self, boot: Boot) -> Result<(), StartError> {
        let scope = Scope::root("host");
        let listener = TcpListener::bind(self.listen.as_ref().unwrap_or(&self.addr)).await.expect("port");
        let (services, routes) = watch::channel(Routes::default());
        let (identity, serving) = (self.identity.clone(), scope.clone());
        scope.spawn(async move {
            tls::serve(listener, identity, routes, &serving).await.expect("served");
        });
        let config = ManagerConfig {
            identity: self.identity.clone(),
            data_dir: self.raft_dir(),
            advertise_addr: self.addr.clone(),
            tick: *TICKING.get_or_init(|| TICK),
            audit: Audit::default(),
            calls: Calls::default(),
        };
        match Manager::start(config, boot, scope.clone()).await {
            Ok(manager) => {
                services.send_replace(manager.services(|services| services));
                self.running = Some(Running { manager, scope });
                Ok(())
            }
            Err(error) => {
                scope.shutdown(PATIENCE).await;
                Err(error)
            }
        }
    }

    /// Ends it without a word to anyone.
    pub async fn kill(&mut self) {
        let running = self.running.take().expect("runs");
        running.scope.cancel();
        running.scope.shutdown(PATIENCE).await;
    }

    pub async fn restart(&mut self) {
        self.start(Boot::Restart).await.expect("restarted");
    }

    pub fn manager(&self) -> &Manager {
        &self.running.as_ref().expect("runs").manager
    }

    pub fn state(&self) -> Arc<State> {
        self.manager().state().borrow().clone()
    }

    pub fn cluster(&self) -> Cluster {
        Cluster::clone(self.state().cluster().expect("a cluster"))
    }

    pub fn node(&self) -> Node {
        Node::clone(self.state().node(&self.identity.subject().node_id).expect("listed"))
    }

    pub fn id(&self) -> String {
        self.identity.subject().node_id
    }

    /// Waits until something holds here.
    pub async fn wait(&self, what: &str, holds: impl Fn(&Manager) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self.manager()) {
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// A user's client of this manager.
    pub async fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(tls::connect(&self.addr, &self.identity).await.expect("connected"))
    }

    /// Writes something through this manager.
    pub async fn write(&self, name: &str) -> Result<Network, Status> {
        write(&mut self.control().await, name).await
    }

    /// Whether this manager has what [`Host::write`] wrote.
    pub fn has(&self, name: &str) -> bool {
        self.state().network_named(name).is_some()
    }
}

pub fn is_voter(manager: &Manager, node_id: &str) -> bool {
    manager.voters().iter().any(|voter| voter == node_id)
}

pub async fn write(control: &mut ControlClient<Channel>, name: &str) -> Result<Network, Status> {
    let annotations = Some(Annotations { name: name.to_owned(), ..Annotations::default() });
    let spec = NetworkSpec { annotations, driver: "overlay".to_owned(), ..NetworkSpec::default() };
    Ok(control.create_network(CreateNetworkRequest { spec: Some(spec) }).await?.into_inner())
}

pub async fn get(host: &Host, kind: ObjectKind, reference: &str) -> Result<Object, Status> {
    let request = GetRequest { kind: kind.into(), reference: reference.to_owned() };
    Ok(host.control().await.get(request).await?.into_inner())
}

/// A node's first certificate.
pub async fn enroll(via: &Host, token: &str) -> Arc<Identity> {
    let token = JoinToken::parse(token).expect("a token");
    let enrollment = Enrollment { hostname: "n".to_owned(), availability: NodeAvailability::Active };
    Identity::new(tls::join(&via.addr, &token, enrollment).await.expect("let in")).expect("an identity")
}

/// The way to a host. When it is cut, what is sent gets lost, without a word to anyone.
pub struct Link {
    pub addr: String,
    is_cut: watch::Sender<bool>,
    scope: Scope,
}

impl Link {
    async fn to(host: String) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let addr = listener.local_addr().expect("address").to_string();
        let (is_cut, cut) = watch::channel(false);
        let scope = Scope::root("link");
        let (connections, token) = (scope.clone(), scope.token());
        scope.spawn(async move {
            let accept = async {
                loop {
                    let (near, _) = listener.accept().await.expect("a connection");
                    let (host, cut, token) = (host.clone(), cut.clone(), connections.token());
                    connections.spawn(async move {
                        token.run_until_cancelled(carry(near, host, cut)).await;
                    });
                }
            };
            token.run_until_cancelled(accept).await;
        });
        Link { addr, is_cut, scope }
    }

    pub fn cut(&self) {
        self.is_cut.send_replace(true);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.scope.cancel();
    }
}

async fn carry(mut near: TcpStream, host: String, mut cut: watch::Receiver<bool>) {
    if !*cut.borrow() {
        let Ok(mut far) = TcpStream::connect(&host).await else { return };
        tokio::select! {
            _ = copy_bidirectional(&mut near, &mut far) => return,
            _ = cut.wait_for(|is_cut| *is_cut) => {}
        }
        // Both ends stay open: neither hears of it.
        let _far = far;
        std::future::pending::<()>().await;
    }
    std::future::pending().await
}

/// Three managers that all vote.
pub async fn trio(spec: ClusterSpec) -> Vec<Host> {
    let first = Host::bootstrap(spec).await;
    three_with(first).await
}

/// Two more managers beside the first; all vote.
pub async fn three_with(first: Host) -> Vec<Host> {
    let second = Host::join(&first).await;
    let third = Host::join(&first).await;
    let hosts = vec![first, second, third];
    for host in &hosts {
        host.wait("three voters", |manager| manager.voters().len() == 3).await;
    }
    hosts
}

/// The position of the leader among running hosts.
pub async fn leader(hosts: &[Host]) -> usize {
    let find = async {
        loop {
            let leads =
                |host: &Host| host.running.as_ref().is_some_and(|running| running.manager.is_leading());
            if let Some(position) = hosts.iter().position(leads) {
                return position;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, find).await.expect("somebody leads")
}

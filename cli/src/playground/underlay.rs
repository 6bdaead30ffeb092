//! The hosts' network: a namespace per host, and one with a bridge that connects them by veth pairs.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::Path;

use futures_util::TryStreamExt;
use rswarm_base::Scope;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth};

use super::PlaygroundError;
use super::plan::{Host, PREFIX, Plan};
use crate::netns;

/// The bridge in the switch's namespace.
const BRIDGE: &str = "switch";
/// Each host's interface.
const INTERFACE: &str = "eth0";

/// Makes every namespace. Gives their inodes.
pub fn create_namespaces(plan: &Plan) -> Result<Vec<u64>, PlaygroundError> {
    let dir = plan.dir.join("netns");
    std::fs::create_dir_all(&dir).map_err(|source| PlaygroundError::File { path: dir, source })?;
    let paths = std::iter::once(&plan.switch).chain(plan.hosts.iter().map(|host| &host.netns));
    paths.map(|path| Ok(netns::create(path)?)).collect()
}

/// Connects the hosts. Netlink connections end with `scope`.
pub async fn connect(plan: &Plan, scope: &Scope) -> Result<(), PlaygroundError> {
    let switch = open(&plan.switch, scope)?;
    let bridge = LinkBridge::new(BRIDGE).up().build();
    switch.link().add(bridge).execute().await.map_err(|source| link("the bridge", source))?;
    let bridge = index(&switch, BRIDGE).await?;
    up(&switch, "lo").await?;
    for host in &plan.hosts {
        connect_host(&switch, bridge, host, scope).await?;
    }
    Ok(())
}

async fn connect_host(
    switch: &Handle,
    bridge: u32,
    host: &Host,
    scope: &Scope,
) -> Result<(), PlaygroundError> {
    let failed = |source| link(&host.name, source);
    let namespace = File::open(&host.netns);
    let namespace = namespace.map_err(|source| PlaygroundError::File { path: host.netns.clone(), source })?;
    // Both ends begin in the switch's namespace: neither ever passes through the machine's own.
    let pair = LinkVeth::new(&host.name, INTERFACE).build();
    switch.link().add(pair).execute().await.map_err(failed)?;
    let peer = LinkUnspec::new_with_name(INTERFACE).setns_by_fd(namespace.as_raw_fd()).build();
    switch.link().set(peer).execute().await.map_err(failed)?;
    let port = index(switch, &host.name).await?;
    let port = LinkUnspec::new_with_index(port).controller(bridge).up().build();
    switch.link().set(port).execute().await.map_err(failed)?;

    let inside = open(&host.netns, scope)?;
    up(&inside, "lo").await?;
    let interface = index(&inside, INTERFACE).await?;
    inside.address().add(interface, IpAddr::V4(host.address), PREFIX).execute().await.map_err(failed)?;
    up(&inside, INTERFACE).await
}

/// A netlink socket stays in the namespace that it was made in.
fn open(path: &Path, scope: &Scope) -> Result<Handle, PlaygroundError> {
    let runtime = tokio::runtime::Handle::current();
    let connection = netns::inside(path, || {
        let _guard = runtime.enter();
        rtnetlink::new_connection()
    })?;
    let (connection, handle, _) =
        connection.map_err(|source| PlaygroundError::File { path: path.to_owned(), source })?;
    let token = scope.token();
    scope.spawn(async move {
        tokio::select! {
            () = connection => {}
            () = token.cancelled() => {}
        }
    });
    Ok(handle)
}

async fn index(handle: &Handle, name: &str) -> Result<u32, PlaygroundError> {
    let found = handle.link().get().match_name(name.to_owned()).execute().try_next().await;
    let found = found.map_err(|source| link(name, source))?;
    found
        .map(|found| found.header.index)
        .ok_or_else(|| PlaygroundError::Wrong(format!("interface `{name}` is gone")))
}

async fn up(handle: &Handle, name: &str) -> Result<(), PlaygroundError> {
    let index = index(handle, name).await?;
    let raised = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(raised).execute().await.map_err(|source| link(name, source))
}

fn link(what: &str, source: rtnetlink::Error) -> PlaygroundError {
    PlaygroundError::Link { what: what.to_owned(), source }
}

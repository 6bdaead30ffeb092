//! Tells when something changes in a namespace, so that what others do to our objects is put right at once
//! and not at the next look. The kernel says what changed; nobody listens to that: owners list and compare.

use std::io;
use std::time::Duration;

use futures_util::future::{BoxFuture, select_all};
use netlink_sys::{Socket, SocketAddr, protocols};
use rswarm_base::Scope;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::netns::Netns;

/// Changes come in bursts: what follows within this time is looked at together with the first.
const BURST: Duration = Duration::from_millis(50);
/// Between two looks, whatever happens: our own changes are told too.
const PAUSE: Duration = Duration::from_secs(1);
/// The daemon's namespace is looked at after this time all the same: not every setting is told. Sandboxes are,
/// because their networks are applied again and again.
const PERIOD: Duration = Duration::from_secs(30);

/// Multicast groups (`rtnetlink.h`, `nfnetlink.h`).
const LINKS: u32 = 1;
const NEIGHBOURS: u32 = 3;
const ADDRESSES_V4: u32 = 5;
const ROUTES_V4: u32 = 7;
const ADDRESSES_V6: u32 = 9;
const ROUTES_V6: u32 = 11;
const ROUTING_RULES_V4: u32 = 8;
const ROUTING_RULES_V6: u32 = 19;
const SETTINGS_V4: u32 = 24;
const SETTINGS_V6: u32 = 25;
const RULE_SETS: u32 = 7;

/// Messages that tell of something that others seldom do, and that never only says that a thing is still
/// there (`rtnetlink.h`).
const NEW_LINK: u16 = 16;
const DELETIONS: [u16; 5] = [17, 21, 25, 29, 33];
const SETTINGS: u16 = 80;

/// What is listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Rule sets, links, addresses, settings.
    Home,
    /// The same, routes and neighbours.
    Sandbox,
    /// Rule sets.
    Rules,
}

/// Sockets in a namespace, on which the kernel tells of changes.
#[derive(Debug)]
pub struct Watch {
    sockets: Vec<AsyncFd<Socket>>,
    period: Option<Duration>,
}

impl Watch {
    /// Listens in a namespace.
    pub async fn open(netns: &Netns, listen: Listen) -> io::Result<Watch> {
        let sockets = netns.run(move || subscribe(listen)).await??;
        let sockets = sockets.into_iter().map(register).collect::<io::Result<_>>()?;
        let period = (listen == Listen::Home).then_some(PERIOD);
        Ok(Watch { sockets, period })
    }

    /// Waits for a change.
    async fn changed(&mut self) {
        while !self.said_something().await {}
    }

    /// Waits for a change, or until it is time to look without one.
    async fn due(&mut self) {
        match self.period {
            // Either way it is time.
            Some(period) => drop(tokio::time::timeout(period, self.changed()).await),
            None => self.changed().await,
        }
    }

    /// Waits until the kernel says something; whether it tells of a change.
    async fn said_something(&mut self) -> bool {
        let readable = self.sockets.iter_mut().map(|socket| {
            Box::pin(async move {
                match socket.readable_mut().await {
                    Ok(mut ready) => {
                        let is_change = drain(ready.get_inner());
                        ready.clear_ready();
                        is_change
                    }
                    // The runtime is ending.
                    Err(_) => std::future::pending().await,
                }
            })
        });
        select_all(readable).await.0
    }

    /// Forgets what was said until now.
    fn drain(&self) {
        self.sockets.iter().for_each(|socket| {
            drain(socket.get_ref());
        });
    }
}

/// Has `look` called after each burst of changes. Ends with the scope, or when `look` says that there is
/// nothing left to look at.
pub fn spawn<F>(scope: &Scope, mut watch: Watch, mut look: F)
where
    F: FnMut() -> BoxFuture<'static, bool> + Send + 'static,
{
    let cancel = scope.token();
    scope.spawn(async move {
        let looking = async {
            loop {
                watch.due().await;
                tokio::time::sleep(BURST).await;
                watch.drain();
                if !look().await {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = looking => {}
        }
    });
}

#[allow(deprecated, reason = "unsound for values that do not own their descriptor; a `Socket` does")]
fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    AsyncFd::with_interest(socket, Interest::READABLE)
}

fn subscribe(listen: Listen) -> io::Result<Vec<Socket>> {
    let mut sockets = vec![socket(protocols::NETLINK_NETFILTER, &[RULE_SETS])?];
    match listen {
        Listen::Rules => {}
        Listen::Home => {
            let groups = [LINKS, ADDRESSES_V4, ADDRESSES_V6, SETTINGS_V4, SETTINGS_V6];
            sockets.push(socket(protocols::NETLINK_ROUTE, &groups)?);
        }
        Listen::Sandbox => {
            let groups = [
                LINKS,
                ADDRESSES_V4,
                ADDRESSES_V6,
                ROUTES_V4,
                ROUTES_V6,
                ROUTING_RULES_V4,
                ROUTING_RULES_V6,
                NEIGHBOURS,
                SETTINGS_V4,
                SETTINGS_V6,
            ];
            sockets.push(socket(protocols::NETLINK_ROUTE, &groups)?);
        }
    }
    Ok(sockets)
}

fn socket(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    groups.iter().try_for_each(|group| socket.add_membership(*group))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Reads all that waits; whether any of it tells of a change. Only the first message of a datagram is looked
/// at: the kernel sends one change in each, or one transaction.
fn drain(socket: &Socket) -> bool {
    let mut is_change = false;
    loop {
        // The rest of the datagram is cut off.
        let mut head = Vec::with_capacity(16);
        match socket.recv(&mut head, 0) {
            Ok(_) => is_change |= tells_of_change(&head),
            // More was said than the socket holds.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => is_change = true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return is_change,
        }
    }
}

fn tells_of_change(head: &[u8]) -> bool {
    let Some(kind) = head.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes) else {
        return false;
    };
    // Those of rule sets carry their subsystem.
    kind > u16::from(u8::MAX) || kind == NEW_LINK || kind == SETTINGS || DELETIONS.contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_told_and_an_answer_of_a_neighbour_is_not() {
        let netns = Netns::create().await.expect("root is needed");
        let mut watch = Watch::open(&netns, Listen::Sandbox).await.expect("watch");
        let run = |script: &'static str| {
            netns.run(move || {
                let done = std::process::Command::new("sh").args(["-ec", script]).status();
                assert!(done.expect("sh").success(), "{script}");
            })
        };
        run("ip link add b0 type bridge; ip link set b0 up").await.expect("run");
        watch.changed().await;
        watch.drain();
        run("ip neigh add 10.0.0.1 lladdr 2:0:0:0:0:1 dev b0").await.expect("run");
        let heard = tokio::time::timeout(BURST, watch.changed()).await;
        assert!(heard.is_err(), "a new neighbour harms nobody");
        run("ip neigh del 10.0.0.1 dev b0").await.expect("run");
        watch.changed().await;
        run("nft add table ip t").await.expect("run");
        watch.changed().await;
    }
}

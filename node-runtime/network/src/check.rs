//! Diagnosis: what of a network is not as it should be, and what to do about it. Nothing is changed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::join_all;

use crate::error::KernelError;
use crate::icmp::{self, SMALL, Way};
use crate::model::Protocol;
use crate::netns::Netns;
use crate::nft::{BaseChain, Hooked};
use crate::plan::{Found, LinkKind, Plan, steps};

/// An answer comes in less, or there is something wrong.
const PATIENCE: Duration = Duration::from_secs(1);
/// While a size is searched; the way was found good before.
const SEARCH_PATIENCE: Duration = Duration::from_millis(300);

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What to do about it; `None` when all is well.
    pub remedy: Option<String>,
}

impl Finding {
    pub(crate) fn good(subject: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding { subject: subject.into(), found: found.into(), remedy: None }
    }

    pub(crate) fn bad(
        subject: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding { subject: subject.into(), found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// A way to try.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    /// Where it starts.
    pub from: Netns,
    /// The sender's address, where not any one does.
    pub source: Option<IpAddr>,
    /// Whom it leads to.
    pub to: IpAddr,
    /// The node that has it, by its data-path address.
    pub node: IpAddr,
    /// The packets that must get there.
    pub mtu: u32,
    /// The port of the encapsulation.
    pub data_path_port: u16,
}

/// What was found in the kernel, and the ways that are left to try.
#[derive(Debug, Default)]
pub(crate) struct Examined {
    pub findings: Vec<Finding>,
    pub probes: Vec<Probe>,
}

/// Tries all ways at once.
pub(crate) async fn probe_all(home: &Netns, probes: Vec<Probe>) -> Vec<Finding> {
    join_all(probes.into_iter().map(|probe| probe_one(home, probe))).await
}

async fn probe_one(home: &Netns, probe: Probe) -> Finding {
    let subject = format!("node {}", probe.node);
    let Probe { source, to, node, mtu, data_path_port, .. } = probe;
    let way = Way { source, address: to };
    let size = mtu as usize;
    let tried = probe
        .from
        .act("probe could not be sent", move || {
            if icmp::answers(way, size, PATIENCE)? {
                return Ok(Some(size));
            }
            if icmp::answers(way, SMALL, PATIENCE)? {
                icmp::largest(way, size, SEARCH_PATIENCE).map(Some)
            } else {
                Ok(None)
            }
        })
        .await;
    match tried {
        Err(error) => cannot_tell(subject, &error),
        Ok(Some(carried)) if carried == size => {
            Finding::good(subject, format!("{to} answers, packets of {mtu} bytes pass"))
        }
        Ok(Some(carried)) => Finding::bad(
            subject,
            format!("{to} answers, but of {mtu} bytes only {carried} pass"),
            format!(
                "a link between the nodes carries less than its interface says: correct its MTU, or make the network with `--opt com.docker.network.driver.mtu={carried}`"
            ),
        ),
        Ok(None) => {
            let way = Way { source: None, address: node };
            let reached =
                home.act("probe could not be sent", move || icmp::answers(way, SMALL, PATIENCE)).await;
            match reached {
                Err(error) => cannot_tell(subject, &error),
                Ok(true) => Finding::bad(
                    subject,
                    format!("{to} does not answer, its node {node} does"),
                    format!(
                        "let UDP port {data_path_port} through between the nodes, and see that the daemon runs on {node} and that the container answers pings"
                    ),
                ),
                Ok(false) => Finding::bad(
                    subject,
                    format!("neither {to} nor its node {node} answers"),
                    format!(
                        "the way to {node} is broken: see `ip route get {node}`, and that the node is up"
                    ),
                ),
            }
        }
    }
}

fn cannot_tell(subject: String, error: &KernelError) -> Finding {
    Finding::bad(
        subject,
        rswarm_base::Chain(error).to_string(),
        "run the daemon with the privilege to send pings",
    )
}

/// The kernel's links, addresses, routes and entries against the plan.
pub(crate) fn compare(plan: &Plan, found: &Found) -> Vec<Finding> {
    const BY_ITSELF: &str =
        "the daemon puts it right by itself; find out who changes it with `ip monitor` in that namespace";
    let missing = plan.links.iter().filter(|link| {
        link.kind == LinkKind::Veth && !found.links.iter().any(|other| other.link.name == link.name)
    });
    let mut findings: Vec<Finding> = missing
        .map(|link| Finding::bad(format!("link {}", link.name), "is missing", BY_ITSELF))
        .chain(
            steps(plan, found)
                .iter()
                .map(|step| Finding::bad("kernel", format!("differs: {step:?}"), BY_ITSELF)),
        )
        .collect();
    if findings.is_empty() {
        let (links, entries) = (plan.links.len(), plan.neighbours.len() + plan.forwarding.len());
        findings.push(Finding::good(
            "kernel",
            format!("{links} links and {entries} entries are as they should be"),
        ));
    }
    findings
}

/// Chains of others that stop what is forwarded, whatever our rules accept.
pub(crate) fn strangers(chains: &[BaseChain], prefix: &str) -> Vec<Finding> {
    let stops =
        |chain: &&BaseChain| chain.hook == Hooked::Forward && chain.drops && !chain.table.starts_with(prefix);
    let finding = |chain: &BaseChain| {
        let name = format!("{} {} {}", chain.family, chain.table, chain.chain);
        Finding::bad(
            format!("chain {name}"),
            "drops what it does not accept, also what goes to and from containers",
            "have it accept the bridges' interfaces, such as by `iptables -I FORWARD -i rsw+ -j ACCEPT` and `-o rsw+`, `-i br-+` and `-o br-+`",
        )
    };
    chains.iter().filter(stops).map(finding).collect()
}

/// What can be reached on this host, and from where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exposure {
    /// Ports of this host that lead to containers.
    pub ports: Vec<Exposed>,
    /// The filters of this host: who drops what nobody accepts.
    pub filters: Vec<Filter>,
    /// Tables of iptables-legacy, as `ip filter`: they may drop as well, and nobody but their own program can read them.
    pub legacy: Vec<String>,
}

/// A port of the host that leads to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed {
    /// The address; unspecified for all.
    pub host_ip: IpAddr,
    /// The port.
    pub host_port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// Who has it.
    pub owner: Owned,
    /// Where the host sends it.
    pub target: (IpAddr, u16),
}

/// Who has a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owned {
    /// A container, in a network.
    Container {
        /// Its identifier.
        id: String,
        /// The network's identifier.
        network_id: String,
    },
    /// The cluster: every node has it.
    Mesh {
        /// The service; empty when it is not known yet.
        service_id: String,
    },
    /// A container of a daemon before this one, which nobody has claimed yet.
    Unclaimed,
}

/// A chain where packets for this host, or on their way through it, may end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// `ip`, `ip6`, `inet`.
    pub family: &'static str,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// Whether it is for what ends at this host; else for what goes through it.
    pub input: bool,
    /// Whether it drops what it does not accept.
    pub drops: bool,
}

/// The tables of iptables-legacy in the namespace of this thread. A kernel without it has none.
pub(crate) fn legacy_tables() -> Vec<String> {
    let names = |family: &'static str, file: &str| {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        text.lines().map(|name| format!("{family} {name}")).collect::<Vec<_>>()
    };
    [names("ip", "ip_tables_names"), names("ip6", "ip6_tables_names")].concat()
}

pub(crate) fn filters(chains: Vec<BaseChain>) -> Vec<Filter> {
    let filter = |chain: BaseChain| {
        let input = match chain.hook {
            Hooked::Input => true,
            Hooked::Forward => false,
            Hooked::Elsewhere => return None,
        };
        let BaseChain { family, table, chain, drops, .. } = chain;
        Some(Filter { family, table, chain, input, drops })
    };
    chains.into_iter().filter_map(filter).collect()
}

/// Which service has which port of the mesh.
pub(crate) type MeshServices = BTreeMap<(Protocol, u16), String>;

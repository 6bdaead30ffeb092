//! The files that the engine writes for each container: `hosts`, `hostname` and `resolv.conf`. Contents are
//! pure; writes are in place, since a running container has the file itself mounted, not its name.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rswarm_proto::model::container::ContainerSpec;

use crate::config::DnsDefaults;
use crate::error::FileError;

/// Where containers with DNS of their own find it.
const EMBEDDED_DNS: &str = "127.0.0.11";
/// Docker's last resort when the host has no name server that a container could reach.
const FALLBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)), IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4))];

/// The files' names.
pub(crate) const NAMES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Makes those that are not there, empty.
pub(crate) fn make(dir: &Path) -> Result<(), FileError> {
    NAMES.map(|name| dir.join(name)).iter().try_for_each(|path| {
        let made = OpenOptions::new().append(true).create(true).mode(0o644).open(path);
        made.map(drop).map_err(FileError::write(path))
    })
}

/// Writes a file's content without replacing the file.
pub(crate) fn write_in_place(path: &Path, content: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    file.write_all(content.as_bytes())
}

/// A container's `/etc/hosts`: the standard lines, the user's (`name:address`), those of linked containers, then a
/// line for each of its own addresses.
pub(crate) fn hosts(
    spec: &ContainerSpec,
    host_name: &str,
    linked: &str,
    own: &[IpAddr],
    gateway: Option<IpAddr>,
) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    text.push_str(&extra_hosts(spec, gateway));
    text.push_str(linked);
    let domain = &spec.domainname;
    let names =
        if domain.is_empty() { host_name.to_owned() } else { format!("{host_name}.{domain} {host_name}") };
    for address in own {
        let _ = writeln!(text, "{address}\t{names}");
    }
    text
}

/// The user's own lines.
fn extra_hosts(spec: &ContainerSpec, gateway: Option<IpAddr>) -> String {
    let mut text = String::new();
    for entry in &spec.hosts {
        if let Some((name, address)) = host_entry(entry, gateway) {
            let _ = writeln!(text, "{address}\t{name}");
        }
    }
    text
}

/// `name:address` or `name=address`; `host-gateway` stands for the bridge's gateway.
fn host_entry(entry: &str, gateway: Option<IpAddr>) -> Option<(&str, String)> {
    let (name, address) = entry.split_once('=').or_else(|| entry.split_once(':'))?;
    let address = address.trim_matches(['[', ']']);
    if address == "host-gateway" {
        Some((name, gateway?.to_string()))
    } else {
        Some((name, address.to_owned()))
    }
}

/// Checks the user's lines for `/etc/hosts`.
///
/// # Errors
/// The first that is none, in Docker's words.
pub(crate) fn check_hosts(spec: &ContainerSpec) -> Result<(), String> {
    for entry in &spec.hosts {
        let (_, address) = host_entry(entry, Some(IpAddr::V4(Ipv4Addr::LOCALHOST)))
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| format!("bad format for add-host: \"{entry}\""))?;
        address.parse::<IpAddr>().map_err(|_| format!("invalid IP address in add-host: \"{address}\""))?;
    }
    Ok(())
}

/// What a `resolv.conf` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads one; lines of no use to us are skipped.
    pub(crate) fn parse(text: &str) -> ResolvConf {
        let mut conf = ResolvConf::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // A zone index (`fe80::1%eth0`) means nothing elsewhere.
                    conf.servers.extend(words.next().and_then(|server| server.parse::<IpAddr>().ok()));
                }
                Some("search" | "domain") => conf.search = words.map(str::to_owned).collect(),
                Some("options") => conf.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        conf
    }

    /// What holds for a container: its own words, else the daemon's, else the host's.
    pub(crate) fn for_container(
        spec: &ContainerSpec,
        daemon: &DnsDefaults,
        host: &ResolvConf,
    ) -> Result<ResolvConf, String> {
        let servers: Vec<IpAddr> = spec
            .dns
            .iter()
            .map(|server| server.parse().map_err(|_| format!("invalid DNS server address: \"{server}\"")))
            .collect::<Result<_, _>>()?;
        let first = |own: &[String], daemon: &[String], host: &[String]| {
            [own, daemon, host].into_iter().find(|list| !list.is_empty()).unwrap_or_default().to_vec()
        };
        let mut search = first(&spec.dns_search, &daemon.search, &host.search);
        search.retain(|domain| domain != "."); // `--dns-search .` asks for none.
        Ok(ResolvConf {
            servers: [&servers, &daemon.servers, &host.servers]
                .into_iter()
                .find(|list| !list.is_empty())
                .cloned()
                .unwrap_or_default(),
            search,
            options: first(&spec.dns_options, &daemon.options, &host.options),
        })
    }

    /// The file of a container that asks these servers itself. Servers on the host's loopback cannot be
    /// reached from another network namespace.
    pub(crate) fn direct(&self, own_network: bool) -> String {
        let mut servers = self.servers.clone();
        if own_network {
            servers.retain(|server| !server.is_loopback());
            if servers.is_empty() {
                servers.extend(FALLBACK);
            }
        }
        self.print(servers.iter().map(ToString::to_string), &self.options)
    }

    /// The file of a container that asks us.
    pub(crate) fn embedded(&self) -> String {
        let mut options = self.options.clone();
        if !options.iter().any(|option| option.starts_with("ndots:")) {
            options.push("ndots:0".to_owned());
        }
        self.print([EMBEDDED_DNS.to_owned()].into_iter(), &options)
    }

    /// The number of an option that has one, as in `timeout:2`; of several the last.
    pub(crate) fn option(&self, name: &str) -> Option<u32> {
        let value = |option: &String| option.strip_prefix(name)?.strip_prefix(':')?.parse().ok();
        self.options.iter().rev().find_map(value)
    }

    fn print(&self, servers: impl Iterator<Item = String>, options: &[String]) -> String {
        let mut text = String::new();
        for server in servers {
            let _ = writeln!(text, "nameserver {server}");
        }
        if !self.search.is_empty() {
            let _ = writeln!(text, "search {}", self.search.join(" "));
        }
        if !options.is_empty() {
            let _ = writeln!(text, "options {}", options.join(" "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn hosts_end_with_the_containers_own_lines() {
        let spec = ContainerSpec {
            domainname: "lan".into(),
            hosts: vec!["db:10.1.2.3".into(), "gw:host-gateway".into(), "six=[fd00::1]".into()],
            ..ContainerSpec::default()
        };
        assert_eq!(check_hosts(&spec), Ok(()));
        let text =
            hosts(&spec, "web", "172.17.0.9\tdb\n", &[address("172.17.0.2")], Some(address("172.17.0.1")));
        let tail = "10.1.2.3\tdb\n172.17.0.1\tgw\nfd00::1\tsix\n172.17.0.9\tdb\n172.17.0.2\tweb.lan web\n";
        assert!(text.ends_with(tail), "{text}");
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
    }

    #[test]
    fn a_line_that_is_none_is_refused() {
        for entry in ["db", ":1.2.3.4", "db:nowhere"] {
            let spec = ContainerSpec { hosts: vec![entry.into()], ..ContainerSpec::default() };
            assert!(check_hosts(&spec).is_err(), "{entry}");
        }
    }

    #[test]
    fn loopback_servers_are_left_out_unless_the_network_is_the_hosts() {
        let host = ResolvConf::parse("# x\nnameserver 127.0.0.53\nsearch a b\noptions edns0\n");
        let conf = ResolvConf::for_container(&ContainerSpec::default(), &DnsDefaults::default(), &host)
            .expect("conf");
        assert_eq!(conf.direct(true), "nameserver 8.8.8.8\nnameserver 8.8.4.4\nsearch a b\noptions edns0\n");
        assert_eq!(conf.direct(false), "nameserver 127.0.0.53\nsearch a b\noptions edns0\n");
        assert_eq!(conf.embedded(), "nameserver 127.0.0.11\nsearch a b\noptions edns0 ndots:0\n");
    }

    #[test]
    fn the_containers_own_words_come_first() {
        let spec = ContainerSpec {
            dns: vec!["9.9.9.9".into()],
            dns_search: vec![".".into()],
            dns_options: vec!["ndots:2".into()],
            ..ContainerSpec::default()
        };
        let host = ResolvConf::parse("nameserver 1.1.1.1\nsearch a\n");
        let conf = ResolvConf::for_container(&spec, &DnsDefaults::default(), &host).expect("conf");
        assert_eq!(conf.direct(true), "nameserver 9.9.9.9\noptions ndots:2\n");
        assert_eq!(conf.embedded(), "nameserver 127.0.0.11\noptions ndots:2\n");
        assert_eq!((conf.option("ndots"), conf.option("timeout")), (Some(2), None));
        let bad = ContainerSpec { dns: vec!["nine".into()], ..ContainerSpec::default() };
        assert!(ResolvConf::for_container(&bad, &DnsDefaults::default(), &host).is_err());
    }
}

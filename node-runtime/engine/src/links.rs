//! `--link`: what a container is told of others on the default bridge, where nobody is found by name. Lines in
//! `/etc/hosts` and variables in the environment, both of the moment of its start; the lines follow the others'
//! addresses. On other networks a link is a name in DNS, and nothing here.
// moby: daemon/links

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use rswarm_base::ipam::Family;
use rswarm_network::{Opening, Protocol};

use crate::config::ContainerConfig;
use crate::container::wiring::Mode;
use crate::container::{Container, Endpoint, Link};
use crate::error::{CreateError, StartError};
use crate::network::is_default;
use crate::registry::Registry;
use crate::spec;

/// Takes `NAME[:ALIAS]` apart. What `inspect` shows, `/name:/parent/alias`, is taken too.
///
/// # Errors
/// In Docker's words.
pub(crate) fn parse(text: &str) -> Result<(&str, &str), String> {
    if text.is_empty() {
        return Err("empty string specified for links".to_owned());
    }
    match text.split_once(':') {
        None => Ok((text, text)),
        Some((_, alias)) if alias.contains(':') => Err(format!("bad format for links: {text}")),
        Some((name, alias)) => match name.strip_prefix('/') {
            Some(name) => Ok((name, alias.rsplit('/').next().unwrap_or(alias))),
            None => Ok((name, alias)),
        },
    }
}

/// Finds the containers that links name. Of two links with one alias the first counts.
///
/// # Errors
/// When one names no container, or one that has no address of its own.
pub(crate) fn resolve(registry: &Registry, texts: &[String]) -> Result<Vec<Link>, CreateError> {
    let mut links: Vec<Link> = Vec::new();
    for text in texts {
        let (name, alias) = parse(text).map_err(CreateError::Invalid)?;
        let target = target(registry, name)?;
        if Mode::of(&target.config.network_mode) == Mode::Host {
            return Err(CreateError::Invalid(HOST.to_owned()));
        }
        if links.iter().all(|known| known.alias != alias) {
            links.push(Link { target: target.id.clone(), alias: alias.to_owned() });
        }
    }
    Ok(links)
}

const HOST: &str = "conflicting options: host type networking can't be used with links. This would result in undefined behavior";

/// The container of that name, or the one whose network it shares.
fn target(registry: &Registry, name: &str) -> Result<Arc<Container>, CreateError> {
    let find = |name: &str| {
        let found = registry.find(name).map(|handle| handle.container());
        found.map_err(|error| CreateError::Invalid(format!("could not get container for {name}: {error}")))
    };
    let mut found = find(name)?;
    while let Mode::Container(donor) = Mode::of(&found.config.network_mode) {
        found = find(&donor)?;
    }
    Ok(found)
}

/// Links where there is no network of the container's own.
///
/// # Errors
/// In Docker's words.
pub(crate) fn check(config: &ContainerConfig) -> Result<(), String> {
    let endpoints = config.endpoints.iter().flat_map(|endpoint| &endpoint.links);
    config.links.iter().chain(endpoints).try_for_each(|link| parse(link).map(drop))?;
    match Mode::of(&config.network_mode) {
        _ if config.links.is_empty() => Ok(()),
        Mode::Host => Err(HOST.to_owned()),
        Mode::Container(_) => {
            Err("conflicting options: container type network can't be used with links. This would \
                                   result in undefined behavior"
                .to_owned())
        }
        Mode::None | Mode::Networks => Ok(()),
    }
}

/// A container's links, and the containers that they lead to. Links to what was removed are gone with it.
pub(crate) fn followed<'a>(
    registry: &'a Registry,
    container: &'a Container,
) -> impl Iterator<Item = (&'a Link, Arc<Container>)> {
    let links = container.links.iter();
    links.filter_map(|link| Some((link, registry.find(&link.target).ok()?.container())))
}

/// Refuses a start that would have nothing to tell.
///
/// # Errors
/// In Docker's words.
pub(crate) fn check_start(registry: &Registry, container: &Container) -> Result<(), StartError> {
    for (link, target) in followed(registry, container) {
        if on_bridge(&target).is_none() {
            let name = &target.name;
            return Err(StartError::Link(format!(
                "Cannot link to /{name}, as it does not belong to the default network"
            )));
        }
        if !target.state.status.is_running() {
            return Err(StartError::Link(format!(
                "Cannot link to a non running container: /{} AS /{}/{}",
                target.name, container.name, link.alias
            )));
        }
    }
    Ok(())
}

fn on_bridge(container: &Container) -> Option<&Endpoint> {
    container.endpoints.iter().find(|endpoint| is_default(&endpoint.network_name))
}

fn addresses(container: &Container) -> impl Iterator<Item = IpAddr> {
    let endpoint = on_bridge(container).into_iter();
    let addresses = endpoint.flat_map(|endpoint| [endpoint.address, endpoint.address_v6]);
    addresses.flatten().map(|(address, _)| address)
}

/// The lines of `/etc/hosts`: alias, host name, and the name where it is another.
pub(crate) fn hosts(registry: &Registry, container: &Container) -> String {
    let mut text = String::new();
    for (link, target) in followed(registry, container) {
        let mut names = format!("{} {}", link.alias, spec::host_name(&target));
        if link.alias != target.name {
            let _ = write!(names, " {}", target.name);
        }
        for address in addresses(&target) {
            let _ = writeln!(text, "{address}\t{names}");
        }
    }
    text
}

/// What a container may reach of those that it links to, on a bridge where nobody reaches anybody else. `own` are its
/// endpoints.
pub(crate) fn openings(registry: &Registry, container: &Container, own: &[Endpoint]) -> Vec<Opening> {
    let from = own.iter().find(|endpoint| is_default(&endpoint.network_name)).and_then(|own| own.address);
    let Some((from, _)) = from else { return Vec::new() };
    let mut all = Vec::new();
    for (_, target) in followed(registry, container) {
        let Some(to) = addresses(&target).find(|to| Family::of(*to) == Family::of(from)) else { continue };
        all.extend(ports(&target.exposed).into_iter().filter_map(|(protocol, port)| {
            let protocol = Protocol::named(protocol)?;
            Some(Opening { target: target.id.clone(), from, to, protocol, port })
        }));
    }
    all
}

/// `/etc/hosts` after a linked container came up with other addresses; `None` when nothing changes.
pub(crate) fn readdress(hosts: &str, alias: &str, target: &Container) -> Option<String> {
    let mut text = String::with_capacity(hosts.len());
    for line in hosts.lines() {
        let is_meant = line.split_once('\t').is_some_and(|(_, names)| names.split(' ').next() == Some(alias));
        let old = line.split('\t').next().and_then(|old| old.parse::<IpAddr>().ok());
        let new = old.filter(|_| is_meant).and_then(|old| {
            addresses(target).find(|new| Family::of(*new) == Family::of(old)).map(|new| new.to_string())
        });
        let rest = line.find('\t').map_or("", |tab| &line[tab..]);
        let _ = match new {
            Some(new) => writeln!(text, "{new}{rest}"),
            None => writeln!(text, "{line}"),
        };
    }
    (text != hosts).then_some(text)
}

/// The variables that a container is told of those that it links to.
pub(crate) fn environment(registry: &Registry, container: &Container) -> Vec<String> {
    let all = followed(registry, container);
    all.flat_map(|(link, target)| variables(link, &container.name, &target)).collect()
}

fn variables(link: &Link, parent: &str, target: &Container) -> Vec<String> {
    let prefix = link.alias.to_uppercase().replace('-', "_");
    let address = addresses(target).next().map(|address| address.to_string()).unwrap_or_default();
    let ports = ports(&target.exposed);
    let mut all = Vec::new();
    if let Some((protocol, port)) = ports.first() {
        all.push(format!("{prefix}_PORT={protocol}://{address}:{port}"));
    }
    for (protocol, port) in &ports {
        let name = format!("{prefix}_PORT_{port}_{}", protocol.to_uppercase());
        all.push(format!("{name}={protocol}://{address}:{port}"));
        all.push(format!("{name}_ADDR={address}"));
        all.push(format!("{name}_PORT={port}"));
        all.push(format!("{name}_PROTO={protocol}"));
    }
    let consecutive = |a: &(&str, u16), b: &(&str, u16)| a.0 == b.0 && a.1.checked_add(1) == Some(b.1);
    for range in ports.chunk_by(consecutive).filter(|range| range.len() > 1) {
        let ((protocol, first), (_, last)) = (range[0], range[range.len() - 1]);
        let name = format!("{prefix}_PORT_{first}_{}", protocol.to_uppercase());
        all.push(format!("{name}_START={protocol}://{address}:{first}"));
        all.push(format!("{name}_PORT_START={first}"));
        all.push(format!("{name}_END={protocol}://{address}:{last}"));
        all.push(format!("{name}_PORT_END={last}"));
    }
    all.push(format!("{prefix}_NAME=/{parent}/{}", link.alias));
    for entry in &target.config.spec.env {
        if let Some((key, value)) = entry.split_once('=').filter(|(key, _)| !matches!(*key, "HOME" | "PATH"))
        {
            all.push(format!("{prefix}_ENV_{key}={value}"));
        }
    }
    all
}

/// Exposed ports in order: TCP's first, then by protocol and number.
fn ports(exposed: &[String]) -> Vec<(&str, u16)> {
    let mut ports: Vec<(&str, u16)> = exposed
        .iter()
        .filter_map(|text| {
            let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            Some((protocol, port.parse().ok()?))
        })
        .collect();
    ports.sort_by_key(|(protocol, port)| (*protocol != "tcp", *protocol, *port));
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::container;

    fn database() -> Container {
        let mut db = container(ContainerConfig::default(), Vec::new());
        db.name = "db".to_owned();
        db.exposed = Arc::new(["5433/tcp", "53/udp", "5432/tcp", "80/tcp"].map(str::to_owned).into());
        let mut config = ContainerConfig::default();
        config.spec.env = ["PATH=/bin", "HOME=/", "USER=me", "BARE"].map(str::to_owned).into();
        db.config = Arc::new(config);
        db.endpoints = Arc::new(vec![Endpoint {
            network_name: "bridge".to_owned(),
            address: Some(([172, 17, 0, 2].into(), 16)),
            ..Endpoint::default()
        }]);
        db
    }

    #[test]
    fn links_are_read_in_dockers_spellings() {
        assert_eq!(parse("db"), Ok(("db", "db")));
        assert_eq!(parse("db:data"), Ok(("db", "data")));
        assert_eq!(parse("/db:/web/data"), Ok(("db", "data")));
        assert_eq!(parse(""), Err("empty string specified for links".to_owned()));
        assert_eq!(parse("a:b:c"), Err("bad format for links: a:b:c".to_owned()));
    }

    #[test]
    fn variables_tell_address_ports_ranges_and_environment() {
        let link = Link { target: String::new(), alias: "my-db".to_owned() };
        let told = variables(&link, "web", &database());
        let has = |entry: &str| assert!(told.iter().any(|told| told == entry), "{entry} in {told:#?}");
        assert_eq!(told[0], "MY_DB_PORT=tcp://172.17.0.2:80");
        has("MY_DB_PORT_5432_TCP=tcp://172.17.0.2:5432");
        has("MY_DB_PORT_5432_TCP_ADDR=172.17.0.2");
        has("MY_DB_PORT_5432_TCP_PORT=5432");
        has("MY_DB_PORT_5432_TCP_PROTO=tcp");
        has("MY_DB_PORT_53_UDP=udp://172.17.0.2:53");
        has("MY_DB_PORT_5432_TCP_START=tcp://172.17.0.2:5432");
        has("MY_DB_PORT_5432_TCP_PORT_END=5433");
        has("MY_DB_NAME=/web/my-db");
        has("MY_DB_ENV_USER=me");
        assert!(!told.iter().any(|told| told.contains("_ENV_HOME") || told.contains("80_TCP_START")));
    }

    #[test]
    fn lines_follow_a_new_address() {
        let hosts = "127.0.0.1\tlocalhost\n172.17.0.9\tdata abababababab db\n172.17.0.9\tdatabase x\n";
        let moved = readdress(hosts, "data", &database()).expect("changed");
        let first = "127.0.0.1\tlocalhost\n172.17.0.2\tdata abababababab db\n172.17.0.9\tdatabase x\n";
        assert_eq!(moved, first);
        assert_eq!(readdress(&moved, "data", &database()), None);
    }
}

//! `service update`: the spec that there is, changed by what is said.

use clap::Args;
use rswarm_api::types::{
    EndpointSpec, GenericResource, Mount, NetworkAttachmentConfig, Placement, PlacementPreference,
    ServiceSpec, Ulimit,
};

use super::WaitArgs;
use super::options::{self, Settings};
use crate::cmd::{CommandError, mount, secret, words};

pub const EXAMPLES: &str = "\
Examples:
  rswarm service update --image my/web:2 --update-parallelism 2 web
  rswarm service update --env-add LEVEL=debug --publish-add 8080:80 web
  rswarm service update --force web     restart every task, a few at a time";

/// The flags of `service update`.
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Image to run
    #[arg(long)]
    image: Option<String>,
    /// Arguments of the command, as one text
    #[arg(long, allow_hyphen_values = true)]
    args: Option<String>,
    /// Replace every task even if nothing changed
    #[arg(long)]
    force: bool,
    /// Go back to the specification before the last change
    #[arg(long)]
    pub rollback: bool,
    #[command(flatten)]
    pub settings: Settings,
    /// Give containers a secret
    #[arg(long, value_name = "SECRET", value_parser = secret::reference)]
    pub secret_add: Vec<secret::Reference>,
    /// Take a secret from containers
    #[arg(long, value_name = "SECRET")]
    pub secret_rm: Vec<String>,
    /// Give containers a config
    #[arg(long, value_name = "CONFIG", value_parser = secret::reference)]
    pub config_add: Vec<secret::Reference>,
    /// Take a config from containers
    #[arg(long, value_name = "CONFIG")]
    pub config_rm: Vec<String>,
    #[command(flatten)]
    changes: Changes,
    #[command(flatten)]
    pub wait: WaitArgs,
    /// Name or ID
    pub service: String,
}

/// What is added to lists and removed from them.
#[derive(Debug, Default, Args)]
struct Changes {
    /// Publish a port
    #[arg(long, value_name = "PORT")]
    publish_add: Vec<String>,
    /// Stop publishing the port of this target
    #[arg(long, value_name = "TARGET")]
    publish_rm: Vec<String>,
    /// Connect to a network
    #[arg(long, value_name = "NETWORK", value_parser = options::network)]
    network_add: Vec<NetworkAttachmentConfig>,
    /// Disconnect from a network
    #[arg(long, value_name = "NETWORK")]
    network_rm: Vec<String>,
    /// Set a variable
    #[arg(long, value_name = "VARIABLE")]
    env_add: Vec<String>,
    /// Unset a variable
    #[arg(long, value_name = "NAME")]
    env_rm: Vec<String>,
    /// Mount a file system
    #[arg(long, value_name = "MOUNT", value_parser = mount::parse)]
    mount_add: Vec<Mount>,
    /// Remove the mount at this target
    #[arg(long, value_name = "TARGET")]
    mount_rm: Vec<String>,
    /// Add a constraint
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_add: Vec<String>,
    /// Remove a constraint
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_rm: Vec<String>,
    /// Add a placement preference
    #[arg(long, value_name = "PREFERENCE", value_parser = options::preference)]
    placement_pref_add: Vec<PlacementPreference>,
    /// Remove a placement preference
    #[arg(long, value_name = "PREFERENCE", value_parser = options::preference)]
    placement_pref_rm: Vec<PlacementPreference>,
    /// Reserve so many of a kind that nodes say they have
    #[arg(long, value_name = "RESOURCE", value_parser = options::generic_resource)]
    generic_resource_add: Vec<GenericResource>,
    /// Reserve none of this kind
    #[arg(long, value_name = "KIND")]
    generic_resource_rm: Vec<String>,
    /// Set a label of the service
    #[arg(long, value_name = "LABEL")]
    label_add: Vec<String>,
    /// Remove a label of the service
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Set a label of its containers
    #[arg(long, value_name = "LABEL")]
    container_label_add: Vec<String>,
    /// Remove a label of its containers
    #[arg(long, value_name = "KEY")]
    container_label_rm: Vec<String>,
    /// Add a group
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Remove a group
    #[arg(long, value_name = "GROUP")]
    group_rm: Vec<String>,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "HOST", value_parser = words::extra_host)]
    host_add: Vec<(String, String)>,
    /// Remove a line of /etc/hosts
    #[arg(long, value_name = "HOST", value_parser = words::extra_host)]
    host_rm: Vec<(String, String)>,
    /// Add a DNS server
    #[arg(long, value_name = "ADDRESS")]
    dns_add: Vec<String>,
    /// Remove a DNS server
    #[arg(long, value_name = "ADDRESS")]
    dns_rm: Vec<String>,
    /// Add a DNS option
    #[arg(long, value_name = "OPTION")]
    dns_option_add: Vec<String>,
    /// Remove a DNS option
    #[arg(long, value_name = "OPTION")]
    dns_option_rm: Vec<String>,
    /// Add a DNS search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search_add: Vec<String>,
    /// Remove a DNS search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search_rm: Vec<String>,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// Set a kernel parameter
    #[arg(long, value_name = "PARAMETER")]
    sysctl_add: Vec<String>,
    /// Remove a kernel parameter
    #[arg(long, value_name = "KEY")]
    sysctl_rm: Vec<String>,
    /// Limit a resource of each process
    #[arg(long, value_name = "LIMIT", value_parser = words::ulimit)]
    ulimit_add: Vec<Ulimit>,
    /// Remove such a limit
    #[arg(long, value_name = "NAME")]
    ulimit_rm: Vec<String>,
}

impl UpdateArgs {
    /// The spec to ask for, from the one that there is.
    pub fn spec(self, mut spec: ServiceSpec) -> Result<ServiceSpec, CommandError> {
        self.settings.apply(&mut spec).map_err(CommandError::Usage)?;
        if self.force {
            spec.task_template.force_update += 1;
        }
        let container = spec.task_template.container_spec.get_or_insert_default();
        if let Some(image) = self.image {
            container.image = image;
        }
        if let Some(args) = self.args {
            container.args = options::shell_words(&args);
        }
        self.changes.apply(&mut spec).map_err(CommandError::Usage)?;
        Ok(spec)
    }
}

impl Changes {
    fn apply(self, spec: &mut ServiceSpec) -> Result<(), String> {
        let labels = spec.labels.get_or_insert_default();
        labels.retain(|key, _| !self.label_rm.contains(key));
        labels.extend(words::key_values(&self.label_add));
        options::change_generic(spec, self.generic_resource_add, &self.generic_resource_rm);
        change_ports(spec, &self.publish_add, &self.publish_rm)?;
        let networks = &mut spec.task_template.networks;
        change(
            networks,
            self.network_add,
            |network| self.network_rm.contains(&network.target),
            |n| n.target.clone(),
        );
        let placement = spec.task_template.placement.take().unwrap_or_default();
        let placement = Placement {
            constraints: changed(placement.constraints, self.constraint_add, &self.constraint_rm),
            preferences: changed(placement.preferences, self.placement_pref_add, &self.placement_pref_rm),
            ..placement
        };
        spec.task_template.placement = (placement != Placement::default()).then_some(placement);

        let container = spec.task_template.container_spec.get_or_insert_default();
        let env = words::variables(self.env_add, words::environment);
        let name = |variable: &String| variable.split('=').next().unwrap_or_default().to_owned();
        change(&mut container.env, env, |variable| self.env_rm.contains(&name(variable)), name);
        change(
            &mut container.mounts,
            self.mount_add,
            |m| self.mount_rm.contains(&m.target),
            |m| m.target.clone(),
        );
        change(
            &mut container.ulimits,
            self.ulimit_add,
            |u| self.ulimit_rm.contains(&u.name),
            |u| u.name.clone(),
        );
        container.labels.retain(|key, _| !self.container_label_rm.contains(key));
        container.labels.extend(words::key_values(&self.container_label_add));
        container.sysctls.retain(|key, _| !self.sysctl_rm.contains(key));
        container.sysctls.extend(words::key_values(&self.sysctl_add));
        container.groups = changed(std::mem::take(&mut container.groups), self.group_add, &self.group_rm);
        let lines = |hosts: Vec<(String, String)>| -> Vec<String> {
            hosts.iter().map(|(name, address)| format!("{address} {name}")).collect()
        };
        let hosts = std::mem::take(&mut container.hosts);
        container.hosts = changed(hosts, lines(self.host_add), &lines(self.host_rm));
        let dns = container.dns_config.take().unwrap_or_default();
        let dns = rswarm_api::types::DnsConfig {
            nameservers: changed(dns.nameservers, self.dns_add, &self.dns_rm),
            search: changed(dns.search, self.dns_search_add, &self.dns_search_rm),
            options: changed(dns.options, self.dns_option_add, &self.dns_option_rm),
        };
        container.dns_config = (dns != rswarm_api::types::DnsConfig::default()).then_some(dns);
        // Adding a capability that was dropped takes the drop back, and the other way round.
        let dropped = std::mem::take(&mut container.capability_drop);
        let added = std::mem::take(&mut container.capability_add);
        container.capability_drop = changed(dropped, self.cap_drop.clone(), &self.cap_add);
        container.capability_add = changed(added, self.cap_add, &self.cap_drop);
        Ok(())
    }
}

fn change_ports(spec: &mut ServiceSpec, add: &[String], remove: &[String]) -> Result<(), String> {
    if add.is_empty() && remove.is_empty() {
        return Ok(());
    }
    let ports = &mut spec.endpoint_spec.get_or_insert_with(EndpointSpec::default).ports;
    for text in remove {
        let (target, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let target: u32 =
            target.parse().map_err(|_| format!("invalid port `{text}`: give the target port"))?;
        ports.retain(|port| port.target_port != target || port.protocol != protocol);
    }
    for text in add {
        for port in options::port(text)? {
            let same = |other: &rswarm_api::types::PortConfig| {
                (&other.protocol, other.target_port, other.published_port)
                    == (&port.protocol, port.target_port, port.published_port)
            };
            ports.retain(|other| !same(other));
            ports.push(port);
        }
    }
    Ok(())
}

/// Takes out what goes, then puts in what comes; one of the same name is replaced.
fn change<T>(list: &mut Vec<T>, add: Vec<T>, goes: impl Fn(&T) -> bool, name: impl Fn(&T) -> String) {
    list.retain(|item| !goes(item) && !add.iter().any(|new| name(new) == name(item)));
    list.extend(add);
}

fn changed<T: PartialEq>(mut list: Vec<T>, add: Vec<T>, remove: &[T]) -> Vec<T> {
    list.retain(|item| !remove.contains(item));
    for item in add {
        if !list.contains(&item) {
            list.push(item);
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Harness {
        #[command(flatten)]
        args: UpdateArgs,
    }

    fn updated(spec: ServiceSpec, line: &str) -> ServiceSpec {
        let words = std::iter::once("update").chain(line.split(' '));
        Harness::try_parse_from(words).expect(line).args.spec(spec).expect(line)
    }

    fn spec() -> ServiceSpec {
        let mut spec = ServiceSpec { name: "web".into(), ..ServiceSpec::default() };
        spec.mode.replicated = Some(rswarm_api::types::ReplicatedService { replicas: Some(3) });
        let container = spec.task_template.container_spec.get_or_insert_default();
        container.image = "web:1".into();
        container.env = vec!["A=1".into(), "B=2".into()];
        container.capability_drop = vec!["NET_RAW".into()];
        spec.endpoint_spec =
            Some(EndpointSpec { ports: options::port("80:80").expect("a port"), ..EndpointSpec::default() });
        spec
    }

    #[test]
    fn nothing_said_changes_nothing_that_matters() {
        let mut expected = spec();
        expected.labels = Some(Default::default());
        assert_eq!(updated(spec(), "web"), expected);
    }

    #[test]
    fn lists_are_added_to_and_removed_from() {
        let after = updated(
            spec(),
            "--image web:2 --env-add A=9 --env-rm B --cap-add NET_RAW --publish-rm 80 --publish-add 81:81 --force web",
        );
        let container = after.task_template.container_spec.expect("container");
        assert_eq!((container.image.as_str(), container.env), ("web:2", vec!["A=9".into()]));
        assert!(container.capability_drop.is_empty());
        assert_eq!(container.capability_add, ["NET_RAW"]);
        let ports = after.endpoint_spec.expect("endpoint").ports;
        assert_eq!((ports.len(), ports[0].published_port), (1, 81));
        assert_eq!(after.task_template.force_update, 1);
    }
}

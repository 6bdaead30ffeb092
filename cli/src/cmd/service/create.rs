//! `service create`

use std::path::PathBuf;

use clap::Args;
use rswarm_api::types::{
    DnsConfig, Empty, EndpointSpec, GenericResource, Mount, NetworkAttachmentConfig, Placement,
    PlacementPreference, ReplicatedJob, ReplicatedService, ServiceSpec, Ulimit,
};

use super::WaitArgs;
use super::options::{self, Settings};
use crate::cmd::{CommandError, mount, secret, words};

pub const EXAMPLES: &str = "\
Examples:
  rswarm service create --name web --replicas 5 -p 80:80 nginx
  rswarm service create --name agent --mode global my/agent
  rswarm service create --name web --network app --limit-memory 64m --update-order start-first my/web:2";

/// The flags of `service create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name the service
    #[arg(long)]
    name: Option<String>,
    /// How it spreads: replicated, global, replicated-job, global-job
    #[arg(long, default_value = "replicated", value_parser = ["replicated", "global", "replicated-job", "global-job"])]
    mode: String,
    /// Tasks of a job that run at a time
    #[arg(long, value_name = "COUNT")]
    max_concurrent: Option<u64>,
    #[command(flatten)]
    pub settings: Settings,
    /// Publish a port, `PUBLISHED:TARGET` or `published=80,target=80,mode=host`
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<String>,
    /// Connect to a network, by name or as `name=NET,alias=A`
    #[arg(long, value_name = "NETWORK", value_parser = options::network)]
    network: Vec<NetworkAttachmentConfig>,
    /// Set a variable, `KEY=VALUE`
    #[arg(short, long, value_name = "VARIABLE")]
    env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Mount a file system, `type=volume,source=data,target=/data`
    #[arg(long, value_name = "MOUNT", value_parser = mount::parse)]
    mount: Vec<Mount>,
    /// Only nodes that match, as in `node.role==worker`
    #[arg(long, value_name = "CONSTRAINT")]
    constraint: Vec<String>,
    /// Spread over a label, `spread=node.labels.zone`
    #[arg(long, value_name = "PREFERENCE", value_parser = options::preference)]
    placement_pref: Vec<PlacementPreference>,
    /// Reserve so many of a kind that nodes say they have, `KIND=COUNT`
    #[arg(long, value_name = "RESOURCE", value_parser = options::generic_resource)]
    generic_resource: Vec<GenericResource>,
    /// Set a label of the service, `KEY=VALUE`
    #[arg(short, long)]
    label: Vec<String>,
    /// Set a label of its containers, `KEY=VALUE`
    #[arg(long, value_name = "LABEL")]
    container_label: Vec<String>,
    /// Add a group
    #[arg(long)]
    group: Vec<String>,
    /// Add a line to /etc/hosts, `NAME:ADDRESS`
    #[arg(long, value_parser = words::extra_host)]
    host: Vec<(String, String)>,
    /// DNS server
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// DNS option
    #[arg(long, value_name = "OPTION")]
    dns_option: Vec<String>,
    /// DNS search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// Set a kernel parameter, `KEY=VALUE`
    #[arg(long, value_name = "PARAMETER")]
    sysctl: Vec<String>,
    /// Limit a resource of each process, `NAME=SOFT[:HARD]`
    #[arg(long, value_name = "LIMIT", value_parser = words::ulimit)]
    ulimit: Vec<Ulimit>,
    /// Give containers a secret, by name or as `source=NAME,target=FILE,uid=0,gid=0,mode=0444`
    #[arg(long, value_name = "SECRET", value_parser = secret::reference)]
    pub secret: Vec<secret::Reference>,
    /// Give containers a config, by name or as `source=NAME,target=FILE,uid=0,gid=0,mode=0444`
    #[arg(long, value_name = "CONFIG", value_parser = secret::reference)]
    pub config: Vec<secret::Reference>,
    #[command(flatten)]
    pub wait: WaitArgs,
    /// Image, then arguments instead of the image's command; flags end at the image
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE [ARG]")]
    image_and_args: Vec<String>,
}

impl CreateArgs {
    /// The spec to ask for.
    pub fn spec(self) -> Result<ServiceSpec, CommandError> {
        let mut spec = ServiceSpec { name: self.name.clone().unwrap_or_default(), ..ServiceSpec::default() };
        match self.mode.as_str() {
            "global" => spec.mode.global = Some(Empty {}),
            "global-job" => spec.mode.global_job = Some(Empty {}),
            "replicated-job" => {
                let (max_concurrent, total_completions) = (self.max_concurrent, Some(1));
                spec.mode.replicated_job = Some(ReplicatedJob { max_concurrent, total_completions });
            }
            _ => spec.mode.replicated = Some(ReplicatedService { replicas: Some(1) }),
        }
        if self.max_concurrent.is_some() && self.mode != "replicated-job" {
            return Err(CommandError::Usage(
                "max-concurrent can only be used with replicated-job mode".into(),
            ));
        }
        self.settings.apply(&mut spec).map_err(CommandError::Usage)?;
        if let Some(job) = &mut spec.mode.replicated_job {
            job.max_concurrent = job.max_concurrent.or(job.total_completions);
        }
        let is_job = spec.mode.replicated_job.is_some() || spec.mode.global_job.is_some();
        if is_job && (spec.update_config.is_some() || spec.rollback_config.is_some()) {
            return Err(CommandError::Usage(
                "update and rollback configuration is not supported for jobs".into(),
            ));
        }
        spec.labels = Some(words::key_values(&self.label));
        let mut ports = Vec::new();
        for text in &self.publish {
            ports.extend(options::port(text).map_err(CommandError::Usage)?);
        }
        let endpoint = spec.endpoint_spec.get_or_insert_with(EndpointSpec::default);
        endpoint.ports = ports;
        if endpoint.mode.is_empty() {
            endpoint.mode = "vip".into();
        }
        options::change_generic(&mut spec, self.generic_resource, &[]);
        let task = &mut spec.task_template;
        task.networks = self.network;
        if !self.constraint.is_empty() || !self.placement_pref.is_empty() {
            let placement = task.placement.get_or_insert_with(Placement::default);
            placement.constraints = self.constraint;
            placement.preferences = self.placement_pref;
        }
        let container = task.container_spec.get_or_insert_default();
        let mut words = self.image_and_args.into_iter();
        container.image = words.next().unwrap_or_default();
        container.args = words.collect();
        container.env = words::variables(words::with_files(&self.env_file, &self.env)?, words::environment);
        container.mounts = self.mount;
        container.labels = words::key_values(&self.container_label);
        container.groups = self.group;
        container.hosts = self.host.iter().map(|(name, address)| format!("{address} {name}")).collect();
        let dns = DnsConfig { nameservers: self.dns, search: self.dns_search, options: self.dns_option };
        container.dns_config = (dns != DnsConfig::default()).then_some(dns);
        container.capability_add = self.cap_add;
        container.capability_drop = self.cap_drop;
        container.sysctls = words::key_values(&self.sysctl);
        container.ulimits = self.ulimit;
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Harness {
        #[command(flatten)]
        args: CreateArgs,
    }

    fn spec(line: &str) -> Result<ServiceSpec, CommandError> {
        Harness::try_parse_from(std::iter::once("create").chain(line.split(' '))).expect(line).args.spec()
    }

    #[test]
    fn flags_become_a_spec() {
        let spec = spec("--name web --replicas 5 -p 80:8080 --network app --limit-memory 64m --constraint node.role==worker --generic-resource gpu=2 --stop-grace-period 3s -e A=1 web:1 --flag x").expect("a spec");
        assert_eq!(spec.name, "web");
        assert_eq!(spec.mode.replicated.and_then(|mode| mode.replicas), Some(5));
        let endpoint = spec.endpoint_spec.expect("endpoint");
        assert_eq!((endpoint.mode.as_str(), endpoint.ports[0].target_port), ("vip", 8080));
        let task = spec.task_template;
        assert_eq!(task.networks[0].target, "app");
        assert_eq!(
            task.resources.as_ref().expect("resources").limits.as_ref().expect("limits").memory_bytes,
            64 << 20
        );
        assert_eq!(task.placement.expect("placement").constraints, ["node.role==worker"]);
        let reserved = task.resources.expect("resources").reservations.expect("reservations");
        let generic = reserved.generic_resources.expect("generic resources");
        assert_eq!(generic.len(), 1);
        assert_eq!(generic[0].discrete_resource_spec.as_ref().expect("counted").value, 2);
        let container = task.container_spec.expect("container");
        assert_eq!((container.image.as_str(), container.args.join(" ").as_str()), ("web:1", "--flag x"));
        assert_eq!(container.stop_grace_period, Some(3_000_000_000));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        assert!(spec("--mode global --replicas 2 web").is_err());
        assert!(spec("--max-concurrent 2 web").is_err());
        assert!(spec("-p nope web").is_err());
    }
}

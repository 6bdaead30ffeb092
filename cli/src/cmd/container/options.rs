//! What a container is made of: the flags of `run` and `create`, and their body for the API.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use rswarm_api::types::{
    CreateBody, DeviceMapping, DeviceRequest, Empty, EndpointIpamConfig, EndpointSettings, HostConfig,
    HostResources, KeySet, LogConfig, Mount, NetworkingConfig, PortBinding, PortMap, RestartPolicy,
    ThrottleDevice, Ulimit, WeightDevice,
};

use crate::cmd::{CommandError, mount, words};
use crate::units;

/// The flags that `run` and `create` share.
#[derive(Debug, Clone, Args)]
pub struct ContainerOptions {
    /// Name the container
    #[arg(long)]
    pub name: Option<String>,
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Connect these streams: stdin, stdout, stderr
    #[arg(short, long, value_name = "STREAM", value_parser = ["stdin", "stdout", "stderr"], ignore_case = true)]
    pub attach: Vec<String>,
    /// Set a variable, `KEY=VALUE`
    #[arg(short, long, value_name = "VARIABLE")]
    env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Publish a port, `[[ADDRESS:]HOST:]CONTAINER[/PROTOCOL]`
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<String>,
    /// Publish every exposed port on a free one
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// Expose a port
    #[arg(long, value_name = "PORT")]
    expose: Vec<String>,
    /// Mount a directory or volume, `SOURCE:TARGET[:OPTIONS]`
    #[arg(short, long, value_name = "VOLUME")]
    volume: Vec<String>,
    /// Mount a file system, `type=bind,source=/a,target=/b`
    #[arg(long, value_name = "MOUNT", value_parser = mount::parse)]
    mount: Vec<Mount>,
    /// Mount a file system in memory, `TARGET[:OPTIONS]`
    #[arg(long, value_name = "TARGET")]
    tmpfs: Vec<String>,
    /// Connect to a network, by name or as `name=NET,alias=A,ip=ADDRESS`
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    network: Vec<String>,
    /// Another name on the network
    #[arg(long, visible_alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<String>,
    /// Address on the network
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// IPv6 address on the network
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<String>,
    /// MAC address on the network
    #[arg(long, value_name = "MAC")]
    mac_address: Option<String>,
    /// Link to another container
    #[arg(long, value_name = "CONTAINER")]
    link: Vec<String>,
    /// Restart when it ends: no, on-failure[:MAX], always, unless-stopped
    #[arg(long, value_name = "POLICY", value_parser = restart_policy)]
    restart: Option<RestartPolicy>,
    /// Limit memory, as in `512m`
    #[arg(short, long, value_name = "BYTES", value_parser = units::parse_bytes)]
    memory: Option<i64>,
    /// Memory that is kept free for it
    #[arg(long, value_name = "BYTES", value_parser = units::parse_bytes)]
    memory_reservation: Option<i64>,
    /// Limit memory and swap together; -1 is no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = units::parse_bytes_or_unlimited)]
    memory_swap: Option<i64>,
    /// How readily memory is swapped, 0 to 100
    #[arg(long, value_name = "PERCENT", allow_hyphen_values = true)]
    memory_swappiness: Option<i64>,
    /// Limit CPU time, as in `1.5`
    #[arg(long, value_name = "COUNT", value_parser = units::parse_nano_cpus)]
    cpus: Option<i64>,
    /// Weight of its CPU time
    #[arg(short, long, value_name = "WEIGHT")]
    cpu_shares: Option<i64>,
    /// Period of the CPU quota in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<i64>,
    /// CPU time per period in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_quota: Option<i64>,
    /// CPUs it may run on, as in `0-2,4`
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes it may use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Limit processes; -1 is no limit
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Weight of its disk access, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// Weight of a device, `DEVICE:WEIGHT`
    #[arg(long, value_name = "WEIGHT", value_parser = weight_device)]
    blkio_weight_device: Vec<WeightDevice>,
    /// Limit reading from a device, `DEVICE:BYTES` a second
    #[arg(long, value_name = "LIMIT", value_parser = device_bytes)]
    device_read_bps: Vec<ThrottleDevice>,
    /// Limit writing to a device, `DEVICE:BYTES` a second
    #[arg(long, value_name = "LIMIT", value_parser = device_bytes)]
    device_write_bps: Vec<ThrottleDevice>,
    /// Limit reads from a device, `DEVICE:COUNT` a second
    #[arg(long, value_name = "LIMIT", value_parser = device_operations)]
    device_read_iops: Vec<ThrottleDevice>,
    /// Limit writes to a device, `DEVICE:COUNT` a second
    #[arg(long, value_name = "LIMIT", value_parser = device_operations)]
    device_write_iops: Vec<ThrottleDevice>,
    /// Period of the real-time scheduler in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_period: Option<i64>,
    /// Real-time CPU time per period in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_runtime: Option<i64>,
    /// Limit a resource of each process, `NAME=SOFT[:HARD]`
    #[arg(long, value_name = "LIMIT", value_parser = words::ulimit)]
    ulimit: Vec<Ulimit>,
    /// Do not kill it when memory runs out
    #[arg(long)]
    oom_kill_disable: bool,
    /// Whom the kernel kills first, -1000 to 1000
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true)]
    oom_score_adj: Option<i32>,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", value_parser = units::parse_bytes)]
    shm_size: Option<i64>,
    /// Host name
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// NIS domain name
    #[arg(long, value_name = "NAME")]
    domainname: Option<String>,
    /// Add a line to /etc/hosts, `NAME:ADDRESS`
    #[arg(long, value_name = "HOST", value_parser = words::extra_host)]
    add_host: Vec<(String, String)>,
    /// DNS server
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// DNS option
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// DNS search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Run as this user, `USER[:GROUP]`
    #[arg(short, long)]
    user: Option<String>,
    /// Add a group
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Start in this directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Run this instead of the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Set a label, `KEY=VALUE`
    #[arg(short, long)]
    label: Vec<String>,
    /// Read labels from a file
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    /// Add an annotation, `KEY=VALUE`
    #[arg(long, value_name = "ANNOTATION")]
    annotation: Vec<String>,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// Give it everything the host has
    #[arg(long)]
    privileged: bool,
    /// Security option, as in `no-new-privileges` or `seccomp=FILE`
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Give it a device, `HOST[:CONTAINER[:PERMISSIONS]]`
    #[arg(long, value_parser = device)]
    device: Vec<DeviceMapping>,
    /// Give it GPUs: refused by daemons without a driver for them
    #[arg(long, value_name = "GPUS")]
    gpus: Vec<String>,
    /// Isolation: default
    #[arg(long)]
    isolation: Option<String>,
    /// Allow devices by rule, as in `c 1:3 rwm`
    #[arg(long, value_name = "RULE")]
    device_cgroup_rule: Vec<String>,
    /// Run an init that reaps processes and passes signals on
    #[arg(long)]
    init: bool,
    /// Make the root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Set a kernel parameter, `KEY=VALUE`
    #[arg(long, value_name = "PARAMETER")]
    sysctl: Vec<String>,
    /// Storage option, `KEY=VALUE`
    #[arg(long, value_name = "OPTION")]
    storage_opt: Vec<String>,
    /// Mount the volumes of another container
    #[arg(long, value_name = "CONTAINER")]
    volumes_from: Vec<String>,
    /// Driver of the volumes
    #[arg(long, value_name = "DRIVER")]
    volume_driver: Option<String>,
    /// Process namespace: `host` or `container:NAME`
    #[arg(long, value_name = "MODE")]
    pid: Option<String>,
    /// IPC namespace: private, shareable, host, none or `container:NAME`
    #[arg(long, value_name = "MODE")]
    ipc: Option<String>,
    /// Host name namespace: host
    #[arg(long, value_name = "MODE")]
    uts: Option<String>,
    /// User namespace: host
    #[arg(long, value_name = "MODE")]
    userns: Option<String>,
    /// Cgroup namespace: host or private
    #[arg(long, value_name = "MODE")]
    cgroupns: Option<String>,
    /// Put its cgroup below this one
    #[arg(long, value_name = "CGROUP")]
    cgroup_parent: Option<String>,
    /// OCI runtime
    #[arg(long)]
    runtime: Option<String>,
    /// Signal that stops it
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds from the stop signal to the kill
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    stop_timeout: Option<i64>,
    /// Logging driver
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Logging driver option, `KEY=VALUE`
    #[arg(long, value_name = "OPTION")]
    log_opt: Vec<String>,
    #[command(flatten)]
    health: words::HealthArgs,
    /// Platform of the image, as in `linux/arm64`
    #[arg(long)]
    pub platform: Option<String>,
    /// Pull the image first: always, missing, never
    #[arg(long, default_value = "missing", value_parser = ["always", "missing", "never"])]
    pub pull: String,
    /// Do not show the pull's progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Write the container's ID to a file
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Image, then a command and its arguments instead of the image's; flags end at the image
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE [COMMAND]")]
    image_and_command: Vec<String>,
}

impl ContainerOptions {
    /// The image to run.
    pub fn image(&self) -> &str {
        self.image_and_command.first().map_or("", String::as_str)
    }

    /// Which streams a client follows: those of `--attach`, else all that make sense.
    pub fn follows(&self, stream: &str) -> bool {
        match self.attach.is_empty() {
            false => self.attach.iter().any(|wanted| wanted.eq_ignore_ascii_case(stream)),
            true => stream != "stdin" || self.interactive,
        }
    }

    /// The body of `POST /containers/create`.
    ///
    /// # Errors
    /// When a file cannot be read or a flag makes no sense.
    pub fn body(&self, attached: bool) -> Result<CreateBody, CommandError> {
        let mut body = CreateBody::default();
        self.configure(&mut body, attached)?;
        let (bindings, exposed) = self.ports()?;
        body.config.exposed_ports = exposed;
        let (binds, volumes) = self.volumes()?;
        body.config.volumes = (!volumes.is_empty()).then_some(volumes);
        let networks = networks(self)?;
        let mut host = self.host_config()?;
        host.port_bindings = Some(bindings);
        host.binds = list(&binds);
        host.network_mode = networks.first().map_or_else(|| "default".into(), |(name, _)| name.clone());
        body.host_config = Some(host);
        let endpoints: BTreeMap<_, _> =
            networks.into_iter().filter(|(name, _)| is_user_network(name)).collect();
        body.networking_config = Some(NetworkingConfig { endpoints_config: Some(endpoints) });
        Ok(body)
    }

    fn configure(&self, body: &mut CreateBody, attached: bool) -> Result<(), CommandError> {
        let config = &mut body.config;
        config.image = self.image().to_owned();
        config.hostname = self.hostname.clone().unwrap_or_default();
        config.domainname = self.domainname.clone().unwrap_or_default();
        config.user = self.user.clone().unwrap_or_default();
        config.attach_stdin = attached && self.follows("stdin");
        config.attach_stdout = attached && self.follows("stdout");
        config.attach_stderr = attached && self.follows("stderr");
        config.tty = self.tty;
        config.open_stdin = self.interactive;
        config.stdin_once = self.interactive && attached;
        config.env =
            Some(words::variables(words::with_files(&self.env_file, &self.env)?, words::environment));
        config.cmd = self.image_and_command.get(1..).unwrap_or_default().to_vec().into();
        config.entrypoint = rswarm_api::types::Command(self.entrypoint.clone().map(|command| vec![command]));
        config.healthcheck = self.health.over(None);
        config.working_dir = self.workdir.clone().unwrap_or_default();
        config.labels = Some(words::key_values(&words::with_files(&self.label_file, &self.label)?));
        config.stop_signal = self.stop_signal.clone().unwrap_or_default();
        config.stop_timeout = self.stop_timeout;
        Ok(())
    }

    fn host_config(&self) -> Result<HostConfig, CommandError> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        Ok(HostConfig {
            container_id_file: self
                .cidfile
                .as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            log_config: LogConfig {
                kind: text(&self.log_driver),
                config: Some(words::key_values(&self.log_opt)),
            },
            restart_policy: self
                .restart
                .clone()
                .unwrap_or(RestartPolicy { name: "no".into(), maximum_retry_count: 0 }),
            auto_remove: self.rm,
            volume_driver: text(&self.volume_driver),
            volumes_from: list(&self.volumes_from),
            annotations: words::key_values(&self.annotation),
            cap_add: list(&self.cap_add),
            cap_drop: list(&self.cap_drop),
            cgroupns_mode: text(&self.cgroupns),
            dns: list(&self.dns),
            dns_options: list(&self.dns_option),
            dns_search: list(&self.dns_search),
            extra_hosts: list(
                &self.add_host.iter().map(|(name, to)| format!("{name}:{to}")).collect::<Vec<_>>(),
            ),
            group_add: list(&self.group_add),
            ipc_mode: text(&self.ipc),
            links: list(&self.link),
            oom_score_adj: self.oom_score_adj.unwrap_or_default(),
            pid_mode: text(&self.pid),
            privileged: self.privileged,
            publish_all_ports: self.publish_all,
            readonly_rootfs: self.read_only,
            security_opt: list(&security_options(&self.security_opt)?),
            storage_opt: words::key_values(&self.storage_opt),
            tmpfs: self.tmpfs.iter().map(|tmpfs| split_or(tmpfs, ':')).collect(),
            uts_mode: text(&self.uts),
            userns_mode: text(&self.userns),
            shm_size: self.shm_size.unwrap_or_default(),
            sysctls: words::key_values(&self.sysctl),
            runtime: text(&self.runtime),
            isolation: text(&self.isolation),
            resources: self.resources(),
            mounts: self.mount.clone(),
            init: self.init.then_some(true),
            ..HostConfig::default()
        })
    }

    fn resources(&self) -> HostResources {
        HostResources {
            cpu_shares: self.cpu_shares.unwrap_or_default(),
            memory: self.memory.unwrap_or_default(),
            nano_cpus: self.cpus.unwrap_or_default(),
            cgroup_parent: self.cgroup_parent.clone().unwrap_or_default(),
            blkio_weight: self.blkio_weight.unwrap_or_default(),
            blkio_weight_device: list(&self.blkio_weight_device),
            blkio_device_read_bps: list(&self.device_read_bps),
            blkio_device_write_bps: list(&self.device_write_bps),
            blkio_device_read_iops: list(&self.device_read_iops),
            blkio_device_write_iops: list(&self.device_write_iops),
            cpu_realtime_period: self.cpu_rt_period.unwrap_or_default(),
            cpu_realtime_runtime: self.cpu_rt_runtime.unwrap_or_default(),
            device_requests: list(&self.gpus.iter().map(|gpus| gpu_request(gpus)).collect::<Vec<_>>()),
            cpu_period: self.cpu_period.unwrap_or_default(),
            cpu_quota: self.cpu_quota.unwrap_or_default(),
            cpuset_cpus: self.cpuset_cpus.clone().unwrap_or_default(),
            cpuset_mems: self.cpuset_mems.clone().unwrap_or_default(),
            devices: list(&self.device),
            device_cgroup_rules: list(&self.device_cgroup_rule),
            memory_reservation: self.memory_reservation.unwrap_or_default(),
            memory_swap: self.memory_swap.unwrap_or_default(),
            memory_swappiness: self.memory_swappiness,
            oom_kill_disable: self.oom_kill_disable.then_some(true),
            pids_limit: self.pids_limit,
            ulimits: list(&self.ulimit),
            ..HostResources::default()
        }
    }

    fn ports(&self) -> Result<(PortMap, KeySet), CommandError> {
        let (mut bindings, mut exposed) = (PortMap::new(), KeySet::new());
        for text in &self.publish {
            for (port, binding) in published(text).map_err(CommandError::Usage)? {
                exposed.insert(port.clone(), Empty {});
                bindings.entry(port).or_default().get_or_insert_default().push(binding);
            }
        }
        for text in &self.expose {
            let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            let (first, last) = port_range(range).map_err(CommandError::Usage)?;
            exposed.extend((first..=last).map(|port| (format!("{port}/{protocol}"), Empty {})));
        }
        Ok((bindings, exposed))
    }

    /// `-v`: what has a source is bound, a lone target is an anonymous volume.
    fn volumes(&self) -> Result<(Vec<String>, KeySet), CommandError> {
        let (mut binds, mut anonymous) = (Vec::new(), KeySet::new());
        for volume in &self.volume {
            match volume.split_once(':') {
                None => drop(anonymous.insert(volume.clone(), Empty {})),
                Some((source, rest)) => binds.push(format!("{}:{rest}", absolute(source)?)),
            }
        }
        Ok((binds, anonymous))
    }
}

/// `.` and what begins with it are paths on this machine.
fn absolute(source: &str) -> Result<String, CommandError> {
    if !source.starts_with('.') {
        return Ok(source.to_owned());
    }
    let path = std::path::absolute(Path::new(source));
    let path =
        path.map_err(|source_error| CommandError::Read { path: source.into(), source: source_error })?;
    Ok(path.display().to_string())
}

/// `DEVICE:REST`.
fn device_and<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Result<(String, T), String> {
    let invalid = || format!("bad format: {text}");
    let (path, rest) = text.rsplit_once(':').ok_or_else(invalid)?;
    if !path.starts_with("/dev/") {
        return Err(format!("bad format for device path: {text}"));
    }
    Ok((path.to_owned(), parse(rest).ok_or_else(invalid)?))
}

fn weight_device(text: &str) -> Result<WeightDevice, String> {
    let (path, weight) = device_and(text, |weight| weight.parse().ok())?;
    if weight != 0 && !(10..=1000).contains(&weight) {
        return Err(format!("invalid weight for device: {text}"));
    }
    Ok(WeightDevice { path, weight })
}

fn device_bytes(text: &str) -> Result<ThrottleDevice, String> {
    let bytes = |bytes: &str| units::parse_bytes(bytes).ok().and_then(|bytes| u64::try_from(bytes).ok());
    device_and(text, bytes).map(|(path, rate)| ThrottleDevice { path, rate })
}

fn device_operations(text: &str) -> Result<ThrottleDevice, String> {
    device_and(text, |count| count.parse().ok()).map(|(path, rate)| ThrottleDevice { path, rate })
}

/// `all`, a number, or `device=ID`.
fn gpu_request(text: &str) -> DeviceRequest {
    let ids = text.trim_matches('"').strip_prefix("device=");
    DeviceRequest {
        count: match ids {
            Some(_) => 0,
            None => text.parse().unwrap_or(-1),
        },
        device_ids: ids.map(|ids| ids.split(',').map(str::to_owned).collect()),
        capabilities: Some(vec![vec!["gpu".to_owned()]]),
        ..DeviceRequest::default()
    }
}

fn list<T: Clone>(values: &[T]) -> Option<Vec<T>> {
    (!values.is_empty()).then(|| values.to_vec())
}

fn split_or(text: &str, separator: char) -> (String, String) {
    let (left, right) = text.split_once(separator).unwrap_or((text, ""));
    (left.to_owned(), right.to_owned())
}

/// Networks that have endpoints of their own; the others are modes.
fn is_user_network(name: &str) -> bool {
    !matches!(name, "host" | "none") && !name.starts_with("container:")
}

/// The networks asked for, in order; flags about "the" network are the first one's.
fn networks(options: &ContainerOptions) -> Result<Vec<(String, Option<EndpointSettings>)>, CommandError> {
    let mut networks = Vec::new();
    for text in &options.network {
        networks.push(network(text).map_err(CommandError::Usage)?);
    }
    let asks_for_one = options.ip.is_some()
        || options.ip6.is_some()
        || options.mac_address.is_some()
        || !options.network_alias.is_empty();
    if asks_for_one && networks.is_empty() {
        networks.push(("default".to_owned(), EndpointSettings::default()));
    }
    if let Some((_, endpoint)) = networks.first_mut().filter(|_| asks_for_one) {
        endpoint.aliases.get_or_insert_default().extend(options.network_alias.iter().cloned());
        endpoint.mac_address = options.mac_address.clone().unwrap_or_default();
        let addresses = endpoint.ipam_config.get_or_insert_default();
        addresses.ipv4_address = options.ip.clone().unwrap_or_default();
        addresses.ipv6_address = options.ip6.clone().unwrap_or_default();
    }
    Ok(networks.into_iter().map(|(name, endpoint)| (name, Some(endpoint))).collect())
}

fn network(text: &str) -> Result<(String, EndpointSettings), String> {
    let mut endpoint = EndpointSettings::default();
    if !text.contains('=') {
        return Ok((text.to_owned(), endpoint));
    }
    let mut name = None;
    for field in mount::split_csv(text) {
        let (key, value) = split_or(&field, '=');
        let addresses = || EndpointIpamConfig::default();
        match key.as_str() {
            "name" => name = Some(value),
            "alias" => endpoint.aliases.get_or_insert_default().push(value),
            "ip" => endpoint.ipam_config.get_or_insert_with(addresses).ipv4_address = value,
            "ip6" => endpoint.ipam_config.get_or_insert_with(addresses).ipv6_address = value,
            "mac-address" => endpoint.mac_address = value,
            "link-local-ip" => endpoint.ipam_config.get_or_insert_with(addresses).link_local_ips.push(value),
            "driver-opt" => endpoint.driver_opts.get_or_insert_default().extend([split_or(&value, '=')]),
            "gw-priority" => {
                endpoint.gw_priority = value
                    .parse()
                    .map_err(|_| format!("invalid network `{text}`: `gw-priority` is a number"))?;
            }
            _ => return Err(format!("invalid network `{text}`: `{key}` is not a network option")),
        }
    }
    let name = name.ok_or_else(|| format!("invalid network `{text}`: `name` is missing"))?;
    Ok((name, endpoint))
}

/// `[[address:]host:]container[/protocol]`, where both ports may be ranges of one length.
pub fn published(text: &str) -> Result<Vec<(String, PortBinding)>, String> {
    let wrong =
        || format!("invalid port `{text}`: write it as `8080:80`, `127.0.0.1:8080:80` or `53:53/udp`");
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol, "tcp" | "udp" | "sctp") {
        return Err(format!("invalid port `{text}`: the protocol is tcp, udp or sctp"));
    }
    let (before, container) =
        ports.rsplit_once(':').map_or((None, ports), |(before, port)| (Some(before), port));
    let (address, host) = match before {
        None => ("", ""),
        Some(before) => before.rsplit_once(':').unwrap_or(("", before)),
    };
    let address = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    if !address.is_empty() && address.parse::<std::net::IpAddr>().is_err() {
        return Err(wrong());
    }
    let (first, last) = port_range(container).map_err(|_| wrong())?;
    let host_ports: Vec<String> = match host {
        "" => (first..=last).map(|_| String::new()).collect(),
        range => {
            let (host_first, host_last) = port_range(range).map_err(|_| wrong())?;
            if first == last && host_first != host_last {
                vec![format!("{host_first}-{host_last}")]
            } else if host_last - host_first != last - first {
                return Err(format!("invalid port `{text}`: the ranges differ in length"));
            } else {
                (host_first..=host_last).map(|port| port.to_string()).collect()
            }
        }
    };
    let binding = |(port, host_port): (u16, String)| {
        (format!("{port}/{protocol}"), PortBinding { host_ip: address.to_owned(), host_port })
    };
    Ok((first..=last).zip(host_ports).map(binding).collect())
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let wrong = || format!("invalid port `{text}`");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    if first == 0 || last < first { Err(wrong()) } else { Ok((first, last)) }
}

/// `no`, `always`, `unless-stopped`, `on-failure[:max]`
pub fn restart_policy(text: &str) -> Result<RestartPolicy, String> {
    let (name, max) = text.split_once(':').map_or((text, None), |(name, max)| (name, Some(max)));
    match (name, max) {
        ("no" | "always" | "unless-stopped" | "on-failure", None) => {
            Ok(RestartPolicy { name: name.to_owned(), maximum_retry_count: 0 })
        }
        ("on-failure", Some(max)) => {
            let max = max
                .parse()
                .map_err(|_| format!("invalid restart policy `{text}`: `{max}` is not a number"))?;
            Ok(RestartPolicy { name: name.to_owned(), maximum_retry_count: max })
        }
        _ => Err(format!(
            "invalid restart policy `{text}`: it is no, on-failure[:MAX], always or unless-stopped"
        )),
    }
}

fn device(text: &str) -> Result<DeviceMapping, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let is_permissions = |text: &str| !text.is_empty() && text.chars().all(|c| "rwm".contains(c));
    let (host, container, permissions) = match parts[..] {
        [host] => (host, host, "rwm"),
        [host, permissions] if is_permissions(permissions) => (host, host, permissions),
        [host, container] => (host, container, "rwm"),
        [host, container, permissions] if is_permissions(permissions) => (host, container, permissions),
        _ => return Err(format!("invalid device `{text}`: write it as `HOST[:CONTAINER[:PERMISSIONS]]`")),
    };
    Ok(DeviceMapping {
        path_on_host: host.into(),
        path_in_container: container.into(),
        cgroup_permissions: permissions.into(),
    })
}

/// A seccomp profile is sent as its content: the daemon may not see the client's files.
fn security_options(typed: &[String]) -> Result<Vec<String>, CommandError> {
    let expand = |option: &String| match option.strip_prefix("seccomp=") {
        Some(path) if path != "unconfined" && path != "builtin" => {
            Ok(format!("seccomp={}", words::read(Path::new(path))?))
        }
        _ => Ok(option.clone()),
    };
    typed.iter().map(expand).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(disable_help_flag = true)]
    struct Harness {
        #[command(flatten)]
        options: ContainerOptions,
    }

    fn body(flags: &str) -> CreateBody {
        let words = std::iter::once("run").chain(flags.split(' '));
        Harness::try_parse_from(words).expect(flags).options.body(true).expect(flags)
    }

    fn host(flags: &str) -> HostConfig {
        body(flags).host_config.expect("always sent")
    }

    #[test]
    fn flags_end_at_the_image() {
        let body = body("-e A=1 --label x=y web -e B=2 --rm");
        assert_eq!(body.config.cmd.words(), ["-e", "B=2", "--rm"]);
        assert_eq!(body.config.env, Some(vec!["A=1".into()]));
        assert_eq!(body.config.labels.expect("labels")["x"], "y");
        assert!(!body.host_config.expect("host").auto_remove);
    }

    #[test]
    fn limits_reach_the_host_configuration() {
        let host =
            host("--memory 64m --cpus 0.5 --pids-limit 10 --memory-swap -1 --ulimit nofile=1:2 --rm web");
        assert_eq!((host.resources.memory, host.resources.nano_cpus), (64 << 20, 500_000_000));
        assert_eq!((host.resources.pids_limit, host.resources.memory_swap), (Some(10), -1));
        assert_eq!(host.resources.ulimits.expect("ulimits")[0].hard, 2);
        assert!(host.auto_remove);
    }

    #[test]
    fn ports_are_bound_one_by_one() {
        let binding = |ip: &str, port: &str| PortBinding { host_ip: ip.into(), host_port: port.into() };
        assert_eq!(published("80"), Ok(vec![("80/tcp".into(), binding("", ""))]));
        assert_eq!(published("8080:80/udp"), Ok(vec![("80/udp".into(), binding("", "8080"))]));
        assert_eq!(published("127.0.0.1::80"), Ok(vec![("80/tcp".into(), binding("127.0.0.1", ""))]));
        assert_eq!(published("[::1]:8080:80"), Ok(vec![("80/tcp".into(), binding("::1", "8080"))]));
        assert_eq!(
            published("81-82:91-92"),
            Ok(vec![("91/tcp".into(), binding("", "81")), ("92/tcp".into(), binding("", "82"))])
        );
        assert_eq!(published("8000-8010:80"), Ok(vec![("80/tcp".into(), binding("", "8000-8010"))]));
        for text in ["", "x", "0:80", "80:", "1.2.3:80:80", "80/ip", "1-3:4-5", "70000"] {
            assert!(published(text).is_err(), "{text}");
        }
    }

    #[test]
    fn volumes_are_bound_or_anonymous() {
        let body = body("-v /a:/b:ro -v data:/d -v /anonymous web");
        assert_eq!(body.host_config.expect("host").binds, Some(vec!["/a:/b:ro".into(), "data:/d".into()]));
        assert!(body.config.volumes.expect("volumes").contains_key("/anonymous"));
    }

    #[test]
    fn the_first_network_is_the_mode_and_all_have_endpoints() {
        let made = body("--network name=app,alias=w,ip=10.0.0.9 --network other --network-alias v web");
        assert_eq!(made.host_config.expect("host").network_mode, "app");
        let endpoints = made.networking_config.expect("networks").endpoints_config.expect("endpoints");
        let app = endpoints["app"].as_ref().expect("app");
        assert_eq!(app.aliases, Some(vec!["w".into(), "v".into()]));
        assert!(endpoints.contains_key("other"));
        let host = body("--network host web");
        assert!(host.networking_config.expect("networks").endpoints_config.expect("endpoints").is_empty());
    }

    #[test]
    fn policies_and_devices_are_checked() {
        assert_eq!(
            restart_policy("on-failure:3"),
            Ok(RestartPolicy { name: "on-failure".into(), maximum_retry_count: 3 })
        );
        for text in ["sometimes", "always:3", "on-failure:x"] {
            assert!(restart_policy(text).is_err(), "{text}");
        }
        assert_eq!(device("/dev/null:r").expect("device").cgroup_permissions, "r");
        assert_eq!(device("/dev/a:/dev/b").expect("device").path_in_container, "/dev/b");
        assert!(device("/a:/b:x").is_err());
    }
}

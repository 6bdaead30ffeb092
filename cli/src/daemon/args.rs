//! The daemon's options: flags as dockerd's, a JSON file with the same names, every default in one table.

mod defaults;
mod fixed;
mod generic;
mod network;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use rswarm_base::fsx;
use rswarm_base::ipam::{Family, Subnet};
use serde::Deserialize;

use defaults::{DefaultOptions, DefaultSettings};
use fixed::FixedOptions;
use network::{NetworkOptions, NetworkSettings};

/// Flags of `rswarm daemon`, also taken under the name `dockerd`.
#[derive(Debug, Clone, Default, Args)]
pub struct DaemonArgs {
    /// Directory of everything that must survive a reboot [default: /var/lib/rswarm]
    #[arg(long, value_name = "DIR")]
    pub data_root: Option<PathBuf>,
    /// Directory of sockets and other run-time files [default: /run/rswarm]
    #[arg(long, value_name = "DIR")]
    pub exec_root: Option<PathBuf>,
    /// Where the API listens: unix:///PATH or tcp://ADDRESS:PORT; may be repeated [default: unix:///run/rswarm/rswarm.sock]
    #[arg(short = 'H', long = "host", value_name = "URL")]
    pub hosts: Vec<String>,
    /// File to write the daemon's process id to
    #[arg(short, long, value_name = "FILE")]
    pub pidfile: Option<PathBuf>,
    /// JSON file with options by their flags' names [default: /etc/rswarm/daemon.json, if there]
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// Mirror to try before Docker Hub; may be repeated
    #[arg(long = "registry-mirror", value_name = "URL")]
    pub registry_mirrors: Vec<String>,
    /// Registry that may be reached without TLS; may be repeated
    #[arg(long = "insecure-registry", value_name = "HOST[:PORT]")]
    pub insecure_registries: Vec<String>,
    /// Cgroup under which all containers are [default: /rswarm-<daemon id>]
    #[arg(long, value_name = "PATH")]
    pub cgroup_parent: Option<String>,
    /// `none` runs without a default bridge network
    #[arg(short, long, value_name = "NAME")]
    pub bridge: Option<String>,
    /// Whether published ports are open by themselves: `open` to everybody, `input` only while the host's own
    /// input rules let in what nobody refuses
    #[arg(long, value_name = "MODE")]
    pub firewall_mode: Option<FirewallWord>,
    /// Give containers on the default bridge network IPv6 addresses
    #[arg(long)]
    pub ipv6: bool,
    /// IPv6 subnet of the default bridge network
    #[arg(long, value_name = "SUBNET")]
    pub fixed_cidr_v6: Option<String>,
    /// Label of this engine, KEY=VALUE; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Node name in the cluster, instead of the machine's hostname
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// UDP port of encrypted networks [default: 51820]
    #[arg(long, value_name = "PORT")]
    pub tunnel_port: Option<u16>,
    /// OCI runtime that containers may choose, NAME=PATH; may be repeated
    #[arg(long = "add-runtime", value_name = "NAME=PATH")]
    pub runtimes: Vec<String>,
    /// Runtime of containers that choose none [default: the built-in one]
    #[arg(long, value_name = "NAME")]
    pub default_runtime: Option<String>,
    /// Give every container that does not say otherwise an init
    #[arg(long)]
    pub init: bool,
    /// Program that is the init [default: this one]
    #[arg(long, value_name = "FILE")]
    pub init_path: Option<PathBuf>,
    /// IPC mode of containers that choose none: `private` or `shareable` [default: private]
    #[arg(long, value_name = "MODE")]
    pub default_ipc_mode: Option<String>,
    /// Cgroup namespace mode of containers that choose none: `private` or `host` [default: private with cgroups v2]
    #[arg(long, value_name = "MODE")]
    pub default_cgroupns_mode: Option<String>,
    /// Keep containers running while the daemon does not: always so, and false is refused
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub live_restore: Option<bool>,
    /// Address or interface that this node tells others in a cluster, when `swarm init` and `join` give none
    #[arg(long, value_name = "ADDRESS")]
    pub swarm_default_advertise_addr: Option<String>,
    /// What this node has that services can reserve, KIND=NAME or KIND=COUNT; may be repeated
    #[arg(long = "node-generic-resource", value_name = "KIND=VALUE")]
    pub node_generic_resources: Vec<String>,
    /// Log driver of containers that choose none [default: json-file]
    #[arg(long, value_name = "NAME")]
    pub log_driver: Option<String>,
    /// Log option of containers that choose no driver, NAME=VALUE; may be repeated
    #[arg(long = "log-opt", value_name = "NAME=VALUE")]
    pub log_opts: Vec<String>,
    /// How much is logged
    #[arg(short, long, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
    /// How log lines look
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Layers that are downloaded at one time [default: 3]
    #[arg(long, value_name = "COUNT")]
    pub max_concurrent_downloads: Option<usize>,
    #[command(flatten)]
    pub network: NetworkOptions,
    #[command(flatten)]
    pub defaults: DefaultOptions,
    #[command(flatten)]
    pub fixed: FixedOptions,
    /// Check the options and the configuration file, and end
    #[arg(long)]
    pub validate: bool,
    /// Same as --log-level debug
    #[arg(short = 'D', long)]
    pub debug: bool,
}

/// Words of `--firewall-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FirewallWord {
    /// Published ports are open to everybody.
    Open,
    /// They are closed while the host's input rules refuse what they do not accept.
    Input,
}

/// Levels of `--log-level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Decisions and their reasons.
    Debug,
    /// One line for every change of state.
    Info,
    /// What will heal itself.
    Warn,
    /// What someone must act on.
    #[value(alias = "fatal")]
    #[serde(alias = "fatal")]
    Error,
}

/// Formats of `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What `daemon.json` may hold; an unknown key is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct ConfigFile {
    data_root: Option<PathBuf>,
    exec_root: Option<PathBuf>,
    hosts: Vec<String>,
    pidfile: Option<PathBuf>,
    registry_mirrors: Vec<String>,
    insecure_registries: Vec<String>,
    cgroup_parent: Option<String>,
    bridge: Option<String>,
    firewall_mode: Option<FirewallWord>,
    ipv6: bool,
    fixed_cidr_v6: Option<String>,
    labels: Vec<String>,
    node_name: Option<String>,
    tunnel_port: Option<u16>,
    runtimes: BTreeMap<String, RuntimeFile>,
    default_runtime: Option<String>,
    init: bool,
    init_path: Option<PathBuf>,
    default_ipc_mode: Option<String>,
    default_cgroupns_mode: Option<String>,
    live_restore: Option<bool>,
    swarm_default_advertise_addr: Option<String>,
    node_generic_resources: Vec<String>,
    log_driver: Option<String>,
    log_opts: BTreeMap<String, String>,
    log_level: Option<LogLevel>,
    log_format: Option<LogFormat>,
    debug: bool,
    max_concurrent_downloads: Option<usize>,
    #[serde(flatten)]
    network: NetworkOptions,
    #[serde(flatten)]
    defaults: DefaultOptions,
    #[serde(flatten)]
    fixed: FixedOptions,
    /// What none of these knows.
    #[serde(flatten)]
    unknown: BTreeMap<String, serde_json::Value>,
}

/// A runtime in `daemon.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RuntimeFile {
    path: PathBuf,
}

/// The merged options, with defaults filled in.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Everything that must survive a reboot.
    pub data_root: PathBuf,
    /// Sockets and other run-time files.
    pub exec_root: PathBuf,
    /// Where the API listens.
    pub hosts: Vec<String>,
    /// Where the process id goes.
    pub pidfile: Option<PathBuf>,
    /// Mirrors of Docker Hub.
    pub registry_mirrors: Vec<String>,
    /// Registries without TLS.
    pub insecure_registries: Vec<String>,
    /// Parent cgroup of containers, when given.
    pub cgroup_parent: Option<String>,
    /// Whether there is a default bridge network.
    pub default_bridge: bool,
    /// Whether published ports are open by themselves.
    pub firewall: rswarm_engine::FirewallMode,
    /// Whether containers on it have IPv6 addresses.
    pub ipv6: bool,
    /// Its IPv6 subnet; `None` takes a free one.
    pub fixed_cidr_v6: Option<Subnet>,
    /// Engine labels.
    pub labels: Vec<(String, String)>,
    /// Node name, when it is not the hostname.
    pub node_name: Option<String>,
    /// The UDP port of encrypted networks.
    pub tunnel_port: u16,
    /// Other OCI runtimes, by name.
    pub runtimes: BTreeMap<String, PathBuf>,
    /// The runtime of containers that choose none; empty is the built-in one.
    pub default_runtime: String,
    /// Whether containers that do not say get an init.
    pub init: bool,
    /// The init program, when it is another.
    pub init_path: Option<PathBuf>,
    /// The IPC mode of containers that choose none; empty is `private`.
    pub ipc_mode: String,
    /// The cgroup namespace mode of containers that choose none; empty follows the cgroups' version.
    pub cgroupns_mode: String,
    /// What this node advertises in a cluster, when nobody says; empty is the only address it has.
    pub advertise_addr: String,
    /// What this node has that services can reserve.
    pub generic: Vec<rswarm_proto::wire::GenericResource>,
    /// The log driver of containers that choose none; empty is json-file.
    pub log_driver: String,
    /// Its options.
    pub log_opts: BTreeMap<String, String>,
    /// Layers that are downloaded at one time; 0 is the default.
    pub downloads_max: usize,
    /// Networks.
    pub network: NetworkSettings,
    /// Containers that do not say otherwise.
    pub defaults: DefaultSettings,
    /// Least severe level that is logged.
    pub log_level: LogLevel,
    /// How log lines look.
    pub log_format: LogFormat,
}

/// Options that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file is not there, or not what it should be.
    #[error("unable to configure the Docker daemon with file {0}")]
    File(String, #[source] std::io::Error),
    /// An option both in the file and on the command line, as dockerd refuses it.
    #[error("the following directives are specified both as a flag and in the configuration file: {0}")]
    Twice(String),
    /// A key of the file that is no option.
    #[error("the following directives don't match any configuration option: {0}")]
    Unknown(String),
    /// A value that an option cannot have; why.
    #[error("invalid {option} `{value}`: {why}")]
    Invalid {
        /// The option's name.
        option: &'static str,
        /// What was given.
        value: String,
        /// What there is.
        why: String,
    },
    /// The profile that was named is not there.
    #[error("opening seccomp profile ({0}) failed")]
    Seccomp(String, #[source] std::io::Error),
    /// A label without `=`.
    #[error("bad attribute format: {0}: want KEY=VALUE")]
    Label(String),
    /// A runtime without a path, or a name that is the built-in runtime's.
    #[error("invalid runtime `{0}`: want NAME=PATH, and a name other than the built-in runtime's")]
    Runtime(String),
    /// A default runtime that is not there.
    #[error("specified default runtime `{0}` does not exist: name it with --add-runtime")]
    DefaultRuntime(String),
    /// No IPv6 subnet.
    #[error("invalid fixed-cidr-v6: '{0}' is not a valid IPv6 subnet")]
    FixedCidrV6(String),
    /// No mode of that name, or none that could be everybody's.
    #[error("default {what} mode setting ({mode}) is invalid; use \"{}\" or \"{}\"", choice[0], choice[1])]
    Mode {
        /// `IPC` or `cgroup namespace`.
        what: &'static str,
        /// What was given.
        mode: String,
        /// What there is.
        choice: [&'static str; 2],
    },
    /// Shims keep the containers; the daemon has no way to take them along.
    #[error("live-restore cannot be false: containers always go on without the daemon")]
    LiveRestore,
    /// Only `none` and the default are known.
    #[error("bridge `{0}` cannot be used: this daemon makes its own; only `none` is accepted")]
    Bridge(String),
}

const DEFAULT_CONFIG: &str = "/etc/rswarm/daemon.json";

impl Settings {
    /// Merges flags, file and defaults.
    ///
    /// # Errors
    /// When the file or a value cannot be used.
    pub fn merge(args: DaemonArgs) -> Result<Settings, SettingsError> {
        let file = read_file(args.config_file.as_deref())?;
        if !file.unknown.is_empty() {
            let unknown: Vec<&str> = file.unknown.keys().map(String::as_str).collect();
            return Err(SettingsError::Unknown(unknown.join(", ")));
        }
        let mut twice = twice(&args, &file);
        args.fixed.check()?;
        file.fixed.check()?;
        let network = NetworkOptions::merge(args.network, file.network, &mut twice)?;
        let defaults = DefaultOptions::merge(args.defaults, file.defaults, &mut twice)?;
        let downloads_max = twice.either(
            "max-concurrent-downloads",
            args.max_concurrent_downloads,
            file.max_concurrent_downloads,
        );
        twice.refuse()?;
        let exec_root = args.exec_root.or(file.exec_root).unwrap_or_else(|| "/run/rswarm".into());
        let mut hosts = [args.hosts, file.hosts].concat();
        if hosts.is_empty() {
            hosts.push(format!("unix://{}", exec_root.join("rswarm.sock").display()));
        }
        let named = file.runtimes.into_iter().map(|(name, runtime)| (name, runtime.path));
        let runtimes = runtimes(args.runtimes, named)?;
        let default_runtime = args.default_runtime.or(file.default_runtime).unwrap_or_default();
        if !rswarm_engine::is_builtin_runtime(&default_runtime) && !runtimes.contains_key(&default_runtime) {
            return Err(SettingsError::DefaultRuntime(default_runtime));
        }
        if args.live_restore.or(file.live_restore) == Some(false) {
            return Err(SettingsError::LiveRestore);
        }
        let mut log_opts = file.log_opts;
        log_opts.extend(labels(args.log_opts)?);
        let debug = args.debug || file.debug;
        let level = args.log_level.or(file.log_level);
        Ok(Settings {
            data_root: args.data_root.or(file.data_root).unwrap_or_else(|| "/var/lib/rswarm".into()),
            exec_root,
            hosts,
            pidfile: args.pidfile.or(file.pidfile),
            registry_mirrors: [args.registry_mirrors, file.registry_mirrors].concat(),
            insecure_registries: [args.insecure_registries, file.insecure_registries].concat(),
            cgroup_parent: args.cgroup_parent.or(file.cgroup_parent),
            tunnel_port: args.tunnel_port.or(file.tunnel_port).unwrap_or(rswarm_network::TUNNEL_PORT),
            default_bridge: default_bridge(args.bridge.or(file.bridge))?,
            firewall: match args.firewall_mode.or(file.firewall_mode) {
                Some(FirewallWord::Input) => rswarm_engine::FirewallMode::Input,
                Some(FirewallWord::Open) | None => rswarm_engine::FirewallMode::Open,
            },
            ipv6: args.ipv6 || file.ipv6,
            fixed_cidr_v6: args
                .fixed_cidr_v6
                .or(file.fixed_cidr_v6)
                .map(|text| fixed_cidr_v6(&text))
                .transpose()?,
            labels: labels([args.labels, file.labels].concat())?,
            node_name: args.node_name.or(file.node_name),
            runtimes,
            default_runtime,
            init: args.init || file.init,
            init_path: args.init_path.or(file.init_path),
            ipc_mode: mode(args.default_ipc_mode.or(file.default_ipc_mode), "IPC", ["shareable", "private"])?,
            cgroupns_mode: mode(
                args.default_cgroupns_mode.or(file.default_cgroupns_mode),
                "cgroup namespace",
                ["host", "private"],
            )?,
            advertise_addr: args
                .swarm_default_advertise_addr
                .or(file.swarm_default_advertise_addr)
                .unwrap_or_default(),
            generic: generic::parse(&[args.node_generic_resources, file.node_generic_resources].concat())?,
            log_driver: args.log_driver.or(file.log_driver).unwrap_or_default(),
            log_opts,
            downloads_max: downloads_max.unwrap_or_default(),
            network,
            defaults,
            log_level: level.unwrap_or(if debug { LogLevel::Debug } else { LogLevel::Info }),
            log_format: args.log_format.or(file.log_format).unwrap_or(LogFormat::Text),
        })
    }
}

fn read_file(path: Option<&Path>) -> Result<ConfigFile, SettingsError> {
    let place = path.unwrap_or(Path::new(DEFAULT_CONFIG));
    let failed = |error| SettingsError::File(place.display().to_string(), error);
    // dockerd takes an empty file for one without options.
    let is_empty = std::fs::metadata(place).is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0);
    if is_empty {
        return Ok(ConfigFile::default());
    }
    match (fsx::read_json(place).map_err(failed)?, path) {
        (Some(file), _) => Ok(file),
        (None, None) => Ok(ConfigFile::default()),
        (None, Some(path)) => Err(failed(std::io::Error::new(
            std::io::ErrorKind::NotFound,
            format!("open {}: no such file or directory", path.display()),
        ))),
    }
}

/// Options that were given in two places. One with one value may be given in one only; lists add up.
#[derive(Debug, Default)]
struct Twice(Vec<&'static str>);

impl Twice {
    /// The flag's value, or the file's.
    fn either<T>(&mut self, option: &'static str, flag: Option<T>, file: Option<T>) -> Option<T> {
        if flag.is_some() && file.is_some() {
            self.0.push(option);
        }
        flag.or(file)
    }

    fn refuse(self) -> Result<(), SettingsError> {
        if self.0.is_empty() { Ok(()) } else { Err(SettingsError::Twice(self.0.join(", "))) }
    }
}

fn twice(args: &DaemonArgs, file: &ConfigFile) -> Twice {
    let twice = [
        ("data-root", args.data_root.is_some() && file.data_root.is_some()),
        ("exec-root", args.exec_root.is_some() && file.exec_root.is_some()),
        ("hosts", !args.hosts.is_empty() && !file.hosts.is_empty()),
        ("pidfile", args.pidfile.is_some() && file.pidfile.is_some()),
        ("cgroup-parent", args.cgroup_parent.is_some() && file.cgroup_parent.is_some()),
        ("tunnel-port", args.tunnel_port.is_some() && file.tunnel_port.is_some()),
        ("bridge", args.bridge.is_some() && file.bridge.is_some()),
        ("firewall-mode", args.firewall_mode.is_some() && file.firewall_mode.is_some()),
        ("fixed-cidr-v6", args.fixed_cidr_v6.is_some() && file.fixed_cidr_v6.is_some()),
        ("node-name", args.node_name.is_some() && file.node_name.is_some()),
        ("default-runtime", args.default_runtime.is_some() && file.default_runtime.is_some()),
        ("init-path", args.init_path.is_some() && file.init_path.is_some()),
        ("default-ipc-mode", args.default_ipc_mode.is_some() && file.default_ipc_mode.is_some()),
        (
            "default-cgroupns-mode",
            args.default_cgroupns_mode.is_some() && file.default_cgroupns_mode.is_some(),
        ),
        ("live-restore", args.live_restore.is_some() && file.live_restore.is_some()),
        (
            "swarm-default-advertise-addr",
            args.swarm_default_advertise_addr.is_some() && file.swarm_default_advertise_addr.is_some(),
        ),
        ("log-driver", args.log_driver.is_some() && file.log_driver.is_some()),
        ("log-level", args.log_level.is_some() && file.log_level.is_some()),
        ("log-format", args.log_format.is_some() && file.log_format.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, twice)| twice.then_some(name));
    Twice(twice.collect())
}

fn mode(
    given: Option<String>,
    what: &'static str,
    choice: [&'static str; 2],
) -> Result<String, SettingsError> {
    match given {
        Some(mode) if !mode.is_empty() && !choice.contains(&mode.as_str()) => {
            Err(SettingsError::Mode { what, mode, choice })
        }
        given => Ok(given.unwrap_or_default()),
    }
}

fn default_bridge(name: Option<String>) -> Result<bool, SettingsError> {
    match name.as_deref() {
        None | Some("") => Ok(true),
        Some("none") => Ok(false),
        Some(other) => Err(SettingsError::Bridge(other.to_owned())),
    }
}

fn fixed_cidr_v6(text: &str) -> Result<Subnet, SettingsError> {
    let subnet = text.parse().ok().filter(|subnet: &Subnet| subnet.family() == Family::V6);
    subnet.ok_or_else(|| SettingsError::FixedCidrV6(text.to_owned()))
}

fn runtimes(
    flags: Vec<String>,
    named: impl Iterator<Item = (String, PathBuf)>,
) -> Result<BTreeMap<String, PathBuf>, SettingsError> {
    let mut runtimes = BTreeMap::new();
    let flags = flags.into_iter().map(|text| match text.split_once('=') {
        Some((name, path)) => (name.to_owned(), PathBuf::from(path)),
        None => (text, PathBuf::new()),
    });
    for (name, path) in flags.chain(named) {
        // `runc` may be taken: it is only another name of the built-in one.
        if (rswarm_engine::is_builtin_runtime(&name) && name != "runc") || path.as_os_str().is_empty() {
            return Err(SettingsError::Runtime(name));
        }
        runtimes.insert(name, path);
    }
    Ok(runtimes)
}

fn labels(texts: Vec<String>) -> Result<Vec<(String, String)>, SettingsError> {
    let pair = |text: String| match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(SettingsError::Label(text)),
    };
    texts.into_iter().map(pair).collect()
}

#[cfg(test)]
mod tests;

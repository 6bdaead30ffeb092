//! Networks.

mod diagnose;

use clap::{Args, Subcommand};
use rswarm_api::types::{
    ConfigReference, Ipam, IpamConfig, NetworkConnectBody, NetworkCreateBody, NetworkCreated,
    NetworkDisconnectBody, NetworkInspect,
};
use rswarm_base::clock::Timestamp;
use serde_json::json;

use super::container::list::local_time;
use super::{CommandError, Context, InspectArgs, ListArgs, confirmed, short_id, words};
use crate::client::Call;
use crate::render::table::{Listing, Row, row};
use crate::render::template::with_labels;

const LISTING: Listing = Listing {
    table: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
    headers: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("IPv4", "IPV4"),
        ("IPv6", "IPV6"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
    ],
    quiet: "ID",
};

/// What comes after `network`.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// List networks
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Create a network
    Create(Box<CreateArgs>),
    /// Print everything about networks
    Inspect(NetworkInspectArgs),
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Connect a container
    Connect(ConnectArgs),
    /// Disconnect a container
    Disconnect(DisconnectArgs),
    /// Say what is wrong with networks on this node, and what to do about it
    Check(diagnose::CheckArgs),
    /// List what can be reached on this node, and from where
    Audit(diagnose::AuditArgs),
}

#[derive(Debug, Args)]
pub struct LsArgs {
    /// Print everything in full
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Driver: bridge, macvlan or ipvlan on this node, overlay across the cluster
    #[arg(short, long, default_value = "bridge")]
    driver: String,
    /// Subnet, as in `10.5.0.0/24`
    #[arg(long)]
    subnet: Vec<String>,
    /// Gateway of a subnet
    #[arg(long)]
    gateway: Vec<String>,
    /// Give containers addresses of this part of a subnet
    #[arg(long, value_name = "RANGE")]
    ip_range: Vec<String>,
    /// Address that is taken, `NAME=ADDRESS`
    #[arg(long, value_name = "ADDRESS")]
    aux_address: Vec<String>,
    /// Let containers that no service made connect
    #[arg(long)]
    attachable: bool,
    /// No way out
    #[arg(long)]
    internal: bool,
    /// Make it the cluster's routing mesh
    #[arg(long)]
    ingress: bool,
    /// Make only words for other networks
    #[arg(long)]
    config_only: bool,
    /// Take the words from this network
    #[arg(long, value_name = "NETWORK")]
    config_from: Option<String>,
    /// Hand out IPv4 addresses
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ipv4: Option<bool>,
    /// Hand out IPv6 addresses
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ipv6: Option<bool>,
    /// Address management driver
    #[arg(long, default_value = "default", value_name = "DRIVER")]
    ipam_driver: String,
    /// Address management option, `KEY=VALUE`
    #[arg(long, value_name = "OPTION")]
    ipam_opt: Vec<String>,
    /// Driver option, `KEY=VALUE`
    #[arg(short, long, value_name = "OPTION")]
    opt: Vec<String>,
    /// Set a label, `KEY=VALUE`
    #[arg(long)]
    label: Vec<String>,
    /// Where it exists: local or swarm
    #[arg(long)]
    scope: Option<String>,
    /// Name of the network
    #[arg(value_name = "NETWORK")]
    name: String,
}

#[derive(Debug, Args)]
pub struct NetworkInspectArgs {
    /// Ask the whole cluster
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    inspect: InspectArgs,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// One that is not there is fine
    #[arg(short, long)]
    force: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// Another name on the network
    #[arg(long)]
    alias: Vec<String>,
    /// Address on the network
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// IPv6 address on the network
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<String>,
    /// Link to another container
    #[arg(long)]
    link: Vec<String>,
    /// Driver option, `KEY=VALUE`
    #[arg(long, value_name = "OPTION")]
    driver_opt: Vec<String>,
    /// Name or ID
    network: String,
    /// Name or ID
    container: String,
}

#[derive(Debug, Args)]
pub struct DisconnectArgs {
    /// Even when the container is gone
    #[arg(short, long)]
    force: bool,
    /// Name or ID
    network: String,
    /// Name or ID
    container: String,
}

/// Where a network is inspected.
pub fn inspect_path(name: &str) -> String {
    format!("/networks/{name}")
}

impl NetworkCommand {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        match self {
            NetworkCommand::Ls(args) => list(context, args).await,
            NetworkCommand::Create(args) => create(context, *args).await,
            NetworkCommand::Inspect(args) => {
                let call = |name: &str| Call::get(inspect_path(name)).flag("verbose", args.verbose);
                context.inspect(&args.inspect, call).await
            }
            NetworkCommand::Rm(args) => remove(context, args).await,
            NetworkCommand::Connect(args) => connect(context, args).await,
            NetworkCommand::Check(args) => diagnose::check(context, args).await,
            NetworkCommand::Audit(args) => diagnose::audit(context, args).await,
            NetworkCommand::Disconnect(args) => {
                let body = NetworkDisconnectBody { container: args.container, force: args.force };
                context
                    .client
                    .done(Call::post(format!("/networks/{}/disconnect", args.network)).body(&body))
                    .await?;
                Ok(0)
            }
        }
    }
}

async fn list(context: &Context, args: LsArgs) -> Result<u8, CommandError> {
    let call = Call::get("/networks").filters(&args.list.filters()?);
    let mut networks: Vec<NetworkInspect> = context.client.json(call).await?;
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    let line = |network: &NetworkInspect| {
        let labels = network.labels.clone().unwrap_or_default();
        let fields = row([
            ("ID", short_id(&network.id, args.no_trunc)),
            ("Name", network.name.clone()),
            ("Driver", network.driver.clone()),
            ("Scope", network.scope.clone()),
            ("IPv4", network.enable_ipv4.to_string()),
            ("IPv6", network.enable_ipv6.to_string()),
            ("Internal", network.internal.to_string()),
            ("Labels", words::printed_labels(&labels)),
            ("CreatedAt", Timestamp::parse(&network.created).map(local_time).unwrap_or_default()),
        ]);
        with_labels(fields, json!(labels))
    };
    let rows: Vec<Row> = networks.iter().map(line).collect();
    context.list(&LISTING, &args.list, &rows)
}

async fn create(context: &Context, args: CreateArgs) -> Result<u8, CommandError> {
    let body = body(&args).map_err(CommandError::Usage)?;
    let created: NetworkCreated = context.client.json(Call::post("/networks/create").body(&body)).await?;
    if !created.warning.is_empty() {
        context.terminal.complain(format!("WARNING: {}", created.warning));
    }
    context.terminal.line(created.id)?;
    Ok(0)
}

fn body(args: &CreateArgs) -> Result<NetworkCreateBody, String> {
    Ok(NetworkCreateBody {
        name: args.name.clone(),
        driver: args.driver.clone(),
        scope: args.scope.clone().unwrap_or_default(),
        enable_ipv4: args.ipv4,
        enable_ipv6: args.ipv6,
        ipam: Some(Ipam {
            driver: args.ipam_driver.clone(),
            options: Some(words::key_values(&args.ipam_opt)),
            config: Some(pools(args)?),
        }),
        internal: args.internal,
        attachable: args.attachable,
        ingress: args.ingress,
        config_only: args.config_only,
        config_from: args.config_from.clone().map(|network| ConfigReference { network }),
        options: Some(words::key_values(&args.opt)),
        labels: Some(words::key_values(&args.label)),
        ..NetworkCreateBody::default()
    })
}

/// One pool per subnet, with the gateway, range and taken addresses that lie in it.
fn pools(args: &CreateArgs) -> Result<Vec<IpamConfig>, String> {
    let mut pools: Vec<(rswarm_base::ipam::Subnet, IpamConfig)> = Vec::new();
    for text in &args.subnet {
        let subnet =
            text.parse().map_err(|_| format!("invalid subnet `{text}`: write it as `10.5.0.0/24`"))?;
        pools.push((subnet, IpamConfig { subnet: text.clone(), ..IpamConfig::default() }));
    }
    let holding = |text: &str, what: &str| -> Result<usize, String> {
        let address = text.split('/').next().unwrap_or(text);
        let address = address.parse().map_err(|_| format!("invalid {what} `{text}`"))?;
        let pool = pools.iter().position(|(subnet, _)| subnet.contains(address));
        pool.ok_or_else(|| format!("{what} `{text}` is in none of the subnets; give its `--subnet`"))
    };
    let mut places = Vec::new();
    for (texts, what) in [(&args.gateway, "gateway"), (&args.ip_range, "range")] {
        for text in texts {
            places.push((holding(text, what)?, what, text.clone(), String::new()));
        }
    }
    for text in &args.aux_address {
        let (name, address) = text
            .split_once('=')
            .ok_or_else(|| format!("invalid address `{text}`: write it as `NAME=ADDRESS`"))?;
        places.push((holding(address, "address")?, "address", name.to_owned(), address.to_owned()));
    }
    for (pool, what, text, address) in places {
        let config = &mut pools[pool].1;
        match what {
            "gateway" => config.gateway = text,
            "range" => config.ip_range = text,
            _ => drop(config.auxiliary_addresses.insert(text, address)),
        }
    }
    Ok(pools.into_iter().map(|(_, config)| config).collect())
}

/// As the docker command line, which asks whatever `--force` says.
const INGRESS_WARNING: &str = "WARNING! Before removing the routing-mesh network, make sure all the nodes in your swarm \
run the same docker engine version. Otherwise, removal may not be effective and functionality of newly create ingress \
networks will be impaired.\nAre you sure you want to continue? [y/N] ";

async fn remove(context: &Context, mut args: RmArgs) -> Result<u8, CommandError> {
    let mut names = Vec::new();
    for name in args.names {
        let found = context.client.json::<NetworkInspect>(Call::get(format!("/networks/{name}"))).await;
        let is_ingress = found.is_ok_and(|network| network.ingress);
        if !is_ingress || confirmed(context, INGRESS_WARNING)? {
            names.push(name);
        }
    }
    args.names = names;
    let work = |name: String| {
        let force = args.force;
        async move {
            match context.client.done(Call::delete(format!("/networks/{name}"))).await {
                Ok(()) => Ok(vec![name]),
                Err(error) if force && error.is_not_found() => Ok(vec![]),
                Err(error) => Err(error.into()),
            }
        }
    };
    context.each(&args.names, work).await
}

async fn connect(context: &Context, args: ConnectArgs) -> Result<u8, CommandError> {
    let mut body = NetworkConnectBody { container: args.container, ..NetworkConnectBody::default() };
    let endpoint = body.endpoint_config.get_or_insert_default();
    endpoint.aliases = Some(args.alias);
    endpoint.links = Some(args.link);
    endpoint.driver_opts = Some(words::key_values(&args.driver_opt));
    let addresses = endpoint.ipam_config.get_or_insert_default();
    addresses.ipv4_address = args.ip.unwrap_or_default();
    addresses.ipv6_address = args.ip6.unwrap_or_default();
    context.client.done(Call::post(format!("/networks/{}/connect", args.network)).body(&body)).await?;
    Ok(0)
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

    fn parsed(line: &str) -> Result<NetworkCreateBody, String> {
        body(&Harness::try_parse_from(std::iter::once("create").chain(line.split(' '))).expect(line).args)
    }

    #[test]
    fn gateways_and_ranges_find_their_subnet() {
        let body = parsed(
            "-d overlay --attachable --subnet 10.1.0.0/24 --subnet fd00::/64 --gateway fd00::1 --ip-range 10.1.0.128/25 --aux-address r=10.1.0.9 app",
        )
        .expect("valid");
        assert_eq!((body.name.as_str(), body.driver.as_str(), body.attachable), ("app", "overlay", true));
        let pools = body.ipam.expect("ipam").config.expect("pools");
        assert_eq!(pools[0].ip_range, "10.1.0.128/25");
        assert_eq!(pools[0].auxiliary_addresses["r"], "10.1.0.9");
        assert_eq!(pools[1].gateway, "fd00::1");
    }

    #[test]
    fn what_lies_outside_is_named() {
        assert!(
            parsed("--subnet 10.1.0.0/24 --gateway 10.2.0.1 a").expect_err("outside").contains("10.2.0.1")
        );
        assert!(parsed("--subnet 10.1.0.0 a").is_err());
        assert!(parsed("--gateway 10.2.0.1 a").expect_err("no subnet").contains("--subnet"));
    }
}

//! The cluster: make one, join one, leave it, see and change what it is told.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand};
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::header::HeaderName;
use rswarm_api::types::{
    ExternalCa, InfoBody, Node, SwarmInitBody, SwarmInspect, SwarmJoinBody, SwarmSpec, UnlockKeyBody,
};
use rswarm_base::fsx;

use super::mount::split_csv;
use super::{CommandError, Context};
use crate::client::{Call, ClientError};
use crate::units::parse_nanos;

/// What comes after `swarm`.
#[derive(Debug, Subcommand)]
pub enum SwarmCommand {
    /// Start a cluster with this node as its first manager
    #[command(after_help = INIT_EXAMPLES)]
    Init(Box<InitArgs>),
    /// Join a cluster
    #[command(after_help = JOIN_EXAMPLES)]
    Join(JoinArgs),
    /// Leave the cluster
    Leave(LeaveArgs),
    /// Print or replace the tokens that nodes join with
    JoinToken(JoinTokenArgs),
    /// Change how the cluster works
    Update(UpdateArgs),
    /// Print the root certificate, or replace the root
    Ca(CaArgs),
    /// Go on with this manager alone, after the others are lost for good
    #[command(after_help = RECOVER_HELP)]
    Recover,
    /// Write the whole state of the cluster to a file
    #[command(after_help = BACKUP_HELP)]
    Backup(BackupArgs),
    /// Start the cluster of a backup anew, with this node as its manager
    #[command(after_help = RESTORE_HELP)]
    Restore(RestoreArgs),
    /// Unlock a manager after a restart
    Unlock,
    /// Print or replace the key that unlocks managers
    UnlockKey(UnlockKeyArgs),
}

pub const INIT_EXAMPLES: &str = "\
Examples:
  rswarm swarm init                               on a machine with one address
  rswarm swarm init --advertise-addr 10.0.0.1     say which address others reach this node at";

pub const JOIN_EXAMPLES: &str = "\
Example:
  rswarm swarm join --token SWMTKN-1-... 10.0.0.1:2377     as `rswarm swarm join-token worker` prints it";

const RECOVER_HELP: &str = "\
Containers go on as they are. The same as `rswarm swarm init --force-new-cluster`. The lost managers must not be
started with their old data again: let them leave (`rswarm swarm leave --force`), then join.";

const BACKUP_HELP: &str = "\
The file holds the key of the root certificate, secrets and join tokens: keep it as you keep those.";

const RESTORE_HELP: &str = "\
For a cluster whose managers are all lost. Workers go on with their containers, and come back by themselves when this
node has the address of a manager that they knew. A manager that returns must have lost its data, or leave first.";

/// Where a node that enters a cluster is.
#[derive(Debug, Clone, Args)]
pub struct AddressArgs {
    /// Address that other nodes reach this one at, `ADDRESS|INTERFACE[:PORT]`
    #[arg(long, value_name = "ADDRESS")]
    advertise_addr: Option<String>,
    /// Address to listen on
    #[arg(long, default_value = "0.0.0.0:2377", value_name = "ADDRESS")]
    listen_addr: String,
    /// Address for traffic between containers
    #[arg(long, value_name = "ADDRESS")]
    data_path_addr: Option<String>,
}

/// `swarm backup`
#[derive(Debug, Clone, Args)]
pub struct BackupArgs {
    /// Where to
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// `swarm restore`
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    addresses: AddressArgs,
    /// What `rswarm swarm backup` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// How often a rotation is looked at (docker's value).
const ROTATION_POLL: Duration = Duration::from_millis(200);

/// Settings that `init` and `update` share.
#[derive(Debug, Clone, Args)]
pub struct SpecArgs {
    /// Encrypt managers' state with a key that is not on disk
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    autolock: Option<bool>,
    /// How long node certificates are valid
    #[arg(long, value_name = "DURATION", value_parser = parse_nanos)]
    cert_expiry: Option<i64>,
    /// How long the keys of encrypted networks are used
    #[arg(long, value_name = "DURATION", value_parser = parse_nanos)]
    tunnel_key_period: Option<i64>,
    /// How often nodes report; less often where more than 500 reports a second would come
    #[arg(long, value_name = "DURATION", value_parser = parse_nanos)]
    dispatcher_heartbeat: Option<i64>,
    /// Raft snapshots to keep besides the newest
    #[arg(long, value_name = "COUNT")]
    max_snapshots: Option<u64>,
    /// Log entries between raft snapshots
    #[arg(long, value_name = "COUNT")]
    snapshot_interval: Option<u64>,
    /// Ended tasks to keep per slot
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    task_history_limit: Option<i64>,
    /// Who signs nodes' certificates, `protocol=cfssl,url=URL[,cacert=FILE]`
    #[arg(long, value_name = "CA", value_parser = external_ca)]
    external_ca: Vec<ExternalCa>,
}

/// `swarm init`
#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    #[command(flatten)]
    addresses: AddressArgs,
    /// UDP port for traffic between containers
    #[arg(long, value_name = "PORT")]
    data_path_port: Option<u32>,
    /// Pool that networks get their subnets from
    #[arg(long, value_name = "SUBNET", value_delimiter = ',')]
    default_addr_pool: Vec<String>,
    /// Prefix length of those subnets
    #[arg(long, value_name = "BITS", default_value_t = 24)]
    default_addr_pool_mask_length: u32,
    /// What this node does: active, pause, drain
    #[arg(long, default_value = "active", value_parser = ["active", "pause", "drain"])]
    availability: String,
    /// Go on with this node's state alone, after the other managers are lost
    #[arg(long)]
    force_new_cluster: bool,
    #[command(flatten)]
    spec: SpecArgs,
}

/// `swarm join`
#[derive(Debug, Clone, Args)]
pub struct JoinArgs {
    /// Token that says into which role
    #[arg(long)]
    token: String,
    #[command(flatten)]
    addresses: AddressArgs,
    /// What this node does: active, pause, drain
    #[arg(long, default_value = "active", value_parser = ["active", "pause", "drain"])]
    availability: String,
    /// A manager, `HOST:PORT`
    manager: String,
}

/// `swarm leave`
#[derive(Debug, Clone, Args)]
pub struct LeaveArgs {
    /// Even from a manager, ignoring warnings
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Clone, Args)]
pub struct JoinTokenArgs {
    /// Print the token only
    #[arg(short, long)]
    quiet: bool,
    /// Replace the token; the old one stops working
    #[arg(long)]
    rotate: bool,
    /// Role of the nodes that join with it
    #[arg(value_parser = ["worker", "manager"])]
    role: String,
}

#[derive(Debug, Clone, Args)]
pub struct UpdateArgs {
    #[command(flatten)]
    spec: SpecArgs,
}

#[derive(Debug, Clone, Args)]
pub struct CaArgs {
    /// Replace the root
    #[arg(long)]
    rotate: bool,
    /// How long node certificates are valid
    #[arg(long, value_name = "DURATION", value_parser = parse_nanos, requires = "rotate")]
    cert_expiry: Option<i64>,
    /// The root to be, PEM; without, one is made. Without its key, an external CA signs
    #[arg(long, value_name = "FILE", requires = "rotate")]
    ca_cert: Option<PathBuf>,
    /// Who signs nodes' certificates, `protocol=cfssl,url=URL[,cacert=FILE]`
    #[arg(long, value_name = "CA", value_parser = external_ca, requires = "rotate")]
    external_ca: Vec<ExternalCa>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// Do not wait until every node has a certificate by the new root
    #[arg(short, long, requires = "rotate")]
    detach: bool,
    /// Wait without saying how far it is
    #[arg(short, long, requires = "rotate")]
    quiet: bool,
}

#[derive(Debug, Clone, Args)]
pub struct UnlockKeyArgs {
    /// Print the key only
    #[arg(short, long)]
    quiet: bool,
    /// Replace the key
    #[arg(long)]
    rotate: bool,
}

/// `protocol=cfssl,url=https://ca:8888/api/v1/cfssl/sign,cacert=root.pem`; other fields go along as options.
fn external_ca(text: &str) -> Result<ExternalCa, String> {
    let mut external = ExternalCa::default();
    for field in split_csv(text) {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| format!("invalid field '{field}' must be a key=value pair"))?;
        match key.to_ascii_lowercase().as_str() {
            "protocol" if value.eq_ignore_ascii_case("cfssl") => external.protocol = "cfssl".to_owned(),
            "protocol" => return Err(format!("unrecognized external CA protocol {value}")),
            "url" => external.url = value.to_owned(),
            "cacert" => {
                external.ca_cert = std::fs::read_to_string(value)
                    .map_err(|error| format!("unable to read CA cert for external CA: {value}: {error}"))?;
            }
            _ => {
                external.options.get_or_insert_default().insert(key.to_owned(), value.to_owned());
            }
        }
    }
    if external.protocol.is_empty() {
        return Err("the external-ca option needs a protocol= parameter".to_owned());
    }
    if external.url.is_empty() {
        return Err("the external-ca option needs a url= parameter".to_owned());
    }
    Ok(external)
}

impl SwarmCommand {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        match self {
            SwarmCommand::Init(args) => init(context, *args).await,
            SwarmCommand::Join(args) => join(context, args).await,
            SwarmCommand::Leave(args) => leave(context, args).await,
            SwarmCommand::JoinToken(args) => join_token(context, args).await,
            SwarmCommand::Update(args) => update(context, args).await,
            SwarmCommand::Ca(args) => ca(context, args).await,
            SwarmCommand::Recover => recover(context).await,
            SwarmCommand::Backup(args) => backup(context, args).await,
            SwarmCommand::Restore(args) => restore(context, args).await,
            SwarmCommand::Unlock => unlock(context).await,
            SwarmCommand::UnlockKey(args) => unlock_key(context, args).await,
        }
    }
}

impl SpecArgs {
    /// Puts what was said into the spec, and leaves the rest.
    fn apply(&self, spec: &mut SwarmSpec) {
        let SpecArgs {
            autolock,
            cert_expiry,
            tunnel_key_period,
            dispatcher_heartbeat,
            max_snapshots,
            snapshot_interval,
            task_history_limit,
            external_ca,
        } = self;
        if !external_ca.is_empty() {
            spec.ca_config.external_cas.clone_from(external_ca);
        }
        spec.encryption_config.auto_lock_managers =
            autolock.unwrap_or(spec.encryption_config.auto_lock_managers);
        spec.encryption_config.tunnel_key_period =
            tunnel_key_period.unwrap_or(spec.encryption_config.tunnel_key_period);
        spec.ca_config.node_cert_expiry = cert_expiry.unwrap_or(spec.ca_config.node_cert_expiry);
        spec.dispatcher.heartbeat_period = dispatcher_heartbeat.unwrap_or(spec.dispatcher.heartbeat_period);
        spec.raft.keep_old_snapshots = max_snapshots.or(spec.raft.keep_old_snapshots);
        spec.raft.snapshot_interval = snapshot_interval.unwrap_or(spec.raft.snapshot_interval);
        let limit = &mut spec.orchestration.task_history_retention_limit;
        *limit = task_history_limit.or(*limit);
    }
}

/// Starts a cluster and says how others join it.
pub async fn init(context: &Context, args: InitArgs) -> Result<u8, CommandError> {
    let mut body = SwarmInitBody {
        listen_addr: args.addresses.listen_addr,
        advertise_addr: args.addresses.advertise_addr.unwrap_or_default(),
        data_path_addr: args.addresses.data_path_addr.unwrap_or_default(),
        data_path_port: args.data_path_port.unwrap_or_default(),
        force_new_cluster: args.force_new_cluster,
        auto_lock_managers: args.spec.autolock.unwrap_or_default(),
        availability: args.availability,
        subnet_size: args.default_addr_pool_mask_length,
        default_addr_pool: Some(args.default_addr_pool),
        spec: SwarmSpec::default(),
    };
    args.spec.apply(&mut body.spec);
    let node: String = context.client.json(Call::post("/swarm/init").body(&body)).await?;
    context.terminal.line(format!("Swarm initialized: current node ({node}) is now a manager.\n"))?;
    context.terminal.print(&join_instructions(context, "worker").await?)?;
    context.terminal.line("To add a manager to this swarm, run 'rswarm swarm join-token manager' and follow the instructions.\n")?;
    if body.auto_lock_managers {
        context.terminal.print(&unlock_instructions(context).await?)?;
    }
    Ok(0)
}

/// Joins a cluster.
pub async fn join(context: &Context, args: JoinArgs) -> Result<u8, CommandError> {
    let body = SwarmJoinBody {
        listen_addr: args.addresses.listen_addr,
        advertise_addr: args.addresses.advertise_addr.unwrap_or_default(),
        data_path_addr: args.addresses.data_path_addr.unwrap_or_default(),
        remote_addrs: Some(vec![args.manager]),
        join_token: args.token,
        availability: args.availability,
    };
    context.client.done(Call::post("/swarm/join").body(&body)).await?;
    let info: InfoBody = context.client.json(Call::get("/info")).await?;
    let role = if info.swarm.control_available { "manager" } else { "worker" };
    context.terminal.line(format!("This node joined a swarm as a {role}."))?;
    Ok(0)
}

/// Leaves the cluster.
pub async fn leave(context: &Context, args: LeaveArgs) -> Result<u8, CommandError> {
    context.client.done(Call::post("/swarm/leave").flag("force", args.force)).await?;
    context.terminal.line("Node left the swarm.")?;
    Ok(0)
}

async fn join_token(context: &Context, args: JoinTokenArgs) -> Result<u8, CommandError> {
    if args.rotate {
        let swarm = inspect(context).await?;
        let flag = if args.role == "manager" { "rotateManagerToken" } else { "rotateWorkerToken" };
        send_update(context, &swarm, &swarm.cluster.spec, Some(flag)).await?;
        if !args.quiet {
            context.terminal.line(format!("Successfully rotated {} join token.\n", args.role))?;
        }
    }
    if args.quiet {
        let tokens = inspect(context).await?.join_tokens;
        context.terminal.line(if args.role == "manager" { tokens.manager } else { tokens.worker })?;
    } else {
        context.terminal.print(&join_instructions(context, &args.role).await?)?;
    }
    Ok(0)
}

async fn join_instructions(context: &Context, role: &str) -> Result<String, CommandError> {
    let tokens = inspect(context).await?.join_tokens;
    let token = if role == "manager" { tokens.manager } else { tokens.worker };
    let info: InfoBody = context.client.json(Call::get("/info")).await?;
    let own = info.swarm.remote_managers.unwrap_or_default();
    let own = own.into_iter().find(|manager| manager.node_id == info.swarm.node_id);
    let address = own.map_or_else(|| format!("{}:2377", info.swarm.node_addr), |manager| manager.addr);
    Ok(format!(
        "To add a {role} to this swarm, run the following command:\n\n    rswarm swarm join --token {token} {address}\n\n"
    ))
}

async fn update(context: &Context, args: UpdateArgs) -> Result<u8, CommandError> {
    let swarm = inspect(context).await?;
    let mut spec = swarm.cluster.spec.clone();
    args.spec.apply(&mut spec);
    if spec == swarm.cluster.spec && args.spec.autolock.is_none() {
        let problem = "nothing to change: give at least one setting";
        return Err(CommandError::Usage(problem.into()));
    }
    let newly_locked =
        spec.encryption_config.auto_lock_managers && !swarm.cluster.spec.encryption_config.auto_lock_managers;
    send_update(context, &swarm, &spec, None).await?;
    context.terminal.line("Swarm updated.")?;
    if newly_locked {
        context.terminal.print(&unlock_instructions(context).await?)?;
    }
    Ok(0)
}

async fn ca(context: &Context, args: CaArgs) -> Result<u8, CommandError> {
    let swarm = inspect(context).await?;
    if args.rotate {
        let mut spec = swarm.cluster.spec.clone();
        spec.ca_config.force_rotate += 1;
        spec.ca_config.node_cert_expiry = args.cert_expiry.unwrap_or(spec.ca_config.node_cert_expiry);
        spec.ca_config.signing_ca_cert = text_of(args.ca_cert.as_deref())?;
        spec.ca_config.signing_ca_key = text_of(args.ca_key.as_deref())?;
        if !args.external_ca.is_empty() {
            spec.ca_config.external_cas = args.external_ca;
        }
        send_update(context, &swarm, &spec, None).await?;
        if args.detach {
            return Ok(0);
        }
        rotation(context, args.quiet).await?;
    }
    let swarm = if args.rotate { inspect(context).await? } else { swarm };
    context.terminal.line(swarm.cluster.tls_info.trust_root.trim_end())?;
    Ok(0)
}

fn text_of(file: Option<&Path>) -> Result<String, CommandError> {
    let Some(path) = file else { return Ok(String::new()) };
    std::fs::read_to_string(path).map_err(|source| CommandError::Read { path: path.to_owned(), source })
}

/// Waits until every node has a certificate by the new root, and trusts it alone.
async fn rotation(context: &Context, quiet: bool) -> Result<(), CommandError> {
    let mut said = String::new();
    loop {
        let cluster = inspect(context).await?.cluster;
        let nodes = super::node::all(context).await;
        let wanted = &cluster.tls_info;
        let by_new = |node: &&Node| {
            let tls = &node.description.tls_info;
            tls.cert_issuer_public_key == wanted.cert_issuer_public_key
                && tls.cert_issuer_subject == wanted.cert_issuer_subject
        };
        let trusting = |node: &&Node| node.description.tls_info.trust_root == wanted.trust_root;
        let (renewed, trusting) =
            (nodes.iter().filter(by_new).count(), nodes.iter().filter(trusting).count());
        let text = format!(
            "rotated TLS certificates: {renewed}/{total} nodes, rotated CA certificates: {}/{total} nodes",
            if cluster.root_rotation_in_progress { 0 } else { trusting },
            total = nodes.len()
        );
        if !quiet && text != said {
            context.terminal.line(&text)?;
            said = text;
        }
        if !cluster.root_rotation_in_progress && renewed == nodes.len() && trusting == nodes.len() {
            return Ok(());
        }
        tokio::time::sleep(ROTATION_POLL).await;
    }
}

async fn recover(context: &Context) -> Result<u8, CommandError> {
    let body = SwarmInitBody { force_new_cluster: true, ..SwarmInitBody::default() };
    let node: String = context.client.json(Call::post("/swarm/init").body(&body)).await?;
    context.terminal.line(format!("Swarm recovered: current node ({node}) is now its only manager.\n"))?;
    context.terminal.print(&join_instructions(context, "manager").await?)?;
    Ok(0)
}

/// Readable by its owner alone: who reads it has the cluster.
const BACKUP_MODE: u32 = 0o600;

async fn backup(context: &Context, args: BackupArgs) -> Result<u8, CommandError> {
    let call = Call::get("/swarm/backup");
    let name = call.to_string();
    let body = context.client.send(call).await?.into_body().collect().await;
    let bytes = body.map_err(|source| ClientError::Exchange { call: name, source })?.to_bytes();
    fsx::write_atomic_mode(&args.file, &bytes, BACKUP_MODE)
        .map_err(|source| CommandError::Write { path: args.file.clone(), source })?;
    context.terminal.line(args.file.display())?;
    Ok(0)
}

async fn restore(context: &Context, args: RestoreArgs) -> Result<u8, CommandError> {
    let bytes =
        std::fs::read(&args.file).map_err(|source| CommandError::Read { path: args.file.clone(), source })?;
    let key = if is_sealed(&bytes) {
        context.terminal.print("The backup is sealed. Please enter the unlock key of then: ")?;
        Some(asked_key()?)
    } else {
        None
    };
    let body = stream::once(async { Ok::<_, io::Error>(Bytes::from(bytes)) });
    let call = Call::post("/swarm/restore")
        .query("listenAddr", &args.addresses.listen_addr)
        .maybe("advertiseAddr", args.addresses.advertise_addr)
        .maybe("dataPathAddr", args.addresses.data_path_addr)
        .stream("application/octet-stream", body);
    let call = match &key {
        Some(key) => call.header(HeaderName::from_static(rswarm_api::UNLOCK_KEY), key),
        None => call,
    };
    let node: String = context.client.json(call).await?;
    context.terminal.line(format!("Swarm restored: current node ({node}) is now its only manager.\n"))?;
    context.terminal.print(&join_instructions(context, "manager").await?)?;
    Ok(0)
}

/// Whether a backup says of itself that it is sealed; the daemon checks it.
fn is_sealed(backup: &[u8]) -> bool {
    let header = backup.split(|byte| *byte == b'\n').nth(1).unwrap_or_default();
    let header: Option<serde_json::Value> = serde_json::from_slice(header).ok();
    header.is_some_and(|header| header["sealed"] == true)
}

fn asked_key() -> io::Result<String> {
    let mut key = String::new();
    io::stdin().read_line(&mut key)?;
    Ok(key.trim().to_owned())
}

async fn unlock(context: &Context) -> Result<u8, CommandError> {
    context.terminal.print("Please enter unlock key: ")?;
    let body = UnlockKeyBody { unlock_key: asked_key()? };
    context.client.done(Call::post("/swarm/unlock").body(&body)).await?;
    Ok(0)
}

async fn unlock_key(context: &Context, args: UnlockKeyArgs) -> Result<u8, CommandError> {
    if args.rotate {
        let swarm = inspect(context).await?;
        send_update(context, &swarm, &swarm.cluster.spec, Some("rotateManagerUnlockKey")).await?;
        if !args.quiet {
            context.terminal.line("Successfully rotated manager unlock key.\n")?;
        }
    }
    if args.quiet {
        let body: UnlockKeyBody = context.client.json(Call::get("/swarm/unlockkey")).await?;
        context.terminal.line(body.unlock_key)?;
    } else {
        context.terminal.print(&unlock_instructions(context).await?)?;
    }
    Ok(0)
}

async fn unlock_instructions(context: &Context) -> Result<String, CommandError> {
    let body: UnlockKeyBody = context.client.json(Call::get("/swarm/unlockkey")).await?;
    if body.unlock_key.is_empty() {
        return Err(CommandError::Reported("no unlock key is set".into()));
    }
    Ok(format!(
        "To unlock a swarm manager after it restarts, run the `rswarm swarm unlock`\ncommand and provide the following key:\n\n    {}\n\n\
         Remember to store this key in a password manager, since without it you\nwill not be able to restart the manager.\n",
        body.unlock_key
    ))
}

/// The cluster with its tokens.
pub async fn inspect(context: &Context) -> Result<SwarmInspect, CommandError> {
    Ok(context.client.json(Call::get("/swarm")).await?)
}

async fn send_update(
    context: &Context,
    swarm: &SwarmInspect,
    spec: &SwarmSpec,
    flag: Option<&str>,
) -> Result<(), CommandError> {
    let mut call = Call::post("/swarm/update").query("version", swarm.cluster.version.index);
    if let Some(flag) = flag {
        call = call.query(flag, true);
    }
    Ok(context.client.done(call.body(spec)).await?)
}

//! Secrets and configs: the same commands, but for what comes out of them again.

use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use rswarm_api::types::{Content, ContentSpec, Driver, FileTarget, IdReply};
use rswarm_base::Timestamp;
use serde_json::json;

use super::mount::split_csv;
use super::service::{self, WaitArgs};
use super::{CommandError, Context, InspectArgs, ListArgs, ago, words};
use crate::client::{Call, Filters};
use crate::render::table::{Listing, Row, row};
use crate::render::template::with_labels;

const HEADERS: &[(&str, &str)] = &[
    ("ID", "ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("CreatedAt", "CREATED"),
    ("UpdatedAt", "UPDATED"),
    ("Labels", "LABELS"),
];
const SECRETS: Listing = Listing {
    table: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.CreatedAt}}\t{{.UpdatedAt}}",
    headers: HEADERS,
    quiet: "ID",
};
const CONFIGS: Listing =
    Listing { table: "{{.ID}}\t{{.Name}}\t{{.CreatedAt}}\t{{.UpdatedAt}}", headers: HEADERS, quiet: "ID" };
const UPDATE_EXAMPLES: &str = "\
Examples:
  rswarm secret update key ./key.pem              services with `--secret key` are updated, one task at a time
                                                  or as each of them says
  rswarm service create --secret key@1 my/web     stays with the first version
  rswarm service rollback web                     back to the version before";
/// Permissions of a file that says nothing about them.
const MODE: u32 = 0o444;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Secrets.
    Secret,
    /// Configs.
    Config,
}

/// What comes after `secret` and after `config`.
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Create one from a file, or from standard input
    Create(CreateArgs),
    /// List all
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Print everything about some
    Inspect(SecretInspectArgs),
    /// Make a new version, and update the services that use it
    #[command(after_help = UPDATE_EXAMPLES)]
    Update(UpdateArgs),
    /// Remove some that no service uses
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Driver
    #[arg(short, long)]
    driver: Option<String>,
    /// Set a label, `KEY=VALUE`
    #[arg(short, long)]
    label: Vec<String>,
    /// Take it for a template: golang
    #[arg(long, value_name = "DRIVER")]
    template_driver: Option<String>,
    /// Name
    name: String,
    /// File with the data; `-` is standard input
    file: String,
}

#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Set a label, `KEY=VALUE`
    #[arg(long, value_name = "LABEL")]
    label_add: Vec<String>,
    /// Remove a label
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    #[command(flatten)]
    wait: WaitArgs,
    /// Name
    name: String,
    /// File with the data; `-` is standard input
    file: String,
}

#[derive(Debug, Args)]
pub struct SecretInspectArgs {
    /// Print for people
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    #[command(flatten)]
    inspect: InspectArgs,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Names or IDs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Where a secret is inspected.
pub fn secret_path(name: &str) -> String {
    format!("/secrets/{name}")
}

/// Where a config is inspected.
pub fn config_path(name: &str) -> String {
    format!("/configs/{name}")
}

impl Family {
    fn noun(self) -> &'static str {
        match self {
            Family::Secret => "secret",
            Family::Config => "config",
        }
    }

    fn path(self, name: &str) -> String {
        match self {
            Family::Secret => secret_path(name),
            Family::Config => config_path(name),
        }
    }
}

impl SecretCommand {
    /// Does it.
    pub async fn run(self, context: &Context, family: Family) -> Result<u8, CommandError> {
        match self {
            SecretCommand::Create(args) => create(context, family, args).await,
            SecretCommand::Ls(args) => list(context, family, args).await,
            SecretCommand::Inspect(args) => inspect(context, family, args).await,
            SecretCommand::Update(args) => update(context, family, args).await,
            SecretCommand::Rm(args) => {
                let work = |name: String| async move {
                    context.client.done(Call::delete(family.path(&name))).await?;
                    Ok(vec![name])
                };
                context.each(&args.names, work).await
            }
        }
    }
}

async fn create(context: &Context, family: Family, args: CreateArgs) -> Result<u8, CommandError> {
    let driver = |name: String| Driver { name, ..Driver::default() };
    if family == Family::Config && args.driver.is_some() {
        return Err(CommandError::Usage("configs have no drivers".into()));
    }
    let body = ContentSpec {
        name: args.name,
        labels: Some(words::key_values(&args.label)),
        data: STANDARD.encode(read(&args.file)?),
        driver: args.driver.map(driver),
        templating: args.template_driver.map(driver),
    };
    let created: IdReply = context.client.json(Call::post(family.path("create")).body(&body)).await?;
    context.terminal.line(created.id)?;
    Ok(0)
}

/// A new version of it, and then each service that uses it, until it has converged.
async fn update(context: &Context, family: Family, args: UpdateArgs) -> Result<u8, CommandError> {
    let found: Content = context.client.json(Call::get(family.path(&args.name))).await?;
    let mut labels = found.spec.labels.unwrap_or_default();
    labels.retain(|key, _| !args.label_rm.contains(key));
    labels.extend(words::key_values(&args.label_add));
    let body = ContentSpec { labels: Some(labels), data: STANDARD.encode(read(&args.file)?), ..found.spec };
    let call = Call::post(format!("{}/versions", family.path(&found.id)));
    let made: Content = context.client.json(call.query("version", found.version.index).body(&body)).await?;
    context.terminal.line(&made.id)?;
    let (latest, older): (Vec<_>, Vec<_>) = made.versions.iter().partition(|version| version.id == made.id);
    for version in older.iter().filter(|version| !version.services.is_empty()) {
        let (services, number) = (version.services.join(", "), version.number);
        context.terminal.complain(format_args!("version {number} is kept, it is in use by: {services}"));
    }
    for name in latest.iter().flat_map(|version| &version.services) {
        context.terminal.line(name)?;
        let code = service::follow(context, name, args.wait).await?;
        if code != 0 {
            return Ok(code);
        }
    }
    Ok(0)
}

fn read(file: &str) -> Result<Vec<u8>, CommandError> {
    if file != "-" {
        return std::fs::read(file).map_err(|source| CommandError::Read { path: file.into(), source });
    }
    let mut data = Vec::new();
    std::io::stdin().read_to_end(&mut data)?;
    Ok(data)
}

/// Docker's two kinds of object differ in fields that one of them leaves empty.
async fn listed(context: &Context, family: Family, filters: &Filters) -> Result<Vec<Content>, CommandError> {
    let path = match family {
        Family::Secret => "/secrets",
        Family::Config => "/configs",
    };
    Ok(context.client.json(Call::get(path).filters(filters)).await?)
}

async fn list(context: &Context, family: Family, args: ListArgs) -> Result<u8, CommandError> {
    let mut found = listed(context, family, &args.filters()?).await?;
    found.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    let now = Timestamp::now();
    let rows: Vec<Row> = found.iter().map(|secret| line(secret, now)).collect();
    let listing = if family == Family::Secret { &SECRETS } else { &CONFIGS };
    context.list(listing, &args, &rows)
}

fn line(secret: &Content, now: Timestamp) -> Row {
    let labels = secret.spec.labels.clone().unwrap_or_default();
    let age = |time: &str| Timestamp::parse(time).map(|time| ago(time, now)).unwrap_or_default();
    let fields = row([
        ("ID", secret.id.clone()),
        ("Name", secret.spec.name.clone()),
        ("Driver", secret.spec.driver.as_ref().map(|driver| driver.name.clone()).unwrap_or_default()),
        ("CreatedAt", age(&secret.created_at)),
        ("UpdatedAt", age(&secret.updated_at)),
        ("Labels", words::printed_labels(&labels)),
    ]);
    with_labels(fields, json!(labels))
}

async fn inspect(context: &Context, family: Family, args: SecretInspectArgs) -> Result<u8, CommandError> {
    if !args.pretty {
        return context.inspect(&args.inspect, |name| Call::get(family.path(name))).await;
    }
    for name in &args.inspect.names {
        let found: Content = context.client.json(Call::get(family.path(name))).await?;
        context.terminal.print(&pretty(&found, family))?;
    }
    Ok(0)
}

/// For people, as docker prints it.
fn pretty(secret: &Content, family: Family) -> String {
    let labels = secret.spec.labels.iter().flatten().map(|(key, value)| format!(" - {key}={value}\n"));
    let mut text = format!("ID:\t\t\t{}\nName:\t\t\t{}\nLabels:\n", secret.id, secret.spec.name);
    text.extend(labels);
    if family == Family::Secret {
        let driver = secret.spec.driver.as_ref().map_or("", |driver| driver.name.as_str());
        text.push_str(&format!("Driver:\t\t\t{driver}\n"));
    }
    for version in &secret.versions {
        let services = version.services.join(", ");
        text.push_str(&format!("Version {}:\t\t{} {services}\n", version.number, version.id));
    }
    text.push_str(&format!("Created at:\t\t{}\nUpdated at:\t\t{}\n", secret.created_at, secret.updated_at));
    if family == Family::Config {
        let data = STANDARD.decode(&secret.spec.data).unwrap_or_default();
        text.push_str(&format!("Data:\n{}\n", String::from_utf8_lossy(&data)));
    }
    text
}

// ---- as services use them -------------------------------------------------------------------------------

/// A secret or config that a service shall get, as typed: its name, and the file that it becomes.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// Its name.
    pub source: String,
    /// The file in containers.
    pub file: FileTarget,
}

/// `key`, or `source=key,target=/etc/key,uid=33,gid=33,mode=0400`.
pub fn reference(text: &str) -> Result<Reference, String> {
    let file = FileTarget { uid: "0".into(), gid: "0".into(), mode: MODE, ..FileTarget::default() };
    let mut reference = Reference { source: String::new(), file };
    if !text.contains('=') && !text.contains(',') {
        reference.source = text.to_owned();
    } else {
        for field in split_csv(text) {
            let (key, value) = field
                .split_once('=')
                .ok_or_else(|| format!("invalid field '{field}' must be a key=value pair"))?;
            match key.to_ascii_lowercase().as_str() {
                "source" | "src" => reference.source = value.to_owned(),
                "target" => reference.file.name = value.to_owned(),
                "uid" => reference.file.uid = value.to_owned(),
                "gid" => reference.file.gid = value.to_owned(),
                "mode" => {
                    let octal = value.strip_prefix("0o").unwrap_or(value);
                    reference.file.mode = u32::from_str_radix(octal, 8)
                        .map_err(|_| format!("invalid mode specified: `{value}` is not octal"))?;
                }
                _ => return Err(format!("invalid field '{key}' in secret request")),
            }
        }
    }
    if reference.source.is_empty() {
        return Err("source is required".to_owned());
    }
    if reference.file.name.is_empty() {
        // `key@2` is a version of `key`.
        let name = reference.source.split('@').next().unwrap_or_default();
        name.clone_into(&mut reference.file.name);
    }
    Ok(reference)
}

/// The typed references with the ids of what they name.
pub async fn resolve(
    context: &Context,
    family: Family,
    wanted: &[Reference],
) -> Result<Vec<(Reference, String)>, CommandError> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let filters =
        wanted.iter().fold(Filters::default(), |filters, reference| filters.with("name", &reference.source));
    let found = listed(context, family, &filters).await?;
    let id = |reference: &Reference| {
        let same = found.iter().find(|secret| secret.spec.name == reference.source);
        let (noun, name) = (family.noun(), &reference.source);
        let missing = || CommandError::Reported(format!("{noun} not found: {name}"));
        same.map(|secret| (reference.clone(), secret.id.clone())).ok_or_else(missing)
    };
    wanted.iter().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_a_short_and_a_long_form() {
        let short = reference("key").expect("short");
        assert_eq!((short.source.as_str(), short.file.name.as_str(), short.file.mode), ("key", "key", 0o444));
        let long = reference("source=key,target=/etc/key,uid=33,gid=34,mode=0400").expect("long");
        assert_eq!((long.file.name.as_str(), long.file.mode), ("/etc/key", 0o400));
        assert_eq!((long.file.uid.as_str(), long.file.gid.as_str()), ("33", "34"));
        let pinned = reference("key@2").expect("a version");
        assert_eq!((pinned.source.as_str(), pinned.file.name.as_str()), ("key@2", "key"));
        for text in ["target=x", "source=a,colour=red", "source=a,mode=9", "a,b"] {
            assert!(reference(text).is_err(), "{text}");
        }
    }

    #[test]
    fn secrets_are_listed_as_docker_lists_them() {
        let now = Timestamp::parse("2026-01-02T00:00:00Z").expect("a time");
        let at = "2026-01-01T23:58:00Z";
        let secret = Content {
            id: "mem02h8n73mybpgqjf0kfi1n0".into(),
            created_at: at.into(),
            updated_at: at.into(),
            spec: ContentSpec { name: "key".into(), ..ContentSpec::default() },
            ..Content::default()
        };
        assert_eq!(
            SECRETS.render(None, false, &[line(&secret, now)]).expect("renders"),
            "ID                          NAME      DRIVER    CREATED         UPDATED\n\
             mem02h8n73mybpgqjf0kfi1n0   key                 2 minutes ago   2 minutes ago\n"
        );
        assert_eq!(
            CONFIGS.render(None, false, &[line(&secret, now)]).expect("renders"),
            "ID                          NAME      CREATED         UPDATED\n\
             mem02h8n73mybpgqjf0kfi1n0   key       2 minutes ago   2 minutes ago\n"
        );
    }
}

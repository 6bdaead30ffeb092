//! `ps`

use clap::Args;
use rswarm_api::types::{ContainerSummary, Port};
use rswarm_base::clock::Timestamp;
use serde_json::json;

use crate::client::Call;
use crate::cmd::words::printed_labels;
use crate::cmd::{CommandError, Context, ListArgs, ago, short_id};
use crate::render::table::{Listing, Row, row};
use crate::render::template::with_labels;
use crate::units::{ellipsis, human_size};

const HEADERS: &[(&str, &str)] = &[
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("State", "STATE"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
    ("Size", "SIZE"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Networks", "NETWORKS"),
];

const LISTING: Listing = Listing {
    table: "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}",
    headers: HEADERS,
    quiet: "ID",
};

const LISTING_WITH_SIZE: Listing = Listing {
    table: "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}\t{{.Size}}",
    ..LISTING
};

/// `ps`
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Include stopped ones
    #[arg(short, long)]
    all: bool,
    /// Only the newest N, in any state
    #[arg(short = 'n', long, value_name = "N", allow_hyphen_values = true)]
    last: Option<i64>,
    /// Only the newest one, in any state
    #[arg(short, long, conflicts_with = "last")]
    latest: bool,
    /// Print sizes
    #[arg(short, long)]
    size: bool,
    /// Print everything in full
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    list: ListArgs,
}

impl PsArgs {
    /// Lists containers.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        let last = if self.latest { Some(1) } else { self.last.filter(|last| *last > 0) };
        let wants_size =
            self.size || self.list.format.as_deref().is_some_and(|format| format.contains(".Size"));
        let call = Call::get("/containers/json")
            .flag("all", self.all)
            .maybe("limit", last)
            .flag("size", wants_size)
            .filters(&self.list.filters()?);
        let containers: Vec<ContainerSummary> = context.client.json(call).await?;
        let now = Timestamp::now();
        let rows: Vec<Row> = containers.iter().map(|container| line(container, self.no_trunc, now)).collect();
        context.list(if self.size { &LISTING_WITH_SIZE } else { &LISTING }, &self.list, &rows)
    }
}

fn line(container: &ContainerSummary, whole: bool, now: Timestamp) -> Row {
    let created = Timestamp(container.created.saturating_mul(1_000_000_000));
    let names = container.names.iter().map(|name| name.trim_start_matches('/'));
    let names: Vec<&str> = names.filter(|name| whole || !name.contains('/')).collect();
    let mounts =
        container.mounts.iter().map(|mount| if mount.name.is_empty() { &mount.source } else { &mount.name });
    let mounts: Vec<String> =
        mounts.map(|name| if whole { name.clone() } else { ellipsis(name, 15) }).collect();
    let volumes = container.mounts.iter().filter(|mount| mount.driver == "local").count();
    let networks: Vec<&str> = container.network_settings.networks.keys().map(String::as_str).collect();
    let command = if whole { container.command.clone() } else { ellipsis(&container.command, 20) };
    let fields = row([
        ("ID", short_id(&container.id, whole)),
        ("Image", image(container, whole)),
        ("Command", format!("\"{}\"", command.replace('\\', "\\\\").replace('"', "\\\""))),
        ("CreatedAt", local_time(created)),
        ("RunningFor", ago(created, now)),
        ("Status", container.status.clone()),
        ("State", container.state.clone()),
        ("Ports", ports(&container.ports)),
        ("Names", names.join(",")),
        ("Size", size(container)),
        ("Labels", printed_labels(&container.labels)),
        ("Mounts", mounts.join(",")),
        ("LocalVolumes", volumes.to_string()),
        ("Networks", networks.join(",")),
    ]);
    with_labels(fields, json!(container.labels))
}

fn image(container: &ContainerSummary, whole: bool) -> String {
    match container.image.as_str() {
        "" => "<no image>".into(),
        image if !whole && image == container.image_id => short_id(image, false),
        image => image.to_owned(),
    }
}

fn size(container: &ContainerSummary) -> String {
    let bytes = |size| human_size(u64::try_from(size).unwrap_or(0));
    let own = bytes(container.size_rw);
    if container.size_root_fs > 0 {
        format!("{own} (virtual {})", bytes(container.size_root_fs))
    } else {
        own
    }
}

/// A time as Go prints it: `2026-11-22 01:00:00 +0000 UTC`.
pub fn local_time(time: Timestamp) -> String {
    let text = time.to_string();
    format!("{} {} +0000 UTC", &text[..10], text[11..].trim_end_matches('Z'))
}

/// Docker's short form: neighbours as ranges, then what maps to another port.
fn ports(ports: &[Port]) -> String {
    let mut sorted: Vec<&Port> = ports.iter().collect();
    sorted.sort_by_key(|port| (port.private_port, port.ip.clone(), port.public_port, port.kind.clone()));
    let mut groups: Vec<(&str, &str, u16, u16)> = Vec::new();
    let mut mapped = Vec::new();
    for port in sorted {
        if !port.ip.is_empty() && port.public_port != port.private_port {
            let to = format!("->{}/{}", port.private_port, port.kind);
            mapped.push(format!("{}:{}{to}", bracketed(&port.ip), port.public_port));
            continue;
        }
        let same = |group: &&mut (&str, &str, u16, u16)| group.0 == port.ip && group.1 == port.kind;
        match groups.iter_mut().rev().find(same) {
            Some(group) if group.3.checked_add(1) == Some(port.private_port) => group.3 = port.private_port,
            _ => groups.push((&port.ip, &port.kind, port.private_port, port.private_port)),
        }
    }
    let group = |(ip, kind, first, last): (&str, &str, u16, u16)| {
        let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
        if ip.is_empty() {
            format!("{range}/{kind}")
        } else {
            format!("{}:{range}->{range}/{kind}", bracketed(ip))
        }
    };
    groups.into_iter().map(group).chain(mapped).collect::<Vec<_>>().join(", ")
}

fn bracketed(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(ip: &str, public_port: u16, private_port: u16) -> Port {
        Port { ip: ip.into(), public_port, private_port, kind: "tcp".into() }
    }

    #[test]
    fn a_row_is_docker_s() {
        let container = ContainerSummary {
            id: "4c01db0b339c7d9b2ca1e9d6e2f8a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4".into(),
            names: vec!["/web".into()],
            image: "nginx:latest".into(),
            command: "/docker-entrypoint.sh nginx -g".into(),
            created: 1_000,
            status: "Up 2 minutes".into(),
            ports: vec![port("0.0.0.0", 8080, 80), port("::", 8080, 80)],
            ..ContainerSummary::default()
        };
        let rows = [line(&container, false, Timestamp(1_130 * 1_000_000_000))];
        assert_eq!(
            LISTING.render(None, false, &rows).expect("renders"),
            concat!(
                "CONTAINER ID   IMAGE          COMMAND                  CREATED         STATUS         ",
                "PORTS                                     NAMES\n",
                "4c01db0b339c   nginx:latest   \"/docker-entrypoint.…\"   2 minutes ago   Up 2 minutes   ",
                "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp   web\n",
            )
        );
    }

    #[test]
    fn neighbouring_ports_are_one_range() {
        let list = [
            port("", 0, 80),
            port("", 0, 81),
            port("", 0, 90),
            port("0.0.0.0", 100, 100),
            port("0.0.0.0", 101, 101),
        ];
        assert_eq!(ports(&list), "80-81/tcp, 90/tcp, 0.0.0.0:100-101->100-101/tcp");
    }

    #[test]
    fn every_column_has_a_heading() {
        let names: Vec<String> =
            line(&ContainerSummary::default(), false, Timestamp::ZERO).keys().cloned().collect();
        for name in names.iter().filter(|name| !name.starts_with('_')) {
            assert!(HEADERS.iter().any(|(header, _)| header == name), "{name}");
        }
    }
}

//! `service stats` and `node stats`: what tasks use, summed up, once or kept up to date.

use std::time::Duration;

use clap::Args;
use rswarm_api::types::{ClusterUsage, NodeUsage, ServiceUsage, UsageSum};

use super::{CommandError, Context, short_id};
use crate::client::Call;
use crate::render::table::{Listing, Row, row};
use crate::units::{binary_size, ellipsis, human_size};

/// How often the screen is drawn anew: nodes tell once in a heartbeat.
const REDRAW: Duration = Duration::from_secs(2);

const SERVICES: Listing = Listing {
    table: "{{.ID}}\t{{.Name}}\t{{.Tasks}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}",
    headers: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Tasks", "TASKS"),
        ("CPUPerc", "CPU %"),
        ("MemUsage", "MEM USAGE"),
        ("NetIO", "NET I/O"),
        ("BlockIO", "BLOCK I/O"),
        ("PIDs", "PIDS"),
    ],
    quiet: "ID",
};

const NODES: Listing = Listing {
    table: "{{.ID}}\t{{.Hostname}}\t{{.Tasks}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}",
    headers: &[
        ("ID", "ID"),
        ("Hostname", "HOSTNAME"),
        ("Tasks", "TASKS"),
        ("CPUPerc", "CPU %"),
        ("MemUsage", "MEM USAGE / TOTAL"),
        ("MemPerc", "MEM %"),
        ("NetIO", "NET I/O"),
        ("BlockIO", "BLOCK I/O"),
        ("PIDs", "PIDS"),
    ],
    quiet: "ID",
};

/// What comes after `stats`.
#[derive(Debug, Args)]
pub struct UsageArgs {
    /// Print once and end
    #[arg(long)]
    no_stream: bool,
    /// Print everything in full
    #[arg(long)]
    no_trunc: bool,
    /// Print by a template, or `json`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Names or IDs; all when there are none
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// A line for each service.
    Services,
    /// A line for each node.
    Nodes,
}

impl UsageArgs {
    /// Shows it until interrupted, or once.
    pub async fn run(self, context: &Context, of: Of) -> Result<u8, CommandError> {
        let mut redraw = tokio::time::interval(REDRAW);
        loop {
            redraw.tick().await;
            let usage: ClusterUsage = context.client.json(Call::get("/swarm/usage")).await?;
            let text = self.render(&usage, of)?;
            if self.no_stream {
                context.terminal.print(&text)?;
                return Ok(0);
            }
            let clear = if self.format.as_deref() == Some("json") { "" } else { "\x1b[H\x1b[2J" };
            context.terminal.print(&format!("{clear}{text}"))?;
        }
    }

    fn render(&self, usage: &ClusterUsage, of: Of) -> Result<String, CommandError> {
        let (listing, lines, noun) = match of {
            Of::Services => (&SERVICES, self.services(usage), "service"),
            Of::Nodes => (&NODES, self.nodes(usage), "node"),
        };
        let mut rows = Vec::new();
        for wanted in &self.names {
            let matches = |(id, name): &(&str, &str)| id == wanted || name == wanted;
            let found = lines.iter().position(|(key, _)| matches(key)).or_else(|| {
                let mut starting =
                    lines.iter().enumerate().filter(|(_, ((id, _), _))| id.starts_with(wanted));
                let first = starting.next().map(|(place, _)| place);
                first.filter(|_| starting.next().is_none())
            });
            let found = found.ok_or_else(|| CommandError::Reported(format!("no such {noun}: {wanted}")))?;
            rows.push(lines[found].1.clone());
        }
        if self.names.is_empty() {
            rows = lines.into_iter().map(|(_, row)| row).collect();
        }
        Ok(listing.render(self.format.as_deref(), false, &rows)?)
    }

    fn services<'a>(&self, usage: &'a ClusterUsage) -> Vec<((&'a str, &'a str), Row)> {
        let line = |service: &'a ServiceUsage| {
            let fields = [("ID", short_id(&service.id, self.no_trunc)), ("Name", self.short(&service.name))];
            let memory = [("MemUsage", binary_size(service.usage.memory))];
            let row = row(fields).into_iter().chain(row(memory)).chain(sum(&service.usage)).collect();
            ((service.id.as_str(), service.name.as_str()), row)
        };
        usage.services.iter().map(line).collect()
    }

    fn nodes<'a>(&self, usage: &'a ClusterUsage) -> Vec<((&'a str, &'a str), Row)> {
        let line = |node: &'a NodeUsage| {
            let fields =
                [("ID", short_id(&node.id, self.no_trunc)), ("Hostname", self.short(&node.hostname))];
            let memory = format!("{} / {}", binary_size(node.usage.memory), binary_size(node.memory_total));
            let part = percent(node.usage.memory, node.memory_total);
            let memory = [("MemUsage", memory), ("MemPerc", format!("{part:.2}%"))];
            let row = row(fields).into_iter().chain(row(memory)).chain(sum(&node.usage)).collect();
            ((node.id.as_str(), node.hostname.as_str()), row)
        };
        usage.nodes.iter().map(line).collect()
    }

    fn short(&self, name: &str) -> String {
        if self.no_trunc { name.to_owned() } else { ellipsis(name, 64) }
    }
}

/// What services and nodes have in common. A task that its node has not told of yet is told apart.
fn sum(usage: &UsageSum) -> Row {
    let tasks = match usage.running == usage.reporting {
        true => usage.running.to_string(),
        false => format!("{}/{}", usage.reporting, usage.running),
    };
    row([
        ("Tasks", tasks),
        ("CPUPerc", format!("{:.2}%", percent(usage.cpu_rate, 1_000_000_000))),
        ("NetIO", format!("{} / {}", human_size(usage.net_received), human_size(usage.net_sent))),
        ("BlockIO", format!("{} / {}", human_size(usage.block_read), human_size(usage.block_written))),
        ("PIDs", usage.pids.to_string()),
    ])
}

#[allow(clippy::cast_precision_loss, reason = "a share of a hundred needs no 53 bits")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage() -> ClusterUsage {
        let sum = UsageSum {
            running: 3,
            reporting: 2,
            cpu_rate: 1_250_000_000,
            memory: 3 << 20,
            pids: 4,
            net_received: 1000,
            net_sent: 20,
            block_read: 5,
            block_written: 7,
        };
        let service = |id: &str, name: &str, usage| ServiceUsage { id: id.into(), name: name.into(), usage };
        let node = NodeUsage { id: "n1".into(), hostname: "h1".into(), memory_total: 12 << 20, usage: sum };
        ClusterUsage {
            services: vec![service("s1", "idle", UsageSum::default()), service("s2", "web", sum)],
            nodes: vec![node],
        }
    }

    fn args(names: &[&str]) -> UsageArgs {
        let names = names.iter().map(ToString::to_string).collect();
        UsageArgs { no_stream: true, no_trunc: false, format: None, names }
    }

    #[test]
    fn services_and_nodes_are_tables_as_those_of_containers() {
        let services = args(&[]).render(&usage(), Of::Services).expect("renders");
        assert_eq!(
            services,
            "ID        NAME      TASKS     CPU %     MEM USAGE   NET I/O     BLOCK I/O   PIDS\n\
             s1        idle      0         0.00%     0B          0B / 0B     0B / 0B     0\n\
             s2        web       2/3       125.00%   3MiB        1kB / 20B   5B / 7B     4\n"
        );
        let nodes = args(&[]).render(&usage(), Of::Nodes).expect("renders");
        assert!(nodes.contains("3MiB / 12MiB        25.00%"), "{nodes}");
    }

    #[test]
    fn lines_can_be_chosen_by_name_id_and_prefix() {
        let with = |names: &[&str]| {
            let args = UsageArgs { format: Some("{{.Name}}".into()), ..args(names) };
            args.render(&usage(), Of::Services).map_err(|error| error.to_string())
        };
        assert_eq!(with(&["web", "s1"]), Ok("web\nidle\n".to_owned()));
        assert_eq!(with(&["s"]), Err("no such service: s".to_owned()), "it is not unique");
        assert_eq!(with(&["s2"]), Ok("web\n".to_owned()));
    }
}

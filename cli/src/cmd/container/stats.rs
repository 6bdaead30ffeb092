//! `stats`: what containers use, once or kept up to date.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use rswarm_api::types::{ContainerSummary, EventMessage, Stats};
use tokio::sync::mpsc;

use crate::client::{Call, ClientError, Filters, JsonLines};
use crate::cmd::{CommandError, Context, short_id};
use crate::render::table::{Listing, Row, row};
use crate::units::{binary_size, ellipsis, human_size};

/// How often the screen is drawn anew.
const REDRAW: Duration = Duration::from_millis(500);
/// Messages that wait to be shown: the screen shows only the newest anyway.
const QUEUE: usize = 64;

const HEADERS: &[(&str, &str)] = &[
    ("Container", "CONTAINER"),
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];

const LISTING: Listing = Listing {
    table: "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}",
    headers: HEADERS,
    quiet: "ID",
};

/// `stats`
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Include stopped ones
    #[arg(short, long)]
    all: bool,
    /// Print once and end
    #[arg(long)]
    no_stream: bool,
    /// Print everything in full
    #[arg(long)]
    no_trunc: bool,
    /// Print by a template, or `json`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Names or IDs; all running ones when there are none
    #[arg(value_name = "CONTAINER")]
    names: Vec<String>,
}

/// What is known of a container on the screen.
#[derive(Debug, Clone, Default)]
struct Shown {
    /// As it was asked for.
    asked: String,
    stats: Option<Stats>,
}

/// News of a container: a sample, or its end.
enum News {
    Sample(String, Box<Stats>),
    Gone(String),
    Appeared(String),
}

impl StatsArgs {
    /// Shows the containers' use until interrupted, or once.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        let names = if self.names.is_empty() { self.listed(context).await? } else { self.names.clone() };
        if self.no_stream {
            return self.once(context, names).await;
        }
        self.keep_showing(context, names).await
    }

    async fn listed(&self, context: &Context) -> Result<Vec<String>, CommandError> {
        let call = Call::get("/containers/json").flag("all", self.all);
        let found: Vec<ContainerSummary> = context.client.json(call).await?;
        Ok(found.into_iter().map(|container| container.id).collect())
    }

    async fn once(&self, context: &Context, names: Vec<String>) -> Result<u8, CommandError> {
        let asked = names.into_iter().map(|name| async move {
            let call = Call::get(format!("/containers/{name}/stats")).query("stream", "false");
            let stats: Stats = context.client.json(call).await?;
            Ok::<_, ClientError>((name, stats))
        });
        let mut rows = Vec::new();
        for answer in futures_util::future::join_all(asked).await {
            let (name, stats) = answer?;
            rows.push(self.line(&Shown { asked: name, stats: Some(stats) }));
        }
        context.terminal.print(&LISTING.render(self.format.as_deref(), false, &rows)?)?;
        Ok(0)
    }

    async fn keep_showing(&self, context: &Context, names: Vec<String>) -> Result<u8, CommandError> {
        let (send, mut news) = mpsc::channel(QUEUE);
        let mut shown: BTreeMap<usize, Shown> = BTreeMap::new();
        let mut followed = futures_util::stream::FuturesUnordered::new();
        for name in names {
            shown.insert(shown.len(), Shown { asked: name.clone(), stats: None });
            followed.push(follow(context, name, send.clone()));
        }
        let mut events = std::pin::pin!(async {
            if self.names.is_empty() {
                watch(context, send.clone()).await
            } else {
                std::future::pending().await
            }
        });
        let mut next_id = shown.len();
        let mut redraw = tokio::time::interval(REDRAW);
        loop {
            tokio::select! {
                Some(ended) = futures_util::StreamExt::next(&mut followed) => ended?,
                ended = &mut events => return ended.map(|()| 0),
                Some(one) = news.recv() => match one {
                    News::Sample(name, stats) => {
                        if let Some(entry) = shown.values_mut().find(|entry| entry.asked == name) {
                            entry.stats = Some(*stats);
                        }
                    }
                    News::Gone(name) => shown.retain(|_, entry| entry.asked != name),
                    News::Appeared(name) => {
                        if shown.values().all(|entry| entry.asked != name) {
                            shown.insert(next_id, Shown { asked: name.clone(), stats: None });
                            next_id += 1;
                            followed.push(follow(context, name, send.clone()));
                        }
                    }
                },
                _ = redraw.tick() => {
                    if followed.is_empty() && !self.names.is_empty() {
                        return Ok(0);
                    }
                    self.draw(context, shown.values())?;
                }
            }
        }
    }

    /// The whole screen, as docker's client does.
    fn draw<'a>(
        &self,
        context: &Context,
        shown: impl Iterator<Item = &'a Shown>,
    ) -> Result<(), CommandError> {
        const HOME_AND_CLEAR: &str = "\x1b[H\x1b[2J";
        let rows: Vec<Row> = shown.map(|entry| self.line(entry)).collect();
        let text = LISTING.render(self.format.as_deref(), false, &rows)?;
        let clear = if self.format.as_deref() == Some("json") { "" } else { HOME_AND_CLEAR };
        Ok(context.terminal.print(&format!("{clear}{text}"))?)
    }

    fn line(&self, shown: &Shown) -> Row {
        line(shown, self.no_trunc)
    }
}

/// Reads a container's samples until it is gone.
async fn follow(context: &Context, name: String, news: mpsc::Sender<News>) -> Result<(), CommandError> {
    let reply =
        context.client.send(Call::get(format!("/containers/{name}/stats")).query("stream", "true")).await?;
    let mut lines = JsonLines::new("GET /containers/stats", reply.into_body());
    while let Some(stats) = lines.next::<Stats>().await? {
        if news.send(News::Sample(name.clone(), Box::new(stats))).await.is_err() {
            return Ok(());
        }
    }
    // Whoever shows it may be gone.
    let _ = news.send(News::Gone(name)).await;
    Ok(())
}

/// Tells of containers that come and go.
async fn watch(context: &Context, news: mpsc::Sender<News>) -> Result<(), CommandError> {
    let filters = Filters::default().with("type", "container");
    let filters =
        ["start", "die", "destroy"].iter().fold(filters, |filters, event| filters.with("event", event));
    let reply = context.client.send(Call::get("/events").filters(&filters)).await?;
    let mut lines = JsonLines::new("GET /events", reply.into_body());
    while let Some(event) = lines.next::<EventMessage>().await? {
        let id = event.actor.id;
        let one = if event.action == "start" { News::Appeared(id) } else { News::Gone(id) };
        if news.send(one).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn line(shown: &Shown, whole: bool) -> Row {
    let none = || "--".to_owned();
    let Some(stats) = &shown.stats else {
        return row([
            ("Container", shown.asked.clone()),
            ("ID", none()),
            ("Name", none()),
            ("CPUPerc", none()),
            ("MemUsage", "-- / --".to_owned()),
            ("MemPerc", none()),
            ("NetIO", none()),
            ("BlockIO", none()),
            ("PIDs", none()),
        ]);
    };
    let name = stats.name.trim_start_matches('/');
    let used = memory_used(stats);
    let limit = stats.memory_stats.limit;
    let (received, sent) = network(stats);
    let (read, written) = block_io(stats);
    row([
        ("Container", shown.asked.clone()),
        ("ID", short_id(&stats.id, whole)),
        ("Name", if whole { name.to_owned() } else { ellipsis(name, 64) }),
        ("CPUPerc", format!("{:.2}%", cpu_percent(stats))),
        ("MemUsage", format!("{} / {}", binary_size(used), binary_size(limit))),
        ("MemPerc", format!("{:.2}%", percent(used, limit))),
        ("NetIO", format!("{} / {}", human_size(received), human_size(sent))),
        ("BlockIO", format!("{} / {}", human_size(read), human_size(written))),
        ("PIDs", stats.pids_stats.current.to_string()),
    ])
}

#[allow(clippy::cast_precision_loss, reason = "a share of a hundred needs no 53 bits")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// As docker's client: the container's part of the machine's time, times the processors.
fn cpu_percent(stats: &Stats) -> f64 {
    let (now, before) = (&stats.cpu_stats, &stats.precpu_stats);
    let used = now.cpu_usage.total_usage.saturating_sub(before.cpu_usage.total_usage);
    let passed = now.system_cpu_usage.saturating_sub(before.system_cpu_usage);
    let cpus = match now.online_cpus {
        0 => u32::try_from(now.cpu_usage.percpu_usage.len()).unwrap_or(u32::MAX),
        cpus => cpus,
    };
    percent(used, passed) * f64::from(cpus)
}

/// Without the page cache that can be dropped, which version 1 and 2 name differently.
fn memory_used(stats: &Stats) -> u64 {
    let memory = &stats.memory_stats;
    let cache = ["total_inactive_file", "inactive_file"].iter().find_map(|name| memory.stats.get(*name));
    match cache {
        Some(cache) if *cache < memory.usage => memory.usage - cache,
        _ => memory.usage,
    }
}

fn network(stats: &Stats) -> (u64, u64) {
    stats
        .networks
        .values()
        .fold((0, 0), |(received, sent), one| (received + one.rx_bytes, sent + one.tx_bytes))
}

fn block_io(stats: &Stats) -> (u64, u64) {
    let entries = stats.blkio_stats.io_service_bytes_recursive.iter().flatten();
    entries.fold((0, 0), |(read, written), entry| match entry.op.as_bytes().first() {
        Some(b'r' | b'R') => (read + entry.value, written),
        Some(b'w' | b'W') => (read, written + entry.value),
        _ => (read, written),
    })
}

#[cfg(test)]
mod tests {
    use rswarm_api::types::{BlkioStatEntry, NetworkStats};

    use super::*;

    fn sample() -> Stats {
        let mut stats = Stats { id: "4c01db0b339c7d9b2ca1".into(), name: "/web".into(), ..Stats::default() };
        stats.cpu_stats.cpu_usage.total_usage = 150;
        stats.cpu_stats.system_cpu_usage = 2_000;
        stats.cpu_stats.online_cpus = 2;
        stats.precpu_stats.cpu_usage.total_usage = 50;
        stats.precpu_stats.system_cpu_usage = 1_000;
        stats.memory_stats.usage = 3 << 20;
        stats.memory_stats.limit = 8 << 20;
        stats.memory_stats.stats.insert("inactive_file".into(), 1 << 20);
        stats
            .networks
            .insert("eth0".into(), NetworkStats { rx_bytes: 1000, tx_bytes: 20, ..Default::default() });
        let entry = |op: &str, value| BlkioStatEntry { op: op.into(), value, ..Default::default() };
        stats.blkio_stats.io_service_bytes_recursive = Some(vec![entry("Read", 5), entry("write", 7)]);
        stats.pids_stats.current = 3;
        stats
    }

    #[test]
    fn a_row_is_docker_s() {
        let rows = [line(&Shown { asked: "web".into(), stats: Some(sample()) }, false)];
        assert_eq!(
            LISTING.render(None, false, &rows).expect("renders"),
            concat!(
                "CONTAINER ID   NAME      CPU %     MEM USAGE / LIMIT   MEM %     NET I/O     BLOCK I/O   PIDS\n",
                "4c01db0b339c   web       20.00%    2MiB / 8MiB         25.00%    1kB / 20B   5B / 7B     3\n",
            )
        );
    }

    #[test]
    fn what_is_not_known_yet_is_a_dash() {
        let rows = [line(&Shown { asked: "web".into(), stats: None }, false)];
        let text = LISTING.render(Some("{{.Container}} {{.CPUPerc}} {{.MemUsage}}"), false, &rows);
        assert_eq!(text.expect("renders"), "web -- -- / --\n");
    }
}

//! `playground up`: from nothing to a proven cluster, and back to nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use futures_util::future::try_join_all;
use rswarm_base::Scope;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::cluster::{self, NETWORK, REPLICAS, SERVICE};
use super::host::{self, Daemon};
use super::plan::{Host, Plan};
use super::process::Process;
use super::record::Record;
use super::steps::Steps;
use super::{PlaygroundError, UpArgs, failover, probe, teardown, underlay};
use crate::terminal::Terminal;

/// Time between two looks at the daemons while the playground is up.
const WATCH: Duration = Duration::from_millis(500);
const SHORT: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);
/// The demo image is as large as this binary, and unpacked once per host.
const IMPORT: Duration = Duration::from_secs(300);

/// The daemons of a playground, with what is written down of them.
pub struct Daemons {
    running: BTreeMap<String, Daemon>,
    record: Record,
}

/// Brings it up, proves it, keeps it, removes it.
pub async fn up(args: UpArgs, terminal: Terminal) -> Result<(), PlaygroundError> {
    let dir = std::path::absolute(&args.place.dir)
        .map_err(|source| PlaygroundError::File { path: args.place.dir.clone(), source })?;
    clear_stale(&dir, terminal).await?;
    let plan = Plan::new(&dir, args.managers, args.workers);
    let steps = Steps::new(terminal);
    steps.say(&format!(
        "A cluster of {} and {} on this machine, in {}",
        counted(plan.managers().count(), "manager"),
        counted(usize::from(args.workers), "worker"),
        dir.display()
    ))?;
    let mut signals = Ending::listen()?;
    let mut daemons = Daemons::none(&plan, &args);
    daemons.record.save()?;
    let result = tokio::select! {
        result = live(&plan, &mut daemons, &steps, args.check) => result,
        () = signals.next() => if args.check { Err(PlaygroundError::Interrupted) } else { Ok(()) },
    };
    if result.is_err() {
        terminal.complain(daemons.last_words(&plan));
    }
    steps.say(if result.is_ok() { "Removing everything ..." } else { "Failed. Removing everything ..." })?;
    let removed = teardown::remove(&daemons.record, terminal).await;
    match (result, removed) {
        (Ok(()), removed) => removed,
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(left)) => {
            terminal.complain(crate::render::error::describe(&left).trim_end());
            Err(error)
        }
    }
}

/// An earlier playground that was killed is cleaned up first; one that lives is left alone.
async fn clear_stale(dir: &Path, terminal: Terminal) -> Result<(), PlaygroundError> {
    match Record::load(dir)? {
        None => std::fs::create_dir_all(dir)
            .map_err(|source| PlaygroundError::File { path: dir.to_owned(), source }),
        Some(record) if record.keeper.is_alive() => Err(PlaygroundError::Running(dir.to_owned())),
        Some(record) => {
            terminal.line("An earlier playground was not ended; cleaning up after it.")?;
            teardown::remove(&record, terminal).await?;
            std::fs::create_dir_all(dir)
                .map_err(|source| PlaygroundError::File { path: dir.to_owned(), source })
        }
    }
}

/// Everything between making and removing.
async fn live(plan: &Plan, daemons: &mut Daemons, steps: &Steps, check: bool) -> Result<(), PlaygroundError> {
    build(plan, daemons, steps).await?;
    if check {
        failover::survive(plan, daemons, steps).await?;
        return steps.say("Check passed.");
    }
    let first = daemons.running.get(&plan.first().name).map(|daemon| daemon.process);
    steps.say(&guide(plan, first))?;
    daemons.watch(plan, steps).await
}

async fn build(plan: &Plan, daemons: &mut Daemons, steps: &Steps) -> Result<(), PlaygroundError> {
    let scope = Scope::root("underlay");
    let network = async {
        daemons.record.namespaces = underlay::create_namespaces(plan)?;
        daemons.record.save()?;
        underlay::connect(plan, &scope).await?;
        let last = plan.hosts.last().map_or(plan.first().address, |host| host.address);
        Ok(((), format!("{}, {} to {last}", counted(plan.hosts.len(), "host"), plan.first().address)))
    };
    steps.step("network", SHORT, network).await?;
    scope.shutdown(Duration::from_secs(1)).await;
    steps.step("daemons", LONG, start_all(plan, daemons)).await?;
    let form = async {
        cluster::form(plan).await?;
        cluster::all_ready(plan, plan.first(), SHORT * 2).await?;
        Ok((
            (),
            format!(
                "{} with {} ready",
                counted(plan.hosts.len(), "node"),
                counted(plan.managers().count(), "manager")
            ),
        ))
    };
    steps.step("cluster", LONG, form).await?;
    let image = async {
        try_join_all(plan.hosts.iter().map(cluster::import_image)).await?;
        Ok(((), "the demo image is on every host".to_owned()))
    };
    steps.step("image", IMPORT, image).await?;
    let service = async {
        let id = cluster::deploy(plan.first()).await?;
        cluster::converged(plan.first(), &id, LONG).await?;
        Ok(((), format!("{REPLICAS} tasks of `{SERVICE}` run on the overlay network `{NETWORK}`")))
    };
    steps.step("service", LONG + SHORT, service).await?;
    steps.step("reach", LONG, prove(plan)).await
}

async fn start_all(plan: &Plan, daemons: &mut Daemons) -> Result<((), String), PlaygroundError> {
    for host in &plan.hosts {
        daemons.spawn(host)?;
    }
    for host in &plan.hosts {
        daemons.ready(host).await?;
    }
    Ok(((), format!("{} up", counted(plan.hosts.len(), "daemon"))))
}

async fn prove(plan: &Plan) -> Result<((), String), PlaygroundError> {
    let instances = probe::instances(&plan.hosts.iter().collect::<Vec<_>>()).await?;
    if instances.len() as u64 != REPLICAS {
        let problem = format!("{} containers of `{SERVICE}` run, not {REPLICAS}", instances.len());
        return Err(PlaygroundError::Wrong(problem));
    }
    let by_address = probe::by_address(&instances).await?;
    let by_name = probe::by_name(&instances).await?;
    Ok(((), format!("every task reached the others: {by_address} fetches by address, {by_name} by name")))
}

impl Daemons {
    fn none(plan: &Plan, args: &UpArgs) -> Daemons {
        let record = Record {
            dir: plan.dir.clone(),
            managers: args.managers,
            workers: args.workers,
            keeper: Process::own(),
            daemons: BTreeMap::new(),
            namespaces: Vec::new(),
        };
        Daemons { running: BTreeMap::new(), record }
    }

    fn spawn(&mut self, host: &Host) -> Result<(), PlaygroundError> {
        let daemon = host::start(host)?;
        self.record.daemons.insert(host.name.clone(), daemon.process);
        self.running.insert(host.name.clone(), daemon);
        self.record.save()
    }

    async fn ready(&mut self, host: &Host) -> Result<(), PlaygroundError> {
        match self.running.get_mut(&host.name) {
            Some(daemon) => daemon.ready(host).await,
            None => Err(PlaygroundError::Wrong(format!("{} has no daemon", host.name))),
        }
    }

    /// Starts a host's daemon and waits until it answers.
    pub async fn start(&mut self, host: &Host) -> Result<(), PlaygroundError> {
        self.spawn(host)?;
        self.ready(host).await
    }

    /// Kills a host's daemon as a power cut would.
    pub fn kill(&mut self, host: &Host) -> Result<(), PlaygroundError> {
        match self.running.remove(&host.name) {
            Some(daemon) => daemon.kill(),
            None => Err(PlaygroundError::Wrong(format!("{} has no daemon", host.name))),
        }
    }

    /// Tells when a daemon ends, and starts it again, as a machine's service manager would.
    async fn watch(&mut self, plan: &Plan, steps: &Steps) -> Result<(), PlaygroundError> {
        loop {
            tokio::time::sleep(WATCH).await;
            for host in &plan.hosts {
                let Some(status) = self.running.get_mut(&host.name).and_then(Daemon::ended) else { continue };
                steps.say(&format!(
                    "The daemon of {} ended ({status}). Its containers run on; starting it again.",
                    host.name
                ))?;
                self.start(host).await?;
                steps.say(&format!("The daemon of {} is back.", host.name))?;
            }
        }
    }

    /// The end of each daemon's log that complains.
    fn last_words(&self, plan: &Plan) -> String {
        let mut text = String::new();
        for host in &plan.hosts {
            let log = std::fs::read_to_string(&host.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().filter(|line| complains(line)).collect();
            for line in &lines[lines.len().saturating_sub(5)..] {
                text.push_str(&format!("{}: {line}\n", host.name));
            }
        }
        if text.is_empty() {
            "The daemons' logs have no complaint.".into()
        } else {
            text.trim_end().to_owned()
        }
    }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn complains(line: &str) -> bool {
    ["ERROR", "WARN", "panicked", "error:"].iter().any(|word| line.contains(word))
}

/// SIGINT or SIGTERM.
struct Ending {
    interrupt: Signal,
    terminate: Signal,
}

impl Ending {
    fn listen() -> Result<Ending, PlaygroundError> {
        Ok(Ending {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn guide(plan: &Plan, first_daemon: Option<Process>) -> String {
    let first = plan.first();
    let dir = match plan.dir.as_path() {
        dir if dir == Path::new(super::plan::DEFAULT_DIR) => String::new(),
        dir => format!(" --dir {}", dir.display()),
    };
    let mut lines = vec![
        ("rswarm node ls".to_owned(), "the hosts"),
        (format!("rswarm service ps {SERVICE}"), "where the tasks run"),
        (format!("rswarm service logs {SERVICE}"), "what they say"),
        (format!("rswarm service scale {SERVICE}=10"), "more of them"),
        (format!("rswarm service update --force {SERVICE}"), "replace them one by one"),
    ];
    if let Some(last) = plan.hosts.last().filter(|last| last.name != first.name) {
        let drain = format!("rswarm node update --availability drain {}", last.name);
        lines.push((drain, "move a host's tasks elsewhere"));
    }
    if let Some(process) = first_daemon {
        lines
            .push((format!("kill -9 {}", process.pid), "end a daemon: its containers run on, it comes back"));
    }
    lines.push((format!("nsenter --net={} ip address", first.netns.display()), "look from inside a host"));
    lines.push((format!("tail -f {}", first.log.display()), "what a daemon says"));
    lines.push((format!("rswarm playground status{dir}"), "the hosts and their daemons"));
    let width = lines.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    let lines: String =
        lines.iter().map(|(command, what)| format!("  {command:<width$}   {what}\n")).collect();
    let socket = first.socket.display();
    format!(
        "\nThe cluster is up. In another terminal (`docker` works as well as `rswarm`):\n\n  \
         export DOCKER_HOST=unix://{socket}\n\n{lines}\nPress Ctrl-C to end it and remove everything."
    )
}

//! One host's daemon: started inside its namespace, talked to over its socket.

use std::fs::{File, OpenOptions};
use std::io;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rswarm_api::types::InfoBody;

use super::PlaygroundError;
use super::plan::Host;
use super::process::Process;
use super::steps::until;
use crate::client::{Call, Client};

/// How long a daemon may take to answer.
const START: Duration = Duration::from_secs(30);

/// A running daemon. Dropping it leaves the daemon alone.
pub struct Daemon {
    child: Child,
    /// The process.
    pub process: Process,
}

/// Starts a host's daemon. It is not ready yet.
pub fn start(host: &Host) -> Result<Daemon, PlaygroundError> {
    let spawn = || -> io::Result<(Child, Process)> {
        for dir in [host.log.parent(), Some(&host.data_root), Some(&host.exec_root)].into_iter().flatten() {
            std::fs::create_dir_all(dir)?;
        }
        let child = command(host)?.spawn()?;
        let process = i32::try_from(child.id()).ok().and_then(Process::of);
        let process = process.ok_or_else(|| io::Error::other("it ended at once"))?;
        Ok((child, process))
    };
    let (child, process) =
        spawn().map_err(|source| PlaygroundError::Spawn { host: host.name.clone(), source })?;
    Ok(Daemon { child, process })
}

/// In a process group of its own: Ctrl-C on the terminal is ours to act on.
fn command(host: &Host) -> io::Result<Command> {
    use std::os::unix::process::CommandExt;
    let exe = std::env::current_exe()?;
    let log: File = OpenOptions::new().create(true).append(true).open(&host.log)?;
    let mut command = Command::new(&exe);
    command.arg("enter-netns").arg(&host.netns).arg("--").arg(&exe).arg("daemon");
    command.arg("--data-root").arg(&host.data_root).arg("--exec-root").arg(&host.exec_root);
    command.arg("--host").arg(format!("unix://{}", host.socket.display()));
    command.arg("--node-name").arg(&host.name);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    Ok(command)
}

impl Daemon {
    /// Waits until the daemon answers.
    pub async fn ready(&mut self, host: &Host) -> Result<(), PlaygroundError> {
        let client = client(host)?;
        let step = format!("starting the daemon of {}", host.name);
        let child = &mut self.child;
        let mut ended = None;
        let answers = until(&step, START, || {
            ended = child.try_wait().ok().flatten();
            let (client, has_ended) = (client.clone(), ended.is_some());
            async move {
                match client.done(Call::get("/_ping")).await {
                    Ok(()) => Ok(true),
                    Err(_) if has_ended => Ok(false),
                    Err(error) => Err(rswarm_base::Chain(&error).to_string()),
                }
            }
        });
        if answers.await? {
            return Ok(());
        }
        let status = ended.map(|status| status.to_string()).unwrap_or_default();
        Err(PlaygroundError::Ended { host: host.name.clone(), status, log: host.log.clone() })
    }

    /// Kills the daemon as a power cut would, and takes its exit status in.
    pub fn kill(mut self) -> Result<(), PlaygroundError> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed
            .map(drop)
            .map_err(|source| PlaygroundError::Wrong(format!("the daemon cannot be killed: {source}")))
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<String> {
        self.child.try_wait().ok().flatten().map(|status| status.to_string())
    }
}

/// A client of the host's daemon.
pub fn client(host: &Host) -> Result<Client, PlaygroundError> {
    let made = Client::new(&format!("unix://{}", host.socket.display()));
    made.map_err(|source| PlaygroundError::Call { host: host.name.clone(), source })
}

/// What the host's daemon says of its place in the cluster, in a few words.
pub async fn cluster_state(host: &Host) -> String {
    let Ok(client) = client(host) else { return "unknown".into() };
    match client.json::<InfoBody>(Call::get("/info")).await {
        Ok(info) if info.swarm.control_available => format!("{}, manager", info.swarm.local_node_state),
        Ok(info) => info.swarm.local_node_state,
        Err(_) => "does not answer".into(),
    }
}

//! What a shim is told when it is launched, and what it reports: plain data, kept as JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rswarm_base::Timestamp;
use rswarm_runtime::Rootfs;
use serde::{Deserialize, Serialize};

/// The name of the launch file in the state directory.
pub const LAUNCH_FILE: &str = "launch.json";
/// The name of the socket in the state directory.
pub const SOCKET: &str = "shim.sock";
/// The name of the shim's own log in the state directory.
pub const SHIM_LOG: &str = "shim.log";

/// Everything a shim needs to know, written to `<state_dir>/launch.json` before it is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The container's identifier.
    pub id: String,
    /// `<exec-root>/containers/<id>`: socket, launch file and the shim's own log. Must exist.
    pub state_dir: PathBuf,
    /// Where the [`Exit`] is kept durably before anyone is told. A file from an earlier run is removed.
    pub exit_file: PathBuf,
    /// Holds `config.json`; its `root.path` is where the root file system gets mounted.
    pub bundle: PathBuf,
    /// What is mounted there, in the shim's own mount namespace.
    pub rootfs: Rootfs,
    /// Docker's `USER` text (`name`, `uid`, `name:group`, `uid:gid`), looked up in the container's own
    /// `/etc/passwd` and `/etc/group`. When set, it replaces `process.user`'s uid and gid, adds the user's
    /// supplementary groups to `additionalGids`, and sets `HOME` unless the environment has it.
    #[serde(default)]
    pub user: Option<String>,
    /// More groups (`--group-add`), by name or number, looked up in the container's `/etc/group`.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Where the container's output is written; `None` keeps none.
    pub log: Option<LogFile>,
    /// The container gets a terminal.
    pub tty: bool,
    /// The container's standard input can be attached to; else it is `/dev/null`.
    pub open_stdin: bool,
    /// Standard input ends when the first attached client ends its own.
    pub stdin_once: bool,
    /// The terminal's first size: columns, rows.
    pub console_size: Option<(u16, u16)>,
    /// Unmounted lazily in the shim's own mount namespace, so that the shim does not pin them.
    pub detach_mounts: Vec<PathBuf>,
    /// Another OCI runtime; `None` is the one built in.
    pub runtime: Option<RuntimeBinary>,
}

/// Where and how a container's output is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFile {
    /// The current file; older ones are `<path>.1`, `<path>.2`, … (`.gz` behind it when compressed).
    pub path: PathBuf,
    /// Rotates before a file grows beyond this many bytes; zero never rotates.
    pub max_size: u64,
    /// How many files there are at most, the current one included.
    pub max_files: u32,
    /// How lines are written.
    #[serde(default)]
    pub format: LogFormat,
    /// Older files are compressed.
    #[serde(default)]
    pub compress: bool,
    /// `None`: the container waits for the disk. Else so many bytes wait at most, and lines that do not fit
    /// are lost and counted.
    #[serde(default)]
    pub buffer: Option<u64>,
    /// Attributes of every json-file line.
    #[serde(default)]
    pub attrs: BTreeMap<String, String>,
}

/// How lines look on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Docker's json-file: one JSON object a line.
    #[default]
    Json,
    /// Ours: framed in binary, see [`crate::log::local`].
    Local,
}

/// Another OCI runtime, called with runc's command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeBinary {
    /// The program.
    pub path: PathBuf,
    /// Arguments before the command.
    pub args: Vec<String>,
}

/// How a container ended. Also the content of the exit file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0 to 255; 128 plus the number of the signal that ended it.
    pub code: i32,
    /// When.
    pub at: Timestamp,
    /// The kernel killed a process of the container for want of memory.
    pub oom_killed: bool,
    /// The shim was killed, and the container with it: nobody saw how it ended. Never in an exit file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shim_killed: bool,
}

/// Where a shim's container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShimState {
    /// Made, waiting for start.
    Created {
        /// The container's first process, in the machine's numbering.
        pid: i32,
    },
    /// Started.
    Running {
        /// The container's first process, in the machine's numbering.
        pid: i32,
        /// When it was started.
        started_at: Timestamp,
        /// All its processes are frozen.
        paused: bool,
        /// How many lines of its output could not be logged.
        #[serde(default)]
        log_dropped: u64,
    },
    /// Ended; nothing of it is left but its exit.
    Stopped(Exit),
}

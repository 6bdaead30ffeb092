//! Further processes inside a running container.

use rswarm_base::Timestamp;

/// A process to run beside the container's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecConfig {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `KEY=VALUE`, added to the container's.
    pub env: Vec<String>,
    /// Working directory; empty for the container's.
    pub workdir: String,
    /// User; empty for the container's.
    pub user: String,
    /// With every capability.
    pub privileged: bool,
    /// On a terminal.
    pub tty: bool,
    /// Keep standard input open for the client.
    pub attach_stdin: bool,
    /// Pass standard output on.
    pub attach_stdout: bool,
    /// Pass standard error on.
    pub attach_stderr: bool,
    /// Size of the terminal at the start: width, height.
    pub console_size: Option<(u16, u16)>,
}

/// An exec and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The container that it runs in.
    pub container_id: String,
    /// What was asked for.
    pub config: ExecConfig,
    /// Whether its process lives.
    pub running: bool,
    /// Its process; 0 before the start.
    pub pid: i32,
    /// How it ended; `None` while it has not.
    pub exit_code: Option<i32>,
    /// When it was created.
    pub created: Timestamp,
}

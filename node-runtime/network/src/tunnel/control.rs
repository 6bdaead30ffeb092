//! What the daemon and the process of the device say to each other: one line of JSON each way per connection.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::keys::{Public, Secret};

/// A daemon ends a device that speaks another version, and starts its own.
pub const VERSION: u32 = 1;
/// The longest line: some tens of thousands of peers.
pub const LINE_MAX: u64 = 16 << 20;
/// The process answers at once, whatever it carries.
const ANSWER: Duration = Duration::from_secs(5);

/// What the device shall be: all of it, each time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// This node's private key.
    pub private: Secret,
    /// The cluster's pre-shared key.
    pub psk: Secret,
    /// Who there is to speak to.
    pub peers: Vec<PeerConfig>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PeerConfig {
    /// The node.
    pub node: String,
    /// Its public key.
    pub public: Public,
    /// Its address inside the tunnel.
    pub address: Ipv4Addr,
    /// Where its device listens.
    pub endpoint: SocketAddr,
}

/// What a peer looks like from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The node.
    pub node: String,
    /// Where it was last heard.
    pub endpoint: SocketAddr,
    /// How long ago the session began that traffic goes by; `None` when there is none.
    pub handshake_seconds: Option<u64>,
    /// Whether that session has the newest keys.
    pub is_current: bool,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Who are you?
    Hello,
    /// Be this.
    Configure(Config),
    /// How are your peers?
    Status,
    /// End.
    Quit,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Request::Hello`].
    Hello {
        /// The [`VERSION`] that it speaks.
        version: u32,
        /// Its process.
        pid: i32,
        /// The UDP port that it listens on.
        port: u16,
        /// The number of the network namespace that its interface is in.
        netns: u64,
    },
    /// Done.
    Done,
    /// To [`Request::Status`].
    Status(Vec<PeerStatus>),
    /// The request cannot be understood.
    Unknown(String),
}

/// Asks the process behind `socket`. Blocking, and never for long.
///
/// # Errors
/// When nobody listens there, or the answer is none.
pub fn ask(socket: &Path, request: &Request) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut said = String::new();
    io::Read::take(BufReader::new(stream), LINE_MAX).read_line(&mut said)?;
    Ok(serde_json::from_str(&said)?)
}

/// The process that listens on `socket`.
///
/// # Errors
/// When nobody does.
pub fn pid_of(socket: &Path) -> io::Result<i32> {
    let stream = UnixStream::connect(socket)?;
    Ok(getsockopt(&stream, sockopt::PeerCredentials)?.pid())
}

//! The record of control calls: who asked for what, when, and how that ended; one JSON object a line.
//!
//! Is not: what was written. No spec, no data of a secret and no token is ever part of a line.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde::Serialize;

use crate::clock::Timestamp;

/// Who uses a daemon's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum User {
    /// A process of this machine, on the unix socket; as the kernel says (unix(7), `SO_PEERCRED`).
    Local {
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Itself; 0 when it is in another PID namespace.
        pid: i32,
    },
    /// Whoever is at this address, on a TCP port.
    Remote {
        /// Where from.
        addr: SocketAddr,
    },
}

/// As it travels between managers; [`User::from_str`] reads it.
impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            User::Local { uid, gid, pid } => write!(f, "{uid}:{gid}:{pid}"),
            User::Remote { addr } => write!(f, "tcp {addr}"),
        }
    }
}

/// A text that names no user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a user of an API")]
pub struct NotAUser;

impl FromStr for User {
    type Err = NotAUser;

    fn from_str(text: &str) -> Result<User, NotAUser> {
        if let Some(addr) = text.strip_prefix("tcp ") {
            return addr.parse().map(|addr| User::Remote { addr }).map_err(|_| NotAUser);
        }
        let mut parts = text.split(':');
        let mut part = || parts.next().ok_or(NotAUser);
        let (uid, gid, pid) = (part()?, part()?, part()?);
        let number = |text: &str| text.parse().map_err(|_| NotAUser);
        Ok(User::Local { uid: number(uid)?, gid: number(gid)?, pid: pid.parse().map_err(|_| NotAUser)? })
    }
}

/// The node that a call came from, as its certificate says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Via {
    /// Its id; empty when it showed no certificate.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// `manager` or `worker`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub role: &'static str,
    /// Where the connection came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addr: Option<SocketAddr>,
}

/// One call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Who asked, when it was a user of an API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// Through which node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<Via>,
    /// What for, as in `create_service`.
    pub call: String,
    /// The object's id, as far as it is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Its name, as far as the call says.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What in particular, as in `rotate_worker_token`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub detail: Vec<String>,
    /// `ok`, or the kind of the failure.
    pub outcome: String,
}

/// A line of the file.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    entry: &'a Entry,
}

/// Where calls are written down; by default nowhere. Cloning gives another handle on the same file.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    log: Option<Arc<Log>>,
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: Mutex<File>,
    /// Whether the last line could not be written: said once, not for every call.
    is_broken: AtomicBool,
}

impl Audit {
    /// Appends to the file, which is made (mode 0600) when it is not there.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Audit> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let log = Log { path: path.to_owned(), file: Mutex::new(file), is_broken: AtomicBool::new(false) };
        Ok(Audit { log: Some(Arc::new(log)) })
    }

    /// Whether anything is written down.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.log.is_some()
    }

    /// Writes a call down, whole and in one write. A file that cannot be written is logged; it stops nobody.
    pub fn write(&self, entry: &Entry) {
        let Some(log) = &self.log else { return };
        let line = Line { time: Timestamp::wall().rfc3339_nano(), entry };
        let mut text = serde_json::to_vec(&line).expect("text and numbers always serialise");
        text.push(b'\n');
        let written = log.file.lock().expect("no holder panics").write_all(&text);
        let was_broken = log.is_broken.swap(written.is_err(), Ordering::Relaxed);
        if let Err(error) = written
            && !was_broken
        {
            tracing::error!(path = %log.path.display(), %error, "control calls are not written down any more");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_travels_as_text() {
        let local = User::Local { uid: 1000, gid: 100, pid: -1 };
        let remote = User::Remote { addr: "[::1]:5".parse().expect("address") };
        for user in [local, remote] {
            assert_eq!(user.to_string().parse(), Ok(user));
        }
        for text in ["", "1:2", "a:b:c", "tcp here", "tcp"] {
            assert_eq!(text.parse::<User>(), Err(NotAUser), "{text}");
        }
    }

    #[test]
    fn a_call_is_a_line_and_nothing_of_the_file_is_lost() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("audit");
        std::fs::write(&path, "before\n").expect("written");
        let user = Some(User::Local { uid: 0, gid: 0, pid: 7 });
        let entry = Entry { user, call: "create_secret".into(), outcome: "ok".into(), ..Entry::default() };
        let audit = Audit::open(&path).expect("opened");
        audit.write(&entry);
        audit.clone().write(&Entry { name: "a\nb".into(), ..entry });
        let text = std::fs::read_to_string(&path).expect("read");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0]), (3, "before"));
        let first: serde_json::Value = serde_json::from_str(lines[1]).expect("JSON");
        let time = first["time"].as_str().and_then(Timestamp::parse).expect("a time");
        assert!(time <= Timestamp::wall());
        assert_eq!(first["user"], serde_json::json!({ "uid": 0, "gid": 0, "pid": 7 }));
        assert_eq!((&first["call"], &first["outcome"]), (&"create_secret".into(), &"ok".into()));
        assert!(first.get("name").is_none() && first.get("via").is_none(), "{first}");
        let second: serde_json::Value = serde_json::from_str(lines[2]).expect("JSON");
        assert_eq!(second["name"], "a\nb");
        assert!(!Audit::default().is_on());
    }
}

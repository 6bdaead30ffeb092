//! What daemon and shim say to each other on `shim.sock`.
//!
//! Each message is a big-endian `u32` length and that many bytes of JSON, at most [`MESSAGE_MAX`]. A
//! connection serves one request:
//!
//! ```text
//! client                                   shim
//! Hello {version}  Request        ->
//!                                 <-       Hello {version}  Reply
//! ```
//!
//! * [`Request::Wait`] is answered when the container has exited, [`Request::ExecWait`] when the exec has.
//! * After the reply to [`Request::Attach`] (or [`Request::ExecStart`]) the connection is a byte stream: to
//!   the client Docker's stdcopy frames (`[stream, 0, 0, 0, length u32 BE]` and the payload; raw with a
//!   terminal), to the shim raw standard input. A half-close ends the input when the launch says
//!   `stdin_once`. The shim ends the stream after the last byte of output.
//! * A shim serves [`VERSION`] and refuses others by name: an upgraded daemon that changes a message keeps
//!   understanding the old ones for as long as containers from before the upgrade may live.
//!
//! Before that, the launch: the shim writes one [`Launched`] as a line of JSON to its standard output, which
//! is a pipe to the daemon, when init waits for start, or when that failed.

use rswarm_base::Timestamp;
use rswarm_runtime::Failure;
use serde::{Deserialize, Serialize};

use crate::launch::{Exit, ShimState};

/// The version of these messages.
pub const VERSION: u32 = 1;

/// The longest message; environment and arguments of an exec must fit.
pub const MESSAGE_MAX: usize = 4 << 20;

/// First message of either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the speaker.
    pub version: u32,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Lets the created container run.
    Start,
    /// Where the container is in its life.
    State,
    /// Sends a signal to the first process, or to all.
    Kill {
        /// The signal's number.
        signal: i32,
        /// To every process of the container.
        all: bool,
    },
    /// Freezes all processes.
    Pause,
    /// Thaws them.
    Resume,
    /// Answers when the container has exited.
    Wait,
    /// Turns the connection into the container's stdio.
    Attach,
    /// Sets the terminal's size.
    Resize {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Starts another process in the running container; the connection becomes its stdio.
    ExecStart(ExecRequest),
    /// Sets the size of an exec's terminal.
    ExecResize {
        /// The exec's identifier.
        id: String,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Sends a signal to an exec's process.
    ExecKill {
        /// The exec's identifier.
        id: String,
        /// The signal's number.
        signal: i32,
    },
    /// Answers when the exec has exited.
    ExecWait {
        /// The exec's identifier.
        id: String,
    },
    /// After the container has exited: the shim removes its files and ends.
    Shutdown,
}

/// Another process for a running container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Chosen by the caller, unique in the container.
    pub id: String,
    /// The command and its arguments.
    pub args: Vec<String>,
    /// The whole environment, `KEY=value`.
    pub env: Vec<String>,
    /// The working directory, absolute; the container's own when `None`.
    pub cwd: Option<String>,
    /// Docker's user text, looked up inside the container; the container's own user when `None`.
    pub user: Option<String>,
    /// All capabilities, and no seccomp filter.
    pub privileged: bool,
    /// The process gets a terminal.
    pub tty: bool,
    /// What the connection sends becomes standard input; else that is `/dev/null`.
    pub stdin: bool,
    /// The terminal's first size: columns, rows.
    pub console_size: Option<(u16, u16)>,
}

/// How a shim answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done; to attach: the stream follows.
    Done,
    /// To start.
    Started(Started),
    /// To state.
    State(ShimState),
    /// To both waits.
    Exited(Exit),
    /// The container or its command cannot be run.
    Failed(Failure),
    /// The container's state, or the request itself, forbids it.
    Refused(String),
}

/// A process was let run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The process, in the machine's numbering.
    pub pid: i32,
    /// When.
    pub started_at: Timestamp,
}

/// The one line that a shim writes to its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Launched {
    /// Init waits for start.
    Created {
        /// Init, in the machine's numbering.
        pid: i32,
    },
    /// There is no container, and nothing is left of the attempt.
    Failed(Failure),
}

/// Writes a message behind its length.
#[must_use]
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let json = serde_json::to_vec(message).expect("messages have no map keys that JSON cannot have");
    let length = u32::try_from(json.len()).expect("no message of ours reaches 4 GiB");
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(json);
    bytes
}

/// Takes the first message off `buffer` when all of it is there.
///
/// # Errors
/// When the length is beyond [`MESSAGE_MAX`] or the JSON is none of ours.
pub fn decode<T: serde::de::DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, String> {
    let Some(length) = buffer.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes) as usize) else {
        return Ok(None);
    };
    if length > MESSAGE_MAX {
        return Err(format!("a message of {length} bytes is longer than {MESSAGE_MAX}"));
    }
    let Some(json) = buffer.get(4..4 + length) else { return Ok(None) };
    let message = serde_json::from_slice(json).map_err(|error| format!("message not understood: {error}"))?;
    buffer.drain(..4 + length);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_only_when_whole() {
        let bytes = encode(&Request::Kill { signal: 9, all: true });
        let mut buffer = Vec::new();
        for byte in &bytes[..bytes.len() - 1] {
            buffer.push(*byte);
            assert_eq!(decode::<Request>(&mut buffer), Ok(None));
        }
        buffer.push(bytes[bytes.len() - 1]);
        buffer.push(0);
        assert_eq!(decode(&mut buffer), Ok(Some(Request::Kill { signal: 9, all: true })));
        assert_eq!(buffer, [0]);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(256))]

        #[test]
        fn any_bytes_are_refused_or_waited_for(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600)) {
            let before = bytes.clone();
            match decode::<Request>(&mut bytes) {
                Ok(Some(_)) => assert!(bytes.len() < before.len()),
                Ok(None) | Err(_) => assert_eq!(bytes, before),
            }
        }

        #[test]
        fn a_damaged_request_is_an_error_or_another(at in proptest::prelude::any::<proptest::sample::Index>(), byte in proptest::prelude::any::<u8>()) {
            let mut bytes = encode(&Request::ExecStart(ExecRequest { id: "x".into(), args: vec!["a".into()], ..ExecRequest::default() }));
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = decode::<Request>(&mut bytes);
        }

        #[test]
        fn a_damaged_launch_file_is_an_error_or_another(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = serde_json::from_slice::<crate::Launch>(&bytes);
            let _ = serde_json::from_slice::<Exit>(&bytes);
        }
    }

    #[test]
    fn a_length_beyond_the_limit_and_foreign_json_are_errors() {
        assert!(decode::<Request>(&mut vec![0xff; 8]).is_err());
        let mut foreign = encode(&"dance");
        assert!(decode::<Request>(&mut foreign).is_err());
    }
}

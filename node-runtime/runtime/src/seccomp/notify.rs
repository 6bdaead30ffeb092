//! Hands a filter's listener to the agent that the configuration names.

use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use oci_spec::runtime::{LinuxSeccomp, Spec};
use serde::Serialize;

use crate::failure::{Context, Failure};
use crate::hooks::State;
use crate::spec::linux;
use crate::sys::{self, Child};

/// The container process state.
// spec: oci-runtime config-linux.md#the-container-process-state
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessState<'a> {
    oci_version: &'a str,
    fds: [&'static str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    state: &'a State,
}

/// Takes the listener, a descriptor of the confined process, and sends it to the agent with the state. The
/// process waits meanwhile.
pub(crate) fn hand_over(spec: &Spec, state: &State, child: &Child, number: u32) -> Result<(), Failure> {
    let listener = sys::copy_descriptor(&child.pidfd, number).context("take the seccomp listener")?;
    let profile = linux(spec)?.seccomp().as_ref();
    let profile = profile.ok_or_else(|| Failure::other("a listener without a profile"))?;
    let message = ProcessState {
        oci_version: &state.oci_version,
        fds: ["seccompFd"],
        pid: child.pid,
        metadata: profile.listener_metadata().as_deref().filter(|text| !text.is_empty()),
        state,
    };
    let json = serde_json::to_vec(&message).map_err(io::Error::from).context("say the process state")?;
    send(profile, &json, &listener)
}

/// One state for each connection, the descriptor with its first bytes.
fn send(profile: &LinuxSeccomp, json: &[u8], listener: &OwnedFd) -> Result<(), Failure> {
    let path = profile.listener_path().as_deref().unwrap_or_else(|| "".as_ref());
    let agent = format!("seccomp agent at `linux.seccomp.listenerPath` `{}`", path.display());
    // As runc begins it.
    let mut stream = UnixStream::connect(path).with_context(|| format!("failed to connect with {agent}"))?;
    let what = || format!("send the listener to the {agent}");
    let fds = [listener.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let first = [IoSlice::new(json)];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &first, &rights, MsgFlags::MSG_NOSIGNAL, None);
    let sent = sent.with_context(what)?;
    stream.write_all(&json[sent..]).with_context(what)
}

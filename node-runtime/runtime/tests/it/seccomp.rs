//! Seccomp as the confined process meets it.

use std::io::{IoSliceMut, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

use crate::Case;
use crate::support::Bundle;

pub const CASES: &[Case] = &[
    ("a_call_can_be_refused_logged_or_deadly", a_call_can_be_refused_logged_or_deadly),
    ("arguments_decide", arguments_decide),
    ("a_filter_is_loaded_with_and_without_no_new_privs", a_filter_is_loaded_with_and_without_no_new_privs),
    ("what_the_runtime_itself_needs_can_be_forbidden", what_the_runtime_itself_needs_can_be_forbidden),
    ("the_listener_goes_to_the_agent_with_the_state", the_listener_goes_to_the_agent_with_the_state),
    ("an_agent_that_is_not_there_is_an_error", an_agent_that_is_not_there_is_an_error),
    ("exec_is_filtered_too", exec_is_filtered_too),
];

fn profile(syscalls: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": syscalls})
}

fn refuse(name: &str, errno: i32) -> Value {
    profile(json!([{"names": [name, "a_call_of_the_future"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}]))
}

fn a_call_can_be_refused_logged_or_deadly() -> Result<()> {
    let mut bundle = Bundle::sh("busybox mkdir /made; echo $?")?;
    bundle.spec["linux"]["seccomp"] = refuse("mkdir", 28);
    let output = bundle.call(&["run", &bundle.id])?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.stdout == b"1\n" && said.contains("No space left on device"), "{said}");
    for (action, expected) in
        [("SCMP_ACT_KILL_PROCESS", "159\n"), ("SCMP_ACT_LOG", "0\n"), ("SCMP_ACT_TRAP", "159\n")]
    {
        let call = json!([{"names": ["mkdir"], "action": action}]);
        bundle.spec["linux"]["seccomp"] = profile(call);
        let said = String::from_utf8(bundle.call(&["run", &bundle.id])?.stdout)?;
        ensure!(said == expected, "{action}: {said}");
        let _ = std::fs::remove_dir(bundle.path("bundle/rootfs/made"));
    }
    bundle.nothing_is_left()
}

fn arguments_decide() -> Result<()> {
    let mut bundle = Bundle::sh("busybox chmod 700 /etc; echo $?; busybox chmod 711 /etc; echo $?")?;
    let argument = json!([{"index": 1, "value": 0o711, "op": "SCMP_CMP_EQ"}]);
    bundle.spec["linux"]["seccomp"] = profile(json!([
        {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": argument}
    ]));
    let said = String::from_utf8(bundle.call(&["run", &bundle.id])?.stdout)?;
    ensure!(said == "0\n1\n", "{said}");
    bundle.nothing_is_left()
}

fn a_filter_is_loaded_with_and_without_no_new_privs() -> Result<()> {
    let mut bundle = Bundle::sh("cat /proc/self/status; busybox mkdir /made")?;
    bundle.spec["linux"]["seccomp"] = refuse("mkdir", 1);
    for no_new_privileges in [true, false] {
        bundle.spec["process"]["noNewPrivileges"] = no_new_privileges.into();
        let output = bundle.call(&["run", &bundle.id])?;
        let said = String::from_utf8(output.stdout)?;
        ensure!(said.contains("Seccomp:\t2") && said.contains("Seccomp_filters:\t1"), "{said}");
        ensure!(said.contains(&format!("NoNewPrivs:\t{}", u8::from(no_new_privileges))), "{said}");
        ensure!(output.status.code() == Some(1));
    }
    bundle.nothing_is_left()
}

fn what_the_runtime_itself_needs_can_be_forbidden() -> Result<()> {
    let mut bundle = Bundle::sh("echo up")?;
    let names = json!([
        "sendmsg",
        "recvmsg",
        "setresuid",
        "setresgid",
        "setgroups",
        "capset",
        "prctl",
        "chdir",
        "getcwd",
        "close_range",
        "openat2",
        "keyctl",
        "sched_setattr"
    ]);
    bundle.spec["linux"]["seccomp"] = profile(json!([{"names": names, "action": "SCMP_ACT_ERRNO"}]));
    bundle.spec["process"]["args"] = json!(["echo", "up"]);
    ensure!(bundle.succeeds(&["run", &bundle.id])? == "up\n");
    bundle.nothing_is_left()
}

fn the_listener_goes_to_the_agent_with_the_state() -> Result<()> {
    for no_new_privileges in [true, false] {
        let mut bundle = Bundle::sh("busybox mkdir /made; echo $? > /said")?;
        let socket = bundle.path("agent.sock");
        let agent = UnixListener::bind(&socket)?;
        let mut filter = profile(json!([{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]));
        filter["listenerPath"] = socket.display().to_string().into();
        filter["listenerMetadata"] = "meta".into();
        bundle.spec["linux"]["seccomp"] = filter;
        bundle.spec["process"]["noNewPrivileges"] = no_new_privileges.into();
        bundle.succeeds(&["create", &bundle.id])?;
        let (mut stream, _) = agent.accept()?;
        let mut buffer = vec![0; 64 << 10];
        let mut space = nix::cmsg_space!(RawFd);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let received = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty())?;
        let fds: Vec<RawFd> = received
            .cmsgs()?
            .flat_map(|message| match message {
                ControlMessageOwned::ScmRights(fds) => fds,
                _ => Vec::new(),
            })
            .collect();
        let length = received.bytes;
        let mut json = buffer[..length].to_vec();
        stream.read_to_end(&mut json)?;
        let said: Value = serde_json::from_slice(&json)?;
        let pid = bundle.state()?["pid"].clone();
        ensure!(said["fds"] == json!(["seccompFd"]) && said["metadata"] == "meta", "{said}");
        ensure!(said["pid"] == pid && said["state"]["pid"] == pid, "{said}");
        ensure!(said["state"]["status"] == "creating" && said["state"]["id"] == bundle.id, "{said}");
        let [listener] = fds.as_slice() else { anyhow::bail!("{fds:?}") };
        let link = std::fs::read_link(format!("/proc/self/fd/{listener}"))?;
        ensure!(link.display().to_string() == "anon_inode:seccomp notify", "{}", link.display());
        // Nobody answers: when the listener closes, the call fails with ENOSYS.
        bundle.succeeds(&["start", &bundle.id])?;
        nix::unistd::close(*listener).context("close")?;
        bundle.says("1")?;
        bundle.succeeds(&["delete", "--force", &bundle.id])?;
        bundle.nothing_is_left()?;
    }
    Ok(())
}

fn an_agent_that_is_not_there_is_an_error() -> Result<()> {
    let mut bundle = Bundle::sh("")?;
    let mut filter = profile(json!([{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]));
    filter["listenerPath"] = "/nowhere/agent.sock".into();
    bundle.spec["linux"]["seccomp"] = filter;
    let said = bundle.fails(&["create", &bundle.id])?;
    ensure!(said.contains("`linux.seccomp.listenerPath` `/nowhere/agent.sock`"), "{said}");
    bundle.nothing_is_left()
}

fn exec_is_filtered_too() -> Result<()> {
    let mut bundle = Bundle::sh("sleep 1000")?;
    bundle.spec["linux"]["seccomp"] = refuse("mkdir", 1);
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let output = bundle.call(&["exec", &bundle.id, "busybox", "mkdir", "/made"])?;
    ensure!(output.status.code() == Some(1) && !bundle.path("bundle/rootfs/made").exists());
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

//! docker's client at a terminal and on pipes: what is typed arrives, what is said is seen, codes are kept.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::Host;
use rswarm_tests::terminal::Terminal;

use crate::support::{Check, all_pass};

/// One daemon for all of it: each check removes its containers.
#[test]
fn clients_at_terminals_and_pipes_behave_as_on_dockerd() -> Result<()> {
    let lab = Lab::start(1)?;
    let host = &lab.hosts[0];
    host.import_busybox()?;
    let checks: [Check; 12] = [
        ("a shell on a terminal", shell),
        ("detach and attach", detach_and_attach),
        ("exec on a terminal", exec_on_a_terminal),
        ("exec on pipes", exec_on_pipes),
        ("exit codes", exit_codes),
        ("half-close", half_close),
        ("all output arrives", output_is_complete),
        ("many watch one", many_watch_one),
        ("signals are passed on", signals_are_passed_on),
        ("attach over a websocket", attach_over_a_websocket),
        ("bad handshakes of websockets", bad_websocket_handshakes_are_refused),
        ("a client that vanishes", a_client_that_vanishes_is_forgotten),
    ];
    all_pass(host, &checks)?;
    lab.finish()
}

fn output(host: &Host, args: &[&str]) -> Result<Output> {
    Ok(host.docker_command(args).output()?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const ATTACH: &str = "/v1.43/containers/talk/attach/ws?logs=1&stream=1&stdin=1&stdout=1&stderr=1";

/// As Portainer does it: messages without frames, both ways. RFC 6455 has the bytes.
fn attach_over_a_websocket(host: &Host) -> Result<()> {
    let program = "echo before; head -c 200000 /dev/zero | tr '\\0' x; echo; while read word; do echo \"$word\" >&2; done";
    host.docker(&["run", "-d", "-i", "--name", "talk", "busybox", "sh", "-c", program])?;
    let long = format!("before\n{}\n", "x".repeat(200_000));
    eventually(Duration::from_secs(10), "it is logged", || Ok(host.docker(&["logs", "talk"])? == long))?;

    let mut socket = websocket(host, ATTACH)?;
    let mut replayed = Vec::new();
    while replayed.len() < long.len() {
        replayed.extend(data(&mut socket)?);
    }
    ensure!(replayed == long.as_bytes(), "{} bytes are replayed", replayed.len());
    // One message in two frames, with a ping between them.
    send(&mut socket, 0x01, b"hel")?;
    send(&mut socket, 0x89, b"?")?;
    send(&mut socket, 0x80, b"lo\n")?;
    let (mut pong, mut heard) = (false, Vec::new());
    while !pong || heard != b"hello\n" {
        match message(&mut socket)? {
            (0x8a, payload) => pong = payload == b"?",
            (0x82, payload) => heard.extend(payload),
            other => anyhow::bail!("{other:?}"),
        }
    }
    send(&mut socket, 0x88, b"")?;
    ensure!(message(&mut socket)?.0 == 0x88, "a close is answered by one");
    ensure!(socket.read(&mut [0])? == 0);
    ensure!(host.docker(&["inspect", "--format", "{{.State.Running}}", "talk"])?.trim() == "true");

    // Only what is asked for; and the end of the container is that of the socket.
    let mut deaf = websocket(host, "/v1.43/containers/talk/attach/ws?stream=1&stdin=1&stdout=1")?;
    let mut all = websocket(host, "/v1.27/containers/talk/attach/ws?stream=1")?;
    send(&mut deaf, 0x82, b"unheard\n")?;
    ensure!(message(&mut all)? == (0x81, b"unheard\n".to_vec()), "text, and all streams, for old clients");
    host.docker(&["kill", "talk"])?;
    ensure!(message(&mut deaf)?.0 == 0x88 && message(&mut all)?.0 == 0x88);
    host.docker(&["rm", "-f", "talk"]).map(drop)
}

fn bad_websocket_handshakes_are_refused(host: &Host) -> Result<()> {
    host.docker(&["run", "-d", "-i", "--name", "talk", "busybox", "cat"])?;
    let good = [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    let says = |headers: &[&str], path: &str| -> Result<(String, UnixStream)> {
        let mut socket = UnixStream::connect(host.dir.join("rswarm.sock"))?;
        socket.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\n{}\r\n\r\n", headers.join("\r\n"))?;
        let status = head(&mut socket)?.lines().next().unwrap_or_default().to_owned();
        Ok((status, socket))
    };
    for missing in 0..good.len() {
        let mut headers = good.to_vec();
        headers.remove(missing);
        let (status, _) = says(&headers, ATTACH)?;
        ensure!(status == "HTTP/1.1 400 Bad Request", "without {}: {status}", good[missing]);
    }
    let (status, _) = says(&[good[0], good[1], "Sec-WebSocket-Version: 8", good[3]], ATTACH)?;
    ensure!(status == "HTTP/1.1 400 Bad Request", "{status}");
    let (status, _) = says(&good, &ATTACH.replace("talk", "nobody"))?;
    ensure!(status == "HTTP/1.1 404 Not Found", "{status}");
    // A frame without a mask ends the attachment, and nothing else.
    let (_, mut socket) = says(&good, ATTACH)?;
    socket.write_all(b"\x82\x04bad\n")?;
    ensure!(message(&mut socket)?.0 == 0x88);
    ensure!(host.docker(&["inspect", "--format", "{{.State.Running}}", "talk"])?.trim() == "true");
    ensure!(host.docker(&["logs", "talk"])?.is_empty());
    host.docker(&["rm", "-f", "talk"]).map(drop)
}

/// A websocket to a path of the API, its handshake done.
fn websocket(host: &Host, path: &str) -> Result<UnixStream> {
    let mut socket = UnixStream::connect(host.dir.join("rswarm.sock"))?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )?;
    let head = head(&mut socket)?;
    ensure!(head.starts_with("HTTP/1.1 101 ") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    Ok(socket)
}

/// A reply's head.
fn head(socket: &mut UnixStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(text(&head))
}

/// A short frame of a client's: its first byte and its payload, masked.
fn send(socket: &mut UnixStream, first: u8, payload: &[u8]) -> Result<()> {
    let mask = [0xa5, 0x01, 0x5a, 0xff];
    let mut frame = vec![first, 0x80 | u8::try_from(payload.len())?];
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    Ok(socket.write_all(&frame)?)
}

/// A server's frame: its first byte and its payload.
fn message(socket: &mut UnixStream) -> Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    socket.read_exact(&mut head)?;
    let mut long = vec![
        0;
        match head[1] {
            126 => 2,
            127 => 8,
            _ => 0,
        }
    ];
    socket.read_exact(&mut long)?;
    let length = long.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    let mut payload = vec![0; if long.is_empty() { head[1].into() } else { length }];
    socket.read_exact(&mut payload)?;
    Ok((head[0], payload))
}

/// The payload of a message that must be data.
fn data(socket: &mut UnixStream) -> Result<Vec<u8>> {
    let (first, payload) = message(socket)?;
    ensure!(first == 0x82, "{first:#x} {}", text(&payload));
    Ok(payload)
}

fn shell(host: &Host) -> Result<()> {
    let mut terminal =
        Terminal::open(&mut host.docker_command(&["run", "-it", "--rm", "--name", "sh", "busybox", "sh"]))?;
    terminal.see("/ # ")?;
    terminal.press("stty size; echo $TERM; test -t 0 && echo yes-$((40+2))\r")?;
    terminal.see("24 80\r\n")?;
    terminal.see("xterm\r\n")?;
    terminal.see("yes-42\r\n")?;
    terminal.resize(100, 40)?;
    // The size travels by a call of its own.
    eventually(Duration::from_secs(10), "the container knows the new size", || {
        Ok(host.docker(&["exec", "sh", "sh", "-c", "stty size </dev/console"])?.trim() == "40 100")
    })?;
    // The shell may draw its line anew amid what is typed, now that it hears of the size: only the answer counts.
    terminal.press("stty size\r")?;
    terminal.see("40 100\r\n")?;
    terminal.press("exit 7\r")?;
    ensure!(terminal.end()?.code() == Some(7), "the shell's exit code is the client's");
    eventually(Duration::from_secs(10), "--rm removes it", || {
        Ok(host.docker(&["ps", "-aq"])?.trim().is_empty())
    })
}

fn detach_and_attach(host: &Host) -> Result<()> {
    let mut terminal =
        Terminal::open(&mut host.docker_command(&["run", "-it", "--name", "den", "busybox", "sh"]))?;
    terminal.see("/ # ")?;
    terminal.press("x=kept; echo $((40+2))\r")?;
    terminal.see("42\r\n")?;
    terminal.press("\x10\x11")?;
    ensure!(terminal.end()?.success(), "leaving is no failure of `run`");
    ensure!(state(host, "den")? == "running 0");

    let mut again =
        Terminal::open(&mut host.docker_command(&["attach", "--detach-keys", "ctrl-a,b", "den"]))?;
    again.press("\r")?;
    again.see("/ # ")?;
    again.press("echo $x-$((1+1))\r")?;
    again.see("kept-2\r\n")?;
    again.press("\x01b")?;
    again.see("read escape sequence")?;
    ensure!(again.end()?.code() == Some(1), "docker's `attach` reports the keys");
    ensure!(state(host, "den")? == "running 0");

    host.docker(&["pause", "den"])?;
    let refused = output(host, &["attach", "den"])?;
    ensure!(text(&refused.stderr).contains("cannot attach to a paused container"), "{refused:?}");
    host.docker(&["unpause", "den"])?;
    let mut last = Terminal::open(&mut host.docker_command(&["attach", "den"]))?;
    last.press("\rexit 9\r")?;
    ensure!(last.end()?.code() == Some(9), "attach gives the exit code");
    host.docker(&["rm", "den"]).map(drop)
}

fn state(host: &Host, name: &str) -> Result<String> {
    let text = host.docker(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name])?;
    Ok(text.trim().to_owned())
}

fn sleeper(host: &Host, more: &[&str]) -> Result<String> {
    let mut args = vec!["run", "-d", "--init=false"];
    args.extend(more);
    args.extend(["busybox", "sleep", "1000"]);
    Ok(host.docker(&args)?.trim().to_owned())
}

fn exec_on_a_terminal(host: &Host) -> Result<()> {
    let id = sleeper(host, &["-w", "/tmp", "-e", "A=container"])?;
    let args = ["exec", "-it", "-u", "nobody", "-w", "/etc", "-e", "B=exec", &id, "sh"];
    let mut terminal = Terminal::open(&mut host.docker_command(&args))?;
    terminal.see("$ ")?;
    terminal.press("id -un; pwd; echo $A-$B-$HOME; stty size\r")?;
    terminal.see("nobody\r\n")?;
    terminal.see("/etc\r\n")?;
    terminal.see("container-exec-/\r\n")?;
    terminal.see("24 80\r\n")?;
    terminal.press("exit 3\r")?;
    ensure!(terminal.end()?.code() == Some(3));

    let mut left =
        Terminal::open(&mut host.docker_command(&["exec", "-it", "--detach-keys", "ctrl-x", &id, "sh"]))?;
    left.see("# ")?;
    let format = "{{len .ExecIDs}}";
    ensure!(host.docker(&["inspect", "--format", format, &id])?.trim() == "1", "a running exec is listed");
    left.press("\x18")?;
    left.see("read escape sequence")?;
    ensure!(left.end()?.code() == Some(1));
    ensure!(host.docker(&["inspect", "--format", format, &id])?.trim() == "1", "the exec goes on");
    host.docker(&["rm", "-f", &id]).map(drop)
}

fn exec_on_pipes(host: &Host) -> Result<()> {
    let id = sleeper(host, &[])?;
    let both = output(host, &["exec", &id, "sh", "-c", "echo out; echo err >&2; exit 5"])?;
    ensure!((text(&both.stdout), text(&both.stderr)) == ("out\n".into(), "err\n".into()), "{both:?}");
    ensure!(both.status.code() == Some(5));
    let missing = output(host, &["exec", &id, "magic"])?;
    ensure!(missing.status.code() == Some(127), "{missing:?}");
    ensure!(
        text(&missing.stdout) + &text(&missing.stderr)
            == "OCI runtime exec failed: exec failed: unable to start container process: exec: \"magic\": \
                executable file not found in $PATH: unknown\r\n",
        "{missing:?}"
    );
    ensure!(output(host, &["exec", &id, "/etc/passwd"])?.status.code() == Some(126));
    let nobody = output(host, &["exec", "-u", "magic", &id, "true"])?;
    ensure!(
        text(&nobody.stderr).contains("unable to find user magic: no matching entries in passwd file"),
        "{nobody:?}"
    );
    ensure!(nobody.status.code() == Some(1), "{nobody:?}");
    host.docker(&["exec", "-d", &id, "touch", "/tmp/done"])?;
    eventually(Duration::from_secs(10), "a detached exec does its work", || {
        Ok(output(host, &["exec", &id, "test", "-e", "/tmp/done"])?.status.success())
    })?;
    let plain = host.docker(&["exec", &id, "grep", "CapEff", "/proc/self/status"])?;
    let privileged = host.docker(&["exec", "--privileged", &id, "grep", "CapEff", "/proc/self/status"])?;
    ensure!(plain.contains("00000000a80425fb") && privileged != plain, "{plain} {privileged}");
    // An exec dies with its container, and its client learns how.
    let mut long = host
        .docker_command(&["exec", &id, "sh", "-c", "echo up; sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut up = [0; 3];
    long.stdout.as_mut().context("piped")?.read_exact(&mut up)?;
    host.docker(&["kill", &id])?;
    ensure!(long.wait()?.code() == Some(137), "SIGKILL of the container is its execs'");
    host.docker(&["rm", "-f", &id]).map(drop)
}

fn exit_codes(host: &Host) -> Result<()> {
    let cases: [(&[&str], i32, &str); 6] = [
        (&["busybox", "magic"], 127, "exec: \"magic\": executable file not found in $PATH"),
        (&["busybox", "/no/such"], 127, "exec: \"/no/such\": stat /no/such: no such file or directory"),
        (&["busybox", "/etc/passwd"], 126, "exec: \"/etc/passwd\": permission denied"),
        (
            &["--cap-add", "MAGIC", "busybox", "true"],
            125,
            "invalid CapAdd: unknown capability: \"CAP_MAGIC\"",
        ),
        (&["busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"], 137, ""),
        (&["busybox", "false"], 1, ""),
    ];
    for (args, code, words) in cases {
        let mut all = vec!["run", "--rm"];
        all.extend(args);
        let found = output(host, &all)?;
        ensure!(found.status.code() == Some(code), "{args:?}: {found:?}");
        ensure!(text(&found.stderr).contains(words), "{args:?}: {found:?}");
        if matches!(code, 126 | 127) {
            let start = "failed to create task for container: failed to create shim task: OCI runtime create failed: ";
            ensure!(text(&found.stderr).contains(start), "{args:?}: {found:?}");
        }
    }
    eventually(Duration::from_secs(10), "--rm removes them all", || {
        Ok(host.docker(&["ps", "-aq"])?.trim().is_empty())
    })
}

fn half_close(host: &Host) -> Result<()> {
    let input: Vec<u8> = (0..2 << 20).map(|byte: u32| byte.to_le_bytes()[1]).collect();
    for args in [vec!["run", "-i", "--rm", "busybox", "cat"], vec!["exec", "-i", "half", "cat"]] {
        if args[0] == "exec" {
            sleeper(host, &["--name", "half"])?;
        }
        let mut child = host.docker_command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (mut stdin, bytes) = (child.stdin.take().context("piped")?, input.clone());
        let writer = std::thread::spawn(move || stdin.write_all(&bytes));
        let back = child.wait_with_output()?;
        writer.join().expect("the writer")?;
        ensure!(back.stdout == input, "{args:?}: {} of {} bytes came back", back.stdout.len(), input.len());
        ensure!(back.status.success());
    }
    host.docker(&["rm", "-f", "half"]).map(drop)
}

/// Much output and an immediate end: the last byte arrives, on both streams, also to a slow reader.
fn output_is_complete(host: &Host) -> Result<()> {
    const BYTES: usize = 3_000_000;
    let script = format!("head -c {BYTES} /dev/zero; head -c {BYTES} /dev/zero >&2");
    for _ in 0..3 {
        let found = output(host, &["run", "--rm", "busybox", "sh", "-c", &script])?;
        let lengths = (found.stdout.len(), found.stderr.len());
        ensure!(lengths == (BYTES, BYTES), "{lengths:?} of {BYTES} bytes each");
    }
    let mut slow = host
        .docker_command(&["run", "--rm", "busybox", "sh", "-c", &script])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdout = slow.stdout.take().context("piped")?;
    let mut first = [0; 1];
    stdout.read_exact(&mut first)?;
    // The container has long filled every buffer when the reader goes on.
    eventually(Duration::from_secs(10), "the writer waits for its reader or is done", || {
        Ok(!host.docker(&["ps", "-aq"])?.trim().is_empty())
    })?;
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest)?;
    ensure!(rest.len() + 1 == BYTES, "{} bytes", rest.len() + 1);
    slow.wait()?;
    eventually(Duration::from_secs(10), "--rm removes them", || {
        Ok(host.docker(&["ps", "-aq"])?.trim().is_empty())
    })
}

fn many_watch_one(host: &Host) -> Result<()> {
    let script = "read line; echo said: $line; sleep 1000";
    host.docker(&["run", "-d", "-i", "--name", "stage", "busybox", "sh", "-c", script])?;
    let mut watchers = Vec::new();
    for _ in 0..3 {
        let args = ["attach", "--no-stdin", "--sig-proxy=false", "stage"];
        let child = host.docker_command(&args).stdout(Stdio::piped()).spawn()?;
        watchers.push(child);
    }
    eventually(Duration::from_secs(10), "all are attached", || {
        let since = host.docker(&["inspect", "--format", "{{.Created}}", "stage"])?;
        let args = ["events", "--since", since.trim(), "--until", "0s", "--filter", "event=attach"];
        Ok(host.docker(&args)?.lines().count() == 3)
    })?;
    let mut actor =
        host.docker_command(&["attach", "--sig-proxy=false", "stage"]).stdin(Stdio::piped()).spawn()?;
    actor.stdin.take().context("piped")?.write_all(b"hello\n")?;
    for watcher in &mut watchers {
        let mut said = [0; 12];
        watcher.stdout.as_mut().context("piped")?.read_exact(&mut said)?;
        ensure!(&said == b"said: hello\n", "{:?}", text(&said));
    }
    host.docker(&["rm", "-f", "stage"])?;
    for mut child in watchers.into_iter().chain([actor]) {
        child.wait()?;
    }
    Ok(())
}

fn signals_are_passed_on(host: &Host) -> Result<()> {
    let script = "trap 'echo caught; exit 4' TERM; echo up; while :; do sleep 0.1; done";
    let mut client = host
        .docker_command(&["run", "--rm", "busybox", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdout = client.stdout.take().context("piped")?;
    let mut up = [0; 3];
    stdout.read_exact(&mut up)?;
    kill(Pid::from_raw(i32::try_from(client.id())?), Signal::SIGTERM)?;
    let mut rest = String::new();
    stdout.read_to_string(&mut rest)?;
    ensure!(rest == "caught\n", "{rest:?}");
    ensure!(client.wait()?.code() == Some(4));
    eventually(Duration::from_secs(10), "--rm removes it", || {
        Ok(host.docker(&["ps", "-aq"])?.trim().is_empty())
    })
}

/// Its connection ends although the container never says a word.
fn a_client_that_vanishes_is_forgotten(host: &Host) -> Result<()> {
    let id = sleeper(host, &[])?;
    let before = descriptors(host)?;
    let mut client = host
        .docker_command(&["attach", "--no-stdin", "--sig-proxy=false", &id])
        .stdout(Stdio::null())
        .spawn()?;
    eventually(Duration::from_secs(10), "the client is attached", || Ok(descriptors(host)? > before))?;
    client.kill()?;
    client.wait()?;
    eventually(Duration::from_secs(10), "the daemon lets go of the client", || {
        Ok(descriptors(host)? <= before)
    })?;
    host.docker(&["rm", "-f", &id]).map(drop)
}

fn descriptors(host: &Host) -> Result<usize> {
    let pid = host.pid().context("the daemon runs")?;
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

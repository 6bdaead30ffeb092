//! The device in user space: a process of its own, so that connections outlive the daemon. A single thread between
//! an interface for IP packets, two UDP sockets and the daemon's socket; all else is [`Exchange`]'s.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;

use super::control::{Answer, LINE_MAX, Request, VERSION};
use super::exchange::Exchange;
use super::socket::{Inbox, Outbox, bind};
use super::sys;

/// What the process says on standard output once it serves; anything else is why it does not.
pub const READY: &str = "ready\n";
/// How often sessions are looked at. WireGuard's timers are of seconds.
const TICK: Duration = Duration::from_millis(250);
/// Packets that are read from the interface before the sockets get their turn.
const PACKETS_PER_TURN: usize = 128;
/// Connections at a time: a daemon has one to see the end of this process, and one for each question.
const CLIENTS_MAX: usize = 16;

/// How the process was called.
struct Args {
    socket: PathBuf,
    netns: PathBuf,
    port: u16,
    interface: String,
}

/// `rswarm tunnel --socket PATH --netns PATH --port N --interface NAME`: serves until it is told to end. Its
/// exit code.
#[must_use]
pub fn main(args: Vec<OsString>) -> i32 {
    let device = Args::parse(args).map_err(io::Error::other).and_then(|args| Device::open(&args));
    let mut stdout = io::stdout();
    match device {
        Ok(mut device) => {
            // A daemon that is gone by now is replaced by one that finds the socket.
            let _ = stdout.write_all(READY.as_bytes()).and_then(|()| stdout.flush());
            device.serve();
            0
        }
        Err(error) => {
            let _ = stdout.write_all(format!("{error}\n").as_bytes()).and_then(|()| stdout.flush());
            1
        }
    }
}

impl Args {
    fn parse(words: Vec<OsString>) -> Result<Args, String> {
        let mut words = words.into_iter();
        let (mut socket, mut netns, mut port, mut interface) = (None, None, None, None);
        while let Some(flag) = words.next() {
            let value = words.next().ok_or_else(|| format!("{} wants a value", flag.to_string_lossy()))?;
            match flag.to_str() {
                Some("--socket") => socket = Some(PathBuf::from(value)),
                Some("--netns") => netns = Some(PathBuf::from(value)),
                Some("--port") => port = value.to_str().and_then(|text| text.parse().ok()),
                Some("--interface") => interface = value.into_string().ok(),
                _ => return Err(format!("unknown flag {}", flag.to_string_lossy())),
            }
        }
        let missing = |flag: &str| format!("{flag} is missing or no such value");
        Ok(Args {
            socket: socket.ok_or_else(|| missing("--socket"))?,
            netns: netns.ok_or_else(|| missing("--netns"))?,
            port: port.ok_or_else(|| missing("--port"))?,
            interface: interface.ok_or_else(|| missing("--interface"))?,
        })
    }
}

/// All that the process holds.
struct Device {
    tun: File,
    inboxes: Vec<Inbox>,
    outbox: Outbox,
    exchange: Exchange,
    listener: UnixListener,
    clients: Vec<Client>,
    hello: Answer,
    socket: PathBuf,
}

/// A connection whose line is not complete.
struct Client {
    stream: UnixStream,
    line: Vec<u8>,
}

/// What a request asks of the loop.
#[derive(PartialEq, Eq)]
enum After {
    GoOn,
    End,
}

impl Device {
    /// The UDP sockets are of the namespace that the process was started in, the interface of the tunnel's.
    fn open(args: &Args) -> io::Result<Device> {
        // Its memory holds keys. Its own session: what ends the daemon does not end it.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
        let _ = rustix::process::setsid();
        let named = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                let text = format!("UDP port {} is in use by another program on this host", args.port);
                io::Error::new(error.kind(), text)
            }
            _ => io::Error::new(error.kind(), format!("UDP port {}: {error}", args.port)),
        };
        let v4 = bind((Ipv4Addr::UNSPECIFIED, args.port).into()).map_err(named)?;
        // Without IPv6 in the kernel, no node has an address of it.
        let v6 = match bind((Ipv6Addr::UNSPECIFIED, args.port).into()) {
            Ok(socket) => Some(socket),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(named(error)),
        };
        let netns = File::open(&args.netns)?;
        nix::sched::setns(&netns, CloneFlags::CLONE_NEWNET)?;
        let tun = open_tun(&args.interface)?;
        let listener = listen(&args.socket)?;
        let inboxes = [Some(&v4), v6.as_ref()].into_iter().flatten();
        Ok(Device {
            inboxes: inboxes.map(Inbox::new).collect::<io::Result<_>>()?,
            outbox: Outbox::new(v4, v6, tun.try_clone()?),
            tun,
            exchange: Exchange::default(),
            listener,
            clients: Vec::new(),
            hello: Answer::Hello {
                version: VERSION,
                pid: i32::try_from(std::process::id()).unwrap_or_default(),
                port: args.port,
                netns: netns.metadata()?.ino(),
            },
            socket: args.socket.clone(),
        })
    }

    fn serve(&mut self) {
        let mut next_tick = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_tick {
                self.exchange.tick(&mut self.outbox);
                self.outbox.flush();
                next_tick = now + TICK;
            }
            let ready = self.wait(next_tick.saturating_duration_since(now));
            if ready.tun {
                self.read_tun();
            }
            if ready.network {
                for inbox in &mut self.inboxes {
                    let (exchange, outbox) = (&mut self.exchange, &mut self.outbox);
                    inbox.receive(|from, datagram| exchange.receive(from, datagram, outbox));
                }
                self.outbox.flush();
            }
            if ready.control && self.control() == After::End {
                // The next device may have bound a socket of that name already.
                return;
            }
        }
    }

    /// Waits until something can be read, or for `most`.
    fn wait(&self, most: Duration) -> Ready {
        let mut fds = vec![PollFd::new(self.tun.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.inboxes.iter().map(|inbox| PollFd::new(inbox.as_fd(), PollFlags::POLLIN)));
        let control = fds.len();
        fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        fds.extend(self.clients.iter().map(|client| PollFd::new(client.stream.as_fd(), PollFlags::POLLIN)));
        let most = u16::try_from(most.as_millis()).unwrap_or(u16::MAX);
        // Interrupted is as good as late.
        if poll(&mut fds, PollTimeout::from(most.saturating_add(1))).is_err() {
            return Ready::default();
        }
        let any = |fds: &[PollFd<'_>]| fds.iter().any(|fd| fd.any().unwrap_or(false));
        Ready { tun: any(&fds[..1]), network: any(&fds[1..control]), control: any(&fds[control..]) }
    }

    fn read_tun(&mut self) {
        let mut packet = [0; 1 << 16];
        for _ in 0..PACKETS_PER_TURN {
            match self.tun.read(&mut packet) {
                Ok(length) => self.exchange.send(&packet[..length], &mut self.outbox),
                // Nothing left; or the interface is down.
                Err(_) => break,
            }
        }
        self.outbox.flush();
    }

    fn control(&mut self) -> After {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() < CLIENTS_MAX && stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client { stream, line: Vec::new() });
            }
        }
        for mut client in std::mem::take(&mut self.clients) {
            match client.read() {
                Ok(Some(line)) => {
                    let (answer, after) = self.answer(&line);
                    client.answer(&answer);
                    if after == After::End {
                        return After::End;
                    }
                }
                Ok(None) => self.clients.push(client),
                Err(_) => {}
            }
        }
        After::GoOn
    }

    fn answer(&mut self, line: &[u8]) -> (Answer, After) {
        match serde_json::from_slice(line) {
            Ok(Request::Hello) => (self.hello.clone(), After::GoOn),
            Ok(Request::Configure(config)) => {
                self.exchange.configure(&config, &mut self.outbox);
                self.outbox.flush();
                (Answer::Done, After::GoOn)
            }
            Ok(Request::Status) => (Answer::Status(self.exchange.status()), After::GoOn),
            Ok(Request::Quit) => {
                let _ = std::fs::remove_file(&self.socket);
                (Answer::Done, After::End)
            }
            Err(error) => (Answer::Unknown(error.to_string()), After::GoOn),
        }
    }
}

/// What can be read.
#[derive(Debug, Default)]
struct Ready {
    tun: bool,
    network: bool,
    control: bool,
}

impl Client {
    /// The line, once it is complete.
    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut part = [0; 1 << 14];
        loop {
            match self.stream.read(&mut part) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.line.extend_from_slice(&part[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
            if self.line.last() == Some(&b'\n') {
                return Ok(Some(std::mem::take(&mut self.line)));
            }
            if self.line.len() as u64 > LINE_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }

    /// One who does not read is not waited for longer than packets can wait.
    fn answer(mut self, answer: &Answer) {
        let Ok(mut line) = serde_json::to_vec(answer) else { return };
        line.push(b'\n');
        let _ = self.stream.set_nonblocking(false);
        let _ = self.stream.set_write_timeout(Some(Duration::from_millis(100)));
        let _ = self.stream.write_all(&line);
    }
}

fn open_tun(interface: &str) -> io::Result<File> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("/dev/net/tun: {error}"));
    let open = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    let tun = open.map_err(named)?;
    sys::set_tun(&tun, interface).map_err(named)?;
    Ok(tun)
}

/// A socket for root only; one that nobody listens on is replaced.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

//! A live connection to a container's streams: bytes both ways, signals and window sizes on the side.

use std::cell::Cell;
use std::future::Future;
use std::io::{self, Write};
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::detach::DetachKeys;
use crate::client::{Call, Demux, Hijacked, Output};
use crate::cmd::{CommandError, Context};
use crate::terminal::RawMode;

const BUFFER_BYTES: usize = 32 << 10;
/// How long the daemon may take to let go of someone who leaves.
const LEAVING: Duration = Duration::from_secs(1);
/// Signals that are passed on to the container when there is no terminal to do it.
const PROXIED: [(SignalKind, &str); 6] = [
    (SignalKind::interrupt(), "INT"),
    (SignalKind::terminate(), "TERM"),
    (SignalKind::hangup(), "HUP"),
    (SignalKind::quit(), "QUIT"),
    (SignalKind::user_defined1(), "USR1"),
    (SignalKind::user_defined2(), "USR2"),
];

/// What the streams belong to.
#[derive(Debug, Clone)]
pub enum Target {
    /// A container, by ID.
    Container(String),
    /// A command in a container, by ID.
    Exec(String),
}

/// How to follow.
pub struct Options {
    /// One raw stream instead of multiplexed output.
    pub tty: bool,
    /// Send standard input.
    pub stdin: bool,
    /// Whose streams they are.
    pub target: Target,
    /// Pass signals on.
    pub signals: bool,
    /// The keys that leave a terminal.
    pub detach_keys: Option<DetachKeys>,
}

/// How following ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The output is over.
    Closed,
    /// The person left; the container goes on.
    Detached,
}

/// The call that attaches to a container.
pub fn attach_call(id: &str, stdin: bool, stdout: bool, stderr: bool) -> Call {
    let call = Call::post(format!("/containers/{id}/attach")).flag("stream", true);
    super::raw_stream(call.flag("stdin", stdin).flag("stdout", stdout).flag("stderr", stderr))
}

/// Copies both ways until the output ends.
pub async fn follow(context: &Context, stream: Hijacked, options: Options) -> Result<End, CommandError> {
    let raw = if options.tty && options.stdin { RawMode::enter()? } else { None };
    let (mut from, mut to) = tokio::io::split(stream);
    let keys = options.tty.then(|| options.detach_keys.clone().unwrap_or_default());
    let left = Cell::new(false);
    let mut output = pin!(copy_output(&mut from, options.tty));
    let mut input = pin!(async {
        if options.stdin && copy_input(&mut to, keys).await == Input::Left {
            // The daemon saw the keys too, and ends the output.
            left.set(true);
            return tokio::time::sleep(LEAVING).await;
        }
        // The output decides when it is over.
        std::future::pending::<()>().await
    });
    let mut side = pin!(sideband(context, &options));
    let ended = tokio::select! {
        result = &mut output => result.map(|()| if left.get() { End::Detached } else { End::Closed }),
        () = &mut input => Ok(End::Detached),
        result = &mut side => result.map(|()| End::Detached),
    };
    drop(raw);
    ended
}

/// Why nothing more is read from standard input.
#[derive(Debug, PartialEq, Eq)]
enum Input {
    /// It is over, or nobody takes it any more.
    Over,
    /// The person typed the keys to leave.
    Left,
}

/// Standard input, then a half-close, which ends the container's.
async fn copy_input(to: &mut (impl AsyncWriteExt + Unpin), mut keys: Option<DetachKeys>) -> Input {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let bytes = match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => &buffer[..length],
        };
        if to.write_all(bytes).await.is_err() || to.flush().await.is_err() {
            return Input::Over;
        }
        if keys.as_mut().is_some_and(|keys| keys.see(bytes)) {
            return Input::Left;
        }
    }
    let _ = to.shutdown().await;
    Input::Over
}

async fn copy_output(from: &mut (impl AsyncReadExt + Unpin), tty: bool) -> Result<(), CommandError> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut demux = Demux::default();
    loop {
        let length = match from.read(&mut buffer).await {
            Ok(length) => length,
            // A daemon that ends takes the connection with it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(error.into()),
        };
        match (length, tty) {
            (0, _) => return Ok(()),
            (_, true) => write_all(&mut io::stdout().lock(), &buffer[..length])?,
            (_, false) => {
                demux.push(&buffer[..length]);
                write_frames(&mut demux)?;
            }
        }
    }
}

/// Writes whole frames to where they belong.
fn write_frames(demux: &mut Demux) -> Result<(), CommandError> {
    while let Some((output, bytes)) = demux.next() {
        match output {
            Output::Stdout => write_all(&mut io::stdout().lock(), &bytes)?,
            Output::Stderr => write_all(&mut io::stderr().lock(), &bytes)?,
            Output::Daemon => {
                return Err(CommandError::Reported(String::from_utf8_lossy(&bytes).trim().to_owned()));
            }
        }
    }
    Ok(())
}

/// Writes at once: what a program says is seen when it says it.
pub fn write_all(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}

/// Window sizes for a terminal, signals for everything else. Ends only when the person's patience does.
async fn sideband(context: &Context, options: &Options) -> Result<(), CommandError> {
    if options.tty {
        return resize_along(context, &options.target).await;
    }
    match &options.target {
        Target::Container(id) if options.signals => proxy_signals(context, id).await,
        Target::Container(_) | Target::Exec(_) => {
            // Whoever interrupts a mere follower wants to leave.
            signal(SignalKind::interrupt())?.recv().await;
            Ok(())
        }
    }
}

async fn resize_along(context: &Context, target: &Target) -> Result<(), CommandError> {
    let path = match target {
        Target::Container(id) => format!("/containers/{id}/resize"),
        Target::Exec(id) => format!("/exec/{id}/resize"),
    };
    let mut changes = signal(SignalKind::window_change())?;
    loop {
        if let Some((width, height)) = context.terminal.size() {
            // A container that just ended needs no size.
            let _ = context.client.done(Call::post(&path).query("h", height).query("w", width)).await;
        }
        if changes.recv().await.is_none() {
            return Ok(());
        }
    }
}

async fn proxy_signals(context: &Context, id: &str) -> Result<(), CommandError> {
    let mut signals = Vec::new();
    for (kind, name) in PROXIED {
        signals.push((signal(kind)?, name));
    }
    loop {
        let name = next_signal(&mut signals).await;
        let _ = context.client.done(Call::post(format!("/containers/{id}/kill")).query("signal", name)).await;
    }
}

fn next_signal<'a>(signals: &'a mut [(Signal, &'static str)]) -> impl Future<Output = &'static str> + 'a {
    std::future::poll_fn(|task| {
        let arrived =
            signals.iter_mut().find_map(|(signal, name)| signal.poll_recv(task).is_ready().then_some(*name));
        arrived.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
    })
}

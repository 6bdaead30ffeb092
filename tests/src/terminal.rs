//! A person at a terminal: a program on a pseudo terminal, what is typed and what is seen.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::pty::{OpenptyResult, Winsize, openpty};

/// How often the screen is looked at again; the deadline is what matters.
const POLL: Duration = Duration::from_millis(10);

/// A program on a terminal of its own.
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
    seen: usize,
}

impl Terminal {
    /// Starts `command` on a terminal of 80 columns and 24 rows.
    pub fn open(command: &mut Command) -> Result<Terminal> {
        let OpenptyResult { master, slave } = openpty(&size(80, 24), None)?;
        let child = command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(Stdio::from(slave))
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        // The command keeps its copies of the terminal; the screen ends when the program closes them.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let keyboard = File::from(master);
        let screen: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (mut near, shown) = (keyboard.try_clone()?, screen.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO says that nobody holds the other end any more.
            while let Ok(length @ 1..) = near.read(&mut buffer) {
                shown.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..length]);
            }
        });
        Ok(Terminal { child, keyboard, screen, seen: 0 })
    }

    /// Types text as it is; a line ends in `\r`.
    pub fn press(&mut self, text: &str) -> Result<()> {
        Ok(self.keyboard.write_all(text.as_bytes())?)
    }

    /// Waits until the screen shows `text` behind what was waited for before.
    pub fn see(&mut self, text: &str) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(20);
        let started = Instant::now();
        loop {
            let screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let new = &screen[self.seen.min(screen.len())..];
            if let Some(at) = new.windows(text.len()).position(|window| window == text.as_bytes()) {
                self.seen += at + text.len();
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                bail!("no {text:?} on the screen: {:?}", String::from_utf8_lossy(&screen));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Changes the window's size and tells the program, as a terminal emulator does.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let new = rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.keyboard, new)?;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        Ok(nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGWINCH)?)
    }

    /// Waits for the program's end.
    pub fn end(mut self) -> Result<ExitStatus> {
        const PATIENCE: Duration = Duration::from_secs(20);
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(POLL);
        }
        let screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        bail!("the program did not end: {:?}", String::from_utf8_lossy(&screen))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }
}

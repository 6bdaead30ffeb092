//! The person's side: standard streams, whether they are a terminal, raw mode.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The standard streams and what they are connected to.
#[derive(Debug, Clone, Copy)]
pub struct Terminal {
    /// Whether standard input is a terminal.
    pub stdin: bool,
    /// Whether standard output is one.
    pub stdout: bool,
}

impl Terminal {
    /// Looks at this process's streams.
    pub fn of_process() -> Terminal {
        Terminal { stdin: io::stdin().is_terminal(), stdout: io::stdout().is_terminal() }
    }

    /// Writes text as it is to standard output, at once.
    ///
    /// # Errors
    /// The write's.
    pub fn print(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Writes one line to standard output.
    ///
    /// # Errors
    /// The write's.
    pub fn line(&self, text: impl std::fmt::Display) -> io::Result<()> {
        self.print(&format!("{text}\n"))
    }

    /// Writes one line to standard error; nobody is left to tell when that fails.
    pub fn complain(&self, text: impl std::fmt::Display) {
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Columns and rows, when standard output is a terminal.
    pub fn size(&self) -> Option<(u16, u16)> {
        let size = tcgetwinsize(io::stdout().as_fd()).ok()?;
        (size.ws_col > 0).then_some((size.ws_col, size.ws_row))
    }
}

/// Standard input without line editing and signals, until dropped.
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Switches standard input over; `None` when it is no terminal.
    ///
    /// # Errors
    /// The terminal's.
    pub fn enter() -> io::Result<Option<RawMode>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw)?;
        Ok(Some(RawMode { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.before);
    }
}

/// Lines that are drawn again in place on a terminal, and printed once each elsewhere.
#[derive(Debug, Default)]
pub struct Redrawn {
    drawn: usize,
    printed: Vec<String>,
}

impl Redrawn {
    /// Replaces what was drawn before by `lines`.
    pub fn draw<'a>(&mut self, columns: usize, lines: impl Iterator<Item = &'a String>) -> String {
        let mut text = if self.drawn > 0 { format!("\x1b[{}A", self.drawn) } else { String::new() };
        let before = std::mem::take(&mut self.drawn);
        for line in lines {
            let shown: String = line.chars().take(columns).collect();
            text.push_str(&format!("\x1b[2K{shown}\n"));
            self.drawn += 1;
        }
        for _ in self.drawn..before {
            text.push_str("\x1b[2K\n");
        }
        self.drawn = self.drawn.max(before);
        text
    }

    /// Those of `lines` that were not among the last ones.
    pub fn append<'a>(&mut self, lines: impl Iterator<Item = &'a String>) -> String {
        let lines: Vec<String> = lines.cloned().collect();
        let new = lines.iter().filter(|line| !self.printed.contains(line));
        let text = new.map(|line| format!("{line}\n")).collect();
        self.printed = lines;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_drawing_covers_the_first() {
        let mut view = Redrawn::default();
        let (first, second) = (["ab".to_owned(), "c".to_owned()], ["x".to_owned()]);
        assert_eq!(view.draw(80, first.iter()), "\x1b[2Kab\n\x1b[2Kc\n");
        assert_eq!(view.draw(80, second.iter()), "\x1b[2A\x1b[2Kx\n\x1b[2K\n");
        assert_eq!(view.draw(1, first.iter()), "\x1b[2A\x1b[2Ka\n\x1b[2Kc\n");
    }

    #[test]
    fn without_a_terminal_a_line_is_printed_when_it_changes() {
        let mut view = Redrawn::default();
        let (first, second) = (["a".to_owned(), "b".to_owned()], ["a".to_owned(), "c".to_owned()]);
        assert_eq!(view.append(first.iter()), "a\nb\n");
        assert_eq!(view.append(second.iter()), "c\n");
    }
}

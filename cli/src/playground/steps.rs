//! One thing after the other, each with a deadline, each told.

use std::time::{Duration, Instant};

use super::PlaygroundError;
use crate::terminal::Terminal;

/// Time between two looks at something that is awaited.
const POLL: Duration = Duration::from_millis(100);

/// Tells of steps as they are done.
#[derive(Debug, Clone, Copy)]
pub struct Steps {
    terminal: Terminal,
}

impl Steps {
    /// Tells a terminal.
    pub fn new(terminal: Terminal) -> Steps {
        Steps { terminal }
    }

    /// Does one step; `told` says what was reached.
    pub async fn step<T>(
        &self,
        name: &str,
        deadline: Duration,
        work: impl Future<Output = Result<(T, String), PlaygroundError>>,
    ) -> Result<T, PlaygroundError> {
        let started = Instant::now();
        let late =
            |_| PlaygroundError::Deadline { step: name.to_owned(), deadline, last: "it did not end".into() };
        let (value, told) = tokio::time::timeout(deadline, work).await.map_err(late)??;
        self.terminal.line(format!("  ok  {name:<9} {told} ({:.1}s)", started.elapsed().as_secs_f64()))?;
        Ok(value)
    }

    /// Prints a line as it is.
    pub fn say(&self, text: &str) -> Result<(), PlaygroundError> {
        Ok(self.terminal.line(text)?)
    }
}

/// Looks again and again until `look` gives something; its words are the reason when time is up.
pub async fn until<T, F>(
    step: &str,
    deadline: Duration,
    mut look: impl FnMut() -> F,
) -> Result<T, PlaygroundError>
where
    F: Future<Output = Result<T, String>>,
{
    let started = Instant::now();
    loop {
        match look().await {
            Ok(value) => return Ok(value),
            Err(last) if started.elapsed() > deadline => {
                return Err(PlaygroundError::Deadline { step: step.to_owned(), deadline, last });
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_step_that_never_comes_tells_what_was_seen_last() {
        let error = until::<(), _>("waiting", Duration::ZERO, || async {
            std::thread::sleep(Duration::from_millis(1));
            Err("2 of 3 nodes are ready".to_owned())
        });
        let error = error.await.expect_err("never");
        assert_eq!(error.to_string(), "waiting took longer than 0s: 2 of 3 nodes are ready");
    }
}

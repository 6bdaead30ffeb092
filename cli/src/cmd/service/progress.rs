//! Follows a service until it is as asked.

use std::time::Duration;

use rswarm_api::types::{Service, Task};
use rswarm_base::clock::Timestamp;
use tokio::signal::unix::{SignalKind, signal};

use super::WaitArgs;
use crate::client::{Call, Filters};
use crate::cmd::{CommandError, Context, node};
use crate::render::convergence::{Convergence, Frame, Verdict};
use crate::terminal::Redrawn;

/// Time between two looks.
const POLL: Duration = Duration::from_millis(200);

/// Shows how the service converges, unless told not to wait. Interrupting leaves it to itself.
pub async fn follow(context: &Context, id: &str, wait: WaitArgs) -> Result<u8, CommandError> {
    if wait.detach == Some(true) {
        return Ok(0);
    }
    let mut interrupted = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = converge(context, id, wait.quiet) => result,
        _ = interrupted.recv() => {
            context.terminal.print(&format!(
                "Operation continuing in background.\nUse `rswarm service ps {id}` to check progress.\n"
            ))?;
            Ok(0)
        }
    }
}

async fn converge(context: &Context, id: &str, quiet: bool) -> Result<u8, CommandError> {
    let mut view = Convergence::default();
    let mut drawing = Redrawn::default();
    let filters = Filters::default().with("service", id).with("_up-to-date", "true");
    loop {
        let service: Service = super::inspect(context, id).await?;
        if service.spec.mode.replicated.is_none() && service.spec.mode.global.is_none() {
            // Jobs end; `service ls` shows how far they are.
            return Ok(0);
        }
        let tasks: Vec<Task> = context.client.json(Call::get("/tasks").filters(&filters)).await?;
        let nodes = node::all(context).await;
        let frame = view.observe(&service, &tasks, &nodes, Timestamp::now());
        if !quiet {
            context.terminal.print(&drawn(context, &mut drawing, &frame))?;
        }
        match frame.verdict {
            Verdict::Waiting => tokio::time::sleep(POLL).await,
            Verdict::Converged => return Ok(0),
            Verdict::Failed(problem) => return Err(CommandError::Reported(problem)),
        }
    }
}

fn drawn(context: &Context, drawing: &mut Redrawn, frame: &Frame) -> String {
    match context.terminal.size().filter(|_| context.terminal.stdout) {
        Some((columns, _)) => drawing.draw(usize::from(columns), frame.lines()),
        None => drawing.append(std::iter::once(&frame.overall).chain(&frame.remarks)),
    }
}

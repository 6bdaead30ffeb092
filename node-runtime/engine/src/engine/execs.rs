//! Further processes inside running containers.

use std::sync::Arc;

use rswarm_shim::client::Shim;
use tokio::sync::oneshot;

use super::Engine;
use crate::blocking::blocking;
use crate::container::{Container, Request, Status};
use crate::error::{Cause, ExecError, RuntimeWords};
use crate::exec::{self, Exec, ExecConfig, ExecStream};
use crate::{links, signal};

impl Engine {
    /// Prepares a process inside a running container; returns its identifier.
    ///
    /// # Errors
    /// When the container does not run or there is nothing to execute.
    pub async fn exec_create(&self, reference: &str, config: ExecConfig) -> Result<String, ExecError> {
        let handle = self.find(reference)?;
        if config.command.is_empty() {
            return Err(ExecError::Invalid("No exec command specified".to_owned()));
        }
        if handle.container().state.status == Status::Paused {
            // moby: the name that was asked for, where a start says the identifier.
            return Err(ExecError::Conflict(format!(
                "Container {reference} is paused, unpause the container before exec"
            )));
        }
        handle.ask(Request::Shim).await??;
        let container = handle.container();
        if !config.user.is_empty() {
            let (pid, user) = (container.state.pid, config.user.clone());
            blocking(move || exec::check_user(pid, &user)).await.map_err(ExecError::Invalid)?;
        }
        let exec = self.shared.execs.create(&container.id, config);
        self.shared.exec_event(&container, "exec_create", &exec.id, &exec.config.command);
        Ok(exec.id)
    }

    /// Starts it. On return its process exists. The stream is raw on a terminal, else framed.
    ///
    /// # Errors
    /// When it was started before or cannot be.
    pub async fn exec_start(
        &self,
        id: &str,
        console_size: Option<(u16, u16)>,
    ) -> Result<ExecStream, ExecError> {
        let container_id = self.shared.execs.get(id)?.container_id;
        let handle = self.find(&container_id)?;
        let shim = handle.ask(Request::Shim).await??;
        let exec = self.shared.execs.begin(id)?;
        let container = handle.container();
        let request = exec::request(
            &exec,
            &container,
            &links::environment(&self.shared.registry, &container),
            console_size,
        );
        let (started, stream) = match shim.exec(request).await {
            Ok(started) => started,
            Err(error) => {
                // moby: 126 is what a process shows that cannot be started, whatever the reason.
                let code = if error.exit_code() == 127 { 127 } else { 126 };
                self.shared.execs.ended(id, code);
                return Err(ExecError::Start(Cause::new(RuntimeWords::of(&error))));
            }
        };
        self.shared.execs.started(id, started.pid, shim.clone());
        self.shared.exec_event(&container, "exec_start", id, &exec.config.command);
        let ended = self.watch_exec(shim, container, exec);
        Ok(ExecStream::new(stream, ended))
    }

    /// An exec by its identifier.
    ///
    /// # Errors
    /// When there is none.
    pub fn exec_inspect(&self, id: &str) -> Result<Exec, ExecError> {
        self.shared.execs.get(id)
    }

    /// The execs of a container that have not ended.
    #[must_use]
    pub fn exec_ids(&self, container_id: &str) -> Vec<String> {
        self.shared.execs.of(container_id)
    }

    /// Announces that a client let go of an exec by its detach keys.
    pub fn exec_detached(&self, id: &str) {
        let Ok(exec) = self.shared.execs.get(id) else { return };
        if let Ok(handle) = self.find(&exec.container_id) {
            self.shared.event(&handle.container(), "exec_detach", &[("execID", exec.id)]);
        }
    }

    /// Sets the size of an exec's terminal.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn exec_resize(&self, id: &str, width: u16, height: u16) -> Result<(), ExecError> {
        let shim = self.shared.execs.shim(id)?;
        Ok(shim.exec_resize(id, width, height).await.map_err(Cause::new)?)
    }

    /// Keeps an exec's exit code, for as long as it can be asked about; what is returned resolves then.
    fn watch_exec(&self, shim: Shim, container: Arc<Container>, exec: Exec) -> oneshot::Receiver<()> {
        let (known, ended) = oneshot::channel();
        let (engine, cancelled) = (self.clone(), self.shared.scope.token());
        self.shared.scope.spawn(async move {
            let exit = tokio::select! {
                () = cancelled.cancelled() => return,
                exit = shim.exec_wait(&exec.id) => exit,
            };
            // Without its shim the process is dead: the container went, with SIGKILL.
            let code = exit.map_or(128 + signal::KILL, |exit| exit.code);
            engine.shared.execs.ended(&exec.id, code);
            // The client may have gone away.
            let _ = known.send(());
            engine.shared.exec_died(&container, &exec.id, code);
        });
        ended
    }
}

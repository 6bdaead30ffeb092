//! The Docker Engine HTTP API, Swarm endpoints included: over the engine for what is on this node, over the
//! managers' control service for what is the cluster's.
//!
//! Is not: decisions. A handler reads a request, translates it (`translate`, pure), calls the engine or the
//! managers once or twice, and translates the answer back. What it cannot honour it refuses by name.
//! Start at [`serve`], then `router` (every route, and the one table of statuses), then one file per API tag.
#![forbid(unsafe_code)]

mod archive;
mod attach;
mod attachments;
mod call;
mod connection;
mod containers;
mod error;
mod events;
mod exec;
mod filters;
mod images;
mod json_syntax;
mod listener;
mod logs;
mod networks;
pub mod node;
mod nodes;
mod plugins;
mod remote;
mod request;
mod router;
mod secrets;
mod services;
mod stats;
mod stream;
mod swarm;
mod system;
mod tasks;
mod translate;
pub mod types;
mod usage;
mod version;
mod volumes;
mod watch;
mod websocket;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rswarm_base::Scope;
use rswarm_engine::Engine;

pub use call::STALE;
pub use listener::Listener;
pub use node::{
    Availability, ClusterError, ClusterInfo, ClusterNode, InitRequest, JoinRequest, LocalState,
    RemoteManager, RestoreRequest,
};
pub use remote::TaskContainersService;
pub use swarm::UNLOCK_KEY;

use crate::router::{App, Gate};

/// How long to wait after an accept that failed, e.g. for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves the API on one listener until `scope` is cancelled. Several listeners are several calls.
///
/// # Errors
/// None at present: a failed accept is logged and tried again.
pub async fn serve(
    listener: Listener,
    engine: Engine,
    cluster: Arc<dyn ClusterNode>,
    scope: Scope,
) -> io::Result<()> {
    let gate = Gate::new(App { engine, cluster, scope: scope.clone() });
    loop {
        let accepted = tokio::select! {
            () = scope.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(socket) => scope.spawn(connection::serve(socket, gate.clone(), scope.clone())),
            Err(error) => {
                tracing::warn!(%error, "a client connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

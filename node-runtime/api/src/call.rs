//! What is known about a request beside its bytes, for as long as it is answered: who makes it, and what the answer
//! rests on.

use std::cell::Cell;
use std::future::Future;

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use rswarm_base::audit::{Entry, User};
use rswarm_base::{Classify, Kind};
use rswarm_proto::status::{REPLICA, USER, code, code_name};
use rswarm_proto::wire::Task;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::node::ClusterError;
use crate::router::App;

/// On replies that come from this manager's own state, while the swarm has no leader: what they say may be old.
pub const STALE: &str = "rswarm-stale";

tokio::task_local! {
    static CALL: Call;
}

struct Call {
    user: Option<User>,
    /// Whether a manager's own state, not the leader's, was read for the answer.
    is_stale: Cell<bool>,
}

/// Answers a request; the reply says what it rests on.
pub(crate) async fn answer(user: Option<User>, work: impl Future<Output = Response>) -> Response {
    let work = async {
        let mut response = work.await;
        if CALL.with(|call| call.is_stale.get()) {
            response.headers_mut().insert(HeaderName::from_static(STALE), HeaderValue::from_static("1"));
        }
        response
    };
    CALL.scope(Call { user, is_stale: Cell::new(false) }, work).await
}

/// A manager's reply, with a note of what it rests on.
pub(crate) fn noted<T>(reply: Result<tonic::Response<T>, Status>) -> Result<T, Status> {
    let metadata = match &reply {
        Ok(reply) => reply.metadata(),
        Err(status) => status.metadata(),
    };
    if metadata.contains_key(REPLICA) {
        // What a handler starts beside itself outlives the head of the reply, and with it the note.
        let _ = CALL.try_with(|call| call.is_stale.set(true));
    }
    reply.map(tonic::Response::into_inner)
}

fn user() -> Option<User> {
    CALL.try_with(|call| call.user).ok().flatten()
}

/// Tells the managers on whose behalf a call is made.
#[derive(Debug, Clone)]
pub(crate) struct Stamp {
    user: Option<MetadataValue<Ascii>>,
}

impl Stamp {
    /// For the request that is being answered.
    pub fn of_call() -> Stamp {
        Stamp { user: user().and_then(|user| user.to_string().parse().ok()) }
    }
}

impl Interceptor for Stamp {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(user) = &self.user {
            request.metadata_mut().insert(USER, user.clone());
        }
        Ok(request)
    }
}

/// Makes this node enter or leave a cluster, and writes down who wanted that.
pub(crate) async fn audited<T>(
    app: &App,
    call: &str,
    detail: Vec<String>,
    work: impl Future<Output = Result<T, ClusterError>>,
) -> Result<T, ClusterError> {
    let before = app.cluster.info().node_id;
    let result = work.await;
    if app.cluster.audit().is_on() {
        let after = app.cluster.info().node_id;
        let outcome = match &result {
            Ok(_) => "ok",
            Err(error) => code_name(code(error.kind())),
        };
        app.cluster.audit().write(&Entry {
            user: user(),
            call: call.to_owned(),
            // Before it entered, or after it left, it had none.
            id: if after.is_empty() { before } else { after },
            detail,
            outcome: outcome.to_owned(),
            ..Entry::default()
        });
    }
    result
}

/// Writes down who asks for something in a task's container on another node, and whether it was reached.
pub(crate) fn record_reach(app: &App, task: &Task, asks: String, failed: Option<Kind>) {
    app.cluster.audit().write(&Entry {
        user: user(),
        call: "reach_container".to_owned(),
        id: task.container_id().to_owned(),
        name: task.container_name(),
        detail: vec![asks],
        outcome: failed.map_or("ok", |kind| code_name(code(kind))).to_owned(),
        ..Entry::default()
    });
}

/// `force`, when it is set.
pub(crate) fn force(set: bool) -> Vec<String> {
    if set { vec!["force".to_owned()] } else { Vec::new() }
}

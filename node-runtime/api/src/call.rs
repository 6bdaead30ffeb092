//! What is known about a request beside its bytes, for as long as it is answered: what the answer rests on.

use std::cell::Cell;
use std::future::Future;

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use rswarm_proto::status::REPLICA;
use tonic::Status;

/// On replies that come from this manager's own state, while the swarm has no leader: what they say may be old.
pub const STALE: &str = "rswarm-stale";

tokio::task_local! {
    static CALL: Call;
}

#[derive(Default)]
struct Call {
    /// Whether a manager's own state, not the leader's, was read for the answer.
    is_stale: Cell<bool>,
}

/// Answers a request; the reply says what it rests on.
pub(crate) async fn answer(work: impl Future<Output = Response>) -> Response {
    let work = async {
        let mut response = work.await;
        if CALL.with(|call| call.is_stale.get()) {
            response.headers_mut().insert(HeaderName::from_static(STALE), HeaderValue::from_static("1"));
        }
        response
    };
    CALL.scope(Call::default(), work).await
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

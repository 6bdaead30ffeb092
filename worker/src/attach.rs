//! A node asks its managers for places on networks, for containers that they did not give it.

use std::sync::Arc;
use std::time::Duration;

use rswarm_base::Chain;
use rswarm_proto::tls::{self, Identity};
use rswarm_proto::wire::attachments_client::AttachmentsClient;
use rswarm_proto::wire::{AttachReply, AttachRequest};
use tonic::{Code, Status};

/// A manager that takes longer is given up for the next: it waits for an address for less than this.
const TIMEOUT: Duration = Duration::from_secs(8);

/// Asks the managers in turn. A refusal is final; only one that cannot answer is passed over.
///
/// # Errors
/// The refusal, or why none answers.
pub async fn attach(
    identity: &Arc<Identity>,
    managers: &[String],
    request: AttachRequest,
) -> Result<AttachReply, Status> {
    let mut last = Status::unavailable("no manager is known");
    for manager in managers {
        let asked = async {
            let channel = tls::connect(manager, identity)
                .await
                .map_err(|error| Status::unavailable(Chain(&error).to_string()))?;
            AttachmentsClient::new(channel).attach(request.clone()).await
        };
        match tokio::time::timeout(TIMEOUT, asked).await {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) if !matches!(status.code(), Code::Unavailable | Code::Unimplemented) => {
                return Err(status);
            }
            Ok(Err(status)) => last = status,
            Err(_) => last = Status::unavailable(format!("manager `{manager}` did not answer in time")),
        }
    }
    Err(last)
}

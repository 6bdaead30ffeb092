//! Control calls as the audit log has them: by whom, about what.

use rswarm_base::audit::{Audit, Entry, User, Via};
use rswarm_proto::model::object::Stored;
use rswarm_proto::status::{USER, code_name};
use rswarm_proto::tls::peer;
use rswarm_proto::wire::{
    Annotations, Cluster, Config, CreateConfigRequest, CreateNetworkRequest, CreateSecretRequest,
    CreateServiceRequest, IssueRequest, IssueResponse, LeaveManagerRequest, Network, Node, NodeRole,
    RemoveRequest, RemoveResponse, Secret, Service, UnlockKeyRequest, UnlockKeyResponse,
    UpdateClusterRequest, UpdateConfigRequest, UpdateNodeRequest, UpdateSecretRequest, UpdateServiceRequest,
};
use tonic::{Request, Response, Status};

/// What a request is about, without anything that may be secret.
pub(crate) trait Asked {
    /// Tells it.
    fn tell(&self, entry: &mut Entry);
}

/// What a reply adds to that.
pub(crate) trait Answered {
    /// The object's id, when it has one.
    fn id(&self) -> &str;
}

/// Begins the record of a call; `None` when nobody wants one.
pub(crate) fn begin<Q: Asked>(audit: &Audit, call: &str, request: &Request<Q>) -> Option<Entry> {
    if !audit.is_on() {
        return None;
    }
    let caller = peer(request);
    let user: Option<User> = request.metadata().get(USER).and_then(|user| user.to_str().ok()?.parse().ok());
    let role = match caller.role {
        Some(NodeRole::Manager) => "manager",
        Some(NodeRole::Worker) => "worker",
        None => "",
    };
    let mut entry = Entry {
        // Only managers can speak for a user of theirs.
        user: user.filter(|_| caller.role == Some(NodeRole::Manager)),
        via: Some(Via { node: caller.node_id, role, addr: caller.addr }),
        call: call.to_owned(),
        ..Entry::default()
    };
    request.get_ref().tell(&mut entry);
    Some(entry)
}

/// Ends it with the outcome.
pub(crate) fn end<A: Answered>(audit: &Audit, entry: Option<Entry>, answer: &Result<Response<A>, Status>) {
    let Some(mut entry) = entry else { return };
    match answer {
        Ok(response) => {
            let id = response.get_ref().id();
            if !id.is_empty() {
                entry.id = id.to_owned();
            }
            entry.outcome = "ok".to_owned();
        }
        Err(status) => entry.outcome = code_name(status.code()).to_owned(),
    }
    audit.write(&entry);
}

fn name(annotations: Option<&Annotations>) -> String {
    annotations.map(|annotations| annotations.name.clone()).unwrap_or_default()
}

/// Requests with a spec that has a name.
macro_rules! with_spec {
    ($($request:ident),* $(,)?) => {$(
        impl Asked for $request {
            fn tell(&self, entry: &mut Entry) {
                entry.name = name(self.spec.as_ref().and_then(|spec| spec.annotations.as_ref()));
            }
        }
    )*};
}

with_spec!(CreateServiceRequest, CreateNetworkRequest, CreateSecretRequest, CreateConfigRequest,);

macro_rules! of_content {
    ($($request:ident),*) => {$(
        impl Asked for $request {
            fn tell(&self, entry: &mut Entry) {
                entry.name = name(self.spec.as_ref().and_then(|spec| spec.annotations.as_ref()));
                entry.id.clone_from(&self.id);
                if self.new_version {
                    entry.detail.push("new_version".to_owned());
                }
            }
        }
    )*};
}

of_content!(UpdateSecretRequest, UpdateConfigRequest);

impl Asked for UpdateServiceRequest {
    fn tell(&self, entry: &mut Entry) {
        entry.name = name(self.spec.as_ref().and_then(|spec| spec.annotations.as_ref()));
        entry.id.clone_from(&self.id);
        if self.rollback != 0 {
            entry.detail.push("rollback".to_owned());
        }
    }
}

impl Asked for UpdateNodeRequest {
    fn tell(&self, entry: &mut Entry) {
        entry.id.clone_from(&self.id);
        let Some(spec) = &self.spec else { return };
        let role = spec.desired_role().as_str_name().to_lowercase();
        let availability = spec.availability().as_str_name().to_lowercase();
        entry.detail = vec![format!("role {role}"), format!("availability {availability}")];
    }
}

impl Asked for UpdateClusterRequest {
    fn tell(&self, entry: &mut Entry) {
        let parts = [
            ("rotate_worker_token", self.rotate_worker_token),
            ("rotate_manager_token", self.rotate_manager_token),
            ("rotate_unlock_key", self.rotate_unlock_key),
            ("replace_root", !self.signing_ca_cert.is_empty()),
        ];
        entry.detail = parts.iter().filter(|(_, asked)| *asked).map(|(what, _)| (*what).to_owned()).collect();
    }
}

impl Asked for RemoveRequest {
    fn tell(&self, entry: &mut Entry) {
        entry.id.clone_from(&self.id);
        if self.force {
            entry.detail.push("force".to_owned());
        }
    }
}

impl Asked for LeaveManagerRequest {
    fn tell(&self, entry: &mut Entry) {
        entry.id.clone_from(&self.node_id);
        if self.force {
            entry.detail.push("force".to_owned());
        }
    }
}

impl Asked for UnlockKeyRequest {
    fn tell(&self, _: &mut Entry) {}
}

impl Asked for IssueRequest {
    fn tell(&self, entry: &mut Entry) {
        entry.name.clone_from(&self.hostname);
    }
}

impl Answered for IssueResponse {
    fn id(&self) -> &str {
        &self.node_id
    }
}

macro_rules! stored {
    ($($object:ident),*) => {$(
        impl Answered for $object {
            fn id(&self) -> &str {
                Stored::id(self)
            }
        }
    )*};
}

stored!(Service, Network, Secret, Config, Node, Cluster);

impl Answered for RemoveResponse {
    fn id(&self) -> &str {
        ""
    }
}

impl Answered for UnlockKeyResponse {
    fn id(&self) -> &str {
        ""
    }
}

#[cfg(test)]
mod tests {
    use rswarm_proto::wire::ContentSpec;

    use super::*;

    fn told(request: &impl Asked) -> Entry {
        let mut entry = Entry::default();
        request.tell(&mut entry);
        entry
    }

    #[test]
    fn a_secrets_content_and_the_roots_key_are_in_no_record() {
        let annotations = Some(Annotations { name: "key".to_owned(), ..Annotations::default() });
        let spec = ContentSpec { annotations, data: b"hush".to_vec(), ..ContentSpec::default() };
        let entry = told(&CreateSecretRequest { spec: Some(spec) });
        assert_eq!(entry, Entry { name: "key".to_owned(), ..Entry::default() });
        let rotation = UpdateClusterRequest {
            rotate_manager_token: true,
            signing_ca_cert: "a root".to_owned(),
            signing_ca_key: b"hush".to_vec(),
            ..UpdateClusterRequest::default()
        };
        let detail = vec!["rotate_manager_token".to_owned(), "replace_root".to_owned()];
        assert_eq!(told(&rotation), Entry { detail, ..Entry::default() });
    }

    #[test]
    fn nobody_speaks_for_a_user_but_managers() {
        let dir = tempfile::tempdir().expect("directory");
        let audit = Audit::open(&dir.path().join("audit")).expect("opened");
        let begun = |role| {
            let mut request = Request::new(RemoveRequest { id: "s1".to_owned(), force: true });
            let peer = rswarm_proto::tls::Peer { node_id: "n1".to_owned(), role, ..Default::default() };
            request.extensions_mut().insert(peer);
            request.metadata_mut().insert(USER, "0:0:1".parse().expect("a value"));
            begin(&audit, "remove_service", &request).expect("wanted")
        };
        let entry = begun(Some(NodeRole::Manager));
        assert_eq!(entry.user, Some(User::Local { uid: 0, gid: 0, pid: 1 }));
        assert_eq!((entry.id.as_str(), entry.detail), ("s1", vec!["force".to_owned()]));
        assert_eq!(entry.via.map(|via| (via.node, via.role)), Some(("n1".to_owned(), "manager")));
        assert_eq!(begun(Some(NodeRole::Worker)).user, None);
        assert_eq!(begun(None).user, None);
    }
}

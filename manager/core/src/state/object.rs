//! One stored object, whatever its kind.

use std::sync::Arc;

use rswarm_proto::model::object::Stored;
use rswarm_proto::wire::{Cluster, Config, Network, Node, Object, ObjectKind, Secret, Service, Task, object};

/// A stored object of any kind, shared.
#[derive(Debug, Clone, PartialEq)]
pub enum AnyObject {
    /// The cluster.
    Cluster(Arc<Cluster>),
    /// A node.
    Node(Arc<Node>),
    /// A service.
    Service(Arc<Service>),
    /// A task.
    Task(Arc<Task>),
    /// A network.
    Network(Arc<Network>),
    /// A secret.
    Secret(Arc<Secret>),
    /// A config.
    Config(Arc<Config>),
}

impl AnyObject {
    /// The table and id.
    #[must_use]
    pub fn key(&self) -> (ObjectKind, &str) {
        match self {
            AnyObject::Cluster(object) => (ObjectKind::Cluster, &object.id),
            AnyObject::Node(object) => (ObjectKind::Node, &object.id),
            AnyObject::Service(object) => (ObjectKind::Service, &object.id),
            AnyObject::Task(object) => (ObjectKind::Task, &object.id),
            AnyObject::Network(object) => (ObjectKind::Network, &object.id),
            AnyObject::Secret(object) => (ObjectKind::Secret, &object.id),
            AnyObject::Config(object) => (ObjectKind::Config, &object.id),
        }
    }

    /// The version of its last write.
    #[must_use]
    pub fn version(&self) -> u64 {
        match self {
            AnyObject::Cluster(object) => object.meta().version,
            AnyObject::Node(object) => object.meta().version,
            AnyObject::Service(object) => object.meta().version,
            AnyObject::Task(object) => object.meta().version,
            AnyObject::Network(object) => object.meta().version,
            AnyObject::Secret(object) => object.meta().version,
            AnyObject::Config(object) => object.meta().version,
        }
    }

    /// A copy as the wire carries it.
    #[must_use]
    pub fn to_object(&self) -> Object {
        self.clone().into_object()
    }

    /// As the wire carries it: copied only when somebody else has it too.
    #[must_use]
    pub fn into_object(self) -> Object {
        match self {
            AnyObject::Cluster(object) => Arc::unwrap_or_clone(object).into(),
            AnyObject::Node(object) => Arc::unwrap_or_clone(object).into(),
            AnyObject::Service(object) => Arc::unwrap_or_clone(object).into(),
            AnyObject::Task(object) => Arc::unwrap_or_clone(object).into(),
            AnyObject::Network(object) => Arc::unwrap_or_clone(object).into(),
            AnyObject::Secret(object) => Arc::unwrap_or_clone(object).into(),
            AnyObject::Config(object) => Arc::unwrap_or_clone(object).into(),
        }
    }

    /// The object inside a message; `None` when it is empty.
    #[must_use]
    pub fn from_object(object: Object) -> Option<AnyObject> {
        Some(match object.object? {
            object::Object::Cluster(object) => AnyObject::Cluster(object.into()),
            object::Object::Node(object) => AnyObject::Node(object.into()),
            object::Object::Service(object) => AnyObject::Service(object.into()),
            object::Object::Task(object) => AnyObject::Task(object.into()),
            object::Object::Network(object) => AnyObject::Network(object.into()),
            object::Object::Secret(object) => AnyObject::Secret(object.into()),
            object::Object::Config(object) => AnyObject::Config(object.into()),
        })
    }
}

/// A new object of each type is one of any kind.
macro_rules! any_object {
    ($($kind:ident),*) => {
        $(impl From<$kind> for AnyObject {
            fn from(object: $kind) -> AnyObject {
                AnyObject::$kind(Arc::new(object))
            }
        })*
    };
}

any_object!(Cluster, Node, Service, Task, Network, Secret, Config);

//! One view of all stored objects: kind, id, name and meta.

use crate::wire::{
    Annotations, Cluster, Config, Meta, Network, Node, Object, ObjectKind, Secret, Service, Task, object,
};

/// What every stored object has.
pub trait Stored: Clone + PartialEq + Into<Object> + 'static {
    /// Which table it is in.
    const KIND: ObjectKind;
    /// Its identifier, unique among all objects of the kind.
    fn id(&self) -> &str;
    /// Version and times.
    fn meta(&self) -> Meta;
    /// Version and times, to be written by `apply` alone.
    fn meta_mut(&mut self) -> &mut Meta;
    /// The name in its spec; empty when it has none.
    fn name(&self) -> &str;
}

fn name(annotations: Option<&Annotations>) -> &str {
    annotations.map_or("", |annotations| &annotations.name)
}

macro_rules! stored {
    ($type:ident, |$object:ident| $name:expr) => {
        impl Stored for $type {
            const KIND: ObjectKind = ObjectKind::$type;
            fn id(&self) -> &str {
                &self.id
            }
            fn meta(&self) -> Meta {
                self.meta.unwrap_or_default()
            }
            fn meta_mut(&mut self) -> &mut Meta {
                self.meta.get_or_insert_default()
            }
            fn name(&self) -> &str {
                let $object = self;
                $name
            }
        }
        impl From<$type> for Object {
            fn from(object: $type) -> Object {
                Object { object: Some(object::Object::$type(Box::new(object))) }
            }
        }
        impl TryFrom<Object> for $type {
            type Error = WrongKind;
            fn try_from(object: Object) -> Result<$type, WrongKind> {
                match object.object {
                    Some(object::Object::$type(object)) => Ok(*object),
                    _ => Err(WrongKind(ObjectKind::$type)),
                }
            }
        }
    };
}

/// An object of another kind than asked for, or none at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message holds no {0:?}")]
pub struct WrongKind(pub ObjectKind);

stored!(Cluster, |c| name(c.spec.as_ref().and_then(|spec| spec.annotations.as_ref())));
stored!(Node, |n| name(n.spec.as_ref().and_then(|spec| spec.annotations.as_ref())));
stored!(Service, |s| name(s.spec.as_ref().and_then(|spec| spec.annotations.as_ref())));
stored!(Task, |_t| "");
stored!(Network, |n| name(n.spec.as_ref().and_then(|spec| spec.annotations.as_ref())));
stored!(Secret, |s| name(s.spec.as_ref().and_then(|spec| spec.annotations.as_ref())));
stored!(Config, |c| name(c.spec.as_ref().and_then(|spec| spec.annotations.as_ref())));

impl Object {
    /// The table and id of the object inside; `None` for an empty message.
    #[must_use]
    pub fn key(&self) -> Option<(ObjectKind, &str)> {
        Some(match self.object.as_ref()? {
            object::Object::Cluster(object) => (ObjectKind::Cluster, object.id()),
            object::Object::Node(object) => (ObjectKind::Node, object.id()),
            object::Object::Service(object) => (ObjectKind::Service, object.id()),
            object::Object::Task(object) => (ObjectKind::Task, object.id()),
            object::Object::Network(object) => (ObjectKind::Network, object.id()),
            object::Object::Secret(object) => (ObjectKind::Secret, object.id()),
            object::Object::Config(object) => (ObjectKind::Config, object.id()),
        })
    }
}

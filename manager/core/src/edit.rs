//! One change of one object, as the brain and the state hold it: objects are shared, where the wire's
//! [`Change`] has them by value.

use rswarm_proto::wire::{Change, ObjectKind, change};

use crate::state::AnyObject;

/// One object that is to be different.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// A new object.
    Create(AnyObject),
    /// An object as it should be; its version says when it was read.
    Update(AnyObject),
    /// The object of this kind and id goes.
    Delete(ObjectKind, String),
}

impl Edit {
    /// What a message asks for; `None` when it names an unknown action or kind, or has no object.
    #[must_use]
    pub fn from_change(change: Change) -> Option<Edit> {
        let object = |change: Change| change.object.and_then(AnyObject::from_object);
        Some(match change::Action::try_from(change.action).ok()? {
            change::Action::Create => Edit::Create(object(change)?),
            change::Action::Update => Edit::Update(object(change)?),
            change::Action::Delete => Edit::Delete(ObjectKind::try_from(change.kind).ok()?, change.id),
        })
    }
}

impl From<Edit> for Change {
    fn from(edit: Edit) -> Change {
        let with = |action: change::Action, object: AnyObject| Change {
            action: action.into(),
            object: Some(object.into_object()),
            ..Change::default()
        };
        match edit {
            Edit::Create(object) => with(change::Action::Create, object),
            Edit::Update(object) => with(change::Action::Update, object),
            Edit::Delete(kind, id) => {
                let action = change::Action::Delete.into();
                Change { action, kind: kind.into(), id, object: None }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use rswarm_proto::wire::{Object, Task};

    #[test]
    fn an_edit_survives_the_wire() {
        let task = AnyObject::Task(Arc::new(Task { id: "t".to_owned(), slot: 3, ..Task::default() }));
        let delete = Edit::Delete(ObjectKind::Node, "n".to_owned());
        for edit in [Edit::Create(task.clone()), Edit::Update(task), delete] {
            assert_eq!(Edit::from_change(edit.clone().into()), Some(edit));
        }
    }

    #[test]
    fn what_says_nothing_is_no_edit() {
        let update = change::Action::Update.into();
        assert_eq!(Edit::from_change(Change { action: update, ..Change::default() }), None);
        let empty = Some(Object::default());
        assert_eq!(Edit::from_change(Change { action: update, object: empty, ..Change::default() }), None);
        let task = Some(Task::default().into());
        assert_eq!(Edit::from_change(Change { action: 99, object: task, ..Change::default() }), None);
        let delete = change::Action::Delete.into();
        assert_eq!(Edit::from_change(Change { action: delete, kind: 99, ..Change::default() }), None);
    }
}

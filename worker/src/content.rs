//! Secrets and configs that tasks of this node use: in memory, and sealed on disk ([`crate::disk`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use rswarm_proto::wire::{Config, FileReference, Secret, Task};

/// Secrets and configs by id.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Content {
    /// Secrets.
    pub secrets: BTreeMap<String, Arc<Secret>>,
    /// Configs.
    pub configs: BTreeMap<String, Arc<Config>>,
}

impl Content {
    /// What the task may see of it: nothing but its own.
    #[must_use]
    pub fn of(&self, task: &Task) -> Content {
        let spec = task.spec.clone().unwrap_or_default();
        Content { secrets: own(&self.secrets, &spec.secrets), configs: own(&self.configs, &spec.configs) }
    }

    /// Something that the task needs and that is not here, in words.
    #[must_use]
    pub fn missing(&self, task: &Task) -> Option<String> {
        let spec = task.spec.as_ref()?;
        let secret = spec.secrets.iter().find(|reference| !self.secrets.contains_key(&reference.id));
        let config = spec.configs.iter().find(|reference| !self.configs.contains_key(&reference.id));
        secret
            .map(|reference| format!("secret `{}`", reference.name))
            .or_else(|| config.map(|reference| format!("config `{}`", reference.name)))
    }
}

fn own<T>(all: &BTreeMap<String, Arc<T>>, references: &[FileReference]) -> BTreeMap<String, Arc<T>> {
    let found = |reference: &FileReference| Some((reference.id.clone(), all.get(&reference.id)?.clone()));
    references.iter().filter_map(found).collect()
}

#[cfg(test)]
mod tests {
    use rswarm_proto::wire::TaskSpec;

    use super::*;

    #[test]
    fn a_task_sees_its_own_and_knows_what_it_lacks() {
        let reference = |id: &str| FileReference {
            id: id.into(),
            name: format!("{id}-name"),
            ..FileReference::default()
        };
        let spec = TaskSpec {
            secrets: vec![reference("s1")],
            configs: vec![reference("c1")],
            ..TaskSpec::default()
        };
        let task = Task { spec: Some(spec), ..Task::default() };
        let mut content = Content::default();
        assert_eq!(content.missing(&task).as_deref(), Some("secret `s1-name`"));
        for id in ["s1", "s2"] {
            content.secrets.insert(id.into(), Arc::default());
        }
        assert_eq!(content.missing(&task).as_deref(), Some("config `c1-name`"));
        content.configs.insert("c1".into(), Arc::default());
        assert_eq!(content.missing(&task), None);
        assert_eq!(content.of(&task).secrets.keys().collect::<Vec<_>>(), ["s1"]);
        assert_eq!(content.missing(&Task::default()), None);
    }
}

//! A task's secrets and configs as files in its container's memory.

use std::collections::BTreeMap;

use rswarm_engine::Container;
use rswarm_engine::config::InjectedFile;
use rswarm_proto::model::template::{self, Place, Readable};
use rswarm_proto::wire::{ContentSpec, FileReference, ObjectKind, Task};
use rswarm_worker::{Content, ExecError};

use super::executor::failure;

/// The files of a task's container, templates filled in.
pub(super) fn files(task: &Task, place: &Place, content: &Content) -> Result<Vec<InjectedFile>, ExecError> {
    if let Some(missing) = content.missing(task) {
        return Err(ExecError(format!("{missing} is not on this node")));
    }
    let spec = task.spec.clone().unwrap_or_default();
    let secrets: BTreeMap<&str, ContentSpec> = content
        .secrets
        .iter()
        .map(|(id, secret)| (id.as_str(), secret.spec.clone().unwrap_or_default()))
        .collect();
    let configs: BTreeMap<&str, ContentSpec> = content
        .configs
        .iter()
        .map(|(id, config)| (id.as_str(), config.spec.clone().unwrap_or_default()))
        .collect();
    let readable = Readable {
        secrets: by_target(&spec.secrets, &secrets),
        configs: by_target(&spec.configs, &configs),
        env: spec.container.unwrap_or_default().env,
    };
    let kinds =
        [(ObjectKind::Secret, &spec.secrets, &secrets), (ObjectKind::Config, &spec.configs, &configs)];
    let mut files = Vec::new();
    for (kind, references, contents) in kinds {
        for reference in references {
            let Some(spec) = contents.get(reference.id.as_str()) else { continue };
            let file = reference.file.clone().unwrap_or_default();
            files.push(InjectedFile {
                target: template::path(kind, &file.name),
                uid: number(&file.uid)?,
                gid: number(&file.gid)?,
                mode: file.mode,
                data: place.content(spec, &readable).map_err(|error| failure(&error))?,
            });
        }
    }
    Ok(files)
}

fn by_target(
    references: &[FileReference],
    contents: &BTreeMap<&str, ContentSpec>,
) -> BTreeMap<String, Vec<u8>> {
    template::by_target(references, |reference| {
        contents.get(reference.id.as_str()).map(|spec| spec.data.clone())
    })
}

/// A user's or group's number; nothing is root's.
fn number(id: &str) -> Result<u32, ExecError> {
    if id.is_empty() { Ok(0) } else { id.parse().map_err(|_| ExecError(format!("`{id}` is not a number"))) }
}

/// Whether the container should have files and has none: they were in the memory of a daemon that is gone.
pub(super) fn is_lost(task: &Task, container: &Container) -> bool {
    let wanted = task.spec.as_ref().is_some_and(|spec| !spec.secrets.is_empty() || !spec.configs.is_empty());
    wanted && container.config.files.is_empty()
}

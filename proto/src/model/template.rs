//! Placeholders: `{{.Service.Name}}` and the like in a task's spec, and in secrets and configs that are templates.
//!
//! Go's template language with what swarmkit's `template` package offers: the fields of [`Place`], `join`, and in
//! secrets and configs `secret`, `config` and `env`. Filled in on the node, where the task's place is known.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::{MissingKey, Template, TemplateError, Value};

use crate::wire::{
    Annotations, ContainerSpec, ContentSpec, FileReference, NodeDescription, ObjectKind, Task,
};

/// A template that cannot be filled in.
#[derive(Debug, thiserror::Error)]
#[error("expanding {what} failed")]
pub struct ExpandError {
    what: String,
    source: TemplateError,
}

/// Where a task runs, and as part of what: all that placeholders can name.
#[derive(Debug, Clone, Default)]
pub struct Place {
    service_id: String,
    service_name: String,
    service_labels: BTreeMap<String, String>,
    node_id: String,
    hostname: String,
    architecture: String,
    os: String,
    task_id: String,
    task_name: String,
    slot: String,
}

/// What the templates of one task may read: its own secrets and configs by target name, and its environment.
#[derive(Debug, Clone, Default)]
pub struct Readable {
    /// Secrets by target name.
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// Configs by target name.
    pub configs: BTreeMap<String, Vec<u8>>,
    /// `KEY=VALUE`, as in the container's spec.
    pub env: Vec<String>,
}

type Function = Box<dyn Fn(&[Value]) -> Result<Value, TemplateError> + Send + Sync>;

impl Place {
    /// The place of a task on its node.
    #[must_use]
    pub fn of(task: &Task, node: &NodeDescription) -> Place {
        let service = task.service_annotations.clone().unwrap_or_default();
        let platform = node.platform.clone().unwrap_or_default();
        Place {
            service_id: task.service_id.clone(),
            service_name: service.name,
            service_labels: service.labels,
            node_id: task.node_id.clone(),
            hostname: node.hostname.clone(),
            architecture: platform.architecture,
            os: platform.os,
            task_id: task.id.clone(),
            task_name: task.container_name(),
            slot: if task.slot == 0 { task.node_id.clone() } else { task.slot.to_string() },
        }
    }

    /// A made-up place of a service's task, to try templates with before any task has one.
    #[must_use]
    pub fn example(service: Annotations) -> Place {
        let text = |text: &str| text.to_owned();
        Place {
            service_id: text("serviceid"),
            service_name: service.name,
            service_labels: service.labels,
            node_id: text("nodeid"),
            hostname: text("nodehostname"),
            architecture: text("x86_64"),
            os: text("linux"),
            task_id: text("taskid"),
            task_name: text("taskname"),
            slot: text("1"),
        }
    }

    /// The spec with its placeholders filled in: environment, host name, and the texts of mounts.
    ///
    /// # Errors
    /// Which template is malformed or names what there is not.
    pub fn expand(&self, mut spec: ContainerSpec) -> Result<ContainerSpec, ExpandError> {
        for variable in &mut spec.env {
            if let Some((name, value)) = variable.split_once('=') {
                *variable = format!("{name}={}", self.text(value, || format!("env \"{variable}\""))?);
            }
        }
        for mount in &mut spec.mounts {
            mount.source = self.text(&mount.source, || format!("mount source \"{}\"", mount.source))?;
            mount.target = self.text(&mount.target, || format!("mount target \"{}\"", mount.target))?;
            let options = mount.volume_options.values_mut().chain(mount.volume_labels.values_mut());
            for value in options {
                *value = self.text(value, || format!("mount option \"{value}\""))?;
            }
        }
        spec.hostname = self.text(&spec.hostname, || "hostname".to_owned())?;
        Ok(spec)
    }

    /// The data of a secret or config as a container gets it: filled in when it is a template.
    ///
    /// # Errors
    /// When the template is malformed, is no text, or names what the task has not.
    pub fn content(&self, spec: &ContentSpec, readable: &Readable) -> Result<Vec<u8>, ExpandError> {
        if spec.templating.is_empty() {
            return Ok(spec.data.clone());
        }
        let name = spec.annotations.as_ref().map_or("", |annotations| annotations.name.as_str());
        let what = || format!("template \"{name}\"");
        let text = std::str::from_utf8(&spec.data).map_err(|error| ExpandError {
            what: what(),
            source: TemplateError::Exec(format!("it is no text: {error}")),
        })?;
        Ok(self.fill(text, readable.functions(), what)?.into_bytes())
    }

    fn text(&self, template: &str, what: impl FnOnce() -> String) -> Result<String, ExpandError> {
        self.fill(template, Vec::new(), what)
    }

    fn fill(
        &self,
        template: &str,
        functions: Vec<(&str, Function)>,
        what: impl FnOnce() -> String,
    ) -> Result<String, ExpandError> {
        if !template.contains("{{") {
            return Ok(template.to_owned());
        }
        let run = || {
            let mut parser = Template::new("expansion").missing_key(MissingKey::Error).func("join", join);
            for (name, function) in functions {
                parser = parser.func(name, function);
            }
            parser.parse(template)?.execute_to_string(&self.value())
        };
        run().map_err(|source| ExpandError { what: what(), source })
    }

    fn value(&self) -> Value {
        let labels = self.service_labels.iter().map(|(key, value)| (key.as_str(), text(value)));
        map([
            (
                "Service",
                map([
                    ("ID", text(&self.service_id)),
                    ("Name", text(&self.service_name)),
                    ("Labels", map(labels)),
                ]),
            ),
            (
                "Node",
                map([
                    ("ID", text(&self.node_id)),
                    ("Hostname", text(&self.hostname)),
                    ("Platform", map([("Architecture", text(&self.architecture)), ("OS", text(&self.os))])),
                ]),
            ),
            (
                "Task",
                map([
                    ("ID", text(&self.task_id)),
                    ("Name", text(&self.task_name)),
                    ("Slot", text(&self.slot)),
                ]),
            ),
        ])
    }
}

impl Readable {
    fn functions(&self) -> Vec<(&'static str, Function)> {
        let env: BTreeMap<String, Vec<u8>> = self
            .env
            .iter()
            .filter_map(|variable| variable.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
            .collect();
        vec![
            ("secret", lookup(self.secrets.clone(), "secret target")),
            ("config", lookup(self.configs.clone(), "config target")),
            // As in Go's, a variable that is not set is empty.
            ("env", {
                let find = lookup(env, "variable");
                Box::new(move |args: &[Value]| Ok(find(args).unwrap_or_else(|_| text(""))))
            }),
        ]
    }
}

fn lookup(values: BTreeMap<String, Vec<u8>>, noun: &'static str) -> Function {
    Box::new(move |args: &[Value]| {
        let name = args.first().and_then(Value::as_str).unwrap_or_default();
        let found =
            values.get(name).ok_or_else(|| TemplateError::Exec(format!("{noun} {name} not found")))?;
        let found = std::str::from_utf8(found)
            .map_err(|error| TemplateError::Exec(format!("{noun} {name} is no text: {error}")))?;
        Ok(text(found))
    })
}

/// The first argument between the others.
fn join(args: &[Value]) -> Result<Value, TemplateError> {
    let texts: Vec<String> = args.iter().map(ToString::to_string).collect();
    let (separator, rest) =
        texts.split_first().ok_or_else(|| TemplateError::Exec("join: there is no separator".into()))?;
    Ok(text(&rest.join(separator)))
}

fn text(text: &str) -> Value {
    Value::String(text.into())
}

fn map<'k>(fields: impl IntoIterator<Item = (&'k str, Value)>) -> Value {
    Value::Map(Arc::new(fields.into_iter().map(|(key, value)| (key.into(), value)).collect()))
}

/// Where a file of a secret or a config is in its container.
#[must_use]
pub fn path(kind: ObjectKind, target: &str) -> String {
    match kind {
        _ if target.starts_with('/') => target.to_owned(),
        ObjectKind::Secret => format!("/run/secrets/{target}"),
        _ => format!("/{target}"),
    }
}

/// The secrets or configs of a task by target name, as templates call them.
#[must_use]
pub fn by_target<'r>(
    references: &'r [FileReference],
    data: impl Fn(&'r FileReference) -> Option<Vec<u8>>,
) -> BTreeMap<String, Vec<u8>> {
    let named = |reference: &'r FileReference| Some((reference.file.clone()?.name, data(reference)?));
    references.iter().filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use rswarm_base::Chain;

    use super::*;
    use crate::wire::{Mount, Platform};

    fn place() -> Place {
        let task = Task {
            id: "t1".into(),
            service_id: "s1".into(),
            slot: 3,
            node_id: "n1".into(),
            service_annotations: Some(Annotations {
                name: "web".into(),
                labels: [("tier".into(), "front".into())].into(),
            }),
            ..Task::default()
        };
        let platform = Some(Platform { architecture: "x86_64".into(), os: "linux".into() });
        let node = NodeDescription { hostname: "host".into(), platform, ..NodeDescription::default() };
        Place::of(&task, &node)
    }

    #[test]
    fn placeholders_are_filled_in() {
        let spec = ContainerSpec {
            hostname: "{{.Node.Hostname}}-{{.Task.Slot}}".into(),
            env: vec![
                "A={{.Service.Name}}/{{.Service.ID}}/{{.Service.Labels.tier}}".into(),
                "B={{.Task.ID}} {{ .Task.Name }} {{.Node.ID}} {{.Node.Platform.OS}}".into(),
                r#"C={{index .Service.Labels "tier"}} {{join "-" "a" "b"}}"#.into(),
                "{{.Nothing}}".into(),
            ],
            mounts: vec![Mount { source: "data-{{.Task.Slot}}".into(), ..Mount::default() }],
            args: vec!["{{.Not.Expanded}}".into()],
            ..ContainerSpec::default()
        };
        let expanded = place().expand(spec).expect("expands");
        assert_eq!(expanded.hostname, "host-3");
        assert_eq!(expanded.env, ["A=web/s1/front", "B=t1 web.3.t1 n1 linux", "C=front a-b", "{{.Nothing}}"]);
        assert_eq!(expanded.mounts[0].source, "data-3");
        assert_eq!(expanded.args, ["{{.Not.Expanded}}"]);
    }

    #[test]
    fn the_slot_of_a_global_task_is_its_node() {
        let task = Task { id: "t".into(), node_id: "n9".into(), ..Task::default() };
        assert_eq!(Place::of(&task, &NodeDescription::default()).slot, "n9");
    }

    #[test]
    fn what_cannot_be_filled_in_is_named() {
        let spec = |env: &str| ContainerSpec { env: vec![env.into()], ..ContainerSpec::default() };
        for env in ["A={{.Service.Nope}}", "A={{.Service", "A={{secret \"x\"}}"] {
            let error = place().expand(spec(env)).expect_err(env);
            assert!(
                Chain(&error).to_string().starts_with(&format!("expanding env \"{env}\" failed: ")),
                "{error}"
            );
        }
    }

    #[test]
    fn templated_content_reads_what_the_task_has_and_nothing_else() {
        let readable = Readable {
            secrets: [("key".to_owned(), b"hush".to_vec())].into(),
            configs: [("/etc/x".to_owned(), b"port=1".to_vec())].into(),
            env: vec!["MODE=fast".into()],
        };
        let content = |data: &[u8], templating: &str| {
            let spec = ContentSpec { data: data.to_vec(), templating: templating.into(), annotations: None };
            place().content(&spec, &readable).map_err(|error| Chain(&error).to_string())
        };
        let template =
            br#"{{secret "key"}}|{{config "/etc/x"}}|{{env "MODE"}}|{{env "NO"}}|{{.Service.Name}}"#;
        assert_eq!(content(template, "golang").expect("filled in"), b"hush|port=1|fast||web");
        assert_eq!(content(template, "").expect("as it is"), template);
        let error = content(br#"{{secret "other"}}"#, "golang").expect_err("not the task's");
        assert!(error.contains("secret target other not found"), "{error}");
        assert!(content(b"\xff{{", "golang").expect_err("bytes").contains("it is no text"));
    }
}

//! `--dry-run`: what would change of a service, which tasks would be replaced, and where new ones would go.

use std::collections::{BTreeMap, BTreeSet};

use rswarm_api::types::{ForecastTask, ServiceForecast, ServiceSpec};
use serde_json::Value;

use crate::client::Call;
use crate::cmd::{CommandError, Context, node};
use crate::render::table::align;

/// Asks what `call`, the forecast of a request, would do to a service of this spec, and prints it.
///
/// # Errors
/// The request's own: what would be refused is refused.
pub async fn show(context: &Context, call: Call, before: Option<&ServiceSpec>) -> Result<u8, CommandError> {
    let foretold: ServiceForecast = context.client.json(call).await?;
    let nodes = node::all(context).await;
    let names = nodes.into_iter().map(|node| (node.id, node.description.hostname)).collect();
    context.terminal.print(&text(&foretold, before, &names))?;
    Ok(0)
}

fn text(
    foretold: &ServiceForecast,
    before: Option<&ServiceSpec>,
    nodes: &BTreeMap<String, String>,
) -> String {
    let mut text = match before {
        None => format!("Service {} would be created.\n", foretold.spec.name),
        Some(before) => changes(before, &foretold.spec),
    };
    let replaced = foretold.tasks.iter().filter(|task| !task.replaces.is_empty() && task.starts).count();
    let removed = foretold.tasks.iter().filter(|task| !task.starts).count();
    let new = foretold.tasks.len() - replaced - removed;
    let more = if foretold.complete { "" } else { ", and more: it is too far to look ahead" };
    text.push_str(&format!(
        "Tasks: {new} new, {replaced} replaced, {removed} removed, {} as they are{more}\n",
        foretold.unchanged
    ));
    if !foretold.tasks.is_empty() {
        let mut lines = vec!["NAME\tFROM\tTO\tERROR".to_owned()];
        lines.extend(foretold.tasks.iter().map(|task| line(task, nodes)));
        text.push_str(&align(&lines));
    }
    text.push_str("Nothing was changed: this was a dry run.\n");
    text
}

fn line(task: &ForecastTask, nodes: &BTreeMap<String, String>) -> String {
    let name = |id: &String| match id.is_empty() {
        true => "-".to_owned(),
        false => nodes.get(id).unwrap_or(id).clone(),
    };
    let error = if task.err.is_empty() { String::new() } else { format!("\"{}\"", task.err) };
    format!("{}\t{}\t{}\t{error}", task.name, name(&task.from_node), name(&task.to_node))
}

/// Each field that differs, by its path, as it is and as it would be.
fn changes(before: &ServiceSpec, after: &ServiceSpec) -> String {
    let mut found = Vec::new();
    let value = |spec: &ServiceSpec| serde_json::to_value(spec).unwrap_or_default();
    differ("", &value(before), &value(after), &mut found);
    if found.is_empty() {
        return "The specification would stay as it is.\n".to_owned();
    }
    format!("Changes:\n{}", found.concat())
}

fn differ(path: &str, before: &Value, after: &Value, found: &mut Vec<String>) {
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (before, after) {
        (before, after) if before == after => {}
        (Value::Object(old), Value::Object(new)) => {
            let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for key in keys {
                let (old, new) = (old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null));
                differ(&join(key), old, new, found);
            }
        }
        // What comes or goes whole is told field by field, too.
        (Value::Object(_), Value::Null) => differ(path, before, &Value::Object(Default::default()), found),
        (Value::Null, Value::Object(_)) => differ(path, &Value::Object(Default::default()), after, found),
        (before, after) => {
            let shown = |value: &Value| if value.is_null() { "(none)".to_owned() } else { value.to_string() };
            found.push(format!("  {path}: {} -> {}\n", shown(before), shown(after)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_would_change_and_where_tasks_would_go() {
        let spec = |text: &str| serde_json::from_str::<ServiceSpec>(text).expect("a spec");
        let before = spec(r#"{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:1"}}}"#);
        let after =
            spec(r#"{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:2","Env":["A=1"]}}}"#);
        let task = |name: &str, replaces: &str, from: &str, to: &str, err: &str| ForecastTask {
            name: name.into(),
            replaces: replaces.into(),
            from_node: from.into(),
            starts: true,
            to_node: to.into(),
            err: err.into(),
        };
        let tasks = vec![task("web.1", "t1", "n1", "n2", ""), task("web.2", "", "", "", "no suitable node")];
        let foretold = ServiceForecast { spec: after, tasks, unchanged: 3, complete: true };
        let nodes = [("n1".to_owned(), "h1".to_owned()), ("n2".to_owned(), "h2".to_owned())].into();
        assert_eq!(
            text(&foretold, Some(&before), &nodes),
            "Changes:\n\
             \x20 TaskTemplate.ContainerSpec.Env: (none) -> [\"A=1\"]\n\
             \x20 TaskTemplate.ContainerSpec.Image: \"web:1\" -> \"web:2\"\n\
             Tasks: 1 new, 1 replaced, 0 removed, 3 as they are\n\
             NAME      FROM      TO        ERROR\n\
             web.1     h1        h2        \n\
             web.2     -         -         \"no suitable node\"\n\
             Nothing was changed: this was a dry run.\n"
        );
        assert!(text(&foretold, None, &nodes).starts_with("Service web would be created.\n"));
    }
}

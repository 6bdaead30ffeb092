//! Go templates, with the functions that the docker command line adds to Go's own.

use std::sync::Arc;

use gotmpl::{MissingKey, Template, TemplateError, Value as Go};
use serde_json::Value;

use super::table::Row;

/// Fields of a row that templates reach by function only, never by name.
const LABELS: &str = "_labels";

/// A `--format` that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the template `{format}` cannot be used")]
pub struct TemplateProblem {
    format: String,
    source: TemplateError,
}

/// Runs a template on one object, as `inspect --format` does: any JSON, missing keys are `<no value>`.
///
/// # Errors
/// When the template is malformed or asks for what the object cannot give.
pub fn execute(format: &str, object: &Value) -> Result<String, TemplateProblem> {
    let run = || functions(Template::new("format")).parse(format)?.execute_to_string(&to_go(object));
    run().map_err(|source| TemplateProblem { format: format.to_owned(), source })
}

/// Runs a template on one row of a list; a field that the row lacks is an error.
///
/// # Errors
/// When the template is malformed or names no field of the row.
pub fn execute_row(format: &str, row: &Row) -> Result<String, TemplateProblem> {
    let labels = row.get(LABELS).cloned().unwrap_or(Value::Null);
    let label = move |args: &[Go]| {
        let value = args.first().and_then(Go::as_str).and_then(|name| labels.get(name));
        Ok(Go::String(value.and_then(Value::as_str).unwrap_or_default().into()))
    };
    let visible: Row =
        row.iter().filter(|(name, _)| *name != LABELS).map(|(k, v)| (k.clone(), v.clone())).collect();
    let run = || {
        functions(Template::new("row"))
            .missing_key(MissingKey::Error)
            .func("label", label)
            .parse(&method_as_function(format))?
            .execute_to_string(&to_go(&Value::Object(visible)))
    };
    run().map_err(|source| TemplateProblem { format: format.to_owned(), source })
}

/// Runs a template on headings: the line above a table.
///
/// # Errors
/// When the template is malformed or names no field.
pub fn execute_header(format: &str, headers: &[(&str, &str)]) -> Result<String, TemplateProblem> {
    let fields: Row = headers.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect();
    let first = |args: &[Go]| Ok(args.iter().find(|arg| arg.as_str().is_some()).cloned().unwrap_or(Go::Nil));
    let run = || {
        let mut template = Template::new("header").missing_key(MissingKey::Error);
        for name in ["json", "split", "join", "title", "lower", "upper", "pad", "truncate"] {
            template = template.func(name, first);
        }
        template
            .func("label", first)
            .parse(&method_as_function(format))?
            .execute_to_string(&to_go(&Value::Object(fields)))
    };
    run().map_err(|source| TemplateProblem { format: format.to_owned(), source })
}

/// Puts an object's labels where `{{.Label "name"}}` finds them.
pub fn with_labels(mut row: Row, labels: Value) -> Row {
    row.insert(LABELS.to_owned(), labels);
    row
}

/// Docker's rows have one method that takes an argument, `.Label`; here it is a function.
fn method_as_function(format: &str) -> String {
    format.replace(".Label ", "label ")
}

fn functions(template: Template) -> Template {
    template
        .func("json", |args| Ok(Go::String(super::json::compact(&to_json(argument(args, 0)?)).into())))
        .func("split", |args| {
            let parts = text(args, 0)?;
            let parts: Vec<Go> =
                parts.split(text(args, 1)?.as_str()).map(|part| Go::String(part.into())).collect();
            Ok(Go::List(parts.into()))
        })
        .func("join", |args| {
            let Go::List(items) = argument(args, 0)? else {
                return Err(TemplateError::Exec("join: the first argument is not a list".into()));
            };
            let items: Vec<String> = items.iter().map(ToString::to_string).collect();
            Ok(Go::String(items.join(&text(args, 1)?).into()))
        })
        .func("lower", |args| Ok(Go::String(text(args, 0)?.to_lowercase().into())))
        .func("upper", |args| Ok(Go::String(text(args, 0)?.to_uppercase().into())))
        .func("title", |args| Ok(Go::String(title(&text(args, 0)?).into())))
        .func("pad", |args| {
            let spaces = |n: usize| -> Result<String, TemplateError> {
                Ok(" ".repeat(usize::try_from(number(args, n)?).unwrap_or(0)))
            };
            let text = text(args, 0)?;
            Ok(Go::String(format!("{}{text}{}", spaces(1)?, spaces(2)?).into()))
        })
        .func("truncate", |args| {
            let length = usize::try_from(number(args, 1)?).unwrap_or(0);
            Ok(Go::String(text(args, 0)?.chars().take(length).collect::<String>().into()))
        })
}

fn title(text: &str) -> String {
    let mut after_space = true;
    let upper_first = |c: char| {
        let shown: String = if after_space { c.to_uppercase().collect() } else { c.to_string() };
        after_space = c.is_whitespace();
        shown
    };
    text.chars().map(upper_first).collect()
}

fn argument(args: &[Go], n: usize) -> Result<&Go, TemplateError> {
    args.get(n).ok_or_else(|| TemplateError::Exec(format!("argument {} is missing", n + 1)))
}

fn text(args: &[Go], n: usize) -> Result<String, TemplateError> {
    argument(args, n).map(ToString::to_string)
}

fn number(args: &[Go], n: usize) -> Result<i64, TemplateError> {
    argument(args, n)?
        .as_int()
        .ok_or_else(|| TemplateError::Exec(format!("argument {} is not a number", n + 1)))
}

fn to_go(value: &Value) -> Go {
    match value {
        Value::Null => Go::Nil,
        Value::Bool(flag) => Go::Bool(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(signed), _) => Go::Int(signed),
            (None, Some(unsigned)) => Go::Uint(unsigned),
            (None, None) => Go::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Go::String(text.as_str().into()),
        Value::Array(items) => Go::List(items.iter().map(to_go).collect()),
        Value::Object(fields) => {
            Go::Map(Arc::new(fields.iter().map(|(k, v)| (k.as_str().into(), to_go(v))).collect()))
        }
    }
}

fn to_json(value: &Go) -> Value {
    match value {
        Go::Nil | Go::Function(_) => Value::Null,
        Go::Bool(flag) => Value::from(*flag),
        Go::Int(number) => Value::from(*number),
        Go::Uint(number) => Value::from(*number),
        Go::Float(number) => Value::from(*number),
        Go::String(text) => Value::from(&**text),
        Go::List(items) => items.iter().map(to_json).collect(),
        Go::Map(fields) => Value::Object(fields.iter().map(|(k, v)| (k.to_string(), to_json(v))).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::row;
    use super::*;

    fn inspected() -> Value {
        serde_json::json!({
            "Id": "abc", "Names": ["/a", "/b"], "Size": 12.5,
            "Config": {"Labels": {"com.x": "1"}, "Env": ["A=1", "B=<2>"], "Tty": false},
            "State": {"Health": null, "ExitCode": 0},
            "NetworkSettings": {"Networks": {"br": {"IPAddress": "10.0.0.2"}}},
        })
    }

    #[test]
    fn inspect_templates_print_what_docker_prints() {
        for (format, want) in [
            ("{{.Id}}", "abc"),
            ("{{json .Config.Env}}", r#"["A=1","B=<2>"]"#),
            ("{{json .State.Health}}", "null"),
            (r#"{{join .Config.Env ","}}"#, "A=1,B=<2>"),
            (r#"{{index .Config.Labels "com.x"}}"#, "1"),
            ("{{range $k, $v := .NetworkSettings.Networks}}{{$k}}:{{$v.IPAddress}}{{end}}", "br:10.0.0.2"),
            (r#"{{printf "%s-%d" .Id .State.ExitCode}}"#, "abc-0"),
            ("{{title .Id}}|{{pad .Id 1 2}}|{{truncate .Id 2}}", "Abc| abc  |ab"),
            (r#"{{index (split .Id "b") 1}}"#, "c"),
            ("{{.Nope}}", "<no value>"),
        ] {
            assert_eq!(execute(format, &inspected()).expect(format), want, "{format}");
        }
    }

    #[test]
    fn a_label_is_found_by_its_name() {
        let labelled = with_labels(row([("ID", "x".into())]), serde_json::json!({"com.x": "1"}));
        assert_eq!(execute_row(r#"{{.Label "com.x"}}/{{.Label "none"}}"#, &labelled).expect("runs"), "1/");
        assert_eq!(execute_row("{{json .}}", &labelled).expect("runs"), r#"{"ID":"x"}"#);
    }
}

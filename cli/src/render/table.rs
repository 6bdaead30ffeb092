//! Lists: a table by default, else whatever `--format` and `--quiet` ask for.

use serde_json::{Map, Value};

use super::template::{self, TemplateProblem};

/// Docker's table writer: a column is its widest cell plus three spaces, and never below ten.
const PADDING: usize = 3;
const COLUMN_MIN: usize = 10;

/// One line of a list, by the names that templates use.
pub type Row = Map<String, Value>;

/// How one kind of object is listed.
pub struct Listing {
    /// The template of the default table, without the leading `table `.
    pub table: &'static str,
    /// The heading of each field. Templates see these names and no others.
    pub headers: &'static [(&'static str, &'static str)],
    /// The field that `--quiet` prints.
    pub quiet: &'static str,
}

impl Listing {
    /// The whole text of a list.
    ///
    /// # Errors
    /// When the format is not a valid template, or names a field that there is none of.
    pub fn render(&self, format: Option<&str>, quiet: bool, rows: &[Row]) -> Result<String, TemplateProblem> {
        match format {
            None if quiet => self.lines(&format!("{{{{.{}}}}}", self.quiet), rows),
            None | Some("table") => self.table(self.table, rows),
            Some("json") => self.lines("{{json .}}", rows),
            Some(format) => match format.strip_prefix("table ") {
                Some(_) if quiet => self.lines(&format!("{{{{.{}}}}}", self.quiet), rows),
                Some(table) => self.table(&unescape(table.trim()), rows),
                None => self.lines(&unescape(format), rows),
            },
        }
    }

    fn lines(&self, format: &str, rows: &[Row]) -> Result<String, TemplateProblem> {
        let mut text = String::new();
        for row in rows {
            text.push_str(&template::execute_row(format, row)?);
            text.push('\n');
        }
        Ok(text)
    }

    fn table(&self, format: &str, rows: &[Row]) -> Result<String, TemplateProblem> {
        let mut lines = vec![template::execute_header(format, self.headers)?];
        for row in rows {
            lines.push(template::execute_row(format, row)?);
        }
        Ok(align(&lines))
    }
}

/// `\t` and `\n` typed in a shell mean a tab and a newline.
fn unescape(format: &str) -> String {
    format.replace("\\t", "\t").replace("\\n", "\n")
}

/// Lines of tab-separated cells as columns. The last cell of a line is not padded.
pub fn align(lines: &[String]) -> String {
    let cells: Vec<Vec<&str>> = lines.iter().map(|line| line.split('\t').collect()).collect();
    let columns = cells.iter().map(Vec::len).max().unwrap_or(0);
    let mut widths = vec![COLUMN_MIN; columns];
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(&row[..row.len() - 1]) {
            *width = (*width).max(cell.chars().count() + PADDING);
        }
    }
    let mut text = String::new();
    for row in cells {
        let (last, padded) = row.split_last().expect("splitting yields at least one cell");
        for (cell, width) in padded.iter().zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
        }
        text.push_str(last);
        text.push('\n');
    }
    text
}

/// Builds a [`Row`] from names and printable values.
pub fn row<const N: usize>(fields: [(&str, String); N]) -> Row {
    fields.into_iter().map(|(name, value)| (name.to_owned(), Value::String(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: Listing = Listing {
        table: "{{.ID}}\t{{.Name}}\t{{.Ports}}",
        headers: &[("ID", "ID"), ("Name", "NAME"), ("Ports", "PORTS")],
        quiet: "ID",
    };

    fn rows() -> Vec<Row> {
        vec![
            row([("ID", "l2oxdcg7v8ol".into()), ("Name", "web".into()), ("Ports", "*:80->80/tcp".into())]),
            row([("ID", "x".into()), ("Name", "a-long-name-indeed".into()), ("Ports", String::new())]),
        ]
    }

    #[test]
    fn columns_are_docker_s() {
        assert_eq!(
            LISTING.render(None, false, &rows()).expect("renders"),
            "ID             NAME                 PORTS\n\
             l2oxdcg7v8ol   web                  *:80->80/tcp\n\
             x              a-long-name-indeed   \n"
        );
    }

    #[test]
    fn an_empty_list_is_its_heading_with_columns_of_ten() {
        assert_eq!(LISTING.render(None, false, &[]).expect("renders"), "ID        NAME      PORTS\n");
    }

    #[test]
    fn quiet_prints_identifiers_and_templates_print_what_they_say() {
        let render = |format, quiet| LISTING.render(format, quiet, &rows()).expect("renders");
        assert_eq!(render(None, true), "l2oxdcg7v8ol\nx\n");
        assert_eq!(
            render(Some("{{.Name}}={{upper .ID}}"), false),
            "web=L2OXDCG7V8OL\na-long-name-indeed=X\n"
        );
        assert_eq!(
            render(Some("json"), false).lines().next(),
            Some(r#"{"ID":"l2oxdcg7v8ol","Name":"web","Ports":"*:80->80/tcp"}"#)
        );
        assert_eq!(
            render(Some(r"table {{.Name}}\t{{.ID}}"), false).lines().next(),
            Some("NAME                 ID")
        );
    }

    #[test]
    fn a_field_that_does_not_exist_is_an_error() {
        assert!(LISTING.render(Some("{{.Nope}}"), false, &rows()).is_err());
        assert!(LISTING.render(Some("{{.ID"), false, &rows()).is_err());
    }
}

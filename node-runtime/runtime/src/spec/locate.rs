//! Where in a JSON text a parser stopped, as a path like `process.rlimits[1].hard`.
//!
//! The parser tells line and column only. The text is walked once more to that point; this costs nothing as
//! long as there is no error.

/// What the walk is in.
enum Frame {
    /// An object, and the name of the present member.
    Object(String),
    /// An array, and the number of the present element.
    Array(usize),
}

/// The path of the value at a place, both counted from 1 as the parser counts them; empty for the whole text.
pub(super) fn path_at(json: &[u8], line: usize, column: usize) -> String {
    let before: usize =
        json.split_inclusive(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    let end = (before + column).min(json.len());
    let mut frames: Vec<Frame> = Vec::new();
    let (mut at, mut last_string, mut after_container) = (0, 0..0, false);
    while at < end {
        let byte = json[at];
        at += 1;
        match byte {
            b'"' => {
                let start = at;
                at = end_of_string(json, at);
                last_string = start..at.saturating_sub(1).max(start);
            }
            b'{' => frames.push(Frame::Object(String::new())),
            b'[' => frames.push(Frame::Array(0)),
            // A container's end is still part of it: what stops there is about the whole of it.
            b'}' | b']' if at < end => drop(frames.pop()),
            b'}' | b']' => after_container = true,
            b':' => {
                if let Some(Frame::Object(name)) = frames.last_mut() {
                    *name = String::from_utf8_lossy(&json[last_string.clone()]).into_owned();
                }
            }
            b',' => match frames.last_mut() {
                Some(Frame::Object(name)) => name.clear(),
                Some(Frame::Array(index)) => *index += 1,
                None => {}
            },
            _ => {}
        }
    }
    if after_container {
        frames.pop();
    }
    render(&frames)
}

/// Behind its closing quote.
fn end_of_string(json: &[u8], mut at: usize) -> usize {
    while at < json.len() {
        match json[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    json.len()
}

fn render(frames: &[Frame]) -> String {
    let mut path = String::new();
    for frame in frames {
        match frame {
            Frame::Object(name) if name.is_empty() => {}
            Frame::Object(name) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
            }
            Frame::Array(index) => path.push_str(&format!("[{index}]")),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;

    use super::*;

    fn path_of_error(json: &str) -> String {
        let error = serde_json::from_str::<Spec>(json).expect_err("wrong");
        path_at(json.as_bytes(), error.line(), error.column())
    }

    #[test]
    fn the_parsers_place_is_a_path() {
        let table = [
            (r#"{"linux":{"resources":{"memory":{"limit":"x"}}}}"#, "linux.resources.memory.limit"),
            (
                r#"{"linux": {"resources": {"memory": {"limit": 1.5, "swap": 2}}}}"#,
                "linux.resources.memory.limit",
            ),
            (r#"{"linux": {"resources": {"memory": {"limit": {}}}}}"#, "linux.resources.memory.limit"),
            (
                r#"{"linux": {"resources": {"memory": {"limit": null, "swap":[1]}}}}"#,
                "linux.resources.memory.swap",
            ),
            (
                "{\n \"mounts\": [\n  {\"destination\": \"/a\"},\n  {\"destination\": 5}\n ]\n}",
                "mounts[1].destination",
            ),
            (r#"{"mounts": [{"destination": "/a"}, {"type": "x"}]}"#, "mounts[1]"),
            (r#"{"linux":{"namespaces":[{"type":"pid"},{"type":"nope"}]}}"#, "linux.namespaces[1].type"),
            (r#"{"linux":{"sysctl":{"a}\"[b":1}}}"#, "linux.sysctl.a}\\\"[b"),
            (r#"{"process": 7}"#, "process"),
            (r#"{"hooks": {"poststop": "x"}}"#, "hooks.poststop"),
            (r#"{"hooks": {"poststop": [{"path": "/x", "timeout": true}]}}"#, "hooks.poststop[0].timeout"),
            (r#"[1]"#, "[0]"),
            ("7", ""),
        ];
        for (json, path) in table {
            assert_eq!(path_of_error(json), path, "{json}");
        }
    }

    #[test]
    fn no_place_is_out_of_reach() {
        for json in ["", "{", "\"", "{\"a\\", "[[[", "}}}", ",:,"] {
            for line in 0..3 {
                for column in 0..10 {
                    path_at(json.as_bytes(), line, column);
                }
            }
        }
    }
}

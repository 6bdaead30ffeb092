//! JSON for people and for `jq`: indented as Go indents it, in the order in which the server sent it.

use serde_json::Value;

/// One line, no spaces.
pub fn compact(value: &Value) -> String {
    value.to_string()
}

/// Re-indents JSON text by four spaces without parsing it, so that the order of keys survives.
pub fn indent(json: &str) -> String {
    let mut text = String::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    let mut chars = json.chars().filter({
        let (mut in_string, mut escaped) = (false, false);
        move |c| {
            let keep = in_string || !c.is_ascii_whitespace();
            track_string(*c, &mut in_string, &mut escaped);
            keep
        }
    });
    let mut next = chars.next();
    while let Some(c) = next {
        next = chars.next();
        let was_in_string = in_string;
        track_string(c, &mut in_string, &mut escaped);
        if was_in_string || in_string {
            text.push(c);
            continue;
        }
        match c {
            '{' | '[' => {
                text.push(c);
                if !matches!(next, Some('}' | ']')) {
                    depth += 1;
                    newline(&mut text, depth);
                } else if let Some(closing) = next {
                    text.push(closing);
                    next = chars.next();
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                newline(&mut text, depth);
                text.push(c);
            }
            ',' => {
                text.push(c);
                newline(&mut text, depth);
            }
            ':' => text.push_str(": "),
            _ => text.push(c),
        }
    }
    text
}

fn track_string(c: char, in_string: &mut bool, escaped: &mut bool) {
    match c {
        _ if *escaped => *escaped = false,
        '\\' if *in_string => *escaped = true,
        '"' => *in_string = !*in_string,
        _ => {}
    }
}

fn newline(text: &mut String, depth: usize) {
    text.push('\n');
    text.extend(std::iter::repeat_n("    ", depth));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_order_and_strings_their_content() {
        assert_eq!(
            indent(r#"[{"b":1,"a":["x, {y}: \"z\""],"e":{}, "f":[ ]}]"#),
            r#"[
    {
        "b": 1,
        "a": [
            "x, {y}: \"z\""
        ],
        "e": {},
        "f": []
    }
]"#
        );
    }
}

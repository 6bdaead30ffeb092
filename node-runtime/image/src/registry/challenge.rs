//! `WWW-Authenticate`: what a registry wants as proof. Pure.

/// One challenge that we can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password.
    Basic,
    /// A token from the service at `realm`.
    Bearer {
        realm: String,
        service: String,
        scope: String,
        /// Why the token that was sent is not enough.
        error: String,
    },
}

/// Reads all challenges of one header; schemes that we do not know are left out.
// spec: rfc9110#section-11.6.1
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_whitespace() || c == ',').unwrap_or(rest.len());
        let scheme = rest[..end].to_ascii_lowercase();
        let (parameters, after) = parameters(rest[end..].trim_start());
        rest = after;
        let find = |wanted: &str| {
            let found = parameters.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        match scheme.as_str() {
            "basic" => challenges.push(Challenge::Basic),
            "bearer" => challenges.push(Challenge::Bearer {
                realm: find("realm"),
                service: find("service"),
                scope: find("scope"),
                error: find("error"),
            }),
            _ => {}
        }
    }
    challenges
}

/// `name=value` pairs up to the next scheme, which is a word without `=`.
fn parameters(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        let Some(end) = rest.find(['=', ',', ' ']).filter(|&end| rest.as_bytes()[end] == b'=') else {
            return (found, rest);
        };
        let name = rest[..end].to_ascii_lowercase();
        let (value, after) = value(&rest[end + 1..]);
        found.push((name, value));
        rest = after;
    }
}

fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_one_or_several_to_a_header() {
        let bearer = |scope: &str, error: &str| Challenge::Bearer {
            realm: "https://auth.x/token".into(),
            service: "reg, x".into(),
            scope: scope.into(),
            error: error.into(),
        };
        let table = [
            (r#"Basic realm="x""#, vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://auth.x/token",service="reg, x",scope="repository:a/b:pull,push""#,
                vec![bearer("repository:a/b:pull,push", "")],
            ),
            (
                r#"bearer realm="https://auth.x/token", service="reg, x", error=insufficient_scope, Basic realm="y""#,
                vec![bearer("", "insufficient_scope"), Challenge::Basic],
            ),
            ("Negotiate", vec![]),
            ("", vec![]),
        ];
        for (header, wanted) in table {
            assert_eq!(parse(header), wanted, "{header}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_header_ends(text in ".{0,80}") {
            parse(&text);
            parse(&format!("Bearer {text}"));
        }
    }
}

//! Errors for people: what failed, why, what to do. Readable without colour.

use std::error::Error;
use std::fmt::Write as _;

use rswarm_base::error::{Chain, Classify};

/// The three lines of an error; those that have nothing to say are left out.
pub fn describe(error: &(impl Classify + 'static)) -> String {
    let mut text = describe_plain(error);
    if let Some(hint) = error.hint() {
        let _ = writeln!(text, " hint: {hint}");
    }
    text
}

/// [`describe`], for an error that knows no remedy.
pub fn describe_plain(error: &(impl Error + 'static)) -> String {
    let (what, told) = split(&error.to_string());
    let mut text = format!("error: {what}\n");
    let causes = error.source().map(|source| Chain(source).to_string());
    if let Some(cause) = told.or(causes) {
        let _ = writeln!(text, "cause: {cause}");
    }
    text
}

/// A daemon's message is `what: why` in one; a text whose second half is only a name stays whole.
fn split(message: &str) -> (String, Option<String>) {
    match message.split_once(": ") {
        Some((what, why)) if why.contains(' ') && what.contains(' ') => {
            (what.to_owned(), Some(why.to_owned()))
        }
        _ => (message.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use rswarm_base::error::Kind;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{what}")]
    struct Failed {
        what: &'static str,
        source: Option<std::io::Error>,
        hint: Option<&'static str>,
    }

    impl Classify for Failed {
        fn kind(&self) -> Kind {
            Kind::Internal
        }
        fn hint(&self) -> Option<String> {
            self.hint.map(str::to_owned)
        }
    }

    fn told(what: &'static str) -> String {
        describe(&Failed { what, source: None, hint: None })
    }

    #[test]
    fn an_error_says_what_why_and_how() {
        let source = Some(std::io::Error::other("disk is full"));
        let error = Failed { what: "image `a` cannot be read", source, hint: Some("free some space") };
        assert_eq!(
            describe(&error),
            "error: image `a` cannot be read\ncause: disk is full\n hint: free some space\n"
        );
    }

    #[test]
    fn a_daemon_s_message_is_taken_apart_only_where_it_has_two_parts() {
        assert_eq!(told("No such container: x"), "error: No such container: x\n");
        assert_eq!(told("No such image: web:latest"), "error: No such image: web:latest\n");
        assert_eq!(
            told("service `web` cannot be scheduled: 2 nodes lack 4 GiB"),
            "error: service `web` cannot be scheduled\ncause: 2 nodes lack 4 GiB\n"
        );
    }
}

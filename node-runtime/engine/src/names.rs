//! Names of containers and services: which are allowed, and made-up ones. Pure.

use rswarm_base::IdGen;

use crate::error::NameError;

/// Checks a name as Docker does: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`. One leading slash is dropped.
pub(crate) fn parse(text: &str) -> Result<String, NameError> {
    let name = text.strip_prefix('/').unwrap_or(text);
    if is_valid(name) { Ok(name.to_owned()) } else { Err(NameError::Invalid(text.to_owned())) }
}

/// Whether a volume or container may be called so.
pub(crate) fn is_valid(name: &str) -> bool {
    let rest_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    name.len() >= 2 && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(rest_allowed)
}

/// How many names are tried before the short identifier is taken.
const TRIES: usize = 6;

/// Names for a container that was given none, best first: pairs of words, from the second on with a digit,
/// and in the end its short identifier.
pub(crate) fn candidates(ids: &mut IdGen, id: &str) -> impl Iterator<Item = String> {
    let mut pick = |words: &[&'static str]| words[(ids.number() % words.len() as u64) as usize];
    let mut names: Vec<String> = Vec::with_capacity(TRIES + 1);
    while names.len() < TRIES {
        let (adjective, surname) = (pick(ADJECTIVES), pick(SURNAMES));
        if (adjective, surname) == ("boring", "wozniak") {
            continue; // Steve Wozniak is not boring.
        }
        let suffix = if names.is_empty() { String::new() } else { names.len().to_string() };
        names.push(format!("{adjective}_{surname}{suffix}"));
    }
    names.push(rswarm_base::id::short(id).to_owned());
    names.into_iter()
}

/// A made-up name: two words.
#[must_use]
pub fn random(ids: &mut IdGen) -> String {
    candidates(ids, "").next().expect("the first is always made of words")
}

const ADJECTIVES: &[&str] = &[
    "able", "agile", "amber", "ample", "avid", "bold", "boring", "brave", "breezy", "bright", "brisk",
    "calm", "candid", "clever", "cosmic", "crisp", "curious", "daring", "deft", "eager", "earnest",
    "elegant", "fair", "fearless", "fluent", "frank", "gentle", "gifted", "golden", "happy", "hardy",
    "honest", "humble", "jolly", "keen", "kind", "lively", "lucid", "lucky", "mellow", "merry", "mighty",
    "modest", "nimble", "noble", "patient", "placid", "polite", "prompt", "proud", "quick", "quiet", "rapid",
    "ready", "serene", "sharp", "silent", "sincere", "smooth", "steady", "stoic", "sunny", "swift", "tender",
    "tidy", "upbeat", "valiant", "vivid", "warm", "wise", "witty", "zealous",
];

const SURNAMES: &[&str] = &[
    "ampere",
    "archimedes",
    "babbage",
    "bell",
    "bohr",
    "boole",
    "brahe",
    "cantor",
    "carson",
    "cerf",
    "chandrasekhar",
    "cori",
    "curie",
    "darwin",
    "dijkstra",
    "dirac",
    "einstein",
    "euclid",
    "euler",
    "faraday",
    "fermat",
    "fermi",
    "feynman",
    "franklin",
    "galileo",
    "galois",
    "gauss",
    "goldberg",
    "goodall",
    "hamilton",
    "hawking",
    "hertz",
    "hilbert",
    "hodgkin",
    "hopper",
    "hypatia",
    "johnson",
    "joliot",
    "joule",
    "kapitsa",
    "kepler",
    "knuth",
    "kovalevskaya",
    "lamarr",
    "lamport",
    "leavitt",
    "leibniz",
    "liskov",
    "lovelace",
    "maxwell",
    "mayer",
    "meitner",
    "mendel",
    "mirzakhani",
    "morse",
    "newton",
    "nightingale",
    "nobel",
    "noether",
    "pascal",
    "pasteur",
    "payne",
    "perlman",
    "planck",
    "poincare",
    "ptolemy",
    "raman",
    "ramanujan",
    "ride",
    "ritchie",
    "rubin",
    "shannon",
    "tesla",
    "thompson",
    "torvalds",
    "turing",
    "volta",
    "wiles",
    "wozniak",
    "wright",
    "wu",
    "yalow",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_dockers_rule() {
        for good in ["web", "/web", "a1", "web.1.x_y-z", "0a"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "/", "_a", "-web", "we b", "wéb", "//web", "a/b"] {
            assert_eq!(parse(bad), Err(NameError::Invalid(bad.to_owned())), "{bad}");
        }
        assert_eq!(parse("/web").expect("valid"), "web");
    }

    #[test]
    fn made_up_names_are_valid_and_end_with_the_short_identifier() {
        for seed in 0..200 {
            let names: Vec<String> = candidates(&mut IdGen::seeded(seed), &"ab".repeat(32)).collect();
            assert_eq!(names.len(), TRIES + 1);
            assert!(names.iter().all(|name| is_valid(name)), "{names:?}");
            assert!(names.iter().all(|name| !name.contains("boring_wozniak")));
            assert_eq!(names[TRIES], "abababababab");
        }
    }
}

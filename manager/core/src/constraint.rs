//! Placement constraints: `KEY==VALUE` and `KEY!=VALUE`, all of which a node must meet.
//!
//! Keys: `node.id`, `node.hostname`, `node.ip`, `node.role`, `node.platform.os`, `node.platform.arch`,
//! `node.labels.NAME`, `engine.labels.NAME`. Values are compared without regard to case.

use std::net::IpAddr;

use rswarm_base::ipam::Subnet;
use rswarm_proto::wire::{Node, NodeRole, Platform};

/// One parsed constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint<'a> {
    key: &'a str,
    equal: bool,
    value: &'a str,
}

/// Text that is no constraint, in Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConstraint {
    /// Neither operator, or a third one.
    #[error("constraint expected one operator from ==, !=: `{0}`")]
    Operator(String),
    /// A key with characters that no key has.
    #[error("key '{0}' is invalid")]
    Key(String),
    /// A value with characters that no value has.
    #[error("value '{0}' is invalid")]
    Value(String),
}

impl<'a> Constraint<'a> {
    /// Parses one constraint.
    pub fn parse(text: &'a str) -> Result<Constraint<'a>, InvalidConstraint> {
        let equal = text.split_once("==").map(|(key, value)| (key, true, value));
        let unequal = text.split_once("!=").map(|(key, value)| (key, false, value));
        let (key, equal, value) = match (equal, unequal) {
            (Some(equal), Some(unequal)) => {
                if equal.0.len() < unequal.0.len() {
                    equal
                } else {
                    unequal
                }
            }
            (one, other) => one.or(other).ok_or_else(|| InvalidConstraint::Operator(text.to_owned()))?,
        };
        let (key, value) = (key.trim(), value.trim());
        if !is_key(key) {
            return Err(InvalidConstraint::Key(key.to_owned()));
        }
        if !is_value(value) {
            return Err(InvalidConstraint::Value(value.to_owned()));
        }
        Ok(Constraint { key, equal, value })
    }

    /// Whether the node meets it. A key that does not exist is met by no node.
    #[must_use]
    pub fn matches(&self, node: &Node) -> bool {
        let description = node.description.as_ref();
        let platform = description.and_then(|description| description.platform.as_ref());
        let label = |labels: Option<&std::collections::BTreeMap<String, String>>, name: &str| {
            self.is(labels.and_then(|labels| labels.get(name)).map_or("", String::as_str))
        };
        match self.key.to_ascii_lowercase().as_str() {
            "node.id" => self.is(&node.id),
            "node.hostname" => self.is(description.map_or("", |description| &description.hostname)),
            "node.ip" => self.holds_address(node.status.as_ref().map_or("", |status| &status.addr)),
            "node.role" => self.is(match node.role() {
                NodeRole::Manager => "manager",
                NodeRole::Worker => "worker",
            }),
            "node.platform.os" => self.is(platform.map_or("", |platform| &platform.os)),
            "node.platform.arch" => {
                let architecture = architecture(platform.map_or("", |platform| &platform.architecture));
                architecture.eq_ignore_ascii_case(&self::architecture(self.value)) == self.equal
            }
            _ => match self.label() {
                Some(("node.labels.", name)) => {
                    let annotations = node.spec.as_ref().and_then(|spec| spec.annotations.as_ref());
                    label(annotations.map(|annotations| &annotations.labels), name)
                }
                Some((_, name)) => {
                    let engine = description.and_then(|description| description.engine.as_ref());
                    label(engine.map(|engine| &engine.labels), name)
                }
                None => false,
            },
        }
    }

    fn is(&self, actual: &str) -> bool {
        actual.eq_ignore_ascii_case(self.value) == self.equal
    }

    /// The prefix of a label key, and the label's name in its own case.
    fn label(&self) -> Option<(&'static str, &'a str)> {
        ["node.labels.", "engine.labels."].into_iter().find_map(|prefix| {
            let start = self.key.get(..prefix.len())?;
            start.eq_ignore_ascii_case(prefix).then(|| (prefix, &self.key[prefix.len()..]))
        })
    }

    fn holds_address(&self, actual: &str) -> bool {
        let Ok(actual) = actual.parse::<IpAddr>() else { return false };
        if let Ok(address) = self.value.parse::<IpAddr>() {
            return (address == actual) == self.equal;
        }
        self.value.parse::<Subnet>().is_ok_and(|subnet| subnet.contains(actual) == self.equal)
    }
}

fn is_key(key: &str) -> bool {
    let mut bytes = key.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    first && key.len() > 1 && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte))
}

fn is_value(value: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || byte == b' ' || b":-_.*()?+[]\\^$|/".contains(&byte);
    !value.is_empty() && value.bytes().all(allowed)
}

/// Whether the node meets every constraint. One that cannot be parsed is met by none: `validate` let it in
/// under other rules.
#[must_use]
pub fn all_match(constraints: &[String], node: &Node) -> bool {
    constraints.iter().all(|text| Constraint::parse(text).is_ok_and(|constraint| constraint.matches(node)))
}

/// Whether two descriptions of one node are the same to every constraint and platform.
pub(crate) fn is_same(before: &Node, after: &Node) -> bool {
    let addr = |node: &Node| node.status.as_ref().map(|status| status.addr.clone());
    before.spec == after.spec
        && before.description == after.description
        && before.role == after.role
        && addr(before) == addr(after)
}

/// Whether the node is of one of the platforms; an empty list, os or architecture is any.
#[must_use]
pub fn platform_fits(platforms: &[Platform], node: &Node) -> bool {
    let Some(actual) = node.description.as_ref().and_then(|description| description.platform.as_ref()) else {
        return platforms.is_empty();
    };
    let fits = |platform: &Platform| {
        let os = platform.os.is_empty() || platform.os.eq_ignore_ascii_case(&actual.os);
        let wanted = architecture(&platform.architecture);
        os && (wanted.is_empty() || wanted == architecture(&actual.architecture))
    };
    platforms.is_empty() || platforms.iter().any(fits)
}

/// One name for each architecture.
fn architecture(name: &str) -> String {
    match name.to_ascii_lowercase().as_str() {
        "x86_64" | "x86-64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rswarm_proto::wire::{Annotations, NodeDescription, NodeSpec, NodeStatus};

    fn node() -> Node {
        let labels = [("zone".to_owned(), "A".to_owned())].into();
        Node {
            id: "n1".to_owned(),
            spec: Some(NodeSpec {
                annotations: Some(Annotations { labels, ..Annotations::default() }),
                ..NodeSpec::default()
            }),
            description: Some(NodeDescription {
                hostname: "Alpha".to_owned(),
                platform: Some(Platform { architecture: "x86_64".to_owned(), os: "linux".to_owned() }),
                ..NodeDescription::default()
            }),
            status: Some(NodeStatus { addr: "10.9.8.7".to_owned(), ..NodeStatus::default() }),
            role: NodeRole::Manager.into(),
            ..Node::default()
        }
    }

    #[test]
    fn a_node_meets_what_holds_of_it() {
        for (text, met) in [
            ("node.id==n1", true),
            ("node.id!=n1", false),
            ("node.hostname == alpha", true),
            ("node.role==manager", true),
            ("node.role!=worker", true),
            ("node.platform.os==linux", true),
            ("node.platform.arch==amd64", true),
            ("node.platform.arch!=x86_64", false),
            ("node.ip==10.9.8.7", true),
            ("node.ip==10.9.0.0/16", true),
            ("node.ip!=10.9.0.0/16", false),
            ("node.ip==nonsense", false),
            ("node.labels.zone==a", true),
            ("node.labels.zone!=b", true),
            ("node.labels.rack==1", false),
            ("node.labels.rack!=1", true),
            ("engine.labels.gpu==yes", false),
            ("node.colour==red", false),
            ("node.colour!=red", false),
        ] {
            let constraint = Constraint::parse(text).expect(text);
            assert_eq!(constraint.matches(&node()), met, "{text}");
        }
    }

    #[test]
    fn what_is_no_constraint_says_why() {
        assert_eq!(
            Constraint::parse("node.role=manager").map_err(|error| error.to_string()),
            Err("constraint expected one operator from ==, !=: `node.role=manager`".to_owned())
        );
        assert_eq!(Constraint::parse("1x==y"), Err(InvalidConstraint::Key("1x".to_owned())));
        assert_eq!(Constraint::parse("node.id=="), Err(InvalidConstraint::Value(String::new())));
        assert_eq!(Constraint::parse("node.id==a=b"), Err(InvalidConstraint::Value("a=b".to_owned())));
    }

    #[test]
    fn platforms_have_two_names() {
        let platform =
            |architecture: &str, os: &str| Platform { architecture: architecture.into(), os: os.into() };
        assert!(platform_fits(&[], &node()));
        assert!(platform_fits(&[platform("amd64", "linux")], &node()));
        assert!(platform_fits(&[platform("arm64", "linux"), platform("", "linux")], &node()));
        assert!(!platform_fits(&[platform("aarch64", "linux")], &node()));
        assert!(!platform_fits(&[platform("amd64", "windows")], &node()));
    }
}

//! What a node's operator says it has: `--node-generic-resource gpu=uuid1` by name, `ssd=3` counted.

use std::collections::BTreeMap;

use rswarm_proto::wire::GenericResource;

use super::SettingsError;

/// The resources, by kind. A kind with one number is counted; all else are names.
///
/// # Errors
/// A term that is not `KIND=VALUE`, or less than none of something.
/// spec: swarmkit `api/genericresource/parse.go`
pub(super) fn parse(terms: &[String]) -> Result<Vec<GenericResource>, SettingsError> {
    let invalid = |value: &str, why: &str| SettingsError::Invalid {
        option: "node-generic-resources",
        value: value.to_owned(),
        why: why.to_owned(),
    };
    let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for term in terms {
        let pair = term.split_once('=').filter(|(kind, value)| !kind.is_empty() && !value.contains('='));
        let (kind, value) = pair.ok_or_else(|| invalid(term, "want KIND=VALUE"))?;
        kinds.entry(kind.trim()).or_default().push(value.trim());
    }
    let mut resources = Vec::new();
    for (kind, values) in kinds {
        let kind = kind.to_owned();
        match (values.as_slice(), values[0].parse::<i64>()) {
            ([value], Ok(count)) if count < 0 => {
                return Err(invalid(value, "a node cannot have less than none"));
            }
            ([_], Ok(count)) => resources.push(GenericResource { kind, name: String::new(), count }),
            _ => resources.extend(values.iter().map(|name| GenericResource {
                kind: kind.clone(),
                name: (*name).to_owned(),
                count: 0,
            })),
        }
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(terms: &[&str]) -> Result<Vec<(String, String, i64)>, String> {
        let terms: Vec<String> = terms.iter().map(|term| (*term).to_owned()).collect();
        let resources = parse(&terms).map_err(|error| error.to_string())?;
        Ok(resources.into_iter().map(|resource| (resource.kind, resource.name, resource.count)).collect())
    }

    #[test]
    fn one_number_is_a_count_and_all_else_are_names() {
        let own = |kind: &str, name: &str, count| (kind.to_owned(), name.to_owned(), count);
        assert_eq!(
            parsed(&["gpu=a", "ssd=3", "gpu=b", "port=1", "port=2"]),
            Ok(vec![
                own("gpu", "a", 0),
                own("gpu", "b", 0),
                own("port", "1", 0),
                own("port", "2", 0),
                own("ssd", "", 3)
            ])
        );
        for wrong in ["gpu", "=a", "gpu=a=b", "gpu=-1"] {
            assert!(parsed(&[wrong]).is_err_and(|error| error.contains("node-generic-resources")), "{wrong}");
        }
    }
}

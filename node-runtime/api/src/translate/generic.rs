//! Generic resources, named or counted.

use rswarm_proto::wire;

use crate::types::{DiscreteGenericResource, GenericResource, NamedGenericResource};

/// Docker's list to the stored one.
pub(crate) fn generic(resources: Option<&Vec<GenericResource>>) -> Vec<wire::GenericResource> {
    let named = |named: &NamedGenericResource| wire::GenericResource {
        kind: named.kind.clone(),
        name: named.value.clone(),
        count: 0,
    };
    let counted = |counted: &DiscreteGenericResource| wire::GenericResource {
        kind: counted.kind.clone(),
        name: String::new(),
        count: counted.value,
    };
    let stored = |resource: &GenericResource| match (
        &resource.named_resource_spec,
        &resource.discrete_resource_spec,
    ) {
        (Some(spec), _) => Some(named(spec)),
        (None, Some(spec)) => Some(counted(spec)),
        (None, None) => None,
    };
    resources.into_iter().flatten().filter_map(stored).collect()
}

/// The stored list as clients see it.
pub(crate) fn generic_out(resources: &[wire::GenericResource]) -> Vec<GenericResource> {
    let shown = |resource: &wire::GenericResource| {
        let (kind, value) = (resource.kind.clone(), resource.name.clone());
        if value.is_empty() {
            let spec = DiscreteGenericResource { kind, value: resource.count };
            return GenericResource { discrete_resource_spec: Some(spec), ..GenericResource::default() };
        }
        let spec = NamedGenericResource { kind, value };
        GenericResource { named_resource_spec: Some(spec), ..GenericResource::default() }
    };
    resources.iter().map(shown).collect()
}

/// The same for where an empty list is left out.
pub(crate) fn shown_generic(resources: &[wire::GenericResource]) -> Option<Vec<GenericResource>> {
    (!resources.is_empty()).then(|| generic_out(resources))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_come_back_as_they_were() {
        let text = r#"[{"NamedResourceSpec":{"Kind":"GPU","Value":"a"}},{"DiscreteResourceSpec":{"Kind":"SSD","Value":3}}]"#;
        let asked: Vec<GenericResource> = serde_json::from_str(text).expect("a list");
        let stored = generic(Some(&asked));
        assert_eq!((stored[0].name.as_str(), stored[1].count), ("a", 3));
        assert_eq!(serde_json::to_string(&generic_out(&stored)).expect("JSON"), text);
    }
}

//! Secrets and configs, and services' references to them: Docker's shapes to the stored ones and back.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rswarm_base::Timestamp;
use rswarm_proto::wire;

use super::{meta, refuse};
use crate::error::ApiError;
use crate::request::Query;
use crate::types;

/// The stored spec of a secret.
pub(crate) fn secret_spec(spec: &types::ContentSpec) -> Result<wire::ContentSpec, ApiError> {
    refuse(spec.driver.is_some(), "a secret from a driver (Driver)").map_err(|error| {
        error.hint("there are no plugins here: give the secret's data, or fetch it in the container")
    })?;
    config_spec(spec)
}

/// The stored spec of a config. In a driver's name Docker sees nothing that is a config's.
pub(crate) fn config_spec(spec: &types::ContentSpec) -> Result<wire::ContentSpec, ApiError> {
    let types::ContentSpec { name, labels, data, templating, .. } = spec;
    let data = STANDARD.decode(data).map_err(|error| {
        ApiError::invalid(format!("the data of `{name}` is not base64")).hint(error.to_string())
    })?;
    let templating = templating.as_ref();
    let options = templating.is_some_and(|driver| !driver.options.is_empty());
    refuse(options, "options of a template driver (Templating)")?;
    Ok(wire::ContentSpec {
        annotations: Some(wire::Annotations {
            name: name.clone(),
            labels: labels.clone().unwrap_or_default(),
        }),
        data,
        templating: templating.map(|driver| driver.name.clone()).unwrap_or_default(),
    })
}

/// A secret as clients see it: without its data.
pub(crate) fn secret(secret: &wire::Secret) -> types::Content {
    let mut spec = secret.spec.clone().unwrap_or_default();
    spec.data.clear();
    shown(&secret.id, secret.meta, spec, &secret.versions)
}

/// A config as clients see it.
pub(crate) fn config(config: &wire::Config) -> types::Content {
    shown(&config.id, config.meta, config.spec.clone().unwrap_or_default(), &config.versions)
}

fn shown(
    id: &str,
    of: Option<wire::Meta>,
    spec: wire::ContentSpec,
    stored: &[wire::ContentVersion],
) -> types::Content {
    let (version, created_at, updated_at) = meta(of);
    let annotations = spec.annotations.unwrap_or_default();
    let spec = types::ContentSpec {
        name: annotations.name,
        labels: Some(annotations.labels),
        data: STANDARD.encode(spec.data),
        driver: None,
        templating: templating_out(spec.templating),
    };
    types::Content { id: id.to_owned(), version, created_at, updated_at, spec, versions: versions(stored) }
}

/// Nothing of what has only ever had one.
fn versions(stored: &[wire::ContentVersion]) -> Vec<types::ContentVersion> {
    let shown = |version: &wire::ContentVersion| types::ContentVersion {
        id: version.id.clone(),
        number: version.number,
        created_at: Timestamp(version.created_at).to_string(),
        services: version.services.clone(),
    };
    match stored {
        [only] if only.number <= 1 => Vec::new(),
        versions => versions.iter().map(shown).collect(),
    }
}

fn templating_out(name: String) -> Option<types::Driver> {
    (!name.is_empty()).then(|| types::Driver { name, ..types::Driver::default() })
}

/// The version that an update must present, in Docker's words when it is none.
pub(crate) fn version(query: &Query, noun: &str) -> Result<u64, ApiError> {
    let text = query.text("version");
    text.parse().map_err(|_| ApiError::invalid(format!("invalid {noun} version")))
}

/// A service's secrets as stored.
pub(crate) fn secret_references(references: &[types::SecretReference]) -> Vec<wire::FileReference> {
    let stored = |reference: &types::SecretReference| wire::FileReference {
        id: reference.secret_id.clone(),
        name: reference.secret_name.clone(),
        file: reference.file.as_ref().map(file),
    };
    references.iter().map(stored).collect()
}

/// A service's configs as stored.
pub(crate) fn config_references(
    references: &[types::ConfigReferenceSpec],
) -> Result<Vec<wire::FileReference>, ApiError> {
    let stored = |reference: &types::ConfigReferenceSpec| {
        refuse(reference.runtime.is_some(), "a config for the runtime (Runtime), as credential specs are")?;
        Ok(wire::FileReference {
            id: reference.config_id.clone(),
            name: reference.config_name.clone(),
            file: reference.file.as_ref().map(file),
        })
    };
    references.iter().map(stored).collect()
}

fn file(target: &types::FileTarget) -> wire::FileTarget {
    wire::FileTarget {
        name: target.name.clone(),
        uid: target.uid.clone(),
        gid: target.gid.clone(),
        mode: target.mode,
    }
}

/// A service's secrets as clients see them.
pub(crate) fn secret_references_out(references: &[wire::FileReference]) -> Vec<types::SecretReference> {
    let shown = |reference: &wire::FileReference| types::SecretReference {
        file: reference.file.as_ref().map(file_out),
        secret_id: reference.id.clone(),
        secret_name: reference.name.clone(),
    };
    references.iter().map(shown).collect()
}

/// A service's configs as clients see them.
pub(crate) fn config_references_out(references: &[wire::FileReference]) -> Vec<types::ConfigReferenceSpec> {
    let shown = |reference: &wire::FileReference| types::ConfigReferenceSpec {
        file: reference.file.as_ref().map(file_out),
        runtime: None,
        config_id: reference.id.clone(),
        config_name: reference.name.clone(),
    };
    references.iter().map(shown).collect()
}

fn file_out(file: &wire::FileTarget) -> types::FileTarget {
    types::FileTarget {
        name: file.name.clone(),
        uid: file.uid.clone(),
        gid: file.gid.clone(),
        mode: file.mode,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_goes_in_with_its_data_and_comes_out_without() {
        let body = r#"{"Name":"key","Labels":{"a":"b"},"Data":"aHVzaA==","Templating":{"Name":"golang"}}"#;
        let spec = secret_spec(&serde_json::from_str(body).expect("a spec")).expect("stored");
        assert_eq!((spec.data.as_slice(), spec.templating.as_str()), (b"hush".as_slice(), "golang"));
        let shown =
            secret(&wire::Secret { id: "s1".into(), spec: Some(spec.clone()), ..wire::Secret::default() });
        let json = serde_json::to_value(shown).expect("json");
        assert_eq!(
            json["Spec"],
            serde_json::json!({"Name": "key", "Labels": {"a": "b"}, "Templating": {"Name": "golang"}})
        );
        let shown = config(&wire::Config { id: "c1".into(), spec: Some(spec), ..wire::Config::default() });
        assert_eq!(serde_json::to_value(shown).expect("json")["Spec"]["Data"], "aHVzaA==");
    }

    #[test]
    fn what_there_is_not_is_refused_by_name() {
        let parse = |body: &str| secret_spec(&serde_json::from_str(body).expect("a spec"));
        let driver = parse(r#"{"Name":"key","Driver":{"Name":"vault"}}"#).expect_err("a driver");
        assert!(driver.message.contains("a secret from a driver"), "{}", driver.message);
        assert!(parse(r#"{"Name":"key","Data":"%"}"#).is_err());
        let runtime: types::ConfigReferenceSpec =
            serde_json::from_str(r#"{"Runtime":{},"ConfigID":"c","ConfigName":"n"}"#).expect("a reference");
        assert!(config_references(&[runtime]).is_err());
    }
}

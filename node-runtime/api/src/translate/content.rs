//! Secrets and configs, and services' references to them: Docker's shapes to the stored ones and back.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rswarm_base::{Kind, Timestamp};
use rswarm_proto::wire;

use super::{meta, refuse};
use crate::error::ApiError;
use crate::request::Query;
use crate::types;

/// The stored spec of a secret.
pub(crate) fn secret_spec(spec: &types::SecretSpec) -> Result<wire::ContentSpec, ApiError> {
    refuse(spec.driver.is_some(), "a secret from a driver (Driver)").map_err(|error| {
        error.hint("there are no plugins here: give the secret's data, or fetch it in the container")
    })?;
    content_spec(&spec.name, spec.labels.as_ref(), &spec.data, spec.templating.as_ref())
}

/// The stored spec of a config.
pub(crate) fn config_spec(spec: &types::ConfigSpec) -> Result<wire::ContentSpec, ApiError> {
    content_spec(&spec.name, spec.labels.as_ref(), &spec.data, spec.templating.as_ref())
}

fn content_spec(
    name: &str,
    labels: Option<&types::StringMap>,
    data: &str,
    templating: Option<&types::Driver>,
) -> Result<wire::ContentSpec, ApiError> {
    let data = STANDARD.decode(data).map_err(|error| {
        ApiError::invalid(format!("the data of `{name}` is not base64")).hint(error.to_string())
    })?;
    let options = templating.is_some_and(|driver| !driver.options.is_empty());
    refuse(options, "options of a template driver (Templating)")?;
    Ok(wire::ContentSpec {
        annotations: Some(wire::Annotations {
            name: name.to_owned(),
            labels: labels.cloned().unwrap_or_default(),
        }),
        data,
        templating: templating.map(|driver| driver.name.clone()).unwrap_or_default(),
    })
}

/// A secret as clients see it: without its data.
pub(crate) fn secret(secret: &wire::Secret) -> types::Secret {
    let (version, created_at, updated_at) = meta(secret.meta);
    let spec = secret.spec.clone().unwrap_or_default();
    let annotations = spec.annotations.unwrap_or_default();
    let spec = types::SecretSpec {
        name: annotations.name,
        labels: Some(annotations.labels),
        templating: templating_out(spec.templating),
        ..types::SecretSpec::default()
    };
    let versions = versions(&secret.versions);
    types::Secret { id: secret.id.clone(), version, created_at, updated_at, spec, versions }
}

/// A config as clients see it.
pub(crate) fn config(config: &wire::Config) -> types::Config {
    let (version, created_at, updated_at) = meta(config.meta);
    let spec = config.spec.clone().unwrap_or_default();
    let annotations = spec.annotations.unwrap_or_default();
    let spec = types::ConfigSpec {
        name: annotations.name,
        labels: Some(annotations.labels),
        data: STANDARD.encode(spec.data),
        templating: templating_out(spec.templating),
    };
    let versions = versions(&config.versions);
    types::Config { id: config.id.clone(), version, created_at, updated_at, spec, versions }
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

/// Docker's text for a secret that there is not.
pub(crate) fn secret_not_found(reference: &str) -> ApiError {
    ApiError::new(Kind::NotFound, format!("secret {reference} not found"))
}

/// Docker's text for a config that there is not.
pub(crate) fn config_not_found(reference: &str) -> ApiError {
    ApiError::new(Kind::NotFound, format!("config {reference} not found"))
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

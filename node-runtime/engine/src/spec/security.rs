//! `--security-opt`.

use rswarm_proto::model::container::ContainerSpec;

use crate::config::{EngineConfig, SeccompProfile};

/// What the security options come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Security {
    /// Programs cannot gain privileges by set-uid bits or file capabilities.
    pub no_new_privileges: bool,
    /// The system calls that are allowed.
    pub seccomp: Seccomp,
    /// No masked and no read-only paths.
    pub unmasked: bool,
    /// The container may make cgroups below its own.
    pub writable_cgroups: bool,
}

/// A container's system call filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Seccomp {
    /// Docker's default profile.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// A profile in Docker's JSON format.
    Profile(String),
}

impl Security {
    /// What holds for containers that have no options.
    pub(crate) fn of_daemon(config: &EngineConfig) -> Security {
        Security {
            no_new_privileges: config.no_new_privileges,
            seccomp: match &config.seccomp {
                SeccompProfile::Builtin => Seccomp::Default,
                SeccompProfile::Unconfined => Seccomp::Unconfined,
                SeccompProfile::File { json, .. } => Seccomp::Profile(json.clone()),
            },
            ..Security::default()
        }
    }

    /// Reads the options, on top of what holds without them.
    ///
    /// # Errors
    /// The option that cannot be served, in Docker's words.
    pub(crate) fn parse(spec: &ContainerSpec, defaults: Security) -> Result<Security, String> {
        let mut security = defaults;
        for option in &spec.security_opt {
            security.take(option)?;
        }
        Ok(security)
    }

    fn take(&mut self, option: &str) -> Result<(), String> {
        let invalid = || format!("invalid --security-opt: \"{option}\"");
        // The colon is how Docker once wrote it.
        let (key, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (key, value) {
            ("no-new-privileges", "") => self.no_new_privileges = true,
            ("no-new-privileges", value) => self.no_new_privileges = truth(value).ok_or_else(invalid)?,
            ("seccomp", "builtin" | "default") => self.seccomp = Seccomp::Default,
            ("seccomp", "unconfined") => self.seccomp = Seccomp::Unconfined,
            ("seccomp", profile) if profile.trim_start().starts_with('{') => {
                self.seccomp = Seccomp::Profile(profile.to_owned());
            }
            ("writable-cgroups", value) => {
                self.writable_cgroups = truth(value).ok_or_else(invalid)?;
            }
            ("systempaths", "unconfined") => self.unmasked = true,
            // There is no AppArmor or SELinux confinement to take away.
            ("apparmor", "unconfined") | ("label", "disable") => {}
            ("apparmor", _) => return Err(format!("AppArmor is not available: cannot apply \"{option}\"")),
            ("label", _) => return Err(format!("SELinux is not available: cannot apply \"{option}\"")),
            _ => return Err(invalid()),
        }
        Ok(())
    }
}

/// Go's `ParseBool`.
fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<Security, String> {
        let security_opt = options.iter().map(|option| (*option).to_owned()).collect();
        Security::parse(&ContainerSpec { security_opt, ..ContainerSpec::default() }, Security::default())
    }

    #[test]
    fn options_are_taken_in_both_spellings() {
        assert!(parse(&["no-new-privileges"]).expect("valid").no_new_privileges);
        assert!(parse(&["no-new-privileges:true"]).expect("valid").no_new_privileges);
        assert_eq!(parse(&["seccomp=unconfined"]).expect("valid").seccomp, Seccomp::Unconfined);
        assert_eq!(parse(&["seccomp:unconfined"]).expect("valid").seccomp, Seccomp::Unconfined);
        assert!(parse(&["systempaths=unconfined"]).expect("valid").unmasked);
        assert!(parse(&["writable-cgroups=true"]).expect("valid").writable_cgroups);
        assert!(!parse(&["writable-cgroups=0"]).expect("valid").writable_cgroups);
        assert_eq!(parse(&["apparmor=unconfined", "label=disable"]), Ok(Security::default()));
    }

    #[test]
    fn options_go_before_what_holds_for_all() {
        let strict =
            Security { no_new_privileges: true, seccomp: Seccomp::Unconfined, ..Security::default() };
        let with = |options: &[&str]| {
            let security_opt = options.iter().map(|option| (*option).to_owned()).collect();
            let spec = ContainerSpec { security_opt, ..ContainerSpec::default() };
            Security::parse(&spec, strict.clone()).expect("valid")
        };
        assert_eq!(with(&[]), strict);
        assert_eq!(with(&["no-new-privileges=false", "seccomp=builtin"]), Security::default());
    }

    #[test]
    fn options_that_cannot_be_served_are_errors() {
        for option in [
            "apparmor=strict",
            "label=level:s0",
            "seccomp=/missing.json",
            "magic",
            "systempaths=x",
            "writable-cgroups=yes",
        ] {
            assert!(parse(&[option]).is_err(), "{option}");
        }
    }
}

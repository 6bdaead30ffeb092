//! What must hold across objects: names, numbers, and that nothing in use goes away. Two writers may each have read a
//! state in which their change was right; the one that is second in the log is refused.

use rswarm_proto::model::object::Stored;
use rswarm_proto::wire::Service;

use super::{Draft, Rejected};
use crate::content::{self, Table};
use crate::publish::{self, IngressError, needs_ingress};
use crate::state::AnyObject;

impl Draft<'_> {
    /// Names of services and networks are unique among those that are not being deleted; those of secrets and
    /// configs among their latest versions.
    pub(super) fn check_name(&self, object: &AnyObject) -> Result<(), Rejected> {
        let (name, owner) = match object {
            AnyObject::Service(service) if !service.pending_delete => {
                (service.name(), self.state.service_named(service.name()).map(|other| other.id.as_str()))
            }
            AnyObject::Network(network) if !network.pending_delete => {
                (network.name(), self.state.network_named(network.name()).map(|other| other.id.as_str()))
            }
            AnyObject::Secret(secret) => return self.check_number(secret.as_ref()),
            AnyObject::Config(config) => return self.check_number(config.as_ref()),
            AnyObject::Cluster(_)
            | AnyObject::Node(_)
            | AnyObject::Service(_)
            | AnyObject::Task(_)
            | AnyObject::Network(_) => return Ok(()),
        };
        let (kind, id) = object.key();
        match owner {
            Some(owner) if owner != id => Err(Rejected::NameTaken { kind, name: name.to_owned() }),
            _ => Ok(()),
        }
    }

    /// A service and the removal of its network may be asked for at once: one of them is too late.
    pub(super) fn check_networks(
        &self,
        before: Option<&AnyObject>,
        after: Option<&AnyObject>,
    ) -> Result<(), Rejected> {
        let specified = specified(before, after).and_then(|service| service.spec.as_ref());
        if let Some(network) = self.state.missing_network(specified) {
            return Err(Rejected::NetworkGone(network.to_owned()));
        }
        match after {
            Some(AnyObject::Network(network)) if network.pending_delete => {
                let mut users = self.state.services_on_network(&network.id);
                match users.find(|service| !service.pending_delete) {
                    Some(service) => {
                        let (network, service) = (network.id.clone(), service.id.clone());
                        Err(Rejected::NetworkInUse { network, service })
                    }
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Likewise for secrets and configs.
    pub(super) fn check_content(
        &self,
        before: Option<&AnyObject>,
        after: Option<&AnyObject>,
    ) -> Result<(), Rejected> {
        let specified = specified(before, after).and_then(|service| service.spec.as_ref());
        if let Some(missing) = content::missing(self.state, specified).into_iter().next() {
            return Err(Rejected::ContentMissing(missing));
        }
        match (before, after) {
            (Some(AnyObject::Secret(gone)), None) => self.check_unused(gone.as_ref()),
            (Some(AnyObject::Config(gone)), None) => self.check_unused(gone.as_ref()),
            _ => Ok(()),
        }
    }

    fn check_unused<T: Stored>(&self, gone: &T) -> Result<(), Rejected> {
        content::in_use(self.state, T::KIND, gone.name(), &[gone.id()])
            .map_or(Ok(()), |used| Err(Rejected::ContentInUse(used)))
    }

    /// Another version of a secret or config follows the latest one. Whoever thought of an older one must decide anew.
    fn check_number<T: Table>(&self, object: &T) -> Result<(), Rejected> {
        let kind = T::KIND;
        if T::by_id(self.state, object.id()).is_some() {
            return Ok(());
        }
        match T::latest(self.state, object.name()) {
            None if object.number() == 1 => Ok(()),
            Some(_) if object.number() == 1 => {
                Err(Rejected::NameTaken { kind, name: object.name().to_owned() })
            }
            Some(latest) if object.number() == latest.number() + 1 => Ok(()),
            latest => Err(Rejected::Version {
                kind,
                id: object.id().to_owned(),
                read: object.number(),
                stored: latest.map_or(0, |latest| latest.number()),
            }),
        }
    }

    /// Likewise for published ports and the ingress network.
    pub(super) fn check_ingress(
        &self,
        before: Option<&AnyObject>,
        after: Option<&AnyObject>,
    ) -> Result<(), Rejected> {
        match (before, after) {
            (before, Some(AnyObject::Service(service))) if !service.pending_delete => {
                let before = match before {
                    Some(AnyObject::Service(before)) => Some(before),
                    _ => None,
                };
                self.check_published(before.map(AsRef::as_ref), service)
            }
            (_, Some(AnyObject::Network(network)))
                if network.spec.as_ref().is_some_and(|spec| spec.ingress) =>
            {
                match self.state.ingress_network().filter(|ingress| ingress.id != network.id) {
                    Some(ingress) if !network.pending_delete => {
                        return Err(Rejected::Ingress(IngressError::Present(ingress.id.clone())));
                    }
                    _ => {}
                }
                match self.state.services_on_ingress().next().filter(|_| network.pending_delete) {
                    Some(service) => Err(Rejected::Ingress(IngressError::InUse(service.id.clone()))),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    fn check_published(&self, before: Option<&Service>, after: &Service) -> Result<(), Rejected> {
        let specified = before.is_none_or(|before| before.spec != after.spec);
        if specified && let Some(spec) = &after.spec {
            if needs_ingress(spec.endpoint.as_ref()) && self.state.lacks_ingress() {
                return Err(Rejected::Ingress(IngressError::Missing));
            }
            if let Some(taken) = publish::spec_conflicts(self.state, spec, &after.id).next() {
                return Err(Rejected::PortTaken(taken));
            }
        }
        let given = before.is_none_or(|before| before.endpoint != after.endpoint);
        let ports = after.endpoint.iter().filter(|_| given).flat_map(|endpoint| &endpoint.ports);
        let taken = publish::conflicts(self.state, ports, &after.id).next();
        taken.map_or(Ok(()), |taken| Err(Rejected::PortTaken(taken)))
    }
}

/// The service that a change specifies, or specifies anew; none that is being deleted.
fn specified<'a>(before: Option<&AnyObject>, after: Option<&'a AnyObject>) -> Option<&'a Service> {
    let Some(AnyObject::Service(service)) = after else { return None };
    let same = matches!(before, Some(AnyObject::Service(before)) if before.spec == service.spec);
    (!same && !service.pending_delete).then_some(service)
}

//! The sandbox's way out: a pair to the default bridge, with an address there.

use std::net::{IpAddr, Ipv4Addr};

use rswarm_base::ipam::{Family, mac_for};

use super::{OverlayNetwork, UNDERLAY_MTU, WayOut, families};
use crate::bridge::shutting_down;
use crate::error::{AttachError, KernelError, OverlayError};
use crate::link::Route;
use crate::model::{BridgeInfo, Mac, Overlay, Placed};
use crate::netns::Netns;
use crate::pair::{Inside, Near, connect, disconnect, pair_name};
use crate::plan::{self, Found, Link, LinkKind, Plan, Port, Step};

/// The sandbox's end.
pub const UPLINK: &str = "uplink0";

impl OverlayNetwork {
    /// Makes, corrects or removes the way out.
    pub(super) async fn apply_uplink(
        &mut self,
        sandbox: &Netns,
        overlay: &Overlay,
        found: &Found,
    ) -> Result<Vec<Step>, OverlayError> {
        let exists = found.links.iter().any(|link| link.link.name == UPLINK);
        let way_out = self.way_out.clone().filter(|_| !overlay.internal);
        let Some(way_out) = way_out else {
            if exists {
                disconnect(&self.context.home, &self.uplink_name()).await?;
            }
            self.release_uplink().await;
            return Ok(Vec::new());
        };
        let address = match self.uplink {
            Some(address) => address,
            None => self.reserve_uplink(&way_out, overlay, found).await?,
        };
        self.uplink = Some(address);
        let has_v6 = families(overlay).contains(&Family::V6);
        if let Some(subnet) = self.context.uplinks_v6().filter(|_| has_v6) {
            let led = way_out.owner.call(move |bridge| Box::pin(bridge.lead_out(subnet))).await;
            led.map_err(|_| shutting_down())??;
        }
        let near = self.uplink_link(&way_out.info);
        let inside = self.uplink_inside(&way_out.info, address, has_v6);
        if exists {
            return Ok(self.correct_uplink(sandbox, near, inside, found).await?);
        }
        let end = Near { link: near.clone(), port: uplink_port(&way_out.info), is_routed: false };
        connect(&self.context.home, end, sandbox, inside).await?;
        Ok(vec![Step::CreateLink(near)])
    }

    /// Our end of the pair.
    pub(super) fn uplink_name(&self) -> String {
        pair_name(&self.id, "uplink")
    }

    fn uplink_link(&self, bridge: &BridgeInfo) -> Link {
        Link {
            name: self.uplink_name(),
            kind: LinkKind::Veth,
            mtu: UNDERLAY_MTU,
            mac: None,
            port: Some(uplink_port(bridge)),
            alias: self.context.alias(&self.id),
        }
    }

    fn uplink_inside(&self, bridge: &BridgeInfo, address: Ipv4Addr, has_v6: bool) -> Inside {
        let v4 = bridge.of(Family::V4).map(|(subnet, gateway)| Placed {
            address: address.into(),
            prefix: subnet.prefix(),
            gateway: Some(gateway),
        });
        let subnet = self.context.uplinks_v6().filter(|_| has_v6);
        let v6 = subnet.and_then(|subnet| {
            let address = self.uplink_v6(address)?;
            Some(Placed { address, prefix: subnet.prefix(), gateway: subnet.nth(1) })
        });
        Inside {
            interface: UPLINK.to_owned(),
            mac: Mac(mac_for(address.into())),
            mtu: UNDERLAY_MTU,
            addresses: v4.into_iter().chain(v6).collect(),
            mesh: Vec::new(),
        }
    }

    /// The way out's IPv6 address: its place in that subnet is its IPv4 address, which nobody else has.
    pub(super) fn uplink_v6(&self, address: Ipv4Addr) -> Option<IpAddr> {
        self.context.uplinks_v6()?.nth(u128::from(address.to_bits()))
    }

    /// The way out's address of a family.
    pub(super) fn uplink_at(&self, family: Family) -> Option<IpAddr> {
        let address = self.uplink?;
        match family {
            Family::V4 => Some(address.into()),
            Family::V6 => self.uplink_v6(address),
        }
    }

    async fn correct_uplink(
        &self,
        sandbox: &Netns,
        near: Link,
        inside: Inside,
        found: &Found,
    ) -> Result<Vec<Step>, KernelError> {
        let action = || format!("link `{}` could not be corrected", self.uplink_name());
        let correct_near = move || {
            let mut route = Route::open()?;
            if route.is_as_planned(&near)? {
                return Ok(Vec::new());
            }
            Ok(route.reconcile(&Plan { links: vec![near], ..Plan::default() }, None)?.0)
        };
        let mut steps = self.context.home.act(action(), correct_near).await?;
        let inside = inside.plan();
        if !plan::steps(&inside, found).is_empty() {
            let correct = move || Ok(Route::open()?.reconcile(&inside, None)?.0);
            steps.extend(sandbox.act(action(), correct).await?);
        }
        Ok(steps)
    }

    /// Takes an address of the default bridge: the one that the uplink has, if it has one.
    async fn reserve_uplink(
        &self,
        way_out: &WayOut,
        overlay: &Overlay,
        found: &Found,
    ) -> Result<Ipv4Addr, OverlayError> {
        let subnet = way_out.info.of(Family::V4).map(|(subnet, _)| subnet);
        let had = uplink_address(found).map(IpAddr::V4);
        let had = had.filter(|had| subnet.is_some_and(|subnet| subnet.contains(*had)));
        let reserved = way_out
            .owner
            .call(move |bridge| {
                let reserved = bridge.reserve_address(had);
                Box::pin(std::future::ready(reserved))
            })
            .await
            .unwrap_or(Err(AttachError::ShuttingDown));
        match reserved {
            Ok(IpAddr::V4(address)) => Ok(address),
            Ok(other @ IpAddr::V6(_)) => {
                let source = Box::new(AttachError::PortFamily(other));
                Err(OverlayError::Uplink { network: overlay.name.clone(), source })
            }
            Err(source) => {
                Err(OverlayError::Uplink { network: overlay.name.clone(), source: Box::new(source) })
            }
        }
    }

    /// Gives the address back.
    pub(super) async fn release_uplink(&mut self) {
        let (Some(address), Some(way_out)) = (self.uplink.take(), &self.way_out) else { return };
        // An owner that ended needs nothing back.
        let _ = way_out
            .owner
            .call(move |bridge| {
                bridge.release_address(address.into());
                Box::pin(std::future::ready(()))
            })
            .await;
    }

    /// Takes the address that the sandbox was found with.
    pub(super) async fn reserve_again(
        &self,
        way_out: &WayOut,
        had: Ipv4Addr,
    ) -> Result<Ipv4Addr, KernelError> {
        match way_out
            .owner
            .call(move |bridge| {
                let reserved = bridge.reserve_address(Some(had.into()));
                Box::pin(std::future::ready(reserved))
            })
            .await
            .map_err(|_| shutting_down())?
        {
            Ok(IpAddr::V4(address)) => Ok(address),
            // Its subnet changed while we were away: applying the network gives it another one.
            Ok(IpAddr::V6(_)) | Err(_) => Ok(had),
        }
    }
}

/// The address that the sandbox has there.
pub fn uplink_address(found: &Found) -> Option<Ipv4Addr> {
    found.addresses.iter().find_map(|entry| match entry.address {
        IpAddr::V4(address) if entry.link == UPLINK => Some(address),
        _ => None,
    })
}

fn uplink_port(bridge: &BridgeInfo) -> Port {
    Port { bridge: bridge.interface.clone(), hairpin: true, isolated: false }
}

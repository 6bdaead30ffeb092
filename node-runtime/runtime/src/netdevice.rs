//! `linux.netDevices`: interfaces of the machine that become the container's.
//!
//! An interface that changes its network namespace loses its addresses and goes down; here it gets back those
//! that somebody has given it, and comes up.
// spec: oci-runtime config-linux.md#network-devices

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::sched::CloneFlags;
use oci_spec::runtime::{Linux, LinuxNamespaceType};

use crate::failure::{Context, Failure};
use crate::namespaces::leave_network_namespace;
use crate::netlink::{
    IFF_UP, NLM_F_CREATE_NEW, NLM_F_DUMP, Netlink, RTM_GETADDR, RTM_GETLINK, RTM_NEWADDR, RTM_NEWLINK,
    add_attribute, attributes, interface,
};
use crate::spec;

/// The kernel's limit on names of interfaces, with the zero byte at the end: `IFNAMSIZ`.
const NAME_MAX: usize = 16;

// include/uapi/linux/if_link.h, if_addr.h
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_F_PERMANENT: u32 = 0x80;
const RT_SCOPE_UNIVERSE: u8 = 0;
/// `struct ifaddrmsg`.
const ADDRESS_HEADER: usize = 8;

/// Refuses names that no interface has, two of the same, and devices for a network that is the caller's.
pub(crate) fn check(linux: &Linux) -> Result<(), Failure> {
    let Some(devices) = linux.net_devices().as_ref().filter(|devices| !devices.is_empty()) else {
        return Ok(());
    };
    if !spec::has_namespace(linux, LinuxNamespaceType::Network) {
        return Err(Failure::invalid(
            "`linux.netDevices` is given, but there is no network namespace in `linux.namespaces`",
        ));
    }
    let mut seen = HashSet::new();
    for (name, device) in devices {
        let inside = wanted(name, device.name().as_deref());
        if let Some(wrong) = [name.as_str(), inside].into_iter().find(|name| !is_name(name)) {
            let why = format!("`{wrong}` is not the name of an interface");
            return Err(Failure::invalid(format!("`linux.netDevices.{name}`: {why}")));
        }
        if !seen.insert(inside) {
            let why = format!("another device is to be `{inside}`, too");
            return Err(Failure::invalid(format!("`linux.netDevices.{name}`: {why}")));
        }
    }
    Ok(())
}

/// What a device is called in the container.
fn wanted<'a>(name: &'a str, inside: Option<&'a str>) -> &'a str {
    inside.filter(|inside| !inside.is_empty()).unwrap_or(name)
}

/// As the kernel's `dev_valid_name`.
fn is_name(name: &str) -> bool {
    let wrong = |letter: char| letter == '/' || letter == ':' || letter == '\0' || letter.is_whitespace();
    !matches!(name, "" | "." | "..") && name.len() < NAME_MAX && !name.contains(wrong)
}

/// Moves them from the caller's network namespace. The caller must have one thread.
pub(crate) fn move_all(linux: &Linux, target: impl AsFd) -> Result<(), Failure> {
    let Some(devices) = linux.net_devices().as_ref().filter(|devices| !devices.is_empty()) else {
        return Ok(());
    };
    let ours = Netlink::open().context("open netlink")?;
    let theirs = open_in(&target)?;
    for (name, device) in devices {
        let inside = wanted(name, device.name().as_deref());
        let field = format!("`linux.netDevices.{name}`");
        let addresses = take_down(&ours, name).with_context(|| format!("{field}: take down"))?;
        let moved = hand_over(&ours, name, inside, &target);
        moved.with_context(|| format!("{field}: move to the container as `{inside}`"))?;
        bring_up(&theirs, inside, &addresses).with_context(|| format!("{field}: bring up"))?;
    }
    Ok(())
}

/// A socket goes on being of the namespace that it was made in.
fn open_in(target: impl AsFd) -> Result<Netlink, Failure> {
    let own = std::fs::File::open("/proc/self/ns/net").context("open own network namespace")?;
    nix::sched::setns(target, CloneFlags::CLONE_NEWNET).context("join the container's network namespace")?;
    let opened = Netlink::open();
    leave_network_namespace(&own)?;
    opened.context("open netlink")
}

fn index_of(netlink: &Netlink, name: &str) -> io::Result<u32> {
    let mut body = interface(0, 0, 0);
    add_attribute(&mut body, IFLA_IFNAME, &with_zero(name));
    let answers = netlink.ask(RTM_GETLINK, 0, &body)?;
    let index = answers.first().and_then(|link| link.get(4..8)?.first_chunk().copied());
    index.map(u32::from_ne_bytes).ok_or_else(|| io::Error::other("the kernel's answer is not understood"))
}

fn with_zero(name: &str) -> Vec<u8> {
    name.bytes().chain([0]).collect()
}

/// Returns the addresses that it has for good and for everywhere, ready to be set again.
fn take_down(netlink: &Netlink, name: &str) -> io::Result<Vec<Vec<u8>>> {
    let index = index_of(netlink, name)?;
    let all = netlink.ask(RTM_GETADDR, NLM_F_DUMP, &[0; ADDRESS_HEADER])?;
    let addresses = all.iter().filter_map(|one| kept(one, index)).collect();
    netlink.ask(RTM_NEWLINK, 0, &interface(index, 0, IFF_UP))?;
    Ok(addresses)
}

/// An address of this interface that is to be set again.
fn kept(message: &[u8], index: u32) -> Option<Vec<u8>> {
    let (header, rest) = message.split_at_checked(ADDRESS_HEADER)?;
    let all = attributes(rest);
    // The byte of the header holds the first eight flags only.
    let long =
        all.iter().find(|(typ, _)| *typ == IFA_FLAGS).and_then(|(_, flags)| flags.first_chunk().copied());
    let flags = long.map_or(u32::from(header[2]), u32::from_ne_bytes);
    let owner = u32::from_ne_bytes(*header[4..].first_chunk()?);
    if owner != index || header[3] != RT_SCOPE_UNIVERSE || flags & IFA_F_PERMANENT == 0 {
        return None;
    }
    let mut body = vec![header[0], header[1], 0, header[3], 0, 0, 0, 0];
    for (typ, value) in all.iter().filter(|(typ, _)| matches!(*typ, IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST))
    {
        add_attribute(&mut body, *typ, value);
    }
    Some(body)
}

fn hand_over(netlink: &Netlink, name: &str, inside: &str, target: impl AsFd) -> io::Result<()> {
    let mut body = interface(index_of(netlink, name)?, 0, 0);
    add_attribute(&mut body, IFLA_NET_NS_FD, &target.as_fd().as_raw_fd().to_ne_bytes());
    add_attribute(&mut body, IFLA_IFNAME, &with_zero(inside));
    netlink.ask(RTM_NEWLINK, 0, &body).map(drop)
}

fn bring_up(netlink: &Netlink, name: &str, addresses: &[Vec<u8>]) -> io::Result<()> {
    let index = index_of(netlink, name)?;
    for address in addresses {
        let mut address = address.clone();
        address[4..ADDRESS_HEADER].copy_from_slice(&index.to_ne_bytes());
        netlink.ask(RTM_NEWADDR, NLM_F_CREATE_NEW, &address)?;
    }
    netlink.ask(RTM_NEWLINK, 0, &interface(index, IFF_UP, IFF_UP)).map(drop)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refused(devices: Value, namespaces: Value) -> String {
        let linux = json!({"netDevices": devices, "namespaces": namespaces});
        let linux = serde_json::from_value(linux).expect("linux");
        check(&linux).err().map_or_else(String::new, |failure| failure.message)
    }

    #[test]
    fn only_what_can_be_moved_is_accepted() {
        let own = json!([{"type": "network"}]);
        assert_eq!(refused(json!({"eth7": {}, "eth8": {"name": "eth0"}}), own.clone()), "");
        assert!(refused(json!({"eth7": {}}), json!([])).contains("there is no network namespace"));
        for wrong in ["", ".", "a/b", "a b", "a:1", "a-name-of-16-bytes"] {
            let says = refused(json!({wrong: {}}), own.clone());
            assert!(says.contains("is not the name of an interface"), "{wrong}: {says}");
        }
        let says = refused(json!({"eth7": {"name": "x"}, "x": {}}), own);
        assert!(says.contains("is to be `x`, too"), "{says}");
    }

    #[test]
    fn lasting_addresses_for_everywhere_are_kept() {
        let message = |scope: u8, flags: u8, index: u32| {
            let mut message = vec![2, 24, flags, scope];
            message.extend(index.to_ne_bytes());
            add_attribute(&mut message, IFA_LOCAL, &[10, 0, 0, 1]);
            add_attribute(&mut message, 6, &[0; 16]);
            message
        };
        let kept_one = kept(&message(0, 0x80, 7), 7).expect("kept");
        assert_eq!(kept_one[..4], [2, 24, 0, 0]);
        assert_eq!(attributes(&kept_one[ADDRESS_HEADER..]), [(IFA_LOCAL, [10, 0, 0, 1].as_slice())]);
        assert_eq!(kept(&message(254, 0x80, 7), 7), None, "of this machine only");
        assert_eq!(kept(&message(0, 0, 7), 7), None, "for a time");
        assert_eq!(kept(&message(0, 0x80, 8), 7), None, "of another interface");
        assert_eq!(kept(&[2, 24], 7), None);
    }
}

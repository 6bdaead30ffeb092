//! The one request that no safe interface offers. The only unsafe code.
#![allow(unsafe_code, reason = "each block names the rule that it keeps")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `struct ifreq` as `TUNSETIFF` reads it: name and flags, the rest of the union unused.
#[repr(C)]
struct InterfaceRequest {
    name: [libc::c_char; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Makes the opened `/dev/net/tun` an interface for IP packets, without a header before each. The interface is in
/// the network namespace of the calling thread and goes with the descriptor.
pub fn set_tun(device: &File, name: &str) -> io::Result<()> {
    let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF (netdevice(7), Documentation/networking/tuntap.rst) reads and writes one `struct ifreq`,
    // 40 bytes, which `request` is for as long as the call lasts.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

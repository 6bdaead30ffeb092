//! The crate against the kernel, as root: each test makes its own hosts out of network namespaces, and
//! leaves nothing behind. Needs iproute2, nftables and busybox; the crate itself does not.

mod bridge;
mod check;
mod dns;
mod dual;
mod echo;
mod firewall;
mod lab;
mod lan;
mod mesh;
mod overlay;
mod publish;
mod repair;
mod soak;
mod vip;

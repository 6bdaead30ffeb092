//! Several daemons as hosts on one machine, and real clients against them.
//!
//! Is not: a way into the product's code. A test sees what a user sees: the binary, the API, the kernel.
//! Start at [`harness::Lab`].

pub mod dockerd;
pub mod harness;
pub mod host;
pub mod images;
pub mod terminal;
pub mod traces;
pub mod turns;

//! The process: `rswarm shim --state-dir DIR`.

use std::ffi::OsString;

/// The entry of `rswarm shim`; called before any thread exists, with the arguments after `shim`.
#[must_use]
pub fn main(_args: Vec<OsString>) -> i32 {
    todo!("the poll loop")
}

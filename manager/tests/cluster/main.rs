//! Whole managers in one process: real certificates, real sockets on the loopback, real logs on disk.

mod agents;
mod certificates;
mod external;
mod harness;
mod membership;
mod survival;

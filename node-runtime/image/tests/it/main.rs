//! The store from outside: real archives, a real registry, a real overlay. Needs root.

mod archives;
mod registry;
mod samples;
mod store;

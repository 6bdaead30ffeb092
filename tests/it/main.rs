//! Real daemons as hosts in network namespaces, driven by the docker CLI and by rswarm's own.
//! Needs root; every test makes its own lab and leaves nothing.

mod attach;
mod balance;
mod beside;
mod churn;
mod clients;
mod cluster;
mod containers;
mod drains;
mod dual;
mod encrypted;
mod engine;
mod faults;
mod flags;
mod frozen;
mod identity;
mod jobs;
mod lan;
mod links;
mod locks;
mod mesh;
mod observe;
mod options;
mod oracle;
mod partition;
mod placement;
mod playground;
mod quorum;
mod recovery;
mod refusals;
mod rpcs;
mod secrets;
mod soak;
mod support;
mod terminal;
mod updates;

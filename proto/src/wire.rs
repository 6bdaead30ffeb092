//! Generated code: the messages, clients and servers of `rswarm/v1/*.proto`.
#![allow(missing_docs, clippy::all, unused_qualifications)]

tonic::include_proto!("rswarm.v1");

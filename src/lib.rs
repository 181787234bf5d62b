//! The Phase Manifest Protocol (PMP) as a Kubernetes operator, a NATS peer and a laptop runner.
pub mod manifest;
pub mod engine;
pub mod protocol;
pub mod resource;
pub mod bus;
pub mod sessions;
pub mod controller;
pub mod gateway;
pub mod runtime;
pub mod cli;

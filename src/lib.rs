//! The Phase Manifest Protocol (PMP) as a Kubernetes operator, a NATS peer and a laptop runner.
pub mod bus;
pub mod cli;
pub mod controller;
pub mod engine;
pub mod gateway;
pub mod manifest;
pub mod protocol;
pub mod resource;
pub mod runtime;
pub mod sessions;

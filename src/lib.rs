//! The Phase Manifest Protocol (PMP) as a Kubernetes operator, a NATS peer and a laptop runner.
//!
//! ```text
//!                    text, stored values                       what a runtime executes
//!                            |                                            ^
//!                            v                                            |
//!   PhaseManifest ──>  manifest::Plan                                  runtime
//!        |                   |                                            ^
//!        v                   v                                            |
//!   resource::Orders ─> engine::Session <── Input ── protocol <── bus <───┤  target, ack, state, control
//!        ^                   |   (pure)                 |          ^      |  over NATS, or inside the process
//!        |                   └──── Output ──────────────┴──> bus ──┴──────┘
//!        |                   |
//!   status <── resource <── Record          sessions: one task a session, which turns this wheel
//!                                           controller: which sessions there are, and what else is told of them
//! ```
//!
//! `manifest` and `engine` decide and do nothing; `protocol` and `resource` are data; everything below does and decides
//! nothing that those could. `tests/it/layers.rs` enforces who may import whom. The modules in the order in which data
//! flows:
//!
//! | module | is |
//! |---|---|
//! | [`manifest`] | the document: what people write becomes a plan, or all of its problems |
//! | [`engine`] | what happens next: a session as a state machine without IO and clock |
//! | [`protocol`] | subjects and messages of the wire |
//! | [`resource`] | the custom resource, its status and conditions |
//! | [`bus`] | NATS, or the same inside the process |
//! | [`sessions`] | the task that ties engine, bus, clock and store together |
//! | [`controller`] | the operator: resources in, sessions run, Events out |
//! | [`gateway`] | HTTP: what other programs may ask of this process |
//! | [`runtime`] | the SDK of runtimes, and the exec runtime |
//! | [`cli`] | one file a verb; the only wiring |

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

//! The one integration test binary: a module a behaviour, over servers that are started once.

// What several tests of a module share is as much a test as they are.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod bus;
mod controller;
mod docs;
mod faults;
mod gateway;
mod health;
mod layers;
mod lifecycle;
mod model;
mod operator;
mod resource;
mod run;
mod runtime;
mod sim;
mod tasks;
mod testbed;

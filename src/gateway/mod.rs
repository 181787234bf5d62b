//! HTTP: what other programs may ask of this process.

pub mod health;
pub mod serve;

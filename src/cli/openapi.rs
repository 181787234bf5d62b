//! `pmp openapi`: what the gateway answers, for other programs' generators.

use std::{
    io::{ErrorKind, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;

use crate::gateway::openapi;

/// Prints the OpenAPI document of the HTTP endpoints as JSON.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Writes to standard output; a reader that has gone away is no mistake.
pub fn run(_: &Args) -> anyhow::Result<ExitCode> {
    match std::io::stdout().lock().write_all(openapi::text().as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to standard output"),
        _ => Ok(ExitCode::SUCCESS),
    }
}

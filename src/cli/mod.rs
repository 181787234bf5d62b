//! The command line: one file for each verb, and the only place where the parts are wired together.
//!
//! Nobody imports this module. Standard output is for results, standard error for progress and complaints.

mod cluster;
mod crd;
mod gateway;
mod nats;
mod openapi;
mod operator;
mod process;
mod run;
mod runtime;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs Phase Manifests: on a laptop, on NATS, on Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "pmp", version, about, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Args),
    // Boxed, because they have many arguments.
    Operator(Box<operator::Args>),
    Runtime(Box<runtime::Args>),
    Gateway(Box<gateway::Args>),
    Crd(crd::Args),
    Openapi(openapi::Args),
}

/// Reads the arguments, does what they say, answers with the exit code of the process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.verb {
        Verb::Operator(args) => args.log.start(),
        Verb::Runtime(args) => args.log.start(),
        Verb::Gateway(args) => args.log.start(),
        Verb::Run(_) | Verb::Crd(_) | Verb::Openapi(_) => log_to_stderr(),
    }
    let done = match cli.verb {
        Verb::Run(args) => run::run(&args),
        Verb::Operator(args) => operator::run(&args),
        Verb::Runtime(args) => runtime::run(&args),
        Verb::Gateway(args) => gateway::run(&args),
        Verb::Crd(args) => crd::run(&args),
        Verb::Openapi(args) => openapi::run(&args),
    };
    done.unwrap_or_else(|error| {
        anstream::eprintln!("pmp: {error:#}");
        ExitCode::FAILURE
    })
}

/// `RUST_LOG` as usual; without it only what went wrong, because progress is told by other means.
fn log_to_stderr() {
    process::log("error").init();
}

/// An environment variable that is set to nothing is a list of one empty text.
fn filled(texts: &[String]) -> Vec<String> {
    texts.iter().filter(|text| !text.is_empty()).cloned().collect()
}

//! The `pmp` binary: see `pmp --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pmp::cli::main()
}

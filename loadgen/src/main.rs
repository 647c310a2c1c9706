//! The binary `loadgen`: everything is in the library, so that benches and tests can run it too.
//! See `loadgen --help`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use loadgen::cli::Cli;

/// Exit code of a wrong command line. Clap's own, 2, means here that a result is invalid.
const EXIT_ERROR: u8 = 3;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => loadgen::run(&cli),
        Err(answer) => {
            // Nobody is left to tell when this fails.
            let _ = answer.print();
            if answer.use_stderr() { ExitCode::from(EXIT_ERROR) } else { ExitCode::SUCCESS }
        }
    }
}

//! The hidden subcommands: this program as the broker, or the floor, that another copy of it measures.
//!
//! Whoever started it holds the other end of its standard input. When that ends, nobody is left to kill it, so it
//! ends itself.

use std::io::{self, Read};
use std::process::ExitCode;

use broker::cli::ServeArgs;

/// Is the broker, until killed.
pub(crate) fn broker(args: &ServeArgs) -> ExitCode {
    end_with_parent();
    match broker::server::serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed("broker", &error),
    }
}

/// Is the floor, until killed.
pub(crate) fn floor(options: &floor::Options) -> ExitCode {
    end_with_parent();
    match floor::run(options, |address| println!("floor ready on {address}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed("floor", &error),
    }
}

fn failed(name: &str, error: &dyn std::error::Error) -> ExitCode {
    eprintln!("{name}: {error}");
    ExitCode::FAILURE
}

/// Ends this process when its standard input ends. To be called before the main thread is pinned.
fn end_with_parent() {
    std::thread::spawn(|| {
        let mut ignored = [0; 64];
        // An error means, as the end does, that nobody is there.
        while io::stdin().read(&mut ignored).is_ok_and(|length| length > 0) {}
        std::process::abort();
    });
}

//! The binary `forebay`: everything is in the library, so that tests and the load generator can run it too.
//! See `forebay --help`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    broker::cli::main()
}

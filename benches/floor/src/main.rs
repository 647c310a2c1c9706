//! The command line of the floor: `floor [serve]` answers produce frames, `floor disk` measures the disk alone.
//!
//! It prints one line when it is ready and one when it has measured; what goes wrong goes to standard error.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use floor::disk_only::{self, DiskOptions};
use floor::{FloorError, Options};

#[derive(Parser)]
#[command(name = "floor", version, args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    /// Answer produce frames until killed (what happens without a subcommand too)
    Serve(Options),
    /// Write and flush one block after the other, and print how long that takes
    Disk(DiskOptions),
}

fn main() -> ExitCode {
    let CommandLine { command, options } = CommandLine::parse();
    let ended = match command {
        None => serve(options),
        Some(Command::Serve(options)) => serve(options),
        Some(Command::Disk(options)) => disk_only::measure(&options).map(|report| println!("{report}")),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: Options) -> Result<(), FloorError> {
    let options = options.with_data_dir()?;
    let file = options.data_file().map_or_else(|| "none".to_owned(), |path| path.display().to_string());
    floor::run(&options, |address| {
        let Options { durability, waiting, .. } = &options;
        println!("floor ready on {address}, durability {durability}, waiting {waiting}, file {file}");
    })
}

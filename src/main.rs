//! The `perennial` command: see `perennial --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    perennial::cli::main()
}

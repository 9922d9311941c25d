//! The command line of this process, read: what clap cannot say of flags that exclude each other, because a variable of
//! the environment is there for every call and a flag for this one.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, Error, FromArgMatches};

use super::flags::{Cli, Command};

/// Reads the command line.
///
/// # Errors
/// Help, the version, or wrong usage, as clap says it.
pub(super) fn read(arguments: Vec<OsString>) -> Result<Cli, Error> {
    let matches = Cli::command().try_get_matches_from(arguments)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    let Some((name, given)) = matches.subcommand() else {
        return Ok(cli);
    };
    let is_typed = |flag: &str| given.value_source(flag) == Some(ValueSource::CommandLine);
    match &mut cli.command {
        Command::Inspect(arguments) => {
            match (is_typed("archive"), is_typed("file")) {
                (true, true) => {
                    let text = "--archive and --file: one of them says what to inspect, take the other away";
                    return Err(conflict(name, text));
                }
                // What is typed goes before what the environment says.
                (true, false) => arguments.file = None,
                (false, true) => arguments.archive = None,
                (false, false) if both_given(given) => {
                    let text = "PERENNIAL_ARCHIVE and PERENNIAL_FILE are both set: give --archive or --file";
                    return Err(conflict(name, text));
                }
                (false, false) => {}
            }
        }
        Command::Verify(arguments) if is_typed("scratch") && !arguments.drill => {
            let text = "--scratch: nothing is restored without --drill, give that too or leave --scratch out";
            return Err(conflict(name, text));
        }
        _ => {}
    }
    Ok(cli)
}

fn both_given(given: &ArgMatches) -> bool {
    ["archive", "file"]
        .iter()
        .all(|flag| given.value_source(flag).is_some())
}

fn conflict(subcommand: &str, text: &str) -> Error {
    let mut command = Cli::command();
    // Names it "perennial inspect" in the usage line.
    command.build();
    match command.find_subcommand_mut(subcommand) {
        Some(subcommand) => subcommand.error(ErrorKind::ArgumentConflict, text),
        None => command.error(ErrorKind::ArgumentConflict, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_line(line: &str) -> Result<Cli, Error> {
        read(line.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn flags_of_which_one_would_be_passed_over_are_refused() {
        for (line, said) in [
            (
                "perennial inspect --archive file:///a --file dump.rdb",
                "--archive and --file",
            ),
            (
                "perennial verify --archive file:///a --scratch /usr/bin/redis-server",
                "--drill",
            ),
        ] {
            let error = read_line(line).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(text.contains(said), "{text}");
            assert!(text.contains("Usage: perennial "), "{text}");
        }
        for line in [
            "perennial inspect --archive file:///a",
            "perennial inspect --file dump.rdb",
            "perennial verify --archive file:///a --drill --scratch redis-server",
        ] {
            assert!(read_line(line).is_ok(), "{line}");
        }
    }
}

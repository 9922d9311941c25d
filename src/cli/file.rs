//! `--config FILE`: the flags of `perennial run` in a TOML file. A key of the file becomes the flag of its name, unless
//! the flag or its environment variable was given, so that both are read and checked by the same code.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};

use super::Exit;
use crate::advice::unreadable;

/// The longest configuration file, bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// How alike a key must be to be suggested, of 1.
const ALIKE_MIN: f64 = 0.7;

/// What a file adds to the command line.
#[derive(Debug, Default)]
pub struct FromFile {
    /// The file.
    path: PathBuf,
    /// Its keys that were used.
    keys: Vec<String>,
}

impl FromFile {
    /// Says of a complaint about a flag that it is about the file, where it is.
    pub fn about(&self, complaint: &str) -> String {
        let used = self.keys.iter().find_map(|key| {
            let rest = complaint.strip_prefix(&format!("--{key}"))?;
            rest.starts_with([':', ' ']).then_some((key, rest))
        });
        match used {
            Some((key, rest)) => format!("{}: {key}{rest}", self.path.display()),
            None => complaint.to_owned(),
        }
    }
}

/// The command line with what the file of `--config` adds. `command` is the whole definition; `arguments` begins with
/// the program's name.
///
/// # Errors
/// A file that cannot be read or has a key or a value that no flag takes: a usage error that names file and key.
pub fn with_file(
    command: &Command,
    mut arguments: Vec<OsString>,
) -> Result<(Vec<OsString>, FromFile), Exit> {
    let Some(run) = command.find_subcommand("run") else {
        return Ok((arguments, FromFile::default()));
    };
    // What is missing or wrong on the command line is said when all of it is read.
    let matches = command
        .clone()
        .ignore_errors(true)
        .try_get_matches_from(&arguments);
    let matches = matches.ok();
    let Some(given) = matches
        .as_ref()
        .and_then(|all| all.subcommand_matches("run"))
    else {
        return Ok((arguments, FromFile::default()));
    };
    let Some(path) = given.get_one::<PathBuf>("config").cloned() else {
        return Ok((arguments, FromFile::default()));
    };
    let mut keys = Vec::new();
    for (key, value) in read(&path)? {
        let at = format!("{}: {key}", path.display());
        let Some(arg) = flag(run, &key) else {
            return Err(usage(format!("{}: {}", path.display(), unknown(run, &key))));
        };
        let words = words(arg, &value).map_err(|reason| usage(format!("{at}: {reason}")))?;
        let on_command_line = given.value_source(arg.get_id().as_str())
            == Some(clap::parser::ValueSource::CommandLine);
        let in_environment = arg
            .get_env()
            .is_some_and(|name| std::env::var_os(name).is_some());
        if on_command_line || in_environment {
            continue;
        }
        arguments.extend(words.into_iter().map(|word| match word {
            Some(word) => format!("--{key}={word}").into(),
            None => format!("--{key}").into(),
        }));
        keys.push(key);
    }
    Ok((arguments, FromFile { path, keys }))
}

fn usage(message: String) -> Exit {
    Exit { message, code: 2 }
}

fn read(path: &Path) -> Result<toml::Table, Exit> {
    let failed = |reason: String| usage(format!("--config: {}: {reason}", path.display()));
    let unread = |error: io::Error| usage(format!("--config: {}", unreadable(path, &error)));
    let metadata = std::fs::metadata(path).map_err(unread)?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(failed(format!(
            "longer than {FILE_BYTES_MAX} bytes: is it the right file?"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(unread)?;
    // Its own message shows the line, which may hold a password.
    text.parse::<toml::Table>().map_err(|error| {
        let line = error
            .span()
            .and_then(|span| text.get(..span.start))
            .map_or(1, |before| before.matches('\n').count() + 1);
        failed(format!(
            "line {line}: {}; lines are flags of `perennial run` without --, as in: retention = \"7d\"",
            error.message()
        ))
    })
}

/// The flag that a key of the file may set.
fn flag<'a>(run: &'a Command, key: &str) -> Option<&'a Arg> {
    settable(run).find(|arg| arg.get_long() == Some(key))
}

fn settable(run: &Command) -> impl Iterator<Item = &Arg> {
    run.get_arguments()
        .filter(|arg| !matches!(arg.get_long(), None | Some("config" | "help" | "version")))
}

fn unknown(run: &Command, key: &str) -> String {
    match most_alike(key, settable(run).filter_map(Arg::get_long)) {
        Some(name) => format!("unknown key `{key}`, did you mean `{name}`?"),
        None => format!("unknown key `{key}`: keys are the flags of `perennial run`, without --"),
    }
}

/// The name that may have been meant by `word`, if there is one.
pub(super) fn most_alike<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let alike = names
        .map(|name| (strsim::jaro_winkler(name, word), name))
        .filter(|(alike, _)| *alike >= ALIKE_MIN)
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    alike.map(|(_, name)| name)
}

/// The values of a key as they would be typed; `None` for a flag that has none.
fn words(arg: &Arg, value: &toml::Value) -> Result<Vec<Option<String>>, String> {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return match value {
            toml::Value::Boolean(true) => Ok(vec![None]),
            toml::Value::Boolean(false) => Ok(Vec::new()),
            _ => Err("write true or false".into()),
        };
    }
    let values = match value {
        toml::Value::Array(values) if matches!(arg.get_action(), ArgAction::Append) => {
            values.as_slice()
        }
        value => std::slice::from_ref(value),
    };
    values
        .iter()
        .map(|value| word(arg, value).map(Some))
        .collect()
}

fn word(arg: &Arg, value: &toml::Value) -> Result<String, String> {
    let word = match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(_)
        | toml::Value::Datetime(_)
        | toml::Value::Array(_)
        | toml::Value::Table(_) => return Err("write a text in quotes".into()),
    };
    let possible = arg.get_possible_values();
    if possible.is_empty() || possible.iter().any(|one| one.matches(&word, false)) {
        return Ok(word);
    }
    let names: Vec<&str> = possible
        .iter()
        .map(clap::builder::PossibleValue::get_name)
        .collect();
    Err(format!("{word:?} is none of {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::cli::flags::{self, Cli};

    struct Written(tempfile::NamedTempFile);

    impl Written {
        fn new(text: &str) -> Self {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            Self(file)
        }

        fn arguments(&self, more: &[&str]) -> Vec<OsString> {
            let path = self.0.path().to_str().unwrap();
            [&["perennial", "run", "--config", path], more]
                .concat()
                .into_iter()
                .map(OsString::from)
                .collect()
        }

        fn refused(&self) -> String {
            let error = with_file(&Cli::command(), self.arguments(&[])).unwrap_err();
            assert_eq!(error.code, 2);
            let name = format!("{}: ", self.0.path().display());
            error.message.replace(&name, "FILE: ")
        }
    }

    fn run_arguments(arguments: Vec<OsString>) -> flags::RunArguments {
        match Cli::try_parse_from(arguments).unwrap().command {
            flags::Command::Run(arguments) => *arguments,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flag_goes_before_the_file_and_the_file_before_the_default() {
        let file = Written::new(
            "archive = \"file:///from/file\"\nflush-interval = \"2s\"\nflush-bytes = 4194304\nseed = \"never\"\n",
        );
        let given = file.arguments(&["--flush-interval", "3s"]);
        let (arguments, _) = with_file(&Cli::command(), given).unwrap();
        let run = run_arguments(arguments);
        assert_eq!(run.archive, "file:///from/file");
        assert_eq!(run.flush_interval, "3s");
        assert_eq!(run.flush_bytes, "4194304");
        assert!(matches!(run.seed, flags::SeedFlag::Never));
        assert_eq!(run.buffer_bytes, "32MiB");
    }

    #[test]
    fn what_no_flag_takes_is_refused_and_named() {
        let refused = |text: &str| Written::new(text).refused();
        assert_eq!(
            refused("flush-intervall = \"1s\""),
            "FILE: unknown key `flush-intervall`, did you mean `flush-interval`?"
        );
        assert!(refused("colour = \"blue\"").contains("unknown key `colour`: keys are the flags"));
        assert!(refused("config = \"other\"").contains("unknown key"));
        assert_eq!(
            refused("seed = \"sometimes\""),
            "FILE: seed: \"sometimes\" is none of auto, if-empty, never, start-over"
        );
        assert_eq!(
            refused("flush-bytes = [1]"),
            "FILE: flush-bytes: write a text in quotes"
        );
        let broken = refused("archive = \"a\"\nredis = \"redis://user:secret@host\n");
        assert!(broken.starts_with("--config: FILE: line 2: "), "{broken}");
        assert!(!broken.contains("secret"), "{broken}");
    }

    #[test]
    fn a_complaint_names_file_and_key_where_the_value_came_from_there() {
        let file = Written::new("archive = \"file:///a\"\nflush-bytes = \"many\"\n");
        let (_, from_file) = with_file(&Cli::command(), file.arguments(&[])).unwrap();
        let said = from_file.about("--flush-bytes: \"many\" is not a size like 8MiB");
        let name = file.0.path().display().to_string();
        assert_eq!(
            said,
            format!("{name}: flush-bytes: \"many\" is not a size like 8MiB")
        );
        assert_eq!(
            from_file.about("--flush-interval: x"),
            "--flush-interval: x"
        );
    }

    /// The example of the documentation is one that works, and every key in it is a flag.
    #[test]
    fn the_example_is_taken() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/perennial.example.toml");
        // Lines that are examples themselves: `# key = value`.
        let text = std::fs::read_to_string(path).unwrap();
        let all: String = text
            .lines()
            .map(|line| {
                line.strip_prefix("# ")
                    .filter(|rest| rest.contains(" = "))
                    .unwrap_or(line)
            })
            .map(|line| format!("{line}\n"))
            .collect();
        for text in [text, all] {
            let file = Written::new(&text);
            let (arguments, from_file) = with_file(&Cli::command(), file.arguments(&[])).unwrap();
            assert!(from_file.keys.len() >= 2, "{from_file:?}");
            assert!(run_arguments(arguments).archive.starts_with("s3://"));
        }
    }
}

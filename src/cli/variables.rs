//! Variables that are called like ours and set nothing: a mistyped one must not be passed over in silence.

use std::collections::BTreeSet;

use clap::Command;

use super::file::most_alike;

/// What our variables begin with.
const PREFIX: &str = "PERENNIAL_";
/// Those that no flag has.
const WITHOUT_A_FLAG: [&str; 5] = [
    // Of docker/compose.yaml.
    "PERENNIAL_IMAGE",
    "PERENNIAL_LOG",
    "PERENNIAL_REDIS_PASSWORD",
    "PERENNIAL_SEED_PASSWORD",
    "PERENNIAL_SENTINEL_PASSWORD",
];

/// Warns of each variable of this process that is called like ours and that nothing reads.
pub(super) fn warn_of_unknown(command: &Command) {
    let given = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for warning in unknown(command, given) {
        tracing::warn!("{warning}");
    }
}

/// What there is to say of the variables of these names. Their values may be secrets and are not looked at.
fn unknown(command: &Command, given: impl Iterator<Item = String>) -> Vec<String> {
    let known = known(command);
    given
        .filter(|name| !known.contains(name.as_str()) && !is_of_kubernetes(name))
        .filter_map(|name| {
            let word = name.strip_prefix(PREFIX)?;
            let names = known.iter().filter_map(|name| name.strip_prefix(PREFIX));
            Some(match most_alike(word, names) {
                Some(meant) => format!(
                    "the variable {name} sets nothing: did you mean {PREFIX}{meant}?"
                ),
                None => format!(
                    "the variable {name} sets nothing: variables are named like the flags, see `perennial run --help`"
                ),
            })
        })
        .collect()
}

fn known(command: &Command) -> BTreeSet<&str> {
    command
        .get_subcommands()
        .flat_map(Command::get_arguments)
        .filter_map(|argument| argument.get_env()?.to_str())
        .chain(WITHOUT_A_FLAG)
        .collect()
}

/// Whether Kubernetes sets such a variable by itself, for a Service whose name begins with `perennial`.
fn is_of_kubernetes(name: &str) -> bool {
    let marks = ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"];
    marks.iter().any(|mark| {
        name.rmatch_indices(mark)
            .any(|(at, _)| matches!(name.as_bytes().get(at + mark.len()), None | Some(b'_')))
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::flags::Cli;

    fn said(names: &[&str]) -> Vec<String> {
        unknown(&Cli::command(), names.iter().map(ToString::to_string))
    }

    #[test]
    fn a_mistyped_variable_is_told_what_was_meant() {
        let warnings = said(&[
            "PERENNIAL_ARCHVE",
            "PERENNIAL_FLUSH_INTERVALL",
            "PERENNIAL_REDIS_PASWORD",
            "PERENNIAL_ZZZ",
            "PERENNIAL_",
        ]);
        let meant = |at: usize, name: &str| {
            assert!(
                warnings[at].ends_with(&format!("did you mean {name}?")),
                "{}",
                warnings[at]
            );
        };
        meant(0, "PERENNIAL_ARCHIVE");
        meant(1, "PERENNIAL_FLUSH_INTERVAL");
        meant(2, "PERENNIAL_REDIS_PASSWORD");
        assert!(warnings[3].contains("PERENNIAL_ZZZ sets nothing: variables are named"));
        assert_eq!(warnings.len(), 5);
    }

    #[test]
    fn nothing_is_said_of_ours_and_of_others() {
        let command = Cli::command();
        let ours: Vec<&str> = known(&command).into_iter().collect();
        assert!(ours.len() > 20, "{ours:?}");
        assert!(said(&ours).is_empty(), "{:?}", said(&ours));
        let others = said(&[
            "HOME",
            "PERENNIALS_ARCHIVE",
            "PERENNIAL_SERVICE_HOST",
            "PERENNIAL_SERVICE_PORT",
            "PERENNIAL_SERVICE_PORT_HTTP",
            "PERENNIAL_PORT",
            "PERENNIAL_PORT_9420_TCP",
            "PERENNIAL_PORT_9420_TCP_ADDR",
            "PERENNIAL_METRICS_SERVICE_HOST",
        ]);
        assert!(others.is_empty(), "{others:?}");
    }
}

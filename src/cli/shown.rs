//! `perennial completions` and `perennial man`: made from the definition of the flags.

use clap::CommandFactory;

use super::flags::{Cli, CompletionsArguments, ManArguments, Shell};
use super::{Exit, say};

/// Prints the completions of a shell.
pub fn completions(arguments: &CompletionsArguments) {
    let shell = match arguments.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "perennial", &mut text);
    say(String::from_utf8_lossy(&text).trim_end());
}

/// Prints the manual page of the program, or of one of its commands.
///
/// # Errors
/// Where there is no such command.
pub fn man(arguments: &ManArguments) -> anyhow::Result<()> {
    let mut whole = Cli::command();
    // Names the pages of the commands perennial-run and so on.
    whole.build();
    let command = match &arguments.command {
        None => whole,
        Some(name) => whole.find_subcommand(name).cloned().ok_or_else(|| Exit {
            message: format!("there is no command {name}: see perennial --help"),
            code: 2,
        })?,
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text)?;
    say(String::from_utf8_lossy(&text).trim_end());
    Ok(())
}

//! The arguments of `completions` and `man`.

use clap::{Args, ValueEnum};

/// `perennial completions`
#[derive(Debug, Args)]
#[command(after_help = "\
For bash:  perennial completions bash > /etc/bash_completion.d/perennial
For zsh:   perennial completions zsh > /usr/share/zsh/site-functions/_perennial
For fish:  perennial completions fish > ~/.config/fish/completions/perennial.fish")]
pub struct CompletionsArguments {
    /// Which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// The shells that there are completions for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// `perennial man`
#[derive(Debug, Args)]
#[command(after_help = "\
To install:  perennial man > /usr/local/share/man/man1/perennial.1
             perennial man run > /usr/local/share/man/man1/perennial-run.1
To read:     perennial man run | man -l -")]
pub struct ManArguments {
    /// The page of this command; of the whole program if left out
    #[arg(value_name = "COMMAND")]
    pub command: Option<String>,
}

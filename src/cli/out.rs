//! What subcommands print: to standard output, as it is or as wide as the terminal, and whether all of it arrived there.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;

use super::wrap::wrapped;

/// What standard output said first when it took no more. Nothing is written to it after that.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints for programs: as it is.
pub(super) fn say(text: &str) {
    let Ok(mut lost) = LOST.lock() else { return };
    if lost.is_some() {
        return;
    }
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    *lost = written.err();
}

/// Prints for people: no line is wider than the terminal, where it goes to one.
pub(super) fn tell(text: &str) {
    match width(&io::stdout()) {
        Some(width) => say(&wrapped(text, width)),
        None => say(text),
    }
}

/// Prints an error.
pub(super) fn complain(error: &anyhow::Error) {
    let text = format!("perennial: {error:#}");
    let mut to = io::stderr();
    let _ = match width(&to) {
        Some(width) => writeln!(to, "{}", wrapped(&text, width)),
        None => writeln!(to, "{text}"),
    };
}

/// Why not all of it was printed, where that is so; asked once, at the end.
pub(super) fn lost() -> Option<io::Error> {
    LOST.lock().ok()?.take()
}

/// A reader that has gone away, `head` for example, knows that it did not read everything.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// Columns: what `COLUMNS` says, as for other programs, else what the terminal says; nothing where it is none.
fn width(to: &(impl IsTerminal + std::os::fd::AsFd)) -> Option<usize> {
    let given = std::env::var("COLUMNS").ok();
    let given = given.and_then(|columns| columns.parse().ok());
    given.or_else(|| {
        let (columns, _) = to
            .is_terminal()
            .then(|| terminal_size::terminal_size_of(to))??;
        Some(usize::from(columns.0))
    })
}

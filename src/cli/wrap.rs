//! Lines for people, broken between words at the width of their terminal, and set in below what they continue. What is
//! there to be pasted stays on one line, however long it is: the terminal breaks it, and gives it back whole.

/// Narrower than this nothing can be read: lines are this long all the same.
const WIDTH_MIN: usize = 40;
/// A column that begins further right is none to set lines in to.
const COLUMN_MAX: usize = 24;
/// How far the lines below a line without columns are set in.
const SET_IN: usize = 2;
/// What commands to be pasted begin with.
const COMMANDS: [&str; 4] = [
    "perennial ",
    "redis-cli ",
    "redis-server ",
    "valkey-server ",
];

/// The text with its longer lines broken.
pub(super) fn wrapped(text: &str, width: usize) -> String {
    let width = width.max(WIDTH_MIN);
    let lines = text.lines().map(|line| wrapped_line(line, width));
    lines.collect::<Vec<_>>().join("\n")
}

fn wrapped_line(line: &str, width: usize) -> String {
    if columns(line) <= width {
        return line.to_owned();
    }
    let set_in = " ".repeat(set_in(line));
    let mut done = String::new();
    let mut current = String::new();
    for piece in pieces(line, set_in.len()) {
        let is_first = columns(&current) <= set_in.len();
        if !is_first && columns(&current) + columns(piece.trim_end()) > width {
            done.push_str(current.trim_end());
            done.push('\n');
            current.clone_from(&set_in);
        }
        current.push_str(piece);
    }
    done + current.trim_end()
}

fn columns(text: &str) -> usize {
    text.chars().count()
}

/// How far what continues a line is set in: to its last column, or a little.
fn set_in(line: &str) -> usize {
    // What is set in far would be mostly spaces.
    column(line).min(COLUMN_MAX)
}

fn column(line: &str) -> usize {
    let content = line.trim_start();
    let indent = line.len() - content.len();
    for mark in ["-> ", "! "] {
        if content.starts_with(mark) {
            return indent + mark.len();
        }
    }
    let Some(gap) = content.find("  ").filter(|at| *at < COLUMN_MAX) else {
        return indent + SET_IN;
    };
    let behind = &content[gap..];
    let gap_end = indent + gap + behind.len() - behind.trim_start().len();
    match gap_end {
        ..=COLUMN_MAX => gap_end,
        _ => indent + SET_IN,
    }
}

/// The pieces between which a line may be broken, each with the spaces behind it. The first `fixed` bytes are in one.
fn pieces(line: &str, fixed: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut begin = 0;
    let mut at = 0;
    while at < line.len() {
        let rest = &line[at..];
        let is_word = at == 0 || line[..at].ends_with(' ');
        if is_word && let Some(length) = unbroken(&line[..at], rest) {
            at += length;
            continue;
        }
        let length = rest.chars().next().map_or(1, char::len_utf8);
        at += length;
        let ends = rest.starts_with(' ') && !line[at..].starts_with(' ');
        if ends && at >= fixed {
            pieces.push(&line[begin..at]);
            begin = at;
        }
    }
    pieces.push(&line[begin..]);
    pieces
}

/// How long what begins here and stays on one line is: a command, up to the end of its clause, or what is in backticks.
fn unbroken(before: &str, rest: &str) -> Option<usize> {
    if let Some(inside) = rest.strip_prefix('`') {
        return inside.find('`').map(|end| end + 2);
    }
    let before = before.trim_end();
    let may_begin = before.is_empty() || before.ends_with(':') || before.ends_with("->");
    let is_command = COMMANDS.iter().any(|command| rest.starts_with(command));
    (may_begin && is_command).then(|| rest.find("; ").unwrap_or(rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words_below_their_column() {
        let finding = "  warn     setting-x: one two three four five six seven\n           -> do this and then that and \
                       then the third thing\nshort";
        assert_eq!(
            wrapped(finding, 40),
            "  warn     setting-x: one two three four\n           five six seven\n           -> do this and \
             then that and\n              then the third thing\nshort"
        );
        assert_eq!(
            wrapped("restored this and that and something else to there", 40),
            "restored this and that and something\n  else to there"
        );
        assert_eq!(
            wrapped("! a problem that takes more than one line here", 40),
            "! a problem that takes more than one\n  line here"
        );
    }

    #[test]
    fn what_is_pasted_stays_whole() {
        let command = "perennial accept 2 --archive file:///a/path/of/some/length";
        let line = format!("! it is suspect; if it is the right one: {command}; else nothing");
        let broken = wrapped(&line, 40);
        assert!(
            broken
                .lines()
                .any(|line| line.trim() == format!("{command};")),
            "{broken}"
        );
        let alone = format!("  {command} --force");
        assert_eq!(wrapped(&alone, 40), alone);
        let quoted = "wait until the log of `perennial run --archive x` says so";
        assert!(wrapped(quoted, 40).contains("`perennial run --archive x`"));
        let name = "timelines/00000001-abfb98c4752b7f44958b95ec7effaf230de5432f/x.blocks";
        assert!(wrapped(&format!("would delete {name}, which is too old"), 40).contains(name));
    }

    /// Nothing is lost and nothing is wider than it must be, whatever the text.
    #[test]
    fn every_word_is_there_and_lines_fit() {
        let text = "größe ümläüte — a line of words that are short enough, each of them, to fit a line of forty";
        for width in 40..=columns(text) {
            let broken = wrapped(text, width);
            let words = |text: &str| {
                text.split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            assert_eq!(words(&broken), words(text));
            assert!(
                broken.lines().all(|line| columns(line) <= width),
                "{broken}"
            );
        }
        // Nothing that is narrower than anybody's terminal.
        assert_eq!(wrapped(text, 0), wrapped(text, WIDTH_MIN));
    }
}

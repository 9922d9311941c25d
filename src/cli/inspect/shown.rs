//! What was found in a dump, for people and for programs.

use serde_json::{Value as Json, json};

use super::summary::{Row, SPANS, Summary};
use super::text::shown;
use super::value::{Decoded, Found};
use crate::cli::status::time;
use crate::proto::rdb::Numbering;

fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}

/// `1 key`, `2 keys`.
fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// How the magic spells it.
fn format_of((numbering, version): (Numbering, u32)) -> String {
    match numbering {
        Numbering::Redis => format!("{numbering}{version:04}"),
        Numbering::Valkey => format!("{numbering}{version:03}"),
    }
}

/// The name of a key whose end may be missing.
fn cut_name(name: &[u8], name_bytes: u64) -> String {
    let missing = name_bytes - name.len() as u64;
    match missing {
        0 => shown(name),
        _ => format!("{}... and {missing} more bytes", shown(name)),
    }
}

/// The summary as text.
pub(super) fn summary_text(about: &str, summary: &Summary) -> String {
    let mut text = format!("{about}\n");
    if let (Some(head), Some((checksum, bytes))) = (summary.head, summary.end) {
        text += &format!(
            "{}, {}, checksum {}",
            format_of(head),
            size(bytes),
            checksum.word()
        );
    }
    for wanted in ["redis-ver", "valkey-ver"] {
        let version = summary
            .aux
            .iter()
            .find(|(name, _)| name == wanted.as_bytes());
        if let Some((name, value)) = version {
            text += &format!(", {} {}", shown(name), shown(value));
        }
    }
    let all = &summary.all;
    text += &format!(
        "\n{} in {}, {} of them with a TTL; {}\n",
        count(all.keys, "key", "keys"),
        size(all.bytes),
        all.expiring,
        count(
            summary.functions,
            "library of functions",
            "libraries of functions"
        ),
    );
    text += &rows_text(summary);
    text += &expiries_text(summary);
    text += &biggest_text(summary);
    text += &prefixes_text(summary);
    text.truncate(text.trim_end().len());
    text
}

fn rows_text(summary: &Summary) -> String {
    if summary.rows.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n{:>8}  {:<6}  {:>12}  {:>10}  {:>12}\n",
        "database", "type", "keys", "bytes", "with TTL"
    );
    for ((database, kind), row) in &summary.rows {
        let database = database.map_or_else(|| "others".to_owned(), |it| it.to_string());
        text += &format!(
            "{database:>8}  {:<6}  {:>12}  {:>10}  {:>12}\n",
            kind.word(),
            row.keys,
            size(row.bytes),
            row.expiring
        );
    }
    text += "\nencodings:";
    for ((kind, encoding), row) in &summary.encodings {
        text += &format!(" {} {encoding} {},", kind.word(), row.keys);
    }
    text.truncate(text.len() - 1);
    text + "\n"
}

fn expiries_text(summary: &Summary) -> String {
    if summary.all.expiring == 0 {
        return String::new();
    }
    let [past, hour, day, week, month, later] = summary.expiries;
    format!(
        "\nTTLs, counted from {}: {past} past, {hour} within an hour, {day} a day, {week} a week, {month} 30 days, {later} later\n",
        time(summary.taken_at)
    )
}

fn biggest_text(summary: &Summary) -> String {
    let biggest = summary.biggest();
    if biggest.is_empty() {
        return String::new();
    }
    let mut text = "\nbiggest keys\n".to_owned();
    for big in biggest {
        text += &format!(
            "{:>10}  database {}  {:<6}  {:<10}  {}\n",
            size(big.bytes),
            big.database,
            big.kind.word(),
            big.encoding,
            cut_name(&big.name, big.name_bytes)
        );
    }
    text
}

fn prefixes_text(summary: &Summary) -> String {
    let heaviest = summary.prefixes.heaviest(summary.top());
    if heaviest.is_empty() {
        return String::new();
    }
    let mut text = "\nheaviest prefixes\n".to_owned();
    for (prefix, found) in heaviest {
        text += &format!(
            "{:>10}  {:>12} keys  {}\n",
            size(found.bytes),
            found.keys,
            shown(prefix)
        );
    }
    let without = &summary.prefixes.without;
    text += &format!(
        "{:>10}  {:>12} keys  without one\n",
        size(without.bytes),
        without.keys
    );
    match summary.prefixes.missed_bytes_max() {
        0 => text,
        missed => {
            text + &format!(
                "there are too many prefixes to count each: what is said of one is at least there, and up to {} more\n",
                size(missed)
            )
        }
    }
}

/// The summary as JSON; `docs/json.md` describes it.
pub(super) fn summary_json(source: Json, summary: &Summary) -> Json {
    let row = |row: &Row| json!({ "keys": row.keys, "bytes": row.bytes, "expiring": row.expiring });
    let with = |mut value: Json, more: Json| {
        if let (Some(fields), Json::Object(more)) = (value.as_object_mut(), more) {
            fields.extend(more);
        }
        value
    };
    let types: Vec<Json> = summary
        .rows
        .iter()
        .map(|((database, kind), it)| {
            with(
                json!({ "database": database, "type": kind.word() }),
                row(it),
            )
        })
        .collect();
    let encodings: Vec<Json> = summary
        .encodings
        .iter()
        .map(|((kind, encoding), it)| {
            with(
                json!({ "type": kind.word(), "encoding": encoding }),
                row(it),
            )
        })
        .collect();
    let biggest: Vec<Json> = summary
        .biggest()
        .into_iter()
        .map(|big| {
            json!({
                "key": shown(&big.name),
                "key_bytes": big.name_bytes,
                "database": big.database,
                "type": big.kind.word(),
                "encoding": big.encoding,
                "bytes": big.bytes,
                "expires_at": big.expires_at.map(|at| at.0),
            })
        })
        .collect();
    let prefixes: Vec<Json> = summary
        .prefixes
        .heaviest(summary.top())
        .into_iter()
        .map(|(prefix, it)| json!({ "prefix": shown(prefix), "keys": it.keys, "bytes": it.bytes }))
        .collect();
    let without = &summary.prefixes.without;
    let expiries: serde_json::Map<String, Json> = SPANS
        .iter()
        .zip(summary.expiries)
        .map(|((word, _), keys)| ((*word).to_owned(), keys.into()))
        .collect();
    let aux: Vec<Json> = summary
        .aux
        .iter()
        .map(|(name, value)| json!({ "name": shown(name), "value": shown(value) }))
        .collect();
    json!({
        "source": source,
        "format": summary.head.map(format_of),
        "dump_bytes": summary.end.map(|(_, bytes)| bytes),
        "checksum": summary.end.map(|(checksum, _)| checksum.word()),
        "taken_at": summary.taken_at.0,
        "aux": aux,
        "functions": summary.functions,
        "module_aux": summary.module_aux,
        "keys": summary.all.keys,
        "bytes": summary.all.bytes,
        "expiring": summary.all.expiring,
        "types": types,
        "encodings": encodings,
        "expiries": expiries,
        "biggest": biggest,
        "prefixes": prefixes,
        "prefixes_missed_bytes": summary.prefixes.missed_bytes_max(),
        "without_prefix": { "keys": without.keys, "bytes": without.bytes },
    })
}

/// One key as text.
pub(super) fn key_text(
    name: &[u8],
    database: u64,
    found: &Found,
    value: &Result<Decoded, String>,
) -> String {
    let range = found.range();
    let expires = found.expires_at.map_or_else(
        || "no TTL".to_owned(),
        |at| format!("expires at {}", time(at)),
    );
    let mut text = format!(
        "{} in database {database}: {} ({}), {} at byte {} of the dump, {expires}",
        shown(name),
        found.kind.word(),
        found.encoding,
        size(range.end - range.start),
        range.start,
    );
    match value {
        Ok(decoded) => {
            for line in decoded.lines() {
                text += "\n  ";
                text += &line;
            }
        }
        Err(why) => text += &format!("\n  not shown: {why}"),
    }
    text
}

/// One key as JSON; `docs/json.md` describes it.
pub(super) fn key_json(
    source: Json,
    name: &[u8],
    database: u64,
    found: &Found,
    value: &Result<Decoded, String>,
) -> Json {
    let range = found.range();
    json!({
        "source": source,
        "key": shown(name),
        "database": database,
        "type": found.kind.word(),
        "encoding": found.encoding,
        "expires_at": found.expires_at.map(|at| at.0),
        "value_begins": range.start,
        "value_bytes": range.end - range.start,
        "value": value.as_ref().ok().map(Decoded::json),
        "not_decoded": value.as_ref().err(),
    })
}

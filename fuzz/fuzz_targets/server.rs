//! What servers say beside the replication link, what people type, and the rewriting of what the archive holds, on
//! arbitrary bytes: no panic, no stack without a bottom, the same answer for every way of cutting them.
//!
//! The first byte chooses what is read, the second seeds the cuts and the options, the rest is the input.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use perennial::archive::plan::Rewriting;
use perennial::position::{Offset, UnixMillis};
use perennial::proto::answer::is_too_deep;
use perennial::proto::request::arguments;
use perennial::proto::resp::CommandCursor;
use perennial::restore::rewrite::Rewriter;
use perennial::server::info::Info;
use perennial::server::net::{Address, Endpoint};

fuzz_target!(|data: &[u8]| {
    let [choice, seed, bytes @ ..] = data else {
        return;
    };
    match choice % 5 {
        0 => info(bytes),
        1 => answer(bytes),
        2 => request(bytes),
        3 => rewritten(*seed, bytes),
        _ => address(bytes),
    }
});

fn info(bytes: &[u8]) {
    let info = Info::parse(&String::from_utf8_lossy(bytes));
    let _ = (
        info.keys(),
        info.databases(),
        info.replicas(),
        info.modules().len(),
    );
    let _ = (
        info.server_name(),
        info.version_numbers(),
        info.is_loading(),
    );
    let replicas = info.replicas().len() as u64;
    assert!(replicas <= info.number("connected_slaves").unwrap_or(u64::MAX));
    let _ = info.server(|_, _| false);
    let _ = info.server(|_, _| true);
}

/// What is not too deep for us does no harm to the library.
fn answer(bytes: &[u8]) {
    if !is_too_deep(bytes) {
        let bytes = Bytes::copy_from_slice(bytes);
        if let Ok(Some((_, used))) = redis_protocol::resp2::decode::decode_bytes(&bytes) {
            assert!(used <= bytes.len());
        }
    }
}

fn request(bytes: &[u8]) {
    let whole = Bytes::copy_from_slice(bytes);
    if let Some(found) = arguments(&whole) {
        let step = CommandCursor::new(Offset::ZERO, None).step(&whole);
        assert!(step.is_ok_and(|step| step.end.is_some() && step.consumed == whole.len()));
        assert!(found.iter().map(Bytes::len).sum::<usize>() <= whole.len());
    }
}

/// Nothing is lost or moved: without a reason to rewrite all bytes pass, and the cuts make no difference.
fn rewritten(seed: u8, bytes: &[u8]) {
    let rewriting = Rewriting {
        relative_ttl: seed & 1 != 0,
        field_persist: seed & 2 != 0,
    };
    let whole = pushed(rewriting, [bytes].into_iter());
    let size = usize::from(seed >> 2) + 1;
    assert_eq!(whole, pushed(rewriting, bytes.chunks(size)));
    if rewriting.is_none() {
        assert_eq!(whole, bytes);
    }
}

fn pushed<'a>(rewriting: Rewriting, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut rewriter = Rewriter::new(rewriting);
    let mut out = Vec::new();
    for piece in pieces {
        rewriter.push(
            &Bytes::copy_from_slice(piece),
            UnixMillis(1_000_000),
            &mut out,
        );
    }
    assert_eq!(
        rewriter.tally().bytes,
        out.iter().map(Bytes::len).sum::<usize>() as u64
    );
    out.concat()
}

/// The address of a server that was read prints as one that is read the same way, without a password. (A socket file's
/// path is printed as it is, for people.)
fn address(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(address) = text.parse::<Address>() {
        let printed = address.to_string();
        if !matches!(address.endpoint, Endpoint::Unix(_)) {
            let again: Address = printed.parse().expect("what was printed");
            assert_eq!(again.to_string(), printed);
            assert!(again.credentials.is_none());
        }
    }
}

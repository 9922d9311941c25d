//! Everything that is read from a bucket, on arbitrary bytes: no panic, no endless loop, the same answer for
//! every way of cutting them. And the algebra of timelines: what a catalogue says can be restored has a plan
//! without a hole.
//!
//! The first byte chooses what is read, the second seeds the cuts, the rest is the object.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use perennial::archive::block::{Block, BlockDecoder, check_blocks};
use perennial::archive::layout::{
    AcceptedDocument, ArchiveDocument, DOCUMENT_FORMAT, Object, Source, Span, TimelineDocument,
};
use perennial::archive::plan::{Target, plan};
use perennial::archive::segment::{SegmentReader, verify_segment};
use perennial::archive::snapshot::{SnapshotEnd, SnapshotReader, read_head};
use perennial::archive::timeline::Catalog;
use perennial::position::{Offset, Position, ReplicationId, TimelineSeq, UnixMillis};

fuzz_target!(|data: &[u8]| {
    let [choice, seed, bytes @ ..] = data else {
        return;
    };
    match choice % 6 {
        0 => blocks(*seed, bytes),
        1 => segment(*seed, bytes),
        2 => snapshot(*seed, bytes),
        3 => names(bytes),
        4 => documents(bytes),
        _ => timelines(bytes),
    }
});

fn cut(bytes: &[u8], seed: u8) -> impl Iterator<Item = Bytes> {
    bytes
        .chunks(usize::from(seed % 67) + 1)
        .map(Bytes::copy_from_slice)
}

/// The blocks, and whether all of it was well. (Which error it is depends on how much was there to look at.)
fn decode(pieces: impl Iterator<Item = Bytes>) -> (Vec<Block>, bool) {
    let mut decoder = BlockDecoder::new();
    let mut blocks = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(block)) => blocks.push(block),
                Ok(None) => break,
                Err(_) => return (blocks, false),
            }
        }
    }
    let well = decoder.finish().is_ok();
    (blocks, well)
}

fn blocks(seed: u8, bytes: &[u8]) {
    let whole = decode([Bytes::copy_from_slice(bytes)].into_iter());
    assert_eq!(whole, decode(cut(bytes, seed)));
    assert_eq!(whole.1, check_blocks(Bytes::copy_from_slice(bytes)).is_ok());
}

fn id(byte: u8) -> ReplicationId {
    ReplicationId::from_raw([byte; 20])
}

fn segment(seed: u8, bytes: &[u8]) {
    let span = Span {
        first: Offset::new(1),
        last: Offset::new(u64::from(seed) + 1),
        first_at: UnixMillis(0),
        last_at: UnixMillis(0),
    };
    let object = Object::Segment {
        seq: TimelineSeq::FIRST,
        id: id(1),
        span,
        merged: false,
    };
    let mut reader = SegmentReader::new(&object).expect("the object is a segment");
    let mut error = false;
    'pieces: for piece in cut(bytes, seed) {
        reader.push(piece);
        loop {
            match reader.next() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => {
                    error = true;
                    break 'pieces;
                }
            }
        }
    }
    let read = !error && reader.finish().is_ok();
    assert_eq!(
        read,
        verify_segment(&object, Bytes::copy_from_slice(bytes)).is_ok()
    );
}

fn snapshot(seed: u8, bytes: &[u8]) {
    let object = Object::Snapshot {
        seq: TimelineSeq::FIRST,
        id: id(1),
        offset: Offset::ZERO,
        at: UnixMillis(0),
        derived: false,
    };
    let mut reader = SnapshotReader::new(&object).expect("the object is a snapshot");
    for piece in cut(bytes, seed) {
        reader.push(piece);
        while let Ok(Some(_)) = reader.next() {}
    }
    let _ = reader.finish();
    let _ = SnapshotEnd::decode(bytes);
    let _ = read_head(bytes);
}

fn names(bytes: &[u8]) {
    if let Ok(name) = std::str::from_utf8(bytes)
        && let Some(object) = Object::parse(name)
    {
        assert_eq!(object.name().as_str(), name, "a name has one spelling");
    }
}

fn documents(bytes: &[u8]) {
    if let Ok(document) = ArchiveDocument::decode(bytes) {
        assert_eq!(
            ArchiveDocument::decode(&document.encode()).ok(),
            Some(document)
        );
    }
    if let Ok(document) = TimelineDocument::decode(bytes) {
        assert_eq!(
            TimelineDocument::decode(&document.encode()).ok(),
            Some(document)
        );
    }
    let _ = AcceptedDocument::decode(bytes);
}

/// Each four bytes say one thing: a new timeline, a snapshot, a segment or an acceptance on the last one.
fn timelines(bytes: &[u8]) {
    let mut documents: Vec<TimelineDocument> = Vec::new();
    let mut objects = Vec::new();
    for word in bytes.chunks_exact(4).take(200) {
        let (a, b) = (u64::from(word[1]), u64::from(word[2]));
        let last = documents.last().map(|document| (document.seq, document.id));
        let object = match (word[0] % 8, last) {
            (0, _) | (_, None) => {
                documents.push(timeline(&documents, word));
                continue;
            }
            (1, Some((seq, id))) => Object::Snapshot {
                seq,
                id,
                offset: Offset::new(a),
                at: UnixMillis(b),
                derived: a % 3 == 1,
            },
            (2, Some((seq, id))) => Object::Accepted {
                seq,
                id,
                rank: TimelineSeq::new(u32::from(word[1])),
                order: 1,
            },
            (_, Some((seq, id))) => {
                let span = Span {
                    first: Offset::new(a + 1),
                    last: Offset::new(a + 1 + b % 32),
                    first_at: UnixMillis(0),
                    last_at: UnixMillis(u64::from(word[3])),
                };
                Object::Segment {
                    seq,
                    id,
                    span,
                    merged: false,
                }
            }
        };
        objects.push((object.name(), object, 100));
    }
    let catalog = Catalog::new(None, documents, objects);
    check(&catalog);
}

fn timeline(before: &[TimelineDocument], word: &[u8]) -> TimelineDocument {
    let parent = (word[1] % 4 != 0).then(|| Position {
        timeline: TimelineSeq::new(u32::from(word[3]) % (before.len() as u32 + 2)),
        offset: Offset::new(u64::from(word[2])),
    });
    TimelineDocument {
        format: DOCUMENT_FORMAT,
        seq: TimelineSeq::new(before.len() as u32 + 1),
        id: id(word[3]),
        parent,
        start: Offset::new(u64::from(word[2])),
        mapped: word[1] % 7 == 0,
        suspect: (word[1] % 5 == 0).then(|| "why".into()),
        created_at: UnixMillis(u64::from(word[1])),
        created_by: String::new(),
        source: Source::default(),
    }
}

fn check(catalog: &Catalog) {
    for timeline in catalog.timelines() {
        let seq = timeline.seq();
        for offset in 0..300 {
            let position = Position {
                timeline: seq,
                offset: Offset::new(offset),
            };
            let planned = plan(catalog, Target::Offset(position));
            assert_eq!(
                planned.is_ok(),
                catalog.is_restorable(position),
                "{position}"
            );
            let Ok(planned) = planned else { continue };
            for leg in &planned.legs {
                let mut reached = leg.after;
                for segment in &leg.segments {
                    assert!(segment.span.first <= reached.next(), "a hole in a plan");
                    assert!(segment.span.last > reached, "a segment that adds nothing");
                    reached = segment.span.last;
                }
                assert!(reached >= leg.to, "a plan that ends early");
            }
        }
    }
    match catalog.head() {
        Some(head) => {
            assert!(catalog.suspect(head.timeline).is_none(), "a suspect head");
            assert_eq!(
                plan(catalog, Target::Latest).map(|plan| plan.target),
                Ok(head)
            );
        }
        None => assert!(plan(catalog, Target::Latest).is_err()),
    }
}

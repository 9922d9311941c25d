//! A catalogue written as text, for tests here and in the modules that decide from one.

use super::*;
use crate::archive::layout::{Object, ObjectName, Source, Span, TimelineDocument};
use crate::position::{Position, UnixMillis};

/// A replication id whose every byte is `byte`.
pub(crate) fn id(byte: u8) -> ReplicationId {
    ReplicationId::from_raw([byte; 20])
}

/// Adds timelines one by one.
#[derive(Default)]
pub(crate) struct Sketch {
    documents: Vec<TimelineDocument>,
    objects: Vec<(ObjectName, Object, u64)>,
}

impl Sketch {
    pub(crate) fn timeline(
        mut self,
        seq: u32,
        byte: u8,
        parent: Option<(u32, u64)>,
        start: u64,
    ) -> Self {
        self.documents.push(TimelineDocument {
            format: crate::archive::layout::DOCUMENT_FORMAT,
            seq: TimelineSeq::new(seq),
            id: id(byte),
            parent: parent.map(|(timeline, offset)| Position {
                timeline: TimelineSeq::new(timeline),
                offset: Offset::new(offset),
            }),
            start: Offset::new(start),
            mapped: false,
            suspect: None,
            created_at: UnixMillis(u64::from(seq) * 1000),
            created_by: "test".into(),
            source: Source {
                server: "redis".into(),
                version: "7.0.15".into(),
                run_id: format!("run-{byte}"),
                address: "127.0.0.1:6379".into(),
                replica: false,
            },
        });
        self
    }

    pub(crate) fn mapped(mut self) -> Self {
        self.documents.last_mut().unwrap().mapped = true;
        self
    }

    pub(crate) fn version(mut self, version: &str) -> Self {
        self.documents.last_mut().unwrap().source.version = version.into();
        self
    }

    pub(crate) fn suspect(mut self, why: &str) -> Self {
        self.documents.last_mut().unwrap().suspect = Some(why.into());
        self
    }

    fn push(mut self, object: Object) -> Self {
        self.objects.push((object.name(), object, 100));
        self
    }

    pub(crate) fn snapshot(self, offset: u64) -> Self {
        self.snapshot_of(offset, false)
    }

    pub(crate) fn derived(self, offset: u64) -> Self {
        self.snapshot_of(offset, true)
    }

    fn snapshot_of(self, offset: u64, derived: bool) -> Self {
        let (seq, id) = self.last();
        self.push(Object::Snapshot {
            seq,
            id,
            offset: Offset::new(offset),
            at: UnixMillis(offset),
            derived,
        })
    }

    pub(crate) fn part(self, offset: u64, part: u32, last: bool) -> Self {
        let (seq, id) = self.last();
        self.push(Object::SnapshotPart {
            seq,
            id,
            offset: Offset::new(offset),
            at: UnixMillis(offset),
            derived: false,
            part,
            last,
        })
    }

    pub(crate) fn segment(self, first: u64, last: u64) -> Self {
        self.segment_at(first, last, first, last)
    }

    pub(crate) fn segment_at(self, first: u64, last: u64, first_at: u64, last_at: u64) -> Self {
        let (seq, id) = self.last();
        let span = Span {
            first: Offset::new(first),
            last: Offset::new(last),
            first_at: UnixMillis(first_at),
            last_at: UnixMillis(last_at),
        };
        self.push(Object::Segment {
            seq,
            id,
            span,
            merged: false,
        })
    }

    pub(crate) fn merged(self, first: u64, last: u64) -> Self {
        let (seq, id) = self.last();
        let span = Span {
            first: Offset::new(first),
            last: Offset::new(last),
            first_at: UnixMillis(first),
            last_at: UnixMillis(last),
        };
        self.push(Object::Segment {
            seq,
            id,
            span,
            merged: true,
        })
    }

    pub(crate) fn accepted(self, rank: u32, order: u32) -> Self {
        let (seq, id) = self.last();
        self.push(Object::Accepted {
            seq,
            id,
            rank: TimelineSeq::new(rank),
            order,
        })
    }

    fn last(&self) -> (TimelineSeq, ReplicationId) {
        let document = self.documents.last().unwrap();
        (document.seq, document.id)
    }

    pub(crate) fn catalog(self) -> Catalog {
        Catalog::new(None, self.documents, self.objects)
    }
}

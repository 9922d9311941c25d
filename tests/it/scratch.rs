//! Scratch servers: there when they are needed, and nothing of them afterwards.

use std::path::{Path, PathBuf};

use perennial::archive::snapshot::RdbMagic;
use perennial::server::net::Endpoint;
use perennial::server::scratch::{Scratch, ScratchError, ScratchPlace, Start};
use redis_protocol::resp2::types::BytesFrame;

use crate::harness::{
    Archive, DEADLINE, Digest, Kind, Perennial, REDIS_7_0, Server, assert_same, servers, until,
};

crate::on_every_server!(oldest, usual and newest; nothing_of_it_stays, it_starts_on_restored_files_and_saves);

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(work)
}

/// The place of a program of this kind, where there is one.
fn program(kind: Kind) -> Option<ScratchPlace> {
    let found = kind.find();
    if found.is_none() {
        servers::skip(&format!("no {}", kind.name));
    }
    found.map(ScratchPlace::Program)
}

fn lent(server: &Server) -> ScratchPlace {
    server.url().parse().unwrap()
}

async fn integer(scratch: &mut Scratch, command: &[&[u8]]) -> i64 {
    match scratch.control().command(command).await.unwrap() {
        BytesFrame::Integer(number) => number,
        other => panic!("{other:?}"),
    }
}

fn socket(scratch: &Scratch) -> PathBuf {
    match &scratch.address().endpoint {
        Endpoint::Unix(path) => path.into(),
        other => panic!("{other:?}"),
    }
}

fn nothing_of_it_stays(kind: Kind) {
    let Some(place) = program(kind) else { return };
    let (home, process) = run(async {
        let mut scratch = place.open(Start::Empty).await.unwrap();
        assert!(scratch.is_own());
        scratch
            .control()
            .command(&[b"SET", b"a", b"b"])
            .await
            .unwrap();
        assert_eq!(integer(&mut scratch, &[b"DBSIZE"]).await, 1);
        scratch.empty().await.unwrap();
        assert_eq!(integer(&mut scratch, &[b"DBSIZE"]).await, 0);
        scratch
            .control()
            .command(&[b"SELECT", b"9999"])
            .await
            .unwrap();
        assert_eq!(
            scratch
                .control()
                .setting("maxmemory")
                .await
                .unwrap()
                .unwrap(),
            "0"
        );
        scratch.reads(RdbMagic::Redis, 9).unwrap();
        let error = scratch.reads(RdbMagic::Redis, 9999);
        assert!(
            matches!(error, Err(ScratchError::Unreadable(_))),
            "{error:?}"
        );
        let process = scratch.info().text("process_id").unwrap().to_owned();
        let home = socket(&scratch).parent().unwrap().to_owned();
        assert!(home.exists());
        (home, Path::new("/proc").join(process))
    });
    assert!(!home.exists(), "{}", home.display());
    assert!(!process.exists(), "{}", process.display());
}

fn it_starts_on_restored_files_and_saves(kind: Kind) {
    let (Some(place), Some(server)) = (program(kind), kind.start(&[])) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &[]);
    let mut client = server.client();
    client.line("SET before 1");
    client.line("SELECT 3");
    client.line("RPUSH list a b c");
    client.wait_until_stored(DEADLINE);
    let folder = archive.restore("restored", &[]);
    let saved = archive.beside("saved");
    std::fs::create_dir(&saved).unwrap();
    run(async {
        let start = Start::On {
            folder: &folder,
            append_only: !folder.join("dump.rdb").exists(),
        };
        let mut scratch = place.open(start).await.unwrap();
        scratch.control().command(&[b"SELECT", b"3"]).await.unwrap();
        assert_eq!(integer(&mut scratch, &[b"LLEN", b"list"]).await, 3);
        let dump = scratch.save().await.unwrap();
        std::fs::rename(dump, saved.join("dump.rdb")).unwrap();
        scratch.close().await.unwrap();
    });
    let again = kind.start_on(&saved).unwrap();
    assert_same(
        &Digest::of(&server.address()),
        &Digest::of(&again.address()),
    );
}

#[test]
fn a_server_that_is_lent_is_left_empty() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    run(async {
        let mut scratch = lent(&server).open(Start::Empty).await.unwrap();
        assert!(!scratch.is_own());
        assert!(matches!(
            scratch.save().await,
            Err(ScratchError::NoFolder { .. })
        ));
        scratch
            .control()
            .command(&[b"SET", b"a", b"b"])
            .await
            .unwrap();
        let library = b"#!lua name=l\nredis.register_function('f', function() return 1 end)";
        scratch
            .control()
            .command(&[b"FUNCTION", b"LOAD", library])
            .await
            .unwrap();
        scratch.control().replicate("127.0.0.1", "1").await.unwrap();
        scratch.close().await.unwrap();
    });
    assert!(server.is_master());
    assert_eq!(server.keys(), Some(0));
    assert_eq!(server.client().line("FUNCTION LIST").array().len(), 0);
}

#[test]
fn a_server_in_use_is_not_touched() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    server.client().line("SET a b");
    let error = run(lent(&server).open(Start::Empty))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("holds 1 keys") && error.contains("nothing was touched"),
        "{error}"
    );
    assert_eq!(server.keys(), Some(1));
    let folder = server.folder();
    let start = Start::On {
        folder,
        append_only: false,
    };
    let error = run(lent(&server).open(start)).unwrap_err();
    assert!(matches!(error, ScratchError::NoFolder { .. }), "{error}");
}

#[test]
fn what_cannot_be_started_says_why() {
    let open =
        |place: ScratchPlace, start: Start<'_>| run(place.open(start)).unwrap_err().to_string();
    let missing = open(
        ScratchPlace::Program("/nowhere/redis-server".into()),
        Start::Empty,
    );
    assert!(
        missing.contains("cannot run /nowhere/redis-server"),
        "{missing}"
    );
    let other = open(ScratchPlace::Program("cat".into()), Start::Empty);
    assert!(other.contains("is not a redis-server"), "{other}");
    let Some(place) = program(REDIS_7_0) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("dump.rdb"), "REDIS0011 and no more").unwrap();
    let start = Start::On {
        folder: folder.path(),
        append_only: false,
    };
    let broken = open(place, start);
    assert!(
        broken.contains("it ended") && broken.contains("end of its log"),
        "{broken}"
    );
    assert!(broken.contains("RDB"), "{broken}");
}

#[test]
fn a_server_that_dies_is_said_with_its_log() {
    let Some(place) = program(REDIS_7_0) else {
        return;
    };
    run(async {
        let mut scratch = place.open(Start::Empty).await.unwrap();
        let shutdown = scratch.control().command(&[b"SHUTDOWN", b"NOSAVE"]).await;
        until("it has ended", DEADLINE, || !socket(&scratch).exists());
        let error = shutdown.map(drop).unwrap_err();
        let mut said = scratch.explained(error).to_string();
        // The process is reaped a moment after its socket is gone.
        while !said.contains("it ended") {
            said = scratch.empty().await.unwrap_err().to_string();
        }
        assert!(said.contains("end of its log"), "{said}");
    });
}

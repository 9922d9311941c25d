use std::time::Duration;

use super::*;

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

async fn prepared() -> (tempfile::TempDir, FsStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = FsStore::new(directory.path().join("new/archive"));
    store.prepare().await.unwrap();
    (directory, store)
}

fn temporaries(store: &FsStore) -> usize {
    fs::read_dir(store.place.root.join(TEMPORARY))
        .unwrap()
        .count()
}

#[tokio::test]
async fn nothing_is_left_behind() {
    let (_directory, store) = prepared().await;
    assert_eq!(temporaries(&store), 0);
    store.create(&name("a/b"), vec!["x".into()]).await.unwrap();
    store.create(&name("a/b"), vec!["x".into()]).await.unwrap();
    let mut upload = store.begin_upload(&name("a/c")).await.unwrap();
    upload.write("y".into()).await.unwrap();
    assert_eq!(temporaries(&store), 1);
    drop(upload);
    let upload = store.begin_upload(&name("a/d")).await.unwrap();
    upload.abort().await;
    let upload = store.begin_upload(&name("a/e")).await.unwrap();
    upload.complete().await.unwrap();
    assert_eq!(temporaries(&store), 0);
}

#[tokio::test]
async fn what_a_crash_left_is_never_listed_and_goes_after_a_day() {
    let (_directory, store) = prepared().await;
    let folder = store.place.root.join(TEMPORARY);
    for (file, hours) in [("old", 25), ("young", 23)] {
        let file = File::create(folder.join(file)).unwrap();
        let now = file.metadata().unwrap().modified().unwrap();
        file.set_modified(now - Duration::from_secs(hours * 3600))
            .unwrap();
    }
    assert_eq!(store.list("", None).await.unwrap(), []);
    assert_eq!(store.list(".tmp-uploads/", None).await.unwrap(), []);
    store.prepare().await.unwrap();
    assert!(!folder.join("old").exists());
    assert!(folder.join("young").exists());
}

#[tokio::test]
async fn other_peoples_files_are_passed_over() {
    let (_directory, store) = prepared().await;
    let root = &store.place.root;
    fs::write(root.join("notes about this.txt"), "x").unwrap();
    fs::write(root.join(".hidden"), "x").unwrap();
    fs::create_dir_all(root.join("lost+found/a")).unwrap();
    std::os::unix::fs::symlink("/", root.join("link")).unwrap();
    fs::write(root.join("README"), "x").unwrap();
    let listed = store.list("", None).await.unwrap();
    let names: Vec<_> = listed.iter().map(|listed| listed.name.as_str()).collect();
    assert_eq!(names, ["README"]);
}

#[tokio::test]
async fn a_directory_that_went_away_is_an_error_and_not_an_empty_archive() {
    let (_directory, store) = prepared().await;
    store.create(&name("a/b"), vec!["x".into()]).await.unwrap();
    // As where a volume is unmounted: the mount point stays, empty.
    fs::remove_dir_all(&store.place.root).unwrap();
    fs::create_dir(&store.place.root).unwrap();
    for result in [
        store
            .create(&name("a/c"), vec!["x".into()])
            .await
            .map(|_| ()),
        store.begin_upload(&name("a/c")).await.map(|_| ()),
    ] {
        let error = result.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::NotFound);
        assert!(error.to_string().contains("mounted"), "{error}");
    }
    fs::remove_dir(&store.place.root).unwrap();
    let error = store.list("", None).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound);
    assert!(error.to_string().contains("mounted"), "{error}");
    assert!(!store.place.root.exists());
}

#[tokio::test]
async fn a_file_in_the_way_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "x").unwrap();
    for root in [file.clone(), file.join("below")] {
        let store = FsStore::new(&root);
        let error = store.prepare().await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}");
        assert!(
            error
                .to_string()
                .contains("a file is where a directory should be"),
            "{error}"
        );
        assert!(store.list("", None).await.is_err());
    }
}

#[tokio::test]
async fn a_directory_that_was_taken_away_is_made_again() {
    let (_directory, store) = prepared().await;
    store
        .create(&name("a/b/c"), vec!["x".into()])
        .await
        .unwrap();
    fs::remove_dir_all(store.place.root.join("a")).unwrap();
    let again = store
        .create(&name("a/b/c"), vec!["y".into()])
        .await
        .unwrap();
    assert_eq!(again, Created::New);
    assert_eq!(store.read(&name("a/b/c"), None).await.unwrap(), "y");
}

#[test]
fn the_systems_errors_are_said_in_plain_words() {
    let root = Path::new("/");
    for (code, kind, words) in [
        (1, StoreErrorKind::Denied, "hard links"),
        (2, StoreErrorKind::NotFound, "no such object"),
        (5, StoreErrorKind::Unavailable, "system's log"),
        (13, StoreErrorKind::Denied, "writable for uid"),
        (20, StoreErrorKind::Invalid, "a file is where"),
        (23, StoreErrorKind::Unavailable, "ulimit -n"),
        (24, StoreErrorKind::Unavailable, "ulimit -n"),
        (28, StoreErrorKind::Full, "no space is left"),
        (30, StoreErrorKind::Denied, "read-only"),
        (36, StoreErrorKind::Invalid, "too long"),
        (95, StoreErrorKind::Invalid, "hard links"),
        (122, StoreErrorKind::Full, "no space is left"),
    ] {
        let (found, text) = explain(&io::Error::from_raw_os_error(code), root);
        assert_eq!(found, kind, "{code}: {text}");
        assert!(text.contains(words), "{code}: {text}");
    }
    let gone = explain(&io::Error::from_raw_os_error(2), Path::new("/not/there"));
    assert!(gone.1.contains("mounted"), "{}", gone.1);
}

/// A piece of an upload, of a size that makes several begin a sync ahead.
const PIECE_BYTES: usize = 5 * 1024 * 1024;

#[tokio::test]
async fn a_large_upload_is_synced_on_the_way_and_whole() {
    let (_directory, store) = prepared().await;
    let mut upload = store.begin_upload(&name("a/large")).await.unwrap();
    let pieces: Vec<Bytes> = (0..9).map(|n| vec![n; PIECE_BYTES].into()).collect();
    for piece in &pieces {
        upload.write(piece.clone()).await.unwrap();
    }
    assert_eq!(upload.complete().await.unwrap(), Created::New);
    let stored = store.read(&name("a/large"), None).await.unwrap();
    assert!(stored == pieces.concat());
}

#[tokio::test]
async fn what_a_sync_ahead_was_told_is_not_forgotten() {
    let (_directory, store) = prepared().await;
    let failing = |unsynced| FsUpload {
        store: store.clone(),
        name: name("a/lost"),
        temporary: Some(store.place.temporary().unwrap()),
        unsynced,
        syncing: Some(tokio::spawn(async { Err(io::Error::other("bad sector")) })),
    };
    let error = Box::new(failing(0)).complete().await.unwrap_err();
    assert!(error.to_string().contains("bad sector"), "{error}");
    let mut upload = failing(SYNC_AHEAD_BYTES);
    assert!(upload.write("x".into()).await.is_err());
    assert!(Box::new(upload).complete().await.is_err());
    assert!(store.list("", None).await.unwrap().is_empty());
    assert_eq!(temporaries(&store), 0);
}

//! An archive that goes away under a `run`: segments could still be written, so only a look tells.

use crate::harness::s3::{Canned, S3Server};
use crate::harness::{DEADLINE, Perennial, REDIS_7_0, until};

#[test]
fn nothing_is_promised_for_an_archive_that_was_emptied() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let store = S3Server::in_process();
    let archive = store.archive();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    let mut client = server.client();
    client.line("SET before 1");
    client.wait_until_stored(DEADLINE);

    // The store is away for a moment and comes back without anything, as one that keeps all in memory does.
    let away = Canned::error(503, "SlowDown", "Please reduce your request rate.");
    store.control().answer_every(1, away);
    client.line("SET meanwhile 1");
    let confirmed = client.line("WAIT 1 3000").integer();
    assert_eq!(confirmed, 0, "confirmed without a store");
    std::fs::remove_dir_all(store.folder().join("a")).unwrap();
    store.control().answer_as_usual();
    until("it ends", DEADLINE, || perennial.exited().is_some());
    let log = perennial.log();
    assert!(log.contains("is another one than at the start"), "{log}");
    client.line("SET after 1");
    assert_eq!(client.line("WAIT 1 100").integer(), 0);
}

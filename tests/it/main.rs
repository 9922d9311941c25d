//! End-to-end tests: the real binary against real servers.
//!
//! One binary, so that it links once. Each scenario is a file; its tests' names say what is promised. A server that
//! this machine lacks is a loud, counted skip, and a failure where `$CI` is set. `scripts/servers.sh` gets them.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails by panicking says where; the setting of clippy.toml does not reach functions that are no tests"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "deadlines of tests are measured in real time; only the library takes the time as an argument"
)]
#![allow(
    unreachable_pub,
    reason = "nothing of a test binary is reachable; `pub` marks what the scenarios use of the harness"
)]

// What everything else stands on: servers, clients, digest, workload, proxy, the binary itself.
mod harness;
// The harness proven on real servers, without Perennial: the digest sees what differs, the writers do not lie.
mod harness_proof;
// The layer table of the design, read from the sources.
mod layers;

// What the archive relies on, on every store: memory, folder, S3, Google Cloud Storage.
mod store_suite;
// Google Cloud Storage, played by a fake in this process: the loop, what goes wrong, memory.
#[cfg(feature = "gcs")]
mod on_gcs;
// S3: what it answers when something is wrong, what it costs, and the loop over it.
#[cfg(feature = "s3")]
mod on_s3;
// S3: headers, permissions, and the words of every command.
#[cfg(feature = "s3")]
mod replaced;
#[cfg(feature = "s3")]
mod s3_requests;

// The scenarios below on S3 and Google Cloud Storage.
#[cfg(any(feature = "s3", feature = "gcs"))]
mod every_store;
// Stores that are down, hang or crawl for a while under load: the master goes on, nothing is lost.
#[cfg(all(feature = "s3", feature = "gcs"))]
mod outages;
// The same with a spool: what does not fit into memory waits in files.
#[cfg(all(feature = "s3", feature = "gcs"))]
mod outages_spooled;
// A first sync into a store that is slower than the master.
#[cfg(feature = "s3")]
mod slow_first_sync;
// The spool in this process: full, and read back in vain.
mod spooled;
// Each request to a store goes wrong in turn.
#[cfg(all(feature = "s3", feature = "gcs"))]
mod store_failures;

// Two on one archive, with different cuts and clocks, either of which dies at any time.
mod two_streamers;
// Times that jump by years, full disks, descriptors that run out, a container's memory.
mod circumstances;
// What the servers' own suites put replication through, with Perennial as a replica and as a master.
mod psync_scenarios;
// What is done with a server, row by row: where each is proven, and the rows that no other scenario has.
mod section_four;
// The promise: a master that comes up empty has everything back that was stored, and history goes on.
mod loop_closes;
// A server that starts from an older dump gets the writes that came after it.
mod stale_dump;
// A server that waits for its seed at every start: a test for each row of the table of what it may hold.
mod born_a_replica;
// What is different before 7.0: keys on the link, forks, dumps without a past.
mod older_masters;
// Fields of hashes that expire, and the payload format that carries them.
mod fields_that_expire;
// A process that forgot its id is known by itself.
mod same_process;
// A data set that its users emptied stays empty.
mod emptied_on_purpose;
// Real replicas of a master that died continue from the seeded one, or from one of them.
mod surviving_replicas;
// A replica is followed in its master's coordinates, and never seeded.
mod sub_replica;
// WAIT means that the write is in the store, also while the store refuses.
mod wait_means_stored;
// Values and transactions larger than every buffer.
mod big_values;
// A snapshot larger than memory may be, on each store.
mod large_snapshots;
// Snapshots behind the first one: on schedule, from a replica, and when somebody asks.
mod later_snapshots;
// Snapshots that are made from the archive, by a scratch server.
mod archive_snapshots;
// A snapshot too large for one object.
mod snapshot_parts;
// Perennial dies under load and goes on, or says what is missing.
mod killed_under_load;
// Links that are cut at any byte, stall, or are slow.
mod bad_link;
// FAILOVER with nobody but us attached leaves the master writable.
mod failover_without_to;
// Seeds that take longer than what is quick to give up.
mod slow_seeds;
// Another Perennial goes on storing while a server is seeded: nothing of that is missing behind the seed.
mod head_moves;
// Wrong passwords, web servers, unwritable stores, damaged objects, wrong flags.
mod bad_input;
// What an archive costs: requests counted on simulated time, and the table of the documentation.
mod costs;
// Small segments become few while everything goes on; what is too old goes.
mod upkeep;
// What status and ls say.
mod status;
// What inspect tells of dumps and archives.
mod inspect;
// The doctor: what check finds on servers and stores, and that it leaves them as they were.
mod check;
// Back to any moment, to files and into servers.
mod travel;
// Servers that are started, or lent, to try a restore: nothing of them stays.
mod scratch;
// Verify: every damaged or lost object is found; drills catch what checksums cannot.
mod verify;
// Objects that are damaged or lost: others that lead to the same moment are used, and nothing older ever.
mod damaged;
// Restores that have to change bytes: relative TTLs, HPERSIST.
mod rewritten;
// Both killed at any moment, again and again.
mod double_kill;
// Everything killed, stopped, cut off and failed over at random, for as long as one likes.
#[cfg(feature = "s3")]
mod chaos;
// A server that is stopped in order under load loses nothing that it answered, in whatever order Perennial stops.
mod orderly_stop;
// Perennial, the master, or both, killed or stopped at every step, reached by traps.
mod kill_matrix;
// Seeds that must not come about, and stopping while something hangs.
mod seeds_refused;
mod sentinel;
// ACL rules, passwords and masterauth; the loop over a socket file.
mod passwords;
// Seeds into other versions, without a module, with too little memory.
mod seeds_elsewhere;
// The loop by TLS, and what handshakes that fail say.
mod encrypted;
// Metrics, readiness, health, logs without secrets, the file of settings, completions, the unit of systemd.
mod observed;
// Ready over a store that hangs, with everything full.
#[cfg(all(feature = "s3", feature = "gcs"))]
mod stays_ready;
// What a person is told: usage, files, output that nobody takes, restores and prunes that are only tried out.
mod said;
// The documents of --json are those of docs/json.md.
mod json_documents;
// The help, word for word; every flag has its variable.
mod cli;

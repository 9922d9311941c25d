//! The protocol cores on bytes from real servers.
//!
//! - `fixtures`: every capture and every malformed case under `proto-fixtures/`, whole and in pieces
//! - `dumps`: the keys of dumps that real servers wrote
//! - `render`: what a core said, as the text that lies beside each fixture

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod dumps;
mod fixtures;
mod render;

//! Protocol cores without I/O: bytes and the time go in as arguments, events and bytes to send come out.
//! Sockets, clocks and decisions are left to `follow`, `restore` and `decide`.
//!
//! ```text
//! answer      how deep an answer may be
//! handshake   the words both sides share: password, position asked for, how a request is spelled
//! replica     our side when we follow a master
//! master      our side when we seed a server, or refuse one
//! resp        where commands end in the replication stream
//! request     single requests, decoded
//! rdb         where the keys of a dump lie
//! ```

pub mod answer;
pub mod handshake;
pub mod master;
pub mod rdb;
pub mod replica;
pub mod request;
pub mod resp;

#[cfg(test)]
mod face_to_face;

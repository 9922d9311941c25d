//! What can go wrong with a store, in words that say what to do.

use crate::archive::layout::{Object, ObjectName};

/// What kind of thing went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreErrorKind {
    /// There is no such object, or no such place.
    NotFound,
    /// The store refuses us.
    Denied,
    /// The store does not answer, or answers that it cannot now.
    Unavailable,
    /// There is no room.
    Full,
    /// An object of that name is there with different bytes.
    Conflict,
    /// The address, the place or the request can never work.
    Invalid,
}

/// An operation on a store failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{operation} {object}{}{address}: {detail}", if object.is_empty() { "" } else { " in " })]
pub struct StoreError {
    /// What kind of thing went wrong.
    pub kind: StoreErrorKind,
    /// What was tried, as a verb.
    pub operation: &'static str,
    /// On what: the object's kind and name, or nothing where it was the store itself.
    pub object: String,
    /// Where, without secrets.
    pub address: String,
    /// What came back, and what to do.
    pub detail: String,
}

impl StoreError {
    /// An error about one object.
    pub fn new(
        kind: StoreErrorKind,
        operation: &'static str,
        name: &ObjectName,
        address: String,
        detail: String,
    ) -> Self {
        let object = match Object::parse(name.as_str()) {
            Some(object) => format!("{} {name}", object.word()),
            None => format!("object {name}"),
        };
        Self {
            kind,
            operation,
            object,
            address,
            detail,
        }
    }

    /// An error about the store itself.
    pub const fn about_store(
        kind: StoreErrorKind,
        operation: &'static str,
        address: String,
        detail: String,
    ) -> Self {
        Self {
            kind,
            operation,
            object: String::new(),
            address,
            detail,
        }
    }

    /// Whether a single object is not there, rather than the place where all of them are.
    pub const fn is_about_missing_object(&self) -> bool {
        matches!(self.kind, StoreErrorKind::NotFound) && !self.object.is_empty()
    }

    /// `true` where the same request may succeed later without anybody changing anything but load, link or
    /// free space. A request that was answered with such an error may have been done.
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            StoreErrorKind::Unavailable | StoreErrorKind::Full
        )
    }
}

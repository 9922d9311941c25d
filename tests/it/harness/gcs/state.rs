//! What the fake holds, and the rules by which objects appear.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use crc_fast::{CrcAlgorithm, checksum};

use super::{Answer, Asked};

pub struct Shared {
    /// Where it listens: sessions are there, too.
    pub address: String,
    state: Mutex<State>,
}

impl Shared {
    pub fn new(address: String) -> Self {
        Self {
            address,
            state: Mutex::default(),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
pub struct State {
    pub objects: BTreeMap<String, Object>,
    pub sessions: BTreeMap<u64, Session>,
    pub ignore_conditions: bool,
    pub forbid_deleting: bool,
    pub want_token: bool,
    /// What the request of this number meets.
    pub at: Option<(usize, Answer)>,
    /// What each request is asked for.
    pub chosen: Option<Box<dyn FnMut() -> Option<Answer> + Send>>,
    pub met: usize,
    plans: Vec<(Asked, Answer, usize)>,
    asked: Vec<Asked>,
    last: u64,
}

/// A stored object.
pub struct Object {
    pub bytes: Bytes,
    pub crc: u32,
    pub generation: u64,
    /// Since the Unix epoch.
    pub created: Duration,
    pub class: String,
    pub key: String,
}

/// What a write asks for.
#[derive(Clone, Default)]
pub struct Wish {
    pub name: String,
    pub only_if_absent: bool,
    pub crc: Option<u32>,
    pub class: String,
    pub key: String,
}

/// A resumable upload.
pub struct Session {
    pub wish: Wish,
    pub bytes: Vec<u8>,
    /// The generation of the object that it became.
    pub done: Option<u64>,
}

impl State {
    pub fn plan(&mut self, asked: Asked, answer: Answer, times: usize) {
        self.plans.push((asked, answer, times));
    }

    pub fn forget_plans(&mut self) {
        self.plans.clear();
        self.at = None;
        self.chosen = None;
    }

    /// Counts a request and takes what is planned for it.
    pub fn planned(&mut self, asked: Asked) -> Option<Answer> {
        self.asked.push(asked);
        let number = self.asked.len();
        let by_number = self.at.filter(|(at, _)| *at == number);
        let answer = by_number
            .map(|(_, answer)| answer)
            .or_else(|| self.chosen.as_mut().and_then(|chosen| chosen()));
        if answer.is_some() {
            self.met += 1;
            return answer;
        }
        let plan = self
            .plans
            .iter_mut()
            .find(|plan| plan.0 == asked && plan.2 > 0)?;
        plan.2 -= 1;
        Some(plan.1)
    }

    pub fn count(&self, asked: Asked) -> usize {
        self.asked.iter().filter(|one| **one == asked).count()
    }

    pub fn requests(&self) -> usize {
        self.asked.len()
    }

    pub fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Creates an object as wished, or says with which status not.
    pub fn create(&mut self, wish: &Wish, bytes: Bytes) -> Result<u64, u16> {
        if wish.crc.is_some_and(|crc| crc != crc32c(&bytes)) {
            return Err(400);
        }
        let present = self.objects.contains_key(&wish.name);
        if present && self.forbid_deleting {
            return Err(403);
        }
        if wish.only_if_absent && present && !self.ignore_conditions {
            return Err(412);
        }
        Ok(self.store(wish, bytes))
    }

    pub fn put(&mut self, name: &str, bytes: Bytes) {
        let wish = Wish {
            name: name.to_owned(),
            ..Wish::default()
        };
        self.store(&wish, bytes);
    }

    fn store(&mut self, wish: &Wish, bytes: Bytes) -> u64 {
        let generation = self.next();
        let object = Object {
            crc: crc32c(&bytes),
            bytes,
            generation,
            created: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap(),
            class: wish.class.clone(),
            key: wish.key.clone(),
        };
        self.objects.insert(wish.name.clone(), object);
        generation
    }
}

pub fn crc32c(bytes: &[u8]) -> u32 {
    u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, bytes)).unwrap()
}

/// What it says when replacing is not allowed, because replacing is deleting.
pub const NO_REPLACING: &str = "robot@project.iam.gserviceaccount.com does not have storage.objects.delete access to the object.";

/// What the service says with a status. The real one's words, as far as they matter.
pub fn words(status: u16) -> &'static str {
    match status {
        400 => "Provided CRC32C doesn't match calculated CRC32C.",
        401 => "Invalid Credentials",
        403 => "robot@project.iam.gserviceaccount.com does not have that access.",
        404 => "The specified bucket does not exist.",
        412 => "At least one of the pre-conditions you specified did not hold.",
        429 => "The object exceeded the rate limit for object mutation operations.",
        503 => "We encountered an internal error. Please try again.",
        _ => "Something else.",
    }
}

//! Waiting for a condition with a deadline; the only waiting there is in the tests.

use std::thread;
use std::time::{Duration, Instant};

/// Long enough for anything that a healthy, busy machine does; a test that waits this long has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Answers that a condition can give: `bool`, or `Option` to bring something back.
pub trait Answer {
    /// What `until` returns.
    type Found;
    /// The found value, when the condition holds.
    fn found(self) -> Option<Self::Found>;
}

impl Answer for bool {
    type Found = ();
    fn found(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Answer for Option<T> {
    type Found = T;
    fn found(self) -> Self {
        self
    }
}

/// Looks at `condition` until it holds, and returns what it found. Panics at the deadline, naming `what`.
#[track_caller]
pub fn until<A: Answer>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> A,
) -> A::Found {
    let started = Instant::now();
    loop {
        if let Some(found) = condition().found() {
            return found;
        }
        assert!(
            started.elapsed() < deadline,
            "waited {deadline:?} in vain until {what}"
        );
        thread::sleep(PAUSE);
    }
}

/// Looks at `condition` again and again for `span`: it must hold every time. For what must *not* happen, where no
/// event marks the end of the danger. Panics at the first look at which it does not hold.
#[track_caller]
pub fn holds_for(what: &str, span: Duration, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while started.elapsed() < span {
        assert!(
            condition(),
            "after {:?} it no longer held: {what}",
            started.elapsed()
        );
        thread::sleep(PAUSE);
    }
}

#[test]
fn until_brings_back_what_was_found() {
    let mut looks = 0;
    let found = until("the third look", DEADLINE, || {
        looks += 1;
        (looks == 3).then_some(looks * 10)
    });
    assert_eq!(found, 30);
}

#[test]
#[should_panic(expected = "in vain until pigs fly")]
fn until_gives_up_at_the_deadline() {
    until("pigs fly", Duration::from_millis(50), || false);
}

#[test]
#[should_panic(expected = "no longer held: calm")]
fn holds_for_notices_the_one_bad_look() {
    let mut looks = 0;
    holds_for("calm", DEADLINE, || {
        looks += 1;
        looks < 3
    });
}

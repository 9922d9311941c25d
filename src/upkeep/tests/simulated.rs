//! Two streamers and two that keep the archive, on simulated time, killed at random: no moment of the window is lost.
//! `PERENNIAL_UPKEEP_HOURS` simulates more of them.

use super::*;

/// Draws numbers from a seed that a failure prints.
struct Drawn(u64);

impl Drawn {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Polls so often, and then never again.
async fn killed_after<T>(polls: u64, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    for _ in 0..polls {
        let polled = std::future::poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await;
        if let Poll::Ready(done) = polled {
            return Some(done);
        }
        tokio::task::yield_now().await;
    }
    None
}

/// A timeline that is being written.
struct Live {
    seq: u32,
    end: u64,
    /// What each of two streamers has stored.
    stored: [u64; 2],
    /// Where the last snapshot was taken.
    snapshot: u64,
}

struct Simulation {
    world: World,
    drawn: Drawn,
    live: Live,
    next_seq: u32,
    /// How far the streamers' clocks are ahead.
    skews: [u64; 2],
    /// Moments that could be restored when they were stored: when that was, timeline, offset.
    moments: Vec<(u64, u32, u64)>,
}

impl Simulation {
    async fn new(seed: u64) -> Self {
        let world = World::new().await;
        world.timeline(1, None, false).await;
        world.snapshot(1, 0, BEGIN).await;
        Self {
            world,
            drawn: Drawn(seed),
            live: Live {
                seq: 1,
                end: 0,
                stored: [0, 0],
                snapshot: 0,
            },
            next_seq: 2,
            skews: [0, 40 * SECOND],
            moments: Vec::new(),
        }
    }

    /// Something happens.
    async fn step(&mut self) {
        self.world.pass_time(1 + self.drawn.below(40 * SECOND));
        match self.drawn.below(400) {
            0..=2 => self.failover().await,
            3 => self.foreign().await,
            4..=8 => self.snapshot().await,
            9 => self.skews[1] = self.drawn.below(4 * HOUR),
            // Both are down for a while.
            10 => self.world.pass_time(self.drawn.below(2 * HOUR)),
            _ => self.write().await,
        }
    }

    async fn write(&mut self) {
        self.live.end += 1 + self.drawn.below(60);
        let seq = self.live.seq;
        for streamer in 0..2 {
            // One of them is away now and then, and comes back.
            if self.drawn.below(3) == 0
                && self.live.stored[1 - streamer] >= self.live.stored[streamer]
            {
                continue;
            }
            let first = self.live.stored[streamer] + 1;
            if first > self.live.end {
                continue;
            }
            let last = first + self.drawn.below(self.live.end - first + 1);
            let at = self.world.now - 900 + self.skews[streamer];
            self.world.segment(seq, first, last, at).await;
            self.live.stored[streamer] = last;
        }
        let both = self.live.stored;
        self.moments
            .push((self.world.now, seq, both[0].max(both[1])));
    }

    async fn snapshot(&mut self) {
        let offset = self.live.stored[0].max(self.live.stored[1]);
        if offset > self.live.snapshot {
            self.world
                .snapshot(self.live.seq, offset, self.world.now)
                .await;
            self.live.snapshot = offset;
        }
    }

    /// A child timeline, from the end or from before it.
    async fn failover(&mut self) {
        let stored = self.live.stored[0].max(self.live.stored[1]);
        let back = self.drawn.below(3) * self.drawn.below(40);
        let floor = self.live.snapshot;
        let fork = stored.saturating_sub(back).max(floor);
        let seq = self.next_seq;
        self.next_seq += 1;
        self.world
            .timeline(seq, Some((self.live.seq, fork)), false)
            .await;
        self.live = Live {
            seq,
            end: fork,
            stored: [fork, fork],
            snapshot: fork,
        };
    }

    /// Somebody else's data beside the head.
    async fn foreign(&mut self) {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.world.timeline(seq, None, true).await;
        self.world.snapshot(seq, 10, self.world.now).await;
        self.world.segment(seq, 11, 30, self.world.now).await;
        self.moments.push((self.world.now, seq, 30));
    }

    /// Every moment of the window can be restored.
    async fn assert_whole(&mut self, retention: u64, seed: u64) {
        let start = self.world.now.saturating_sub(retention);
        self.moments.retain(|(at, ..)| *at >= start);
        let catalog = self.world.catalog().await;
        for (_, seq, offset) in &self.moments {
            let position = Position {
                timeline: TimelineSeq::new(*seq),
                offset: Offset::new(*offset),
            };
            assert!(
                catalog.is_restorable(position),
                "seed {seed}: {position} is lost"
            );
        }
        if let Some((_, seq, offset)) = self.moments.last() {
            let plan = plan(&catalog, at(*seq, *offset)).unwrap();
            self.world.assert_reads(&plan).await;
        }
        let head = catalog.head().unwrap();
        assert_eq!(head.timeline.as_u32(), self.live.seq, "seed {seed}");
    }
}

fn hours(usual: u64) -> u64 {
    let given = std::env::var("PERENNIAL_UPKEEP_HOURS").ok();
    given.map_or(usual, |hours| hours.parse().unwrap())
}

#[tokio::test]
async fn two_that_keep_one_archive_and_die_at_any_moment_lose_nothing() {
    // A day for each archive: timelines stay for ever, and every restore is computed over all of them.
    let mut left = hours(8);
    while left > 0 {
        let seed = getrandom::u64().unwrap();
        eprintln!("seed {seed}");
        let hours = left.min(24);
        simulate(seed, hours).await;
        left -= hours;
    }
}

async fn simulate(seed: u64, hours: u64) {
    let mut simulation = Simulation::new(seed).await;
    let retention = 2 * HOUR;
    let policy = Policy {
        retention_millis: retention,
        ..Policy::default()
    };
    // The second one cuts otherwise, as another release might.
    let other = Policy {
        minute_millis: 100 * SECOND,
        hour_millis: 25 * MINUTE,
        grace_millis: 3 * MINUTE,
        ..policy
    };
    let policies = [policy, other];
    let mut keepers = policies.map(|policy| simulation.world.own_upkeep(policy));
    let skews = [2 * MINUTE, 4 * MINUTE];
    let (mut most, mut deleted, mut killed) = (0, 0, 0);
    let end = BEGIN + hours * HOUR;
    while simulation.world.now < end {
        for _ in 0..8 {
            simulation.step().await;
        }
        let now = simulation.world.now;
        for at in 0..2 {
            let (_, clock) = &keepers[at];
            // Now and then a clock is wrong.
            let skew = if simulation.drawn.below(20) == 0 {
                2 * HOUR
            } else {
                skews[at]
            };
            clock.set(now + skew);
        }
        // One, the other, or both at the same time.
        let which = simulation.drawn.below(3);
        let polls = [simulation.drawn.below(60), simulation.drawn.below(60)];
        let [(first, _), (second, _)] = &mut keepers;
        let (one, two) = match which {
            0 => (Some(first.pass(|_, _| {}).await), None),
            1 => (None, Some(second.pass(|_, _| {}).await)),
            _ => tokio::join!(
                killed_after(polls[0], first.pass(|_, _| {})),
                killed_after(polls[1], second.pass(|_, _| {}))
            ),
        };
        for (at, done) in [one, two].into_iter().enumerate() {
            match done {
                Some(Ok(done)) => {
                    assert!(done.alarms.is_empty(), "seed {seed}: {:?}", done.alarms);
                    deleted += done.deleted_merged + done.deleted_pruned;
                }
                Some(Err(error)) => panic!("seed {seed}: {error}"),
                // Killed: another one begins, which knows nothing.
                None if which == 2 => {
                    killed += 1;
                    keepers[at] = simulation.world.own_upkeep(policies[at]);
                }
                None => {}
            }
        }
        most = most.max(simulation.world.names().await.len());
        simulation.assert_whole(retention, seed).await;
    }
    eprintln!("{hours} hours: {deleted} deleted, {killed} killed, {most} objects at most");
    assert!(deleted > 100 && killed > 0, "seed {seed}: it did nothing");
}

/// A week of a segment each second stays at a few hundred objects, and a restore reads no more than it must.
#[tokio::test]
async fn a_week_stays_small() {
    let hours = hours(2);
    let mut world = World::new().await;
    world.timeline(1, None, false).await;
    world.snapshot(1, 0, BEGIN).await;
    let (mut upkeep, clock) = world.own_upkeep(Policy::default());
    let mut most = 0;
    let seconds = hours * 3600;
    for second in 0..seconds {
        world.pass_time(SECOND);
        world
            .segment(1, second * 2 + 1, second * 2 + 2, world.now)
            .await;
        if second % 300 == 299 {
            clock.set(world.now);
            let done = upkeep.pass(|_, _| {}).await.unwrap();
            assert!(done.alarms.is_empty() && done.refused.is_none(), "{done:?}");
            most = most.max(world.names().await.len());
        }
    }
    // A merged one for each hour, those of the last hour's minutes, and what the grace period keeps.
    let hours = usize::try_from(hours).unwrap();
    let expected = hours + 2 * 60 + 2 * 600 + 600;
    eprintln!("{hours} hours: {most} objects at most");
    assert!(
        most < expected,
        "{most} objects, {expected} were expected at most"
    );
    let plan = plan(&world.catalog().await, Target::Latest).unwrap();
    eprintln!("a restore reads {} segments", plan.segments());
    assert!(plan.segments() < hours + 60 + 400, "{}", plan.segments());
    world.assert_reads(&plan).await;
}

/// Whatever the archive looks like: a pass does what was planned, and nothing else.
#[tokio::test]
async fn what_is_planned_is_what_is_done() {
    let seed = getrandom::u64().unwrap();
    eprintln!("seed {seed}");
    let mut simulation = Simulation::new(seed).await;
    let policy = Policy {
        retention_millis: HOUR,
        ..Policy::default()
    };
    let (mut created, mut covered, mut old, mut refused) = (0, 0, 0, 0);
    for round in 0..120 {
        for _ in 0..10 {
            simulation.step().await;
        }
        let (mut upkeep, clock) = simulation.world.own_upkeep(policy);
        upkeep.options.may_delete = round % 7 != 3;
        if round % 11 == 5 {
            clock.set(simulation.world.now - 2 * HOUR);
        }
        let plans = upkeep.plans().await.unwrap();
        let before = names(&simulation).await;
        let done = upkeep.pass(|_, _| {}).await.unwrap();
        let after = names(&simulation).await;
        let merges = plans.merges.iter().map(|it| it.object().name().to_string());
        let merges: BTreeSet<String> = merges.collect();
        let superfluous = plans.superfluous.iter().flat_map(|it| &it.of);
        let superfluous = superfluous.map(|it| it.name.to_string());
        let pruned = &plans.prune.as_ref().unwrap().deletions;
        let pruned = pruned.iter().map(|(name, _)| name.to_string());
        covered += superfluous.clone().count();
        old += pruned.clone().count();
        let deletions: BTreeSet<String> = superfluous.chain(pruned).collect();
        let difference = |one: &BTreeSet<String>, other: &BTreeSet<String>| {
            one.difference(other).cloned().collect::<BTreeSet<String>>()
        };
        assert_eq!(difference(&after, &before), merges, "seed {seed}: created");
        assert_eq!(
            difference(&before, &after),
            deletions,
            "seed {seed}: deleted"
        );
        assert_eq!(
            plans.refused.is_some(),
            done.refused.is_some(),
            "seed {seed}: {:?} {:?}",
            plans.refused,
            done.refused
        );
        created += merges.len();
        refused += usize::from(done.refused.is_some());
    }
    eprintln!("{created} created, {covered} and {old} deleted, {refused} refused");
    assert!(
        created > 20 && covered > 20 && old > 20 && refused > 3,
        "seed {seed}"
    );
}

async fn names(simulation: &Simulation) -> BTreeSet<String> {
    simulation.world.names().await.into_iter().collect()
}

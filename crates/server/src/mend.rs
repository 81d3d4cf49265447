//! Damage whose right bytes another registry has: asking for them, a few times, further and further apart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use adamant_digest::Digest;
use tokio::time::{Instant, MissedTickBehavior};

use crate::platform::Platform;

/// How often is looked for what is due.
const LOOK: Duration = Duration::from_secs(1);
/// How often a damage is asked for before only a push, or a restart, helps.
const TRIES: u32 = 6;
/// From the first try to the second; each pause is four times the one before.
const PAUSE: Duration = Duration::from_mins(1);
/// Longest try.
const LONGEST: Duration = Duration::from_hours(1);

/// What is asked for.
#[derive(Default)]
pub(crate) struct Mending(Mutex<State>);

#[derive(Default)]
struct State {
    wanted: BTreeMap<Digest, Try>,
    /// Came, or is coming, from another registry.
    mended: BTreeSet<Digest>,
}

struct Try {
    /// Tries so far.
    count: u32,
    due: Instant,
}

impl Mending {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what is damaged, and recorded, now.
    pub(crate) fn want(&self, damaged: &BTreeSet<Digest>) {
        let wanted = &mut self.lock().wanted;
        wanted.retain(|digest, _| damaged.contains(digest));
        for digest in damaged {
            wanted.entry(*digest).or_insert_with(|| Try { count: 0, due: Instant::now() });
        }
    }

    /// Whether what is whole again came from another registry; asked once.
    pub(crate) fn mended(&self, digest: Digest) -> bool {
        self.lock().mended.remove(&digest)
    }

    /// Begins a try, the one that waits longest.
    fn begin(&self, now: Instant) -> Option<Digest> {
        let State { wanted, mended } = &mut *self.lock();
        let due = wanted.iter_mut().filter(|(_, of)| of.count < TRIES && of.due <= now);
        let (digest, this) = due.min_by_key(|(_, of)| of.due)?;
        this.due = now + PAUSE * 4_u32.pow(this.count);
        this.count += 1;
        mended.insert(*digest);
        Some(*digest)
    }

    fn failed(&self, digest: Digest) {
        self.lock().mended.remove(&digest);
    }
}

/// Asks the upstreams for what is damaged, for ever.
pub(crate) async fn mend(platform: &Platform, mending: &Mending) {
    if platform.config.settings.upstreams.is_empty() {
        return std::future::pending().await;
    }
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        while let Some(digest) = mending.begin(Instant::now()) {
            let problem = match tokio::time::timeout(LONGEST, platform.registry.heal(digest)).await {
                Ok(Ok(_)) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("{digest} does not arrive within {} s", LONGEST.as_secs()),
            };
            mending.failed(digest);
            tracing::warn!(%digest, problem, "no upstream heals the damage");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_are_few_and_further_and_further_apart() {
        let mending = Mending::default();
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let both = BTreeSet::from([one, two]);
        mending.want(&both);
        let began = Instant::now();
        let mut tries = BTreeMap::<Digest, Vec<u64>>::new();
        for minute in 0..10_000 {
            mending.want(&both);
            while let Some(digest) = mending.begin(began + Duration::from_mins(minute)) {
                tries.entry(digest).or_default().push(minute);
                mending.failed(digest);
                assert!(!mending.mended(digest));
            }
        }
        let times = vec![0, 1, 5, 21, 85, 341];
        assert_eq!(tries, BTreeMap::from([(one, times.clone()), (two, times)]));

        // What came is told once, and a damage after it has all its tries.
        mending.want(&BTreeSet::from([two]));
        mending.want(&both);
        assert_eq!(mending.begin(Instant::now()), Some(one));
        assert!(mending.mended(one) && !mending.mended(one));
        assert_eq!(mending.begin(Instant::now()), None);
    }
}

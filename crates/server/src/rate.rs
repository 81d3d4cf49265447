//! How often somebody may do something: a token bucket for each of them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most that are remembered at a time. Who is not remembered has a full bucket.
const KEPT: usize = 10_000;

/// One bucket a key, all alike.
pub(crate) struct Buckets {
    per_second: f64,
    burst: f64,
    all: Mutex<HashMap<String, Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Buckets {
    pub(crate) fn new(per_second: f64, burst: f64) -> Self {
        Self { per_second, burst: burst.max(1.0), all: Mutex::default() }
    }

    /// Takes one, or says how long to wait for it.
    pub(crate) fn take(&self, key: &str, now: Instant) -> Result<(), Duration> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = |bucket: Bucket| {
            let since = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.left + since * self.per_second).min(self.burst)
        };
        if all.len() >= KEPT && !all.contains_key(key) {
            all.retain(|_, bucket| filled(*bucket) < self.burst);
            if all.len() >= KEPT {
                // Rather too generous than without a bound.
                all.clear();
            }
        }
        let left = all.get(key).map_or(self.burst, |bucket| filled(*bucket));
        let taken = left >= 1.0;
        all.insert(key.to_owned(), Bucket { left: if taken { left - 1.0 } else { left }, at: now });
        if taken { Ok(()) } else { Err(Duration::from_secs_f64((1.0 - left) / self.per_second)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate_and_others_theirs() {
        let buckets = Buckets::new(2.0, 3.0);
        let now = Instant::now();
        for _ in 0..3 {
            assert!(buckets.take("a", now).is_ok());
        }
        assert_eq!(buckets.take("a", now), Err(Duration::from_millis(500)));
        assert!(buckets.take("b", now).is_ok());
        assert!(buckets.take("a", now + Duration::from_millis(500)).is_ok());
        assert!(buckets.take("a", now + Duration::from_millis(600)).is_err());
    }

    #[test]
    fn memory_is_bounded() {
        let buckets = Buckets::new(1.0, 1.0);
        let now = Instant::now();
        for n in 0..KEPT * 2 {
            let _ = buckets.take(&n.to_string(), now);
        }
        assert!(buckets.all.lock().unwrap().len() <= KEPT);
    }
}

//! Who reads goes first: what is done in the background waits while large blobs are being read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Nobody reads if no block was read for this long.
const QUIET_MS: u64 = 30;
/// The background waits this long at most, then works on for [`WORK_MS`], so that it gets a sixth of
/// the time however much is read.
const WAIT_MS: u64 = 250;
const WORK_MS: u64 = 50;
/// Between looks.
const PAUSE: Duration = Duration::from_millis(5);

/// When blocks were read, in milliseconds since `begun`.
#[derive(Debug)]
pub(super) struct Reading {
    begun: Instant,
    last_ms: AtomicU64,
    /// When the background last began to work.
    worked_ms: AtomicU64,
}

impl Default for Reading {
    fn default() -> Self {
        Self { begun: Instant::now(), last_ms: AtomicU64::new(0), worked_ms: AtomicU64::new(0) }
    }
}

impl Reading {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A block is being read.
    pub(super) fn note(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Waits for a moment in which nobody reads, not for ever. Blocking.
    pub(super) fn give_way(&self) {
        let begin = self.now_ms();
        if begin.saturating_sub(self.worked_ms.load(Ordering::Relaxed)) < WORK_MS {
            return;
        }
        let mut now = begin;
        while now.saturating_sub(self.last_ms.load(Ordering::Relaxed)) < QUIET_MS && now - begin < WAIT_MS {
            std::thread::sleep(PAUSE);
            now = self.now_ms();
        }
        self.worked_ms.store(now, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn the_background_waits_for_who_reads_but_not_for_ever() {
        let reading = Reading::default();
        let waited = || {
            // What was worked off before does not count.
            std::thread::sleep(Duration::from_millis(WORK_MS + 1));
            let begin = Instant::now();
            reading.give_way();
            begin.elapsed()
        };
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    reading.note();
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let while_read = waited();
            done.store(true, Ordering::Relaxed);
            assert!(while_read >= Duration::from_millis(QUIET_MS), "{while_read:?}");
        });
        assert!(waited() < Duration::from_millis(WAIT_MS), "nobody reads any more");
        // Right after it began to work it does not stop.
        reading.worked_ms.store(reading.now_ms() + 10_000, Ordering::Relaxed);
        reading.last_ms.store(u64::MAX, Ordering::Relaxed);
        let begin = Instant::now();
        reading.give_way();
        assert!(begin.elapsed() < Duration::from_millis(WAIT_MS));
    }
}

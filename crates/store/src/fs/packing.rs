//! The thread that packs, and what waits for it.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use adamant_digest::Digest;

use super::likeness::Likeness;
use super::pack::{LEAST_BYTES, Packed};
use super::{FsBlobs, Inner};

/// Most blobs that wait. What does not fit is found by walking through the store.
const MOST_WAITING: usize = 4096;

/// Blobs that wait to be looked at.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Somebody takes them out.
    open: bool,
    blobs: VecDeque<Digest>,
    /// More came than fit.
    overflowed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A blob was stored.
    pub(super) fn push(&self, digest: Digest, size: u64) {
        if size < LEAST_BYTES {
            return;
        }
        let mut waiting = self.lock();
        if !waiting.open {
            return;
        }
        if waiting.blobs.len() < MOST_WAITING {
            waiting.blobs.push_back(digest);
        } else {
            waiting.overflowed = true;
        }
        drop(waiting);
        self.changed.notify_one();
    }
}

/// Packing, until dropped.
#[derive(Debug)]
pub struct Packing {
    store: Arc<Inner>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Packing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.store.queue.lock().open = false;
        self.store.queue.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing to say any more.
            drop(thread.join());
        }
    }
}

impl FsBlobs {
    /// Looks at every large blob, those that are here and those that come, in a thread of the lowest
    /// priority, and stores it as what differs from one that is like it. One at a time for a directory.
    pub fn start_packing(&self) -> io::Result<Packing> {
        let stop = Arc::new(AtomicBool::new(false));
        self.0.queue.lock().open = true;
        let (store, stopped) = (Arc::clone(&self.0), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("pack".to_owned()).spawn(move || {
            // Of this thread alone, as Linux has it.
            if let Err(error) = rustix::process::setpriority_process(None, 19) {
                tracing::warn!(%error, "packing runs at the usual priority");
            }
            if let Err(error) = run(&store, &stopped) {
                tracing::error!(%error, "packing ended: large blobs stay as they were pushed");
            }
            store.queue.lock().open = false;
        })?;
        Ok(Packing { store: Arc::clone(&self.0), stop, thread: Some(thread) })
    }

    /// Looks at all blobs that were not looked at yet, the oldest first, and at those of `also`. Gives how
    /// many were patched. Blocking; not while a [`Packing`] runs.
    pub fn pack(&self, also: &[Digest]) -> io::Result<u64> {
        let stop = AtomicBool::new(false);
        let (mut likeness, mut seen) = Likeness::open(&self.0.dir)?;
        let mut patched = 0;
        for digest in self.0.unseen(&seen)?.into_iter().chain(also.iter().copied()) {
            seen.insert(digest);
            patched += u64::from(self.0.pack(digest, &mut likeness, &stop)? != Packed::Plain);
        }
        Ok(patched)
    }
}

fn run(store: &Arc<Inner>, stop: &AtomicBool) -> io::Result<()> {
    let (mut likeness, seen) = Likeness::open(&store.dir)?;
    store.sweep_pieces()?;
    let mut walked: VecDeque<Digest> = store.unseen(&seen)?.into();
    drop(seen);
    loop {
        let next = {
            let mut waiting = store.queue.lock();
            loop {
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                if let Some(next) = walked.pop_front().or_else(|| waiting.blobs.pop_front()) {
                    break Some(next);
                }
                if std::mem::take(&mut waiting.overflowed) {
                    break None;
                }
                waiting = store.queue.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let Some(digest) = next else {
            walked = store.unseen(&Likeness::open(&store.dir)?.1)?.into();
            continue;
        };
        match store.pack(digest, &mut likeness, stop) {
            Ok(packed) => tracing::debug!(%digest, ?packed, "looked at a blob"),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            // It stays as it is; the next start looks at it again.
            Err(error) => tracing::warn!(%digest, %error, "a blob cannot be packed"),
        }
    }
}

impl Inner {
    /// Large plain blobs that are not in `seen` or have a recipe as well, the oldest first.
    fn unseen(&self, seen: &HashSet<Digest>) -> io::Result<Vec<Digest>> {
        let mut found = Vec::new();
        for digest in self.names_in("sha256")? {
            let Ok(meta) = std::fs::symlink_metadata(self.path(digest)) else { continue };
            let both = self.recipe_path(digest).exists();
            if both || (meta.is_file() && meta.len() >= LEAST_BYTES && !seen.contains(&digest)) {
                found.push((meta.mtime(), meta.mtime_nsec(), digest));
            }
        }
        found.sort_unstable();
        Ok(found.into_iter().map(|(_, _, digest)| digest).collect())
    }
}

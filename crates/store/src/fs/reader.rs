//! Reading with the digest checked before the end is given away.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use adamant_digest::{Digest, DigestMismatch, Hasher};
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::blocks::{BLOCK_BYTES, BlockList, Recorder};
use super::content::Content;
use super::{Inner, SMALL_BYTES, read_full};
use crate::{ReadBlobError, Reader};

/// Blocks that are read ahead of whoever takes them.
const AHEAD: usize = 4;

/// Blocks given away that are remembered, to read into them again once nobody holds them.
const REUSED: usize = 16;

/// Opens a blob. Blocking.
pub(super) fn open(store: &Arc<Inner>, digest: Digest) -> Result<Reader, ReadBlobError> {
    let content = store.readable(digest)?;
    let size = content.size;
    if size <= SMALL_BYTES {
        drop(content);
        return Ok(Reader::whole(store.get(digest)?.into_bytes()));
    }
    let check = match store.blocks.of(digest, size) {
        Some(list) => Check::Blocks(list),
        None => Check::Whole(Box::default()),
    };
    let source = Source {
        store: Arc::clone(store),
        content,
        check,
        digest,
        size,
        given: 0,
        used: VecDeque::new(),
        ended: false,
    };
    let (sender, blocks) = mpsc::channel(AHEAD);
    Ok(Reader::new(size, Checking { blocks, sender, job: Job::Idle(Box::new(source)) }))
}

/// How it is known that the bytes are right.
enum Check {
    /// By the blocks of a blob that was right: none that is wrong is given away.
    Blocks(Arc<BlockList>),
    /// By the digest of the whole, so the last block waits for it.
    Whole(Box<(Hasher, Recorder)>),
}

struct Source {
    store: Arc<Inner>,
    content: Content,
    check: Check,
    digest: Digest,
    size: u64,
    given: u64,
    /// Blocks that were given away.
    used: VecDeque<Bytes>,
    /// All was given, or something was wrong.
    ended: bool,
}

impl Source {
    /// Reads ahead until there is no room, nobody is left to read for, or the end.
    fn run(&mut self, blocks: &mpsc::Sender<io::Result<Bytes>>) {
        while !self.ended
            && let Ok(place) = blocks.try_reserve()
        {
            self.store.reading.note();
            let block = self.block();
            self.ended = block.is_err() || self.given == self.size;
            place.send(block);
        }
    }

    /// The next block. The last one comes only if the whole blob is right.
    fn block(&mut self) -> io::Result<Bytes> {
        let want = usize::try_from(self.size - self.given).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
        let mut block = self.buffer(want);
        let n = read_full(&mut self.content, &mut block)?;
        block.truncate(n);
        let offset = self.given;
        self.given += n as u64;
        let mut more = [0; 1];
        let at_end = n < want || self.given == self.size;
        // Bytes after the end make it another blob.
        let extra = if at_end { read_full(&mut self.content, &mut more)? } else { 0 };
        match &mut self.check {
            Check::Blocks(list) if extra == 0 && list.holds(offset, &block) => {}
            Check::Blocks(_) => return Err(self.wrong_block()),
            Check::Whole(whole) => {
                let (hasher, recorder) = &mut **whole;
                hasher.update(&block);
                recorder.update(&block);
                hasher.update(&more[..extra]);
                if at_end {
                    let found = std::mem::take(hasher).finish();
                    if found != self.digest {
                        return Err(self.corrupt(found));
                    }
                    self.store.blocks.keep(self.digest, std::mem::take(recorder));
                }
            }
        }
        if at_end {
            self.store.quarantine.heal(self.digest);
        }
        let block = block.freeze();
        self.used.push_back(block.clone());
        if self.used.len() > REUSED {
            self.used.pop_front();
        }
        Ok(block)
    }

    /// `want` bytes to read into. Fresh memory costs more than reading does, so a block that was
    /// given away and is held by nobody any more is taken again.
    fn buffer(&mut self, want: usize) -> BytesMut {
        let Some(oldest) = self.used.pop_front() else { return BytesMut::zeroed(want) };
        match oldest.try_into_mut() {
            Ok(mut buffer) => {
                buffer.resize(want, 0);
                buffer
            }
            Err(held) => {
                self.used.push_front(held);
                BytesMut::zeroed(want)
            }
        }
    }

    /// A block is another one than when the whole was right: hashes the whole to say what is there now.
    fn wrong_block(&mut self) -> io::Error {
        let (mut hasher, mut buffer, mut offset) = (Hasher::new(), vec![0; BLOCK_BYTES], 0);
        loop {
            match self.content.read_at(offset, &mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    offset += n as u64;
                }
                Err(error) => return error,
            }
        }
        let found = hasher.finish();
        if found == self.digest {
            self.store.blocks.forget(self.digest);
            let digest = self.digest;
            return io::Error::other(format!(
                "blob {digest} was read as other bytes than a moment later: check the disk and the memory of this machine, and read it again"
            ));
        }
        self.corrupt(found)
    }

    fn corrupt(&self, found: Digest) -> io::Error {
        let mismatch = DigestMismatch { expected: self.digest, found };
        io::Error::new(io::ErrorKind::InvalidData, self.store.corrupt(mismatch, &self.content))
    }
}

enum Job {
    /// Nothing is being read.
    Idle(Box<Source>),
    /// A blocking thread reads.
    Reading(JoinHandle<Box<Source>>),
    /// Nothing is left to read; what was read may not be taken yet.
    Ended,
    /// Failed; it stays failed, so that nobody takes a second try for the end.
    Failed,
}

/// Reads ahead on blocking threads. None of them waits for whoever takes the blocks: a thread leaves
/// when [`AHEAD`] blocks are there, and one comes again when half of them were taken.
struct Checking {
    blocks: mpsc::Receiver<io::Result<Bytes>>,
    sender: mpsc::Sender<io::Result<Bytes>>,
    job: Job,
}

impl Checking {
    /// Lets a thread read if there is room; what one that was to read came to.
    fn read_ahead(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Job::Reading(job) = &mut self.job
            && let Poll::Ready(done) = Pin::new(job).poll(cx)
        {
            self.job = Job::Failed;
            self.job = match done.map_err(io::Error::other)? {
                source if source.ended => Job::Ended,
                source => Job::Idle(source),
            };
        }
        if self.blocks.len() <= AHEAD / 2 {
            self.job = match std::mem::replace(&mut self.job, Job::Failed) {
                Job::Idle(mut source) => {
                    let sender = self.sender.clone();
                    let job = tokio::task::spawn_blocking(move || {
                        source.run(&sender);
                        source
                    });
                    Job::Reading(job)
                }
                other => other,
            };
        }
        Ok(())
    }
}

impl Stream for Checking {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Err(error) = self.read_ahead(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        match (self.blocks.poll_recv(cx), &self.job) {
            (Poll::Ready(Some(block)), _) => {
                if block.is_err() {
                    self.job = Job::Failed;
                }
                Poll::Ready(Some(block))
            }
            (_, Job::Failed) => Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::InvalidData)))),
            (_, Job::Ended) if self.blocks.is_empty() => Poll::Ready(None),
            _ => Poll::Pending,
        }
    }
}

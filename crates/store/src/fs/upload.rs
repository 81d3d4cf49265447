//! A blob of unknown digest, hashed while it is written.

use std::io::{self, Seek, SeekFrom, Write};
use std::sync::Arc;

use adamant_digest::{Digest, DigestMismatch, Hasher};
use bytes::Bytes;
use tokio::task::JoinHandle;

use super::blocks::Recorder;
use super::temp::Temp;
use super::{Inner, SMALL_BYTES, blocking};
use crate::{BoxFuture, Upload, WriteBlobError};

/// Bytes gathered before a blocking thread takes them. While it writes, the next are gathered;
/// so an upload holds at most twice this, plus what one call of `write` brings.
const GATHER_BYTES: u64 = 512 << 10;

pub(super) struct FsUpload {
    store: Arc<Inner>,
    state: State,
    gathered: Vec<Bytes>,
    gathered_bytes: u64,
    len: u64,
}

enum State {
    /// Ready to write.
    Idle(Box<Sink>),
    /// A blocking thread writes.
    Writing(JoinHandle<io::Result<Box<Sink>>>),
    /// A write went wrong; only dropping is left.
    Failed,
}

struct Sink {
    temp: Temp,
    hasher: Hasher,
    /// Of a blob that is large enough to be read block by block.
    blocks: Option<Recorder>,
}

impl FsUpload {
    /// Blocking.
    pub(super) fn new(store: Arc<Inner>) -> io::Result<Self> {
        let temp = Temp::new(&store.dir.join("tmp"))?;
        let sink = Box::new(Sink { temp, hasher: Hasher::new(), blocks: Some(Recorder::default()) });
        Ok(Self { store, state: State::Idle(sink), gathered: Vec::new(), gathered_bytes: 0, len: 0 })
    }

    /// Waits for the write in progress. If the caller leaves meanwhile, nothing is lost.
    async fn idle(&mut self) -> io::Result<Box<Sink>> {
        if let State::Writing(job) = &mut self.state {
            let done = job.await.map_err(io::Error::other).flatten();
            match done {
                Ok(sink) => self.state = State::Idle(sink),
                Err(error) => {
                    self.state = State::Failed;
                    return Err(error);
                }
            }
        }
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Idle(sink) => Ok(sink),
            _ => Err(io::Error::other("an earlier write of this upload failed")),
        }
    }
}

impl Sink {
    fn write(&mut self, chunks: &[Bytes]) -> io::Result<()> {
        for chunk in chunks {
            self.temp.file_mut().write_all(chunk)?;
            self.hasher.update(chunk);
            if let Some(blocks) = &mut self.blocks {
                blocks.update(chunk);
            }
        }
        Ok(())
    }
}

impl Upload for FsUpload {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), WriteBlobError>> {
        Box::pin(async move {
            if matches!(self.state, State::Failed) {
                return Err(io::Error::other("an earlier write of this upload failed").into());
            }
            self.len += bytes.len() as u64;
            self.gathered_bytes += bytes.len() as u64;
            self.gathered.push(bytes);
            if self.gathered_bytes >= GATHER_BYTES {
                let mut sink = self.idle().await?;
                let chunks = std::mem::take(&mut self.gathered);
                self.gathered_bytes = 0;
                self.state = State::Writing(tokio::task::spawn_blocking(move || {
                    sink.write(&chunks)?;
                    Ok(sink)
                }));
            }
            Ok(())
        })
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn finish(
        mut self: Box<Self>,
        expected: Option<Digest>,
    ) -> BoxFuture<'static, Result<(Digest, u64), WriteBlobError>> {
        Box::pin(async move {
            let mut sink = self.idle().await?;
            let (store, chunks, len) = (Arc::clone(&self.store), std::mem::take(&mut self.gathered), self.len);
            blocking(move || {
                if len <= SMALL_BYTES {
                    sink.blocks = None;
                }
                sink.write(&chunks)?;
                let Sink { mut temp, hasher, blocks } = *sink;
                let digest = hasher.finish();
                if let Some(expected) = expected.filter(|expected| *expected != digest) {
                    return Err(DigestMismatch { expected, found: digest }.into());
                }
                temp.file_mut().seek(SeekFrom::Start(0))?;
                if !(store.holds(digest, len, temp.file_mut())? && store.reuse(digest)?.is_some()) {
                    store.keep(temp, digest)?;
                }
                if let Some(blocks) = blocks {
                    store.blocks.keep(digest, blocks);
                }
                Ok((digest, len))
            })
            .await?
        })
    }
}

impl Drop for FsUpload {
    fn drop(&mut self) {
        // Removing a large file takes a while: not on an async thread if there is another.
        if let State::Idle(sink) = std::mem::replace(&mut self.state, State::Failed)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn_blocking(move || drop(sink));
        }
    }
}

//! Reading with the digest checked before the end is given away.

use std::io::{self, Cursor};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use adamant_digest::{Digest, DigestMismatch, Hasher};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::JoinHandle;

use super::content::Content;
use super::{Inner, SMALL_BYTES, read_full};
use crate::{ReadBlobError, Reader};

/// Bytes a blocking thread reads at a time. The next are read while these are given away, so a
/// reader holds at most twice this.
const CHUNK_BYTES: usize = 256 << 10;

/// Opens a blob. Blocking.
pub(super) fn open(store: &Arc<Inner>, digest: Digest) -> Result<Reader, ReadBlobError> {
    let content = store.readable(digest)?;
    let size = content.size;
    if size <= SMALL_BYTES {
        drop(content);
        let bytes = store.get(digest)?.into_bytes();
        return Ok(Reader { size: bytes.len() as u64, bytes: Box::pin(Cursor::new(bytes)) });
    }
    let source = Source { store: Arc::clone(store), content, hasher: Hasher::new(), digest, size, given: 0 };
    let reader = Checking { chunk: Vec::new(), position: 0, next: Next::Idle(Box::new(source)) };
    Ok(Reader { size, bytes: Box::pin(reader) })
}

struct Source {
    store: Arc<Inner>,
    content: Content,
    hasher: Hasher,
    digest: Digest,
    size: u64,
    given: u64,
}

impl Source {
    /// Fills `chunk`. The last one comes only if the whole blob is right.
    fn read(&mut self, chunk: &mut Vec<u8>) -> io::Result<()> {
        let left = self.size - self.given;
        let want = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        chunk.resize(want, 0);
        let n = read_full(&mut self.content, chunk)?;
        self.hasher.update(&chunk[..n]);
        self.given += n as u64;
        if n == want && self.given < self.size {
            return Ok(());
        }
        if n == want {
            // Bytes after the end make it another blob.
            let mut more = [0; 1];
            let extra = read_full(&mut self.content, &mut more)?;
            self.hasher.update(&more[..extra]);
        }
        let found = std::mem::take(&mut self.hasher).finish();
        if found == self.digest {
            self.store.quarantine.heal(self.digest);
            return Ok(());
        }
        let corrupt = self.store.corrupt(DigestMismatch { expected: self.digest, found }, &self.content);
        Err(io::Error::new(io::ErrorKind::InvalidData, corrupt))
    }
}

enum Next {
    Idle(Box<Source>),
    Reading(JoinHandle<io::Result<(Box<Source>, Vec<u8>)>>),
    /// All was given.
    End,
    /// Failed; it stays failed, so that nobody takes a second try for the end.
    Failed,
}

/// Reads ahead on blocking threads.
struct Checking {
    chunk: Vec<u8>,
    position: usize,
    next: Next,
}

fn read_ahead(mut source: Box<Source>, mut buffer: Vec<u8>) -> Next {
    if source.given == source.size {
        return Next::End;
    }
    Next::Reading(tokio::task::spawn_blocking(move || {
        source.read(&mut buffer)?;
        Ok((source, buffer))
    }))
}

impl AsyncRead for Checking {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let left = &self.chunk[self.position..];
            if !left.is_empty() {
                let n = left.len().min(out.remaining());
                out.put_slice(&left[..n]);
                self.position += n;
                return Poll::Ready(Ok(()));
            }
            match &mut self.next {
                Next::End => return Poll::Ready(Ok(())),
                Next::Failed => return Poll::Ready(Err(io::Error::from(io::ErrorKind::InvalidData))),
                Next::Idle(_) => {
                    if let Next::Idle(source) = std::mem::replace(&mut self.next, Next::Failed) {
                        self.next = read_ahead(source, Vec::new());
                    }
                }
                Next::Reading(job) => {
                    let done = ready!(Pin::new(job).poll(cx)).map_err(io::Error::other).flatten();
                    self.next = Next::Failed;
                    let (source, chunk) = done?;
                    let spent = std::mem::replace(&mut self.chunk, chunk);
                    self.position = 0;
                    self.next = read_ahead(source, spent);
                }
            }
        }
    }
}

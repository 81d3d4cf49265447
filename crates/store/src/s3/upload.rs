//! A blob of unknown digest, hashed while it arrives and sent when it is whole.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use adamant_digest::{Digest, DigestMismatch, Hasher};
use bytes::{Bytes, BytesMut};

use super::{Inner, blocking};
use crate::{BoxFuture, Upload, WriteBlobError};

/// Up to this size, in bytes, a blob arrives in memory; of a larger one, as much is gathered before
/// it is written.
pub(super) const MEMORY_BYTES: usize = 1 << 20;

/// Bytes to send, as often as it takes.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Memory(Bytes),
    /// A file and its length in bytes.
    File(Arc<File>, u64),
}

impl Source {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, len) => *len,
        }
    }

    /// Exactly `count` bytes from `at`.
    pub(super) async fn read(&self, at: u64, count: usize) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => {
                let from = usize::try_from(at).map_err(io::Error::other)?;
                let range = from..from.saturating_add(count);
                if range.end > bytes.len() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(bytes.slice(range))
            }
            Self::File(file, _) => {
                let file = Arc::clone(file);
                blocking(move || {
                    let mut bytes = vec![0; count];
                    file.read_exact_at(&mut bytes, at)?;
                    Ok(Bytes::from(bytes))
                })
                .await?
            }
        }
    }
}

pub(super) struct S3Upload {
    store: Arc<Inner>,
    gathered: BytesMut,
    spooled: Spool,
    len: u64,
}

enum Spool {
    /// It all fits into memory so far.
    None,
    /// What came before `gathered`.
    Some(Box<Sink>),
    /// A write went wrong or its caller left; only dropping is left.
    Failed,
}

struct Sink {
    file: File,
    hasher: Hasher,
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }
}

impl S3Upload {
    pub(super) fn new(store: Arc<Inner>) -> Self {
        Self { store, gathered: BytesMut::new(), spooled: Spool::None, len: 0 }
    }

    /// Writes what was gathered to the file.
    async fn spill(&mut self) -> io::Result<()> {
        let bytes = self.gathered.split().freeze();
        let dir = self.store.spool.clone();
        let before = std::mem::replace(&mut self.spooled, Spool::Failed);
        let sink = blocking(move || {
            let mut sink = match before {
                Spool::Some(sink) => sink,
                // Without a name: it goes with the process, and nothing has to be swept.
                Spool::None => Box::new(Sink { file: tempfile::tempfile_in(dir)?, hasher: Hasher::new() }),
                Spool::Failed => return Err(io::Error::other("an earlier write of this upload failed")),
            };
            sink.write(&bytes)?;
            Ok(sink)
        })
        .await??;
        self.spooled = Spool::Some(sink);
        Ok(())
    }
}

impl Upload for S3Upload {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), WriteBlobError>> {
        Box::pin(async move {
            if matches!(self.spooled, Spool::Failed) {
                return Err(io::Error::other("an earlier write of this upload failed").into());
            }
            self.len += bytes.len() as u64;
            self.gathered.extend_from_slice(&bytes);
            if self.gathered.len() > MEMORY_BYTES {
                self.spill().await?;
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
            if !matches!(self.spooled, Spool::None) {
                self.spill().await?;
            }
            let (digest, source) = match std::mem::replace(&mut self.spooled, Spool::Failed) {
                Spool::None => {
                    let bytes = self.gathered.split().freeze();
                    (Digest::of(&bytes), Source::Memory(bytes))
                }
                Spool::Some(sink) => {
                    let Sink { file, hasher } = *sink;
                    (hasher.finish(), Source::File(Arc::new(file), self.len))
                }
                Spool::Failed => return Err(io::Error::other("an earlier write of this upload failed").into()),
            };
            if let Some(expected) = expected.filter(|expected| *expected != digest) {
                return Err(DigestMismatch { expected, found: digest }.into());
            }
            self.store.keep(digest, &source).await?;
            Ok((digest, self.len))
        })
    }
}

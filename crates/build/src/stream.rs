//! A blob as a plain [`Read`], for work on a blocking thread.

use std::io::{self, Read};
use std::sync::Arc;

use adamant_digest::Digest;
use adamant_store::{BlobStore, ReadBlobError, WriteBlobError};
use bytes::{Buf as _, Bytes};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

/// Chunks under way between the two sides.
const CHUNKS: usize = 4;
/// Bytes in a chunk.
const CHUNK: usize = 256 << 10;

/// The reading side. Fails where the stream behind it fails; a stream that ends without saying so
/// is an error too.
pub(crate) struct BlockingReader {
    chunks: mpsc::Receiver<Option<io::Result<Bytes>>>,
    current: Bytes,
    ended: bool,
}

impl Read for BlockingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.chunks.blocking_recv() {
                Some(Some(Ok(bytes))) => self.current = bytes,
                Some(Some(Err(error))) => return Err(error),
                Some(None) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the blob was not read to its end")),
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Why work on a blob did not finish.
#[derive(Debug, thiserror::Error)]
pub enum StreamError<E: std::error::Error + 'static> {
    /// The blob is not there or damaged.
    #[error(transparent)]
    Blob(#[from] Box<ReadBlobError>),
    /// What was done with it.
    #[error(transparent)]
    Work(E),
    /// The thread was lost.
    #[error("the worker thread ended early: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

/// Runs `work` on a blocking thread over the bytes of `digest`. `work` must read to the end: only
/// then the bytes are known to be right.
pub(crate) async fn with_blob<T, E>(
    blobs: &Arc<dyn BlobStore>,
    digest: Digest,
    work: impl FnOnce(BlockingReader) -> Result<T, E> + Send + 'static,
) -> Result<T, StreamError<E>>
where
    T: Send + 'static,
    E: std::error::Error + Send + 'static,
{
    let mut blob = blobs.open(digest).await.map_err(Box::new)?;
    let (sender, chunks) = mpsc::channel(CHUNKS);
    let reader = BlockingReader { chunks, current: Bytes::new(), ended: false };
    let worker = tokio::task::spawn_blocking(move || work(reader));
    let pump = async move {
        loop {
            let mut buffer = bytes::BytesMut::with_capacity(CHUNK);
            while buffer.len() < CHUNK {
                match blob.bytes.read_buf(&mut buffer).await {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) => {
                        // Nobody listening means the work has failed by itself.
                        let _ = sender.send(Some(Err(error))).await;
                        return;
                    }
                }
            }
            let end = buffer.is_empty();
            let message = if end { None } else { Some(Ok(buffer.freeze())) };
            if sender.send(message).await.is_err() || end {
                return;
            }
        }
    };
    pump.await;
    worker.await?.map_err(StreamError::Work)
}

/// Runs `work` on a blocking thread; what it writes becomes a blob.
pub(crate) async fn into_blob<E>(
    blobs: &Arc<dyn BlobStore>,
    work: impl FnOnce(&mut BlockingWriter) -> Result<(), E> + Send + 'static,
) -> Result<(Digest, u64), UploadError<E>>
where
    E: std::error::Error + Send + 'static,
{
    let mut upload = blobs.upload().await?;
    let (chunks, mut receiver) = mpsc::channel(CHUNKS);
    let mut writer = BlockingWriter { chunks, buffer: Vec::with_capacity(CHUNK) };
    let worker = tokio::task::spawn_blocking(move || {
        let done = work(&mut writer);
        // A failed last chunk means the other side stopped, which it reports itself.
        let _ = io::Write::flush(&mut writer);
        done
    });
    let mut stored = Ok(());
    while let Some(bytes) = receiver.recv().await {
        stored = upload.write(bytes).await;
        if stored.is_err() {
            break;
        }
    }
    drop(receiver);
    let done = worker.await?;
    stored?;
    done.map_err(UploadError::Work)?;
    Ok(upload.finish(None).await?)
}

/// Why bytes did not become a blob.
#[derive(Debug, thiserror::Error)]
pub enum UploadError<E: std::error::Error + 'static> {
    /// The store.
    #[error(transparent)]
    Store(#[from] WriteBlobError),
    /// What makes the bytes.
    #[error(transparent)]
    Work(E),
    /// The thread was lost.
    #[error("the worker thread ended early: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

/// The writing side.
pub(crate) struct BlockingWriter {
    chunks: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

impl io::Write for BlockingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        self.chunks
            .blocking_send(full.into())
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the store stopped taking the blob"))
    }
}

//! Bodies, in and out.

use std::time::Duration;

use adamant_digest::Digest;
use adamant_store::Reader;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};

use crate::registry::Second;

/// The body of a response. An error ends the connection before the announced length.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Bytes of a stream that are read, hashed or written at once.
pub(crate) const CHUNK: usize = 512 * 1024;

/// How long the rest of a body that is refused is read, so that its sender sees why.
const LINGER: Duration = Duration::from_secs(2);

/// Why the body of a request ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection broke, or the client sent something else than it announced.
    #[error("the request body ended early: {0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
    /// Nothing came for too long.
    #[error("nothing arrived for {} s", .0.as_secs())]
    Idle(Duration),
}

/// The body of a request, boxed at the door so that the handlers are compiled once.
pub(crate) struct Incoming {
    body: UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>,
    idle: Duration,
    pending: Option<BodyError>,
    done: bool,
    received: u64,
}

impl Incoming {
    pub(crate) fn new<B>(body: B, idle: Duration) -> Self
    where
        B: http_body::Body + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let body = body
            .map_frame(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining())))
            .map_err(Into::into)
            .boxed_unsync();
        Self { body, idle, pending: None, done: false, received: 0 }
    }

    /// Bytes so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// The next bytes, gathered up to about [`CHUNK`]; `None` at the end. What arrived before
    /// an error is returned before the error.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, BodyError> {
        if let Some(error) = self.pending.take() {
            return Err(error);
        }
        let mut gathered = BytesMut::new();
        while !self.done && gathered.len() < CHUNK {
            match self.frame().await {
                Ok(Some(bytes)) if gathered.is_empty() && bytes.len() >= CHUNK => return Ok(Some(bytes)),
                Ok(Some(bytes)) => gathered.extend_from_slice(&bytes),
                Ok(None) => self.done = true,
                Err(error) => {
                    self.done = true;
                    if gathered.is_empty() {
                        return Err(error);
                    }
                    self.pending = Some(error);
                }
            }
        }
        Ok((!gathered.is_empty()).then(|| gathered.freeze()))
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            let frame = tokio::time::timeout(self.idle, self.body.frame()).await;
            match frame.map_err(|_| BodyError::Idle(self.idle))? {
                None => return Ok(None),
                Some(Err(error)) => return Err(BodyError::Broken(error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.received += data.len() as u64;
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// Reads at most `limit` bytes for at most [`LINGER`] and drops them. Whoever is answered before
    /// they have sent everything finds the connection reset, and often never sees the answer.
    pub(crate) async fn drain(&mut self, limit: usize) {
        let mut left = limit;
        let all = async {
            // What ends the body early ends the reading, too.
            while let Ok(Some(bytes)) = self.chunk().await {
                match left.checked_sub(bytes.len()) {
                    Some(less) => left = less,
                    None => return,
                }
            }
        };
        // Whoever is slower is not waited for.
        let _ = tokio::time::timeout(LINGER, all).await;
    }

    /// The whole body, or `None` if it is longer than `limit` bytes; reads no further then.
    pub(crate) async fn whole(&mut self, limit: usize) -> Result<Option<Vec<u8>>, BodyError> {
        let mut all = Vec::new();
        while let Some(bytes) = self.chunk().await? {
            if all.len() + bytes.len() > limit {
                return Ok(None);
            }
            all.extend_from_slice(&bytes);
        }
        Ok(Some(all))
    }
}

pub(crate) fn empty() -> Body {
    full(Bytes::new())
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A whole blob, checked by its source before the last byte.
pub(crate) fn blob(source: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Body {
    boxed(source)
}

/// `length` bytes of a blob from `start`. The source checks the whole blob, so the last piece
/// is held back until the blob was read to its end.
pub(crate) fn range(
    source: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    start: u64,
    length: u64,
) -> Body {
    struct State<S> {
        source: S,
        skip: u64,
        left: u64,
    }
    let source = Box::pin(source);
    boxed(stream::try_unfold(State { source, skip: start, left: length }, |mut state| async move {
        if state.left == 0 {
            return Ok(None);
        }
        let mut last = None;
        while let Some(chunk) = state.source.next().await {
            let mut chunk = chunk?;
            if last.is_some() {
                continue;
            }
            let skip = state.skip.min(chunk.len() as u64);
            state.skip -= skip;
            chunk.advance(clamp(skip));
            chunk.truncate(clamp(state.left));
            state.left -= chunk.len() as u64;
            if state.left == 0 {
                last = Some(chunk);
            } else if !chunk.is_empty() {
                return Ok(Some((chunk, state)));
            }
        }
        let short = || std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the blob is shorter than its size");
        last.map(|chunk| Some((chunk, state))).ok_or_else(short)
    }))
}

/// The bytes of a blob; an error instead of the last ones if they are not what `digest` names, or
/// what the client named them by.
pub(crate) fn checked(
    digest: Digest,
    second: Second,
    reader: Reader,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let source = reader.into_chunks();
    // One chunk is held back until the next one, or the end, has come and is right.
    stream::try_unfold((source, Some(second), None), move |(mut source, mut second, mut held)| async move {
        while let Some(chunk) = source.next().await.transpose()? {
            if let Some(second) = &mut second {
                second.update(&chunk);
            }
            if let Some(ready) = held.replace(chunk) {
                return Ok(Some((ready, (source, second, held))));
            }
        }
        if let Some(Err(misnamed)) = second.take().map(Second::check) {
            tracing::error!(%digest, %misnamed, "a second name leads to another blob");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, misnamed));
        }
        Ok(held.take().map(|last| (last, (source, None, None))))
    })
}

fn boxed(stream: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(stream.map(|item| item.map(http_body::Frame::data))).boxed_unsync()
}

fn clamp(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

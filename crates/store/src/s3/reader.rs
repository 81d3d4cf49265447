//! Reading with the digest checked before the end is given away.

use std::io;
use std::sync::Arc;

use adamant_digest::{Digest, DigestMismatch, Hasher};
use bytes::Bytes;
use futures_util::stream;
use reqwest::Response;

use super::{Inner, blob_key};
use crate::Reader;

/// How often a read that breaks off goes on; each time with the tries of one request.
const RESUMES: u32 = 3;

/// A blob on its way. The chunk in hand is given away when the next one has come; the last one only
/// if the whole blob is right.
pub(super) struct Checked {
    store: Arc<Inner>,
    digest: Digest,
    size: u64,
    response: Response,
    hasher: Hasher,
    received: u64,
    held: Option<Bytes>,
    resumes: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    /// All was right; what is held may go.
    Right,
    /// Failed; it stays failed, so that nobody takes a second try for the end.
    Failed,
}

/// Why a blob does not go on.
pub(super) enum Broken {
    Mismatch(DigestMismatch),
    Io(io::Error),
}

impl Checked {
    pub(super) fn new(store: Arc<Inner>, digest: Digest, response: Response) -> io::Result<Self> {
        let location = || store.requests.location(&blob_key(digest));
        let size = response
            .content_length()
            .ok_or_else(|| io::Error::other(format!("{}: the answer has no length", location())))?;
        let (hasher, state) = (Hasher::new(), State::Reading);
        Ok(Self { store, digest, size, response, hasher, received: 0, held: None, resumes: RESUMES, state })
    }

    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// The next bytes; `None` at the end of a blob that is right.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        while self.state == State::Reading {
            // A future that is dropped in here leaves the reader as it was before or failed.
            match self.response.chunk().await {
                Ok(Some(chunk)) => {
                    self.hasher.update(&chunk);
                    self.received += chunk.len() as u64;
                    if let Some(chunk) = self.held.replace(chunk) {
                        return Ok(Some(chunk));
                    }
                }
                Ok(None) if self.received == self.size => {
                    let found = std::mem::take(&mut self.hasher).finish();
                    if found != self.digest {
                        self.state = State::Failed;
                        return Err(Broken::Mismatch(DigestMismatch { expected: self.digest, found }));
                    }
                    self.state = State::Right;
                }
                Ok(None) => self.resume("it ended early".to_owned()).await?,
                Err(error) => self.resume(error.without_url().to_string()).await?,
            }
        }
        match self.state {
            State::Right => Ok(self.held.take()),
            _ => Err(Broken::Io(io::Error::from(io::ErrorKind::InvalidData))),
        }
    }

    /// Asks for the rest. If the object changed meanwhile, the digest tells.
    async fn resume(&mut self, cause: String) -> Result<(), Broken> {
        self.state = State::Failed;
        let key = blob_key(self.digest);
        let location = self.store.requests.location(&key);
        let ended = |why: &str| {
            let text = format!("{location}: broke off after {} of {} bytes: {why}", self.received, self.size);
            Broken::Io(io::Error::other(text))
        };
        if self.resumes == 0 {
            return Err(ended(&cause));
        }
        tracing::debug!(%location, received = self.received, cause, "a read broke off and goes on");
        let next = self.store.requests.get(&key, self.received).await.map_err(Broken::Io)?;
        let next = next.ok_or_else(|| ended("the object is gone"))?;
        if next.content_length() != Some(self.size - self.received) {
            return Err(ended("the rest has another length"));
        }
        self.response = next;
        self.resumes -= 1;
        self.state = State::Reading;
        Ok(())
    }

    pub(super) fn into_reader(self) -> Reader {
        let size = self.size;
        let chunks = stream::unfold(self, |mut checked| async move {
            let item = match checked.next().await {
                Ok(Some(chunk)) => Ok(chunk),
                Ok(None) => return None,
                Err(Broken::Mismatch(source)) => {
                    Err(io::Error::new(io::ErrorKind::InvalidData, checked.store.corrupt(source).await))
                }
                Err(Broken::Io(error)) => Err(error),
            };
            Some((item, checked))
        });
        Reader::new(size, chunks)
    }
}

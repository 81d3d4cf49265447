//! A request body: decompressed, bounded, cut into packets and chunks.

use std::io::{self, Write};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use flate2::write::GzDecoder;
use futures_util::StreamExt;

use crate::packet::{self, Packet};
use crate::{ByteStream, ServeError};

/// How a body is packed (HTTP `Content-Encoding`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// As it is.
    #[default]
    Identity,
    /// gzip, which git uses for large fetch requests.
    Gzip,
}

impl Encoding {
    /// From the header's value, if the request has one.
    pub fn parse(header: Option<&str>) -> Result<Self, ServeError> {
        match header.map(str::trim) {
            None | Some("" | "identity") => Ok(Self::Identity),
            Some("gzip" | "x-gzip") => Ok(Self::Gzip),
            Some(other) => Err(ServeError::Encoding(crate::git::one_line(other, 40))),
        }
    }
}

/// Compressed bytes decompressed at a time: at most about 4 MiB come out.
const STEP: usize = 4096;
/// Packs and object ids do not compress; more than this is a bomb.
const RATIO: u64 = 100;
/// Below this the ratio does not matter.
const FREE: u64 = 4 << 20;

/// What is left of a request.
pub(crate) struct Body {
    stream: ByteStream,
    buffer: BytesMut,
    seen: u64,
    limit: u64,
    idle: Duration,
}

impl Body {
    pub(crate) fn new(stream: ByteStream, encoding: Encoding, limit: u64, idle: Duration) -> Self {
        let stream = match encoding {
            Encoding::Identity => stream,
            Encoding::Gzip => gunzip(stream),
        };
        Self { stream, buffer: BytesMut::new(), seen: 0, limit, idle }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ServeError> {
        loop {
            let next = tokio::time::timeout(self.idle, self.stream.next()).await;
            let next = next.map_err(|_| ServeError::Interrupted(format!("silent for {} s", self.idle.as_secs())))?;
            let Some(chunk) = next else { return Ok(None) };
            let chunk = chunk.map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => ServeError::Malformed(error.to_string()),
                _ => ServeError::Interrupted(error.to_string()),
            })?;
            self.seen = self.seen.saturating_add(chunk.len() as u64);
            if self.seen > self.limit {
                return Err(ServeError::TooLarge { limit: self.limit });
            }
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }

    /// The next packet; `None` at the end of the body.
    pub(crate) async fn packet(&mut self) -> Result<Option<Packet>, ServeError> {
        loop {
            let decoded = packet::decode(&mut self.buffer);
            if let Some(packet) = decoded.map_err(|error| ServeError::Malformed(error.to_string()))? {
                return Ok(Some(packet));
            }
            match self.next().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(ServeError::Malformed("it ends within a packet".to_owned())),
            }
        }
    }

    /// The next raw bytes; `None` at the end of the body.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, ServeError> {
        if self.buffer.is_empty() { self.next().await } else { Ok(Some(self.buffer.split().freeze())) }
    }

    /// The next `count` bytes, or fewer at the end of the body.
    pub(crate) async fn exactly(&mut self, count: usize) -> Result<Bytes, ServeError> {
        while self.buffer.len() < count {
            match self.next().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => break,
            }
        }
        let count = count.min(self.buffer.len());
        Ok(self.buffer.split_to(count).freeze())
    }

    /// Reads the rest away, so that the client reads the answer instead of a broken connection.
    pub(crate) async fn drain(&mut self) -> Result<(), ServeError> {
        while self.chunk().await?.is_some() {}
        Ok(())
    }
}

fn gunzip(stream: ByteStream) -> ByteStream {
    let state = Gunzip { stream, decoder: GzDecoder::new(Vec::new()), pending: Bytes::new(), taken: 0, given: 0 };
    let chunks = futures_util::stream::try_unfold(Some(state), |state| async {
        let Some(mut state) = state else { return Ok(None) };
        let chunk = state.step().await?;
        let more = chunk.1.then_some(state);
        Ok::<_, io::Error>(Some((chunk.0, more)))
    });
    chunks.boxed()
}

struct Gunzip {
    stream: ByteStream,
    decoder: GzDecoder<Vec<u8>>,
    pending: Bytes,
    taken: u64,
    given: u64,
}

impl Gunzip {
    /// Some bytes, and whether there may be more.
    async fn step(&mut self) -> io::Result<(Bytes, bool)> {
        if self.pending.is_empty() {
            let Some(chunk) = self.stream.next().await.transpose()? else {
                self.decoder.try_finish()?;
                return Ok((std::mem::take(self.decoder.get_mut()).into(), false));
            };
            self.pending = chunk;
        }
        let step = self.pending.len().min(STEP);
        self.decoder.write_all(&self.pending[..step])?;
        self.pending.advance(step);
        let bytes = std::mem::take(self.decoder.get_mut());
        self.taken += step as u64;
        self.given += bytes.len() as u64;
        if self.given > FREE && self.given / RATIO > self.taken {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it decompresses to far more than it holds"));
        }
        Ok((bytes.into(), true))
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn body(bytes: &[u8], encoding: Encoding, limit: u64) -> Body {
        let chunks: Vec<io::Result<Bytes>> = bytes.chunks(1000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
        Body::new(futures_util::stream::iter(chunks).boxed(), encoding, limit, Duration::from_secs(5))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    async fn read(mut body: Body) -> Result<Vec<u8>, ServeError> {
        let mut all = Vec::new();
        while let Some(chunk) = body.chunk().await? {
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn gzip_is_undone() {
        let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        assert_eq!(read(body(&gzip(&bytes), Encoding::Gzip, 1 << 20)).await.unwrap(), bytes);
    }

    #[tokio::test]
    async fn gzip_that_is_cut_or_wrong_fails() {
        let packed = gzip(&[7; 10_000]);
        for length in 0..packed.len() {
            assert!(read(body(&packed[..length], Encoding::Gzip, 1 << 20)).await.is_err(), "{length}");
        }
        assert!(read(body(b"not gzip at all", Encoding::Gzip, 1 << 20)).await.is_err());
        let trailing = [packed, b"more".to_vec()].concat();
        assert!(read(body(&trailing, Encoding::Gzip, 1 << 20)).await.is_err());
    }

    #[tokio::test]
    async fn bombs_do_not_go_off() {
        let packed = gzip(&vec![0; 64 << 20]);
        let error = read(body(&packed, Encoding::Gzip, 1 << 40)).await.unwrap_err();
        assert!(error.to_string().contains("far more"), "{error}");
    }

    #[tokio::test]
    async fn the_limit_holds() {
        let error = read(body(&[0; 5000], Encoding::Identity, 4999)).await.unwrap_err();
        assert!(matches!(error, ServeError::TooLarge { limit: 4999 }), "{error}");
        assert_eq!(read(body(&[0; 5000], Encoding::Identity, 5000)).await.unwrap().len(), 5000);
    }

    #[test]
    fn encodings() {
        assert_eq!(Encoding::parse(None).unwrap(), Encoding::Identity);
        assert_eq!(Encoding::parse(Some("gzip")).unwrap(), Encoding::Gzip);
        assert!(Encoding::parse(Some("br")).is_err());
    }
}

//! Blobs in memory: a complete store without durability.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use adamant_digest::{Digest, Sha512, Verified};
use adamant_store::{BlobStore, BoxFuture, ReadBlobError, Reader, Upload, WriteBlobError};
use bytes::Bytes;

#[derive(Default, Clone)]
pub(crate) struct Memory(pub(crate) Arc<Mutex<BTreeMap<Digest, Vec<u8>>>>);

impl Memory {
    pub(crate) fn bytes(&self, digest: Digest) -> Option<Vec<u8>> {
        self.0.lock().unwrap().get(&digest).cloned()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

struct Partial {
    store: Memory,
    bytes: Vec<u8>,
}

impl BlobStore for Memory {
    fn put<'a>(&'a self, blob: &'a Verified) -> BoxFuture<'a, Result<(), WriteBlobError>> {
        self.0.lock().unwrap().insert(blob.digest(), blob.bytes().to_vec());
        Box::pin(async { Ok(()) })
    }

    fn get(&self, digest: Digest) -> BoxFuture<'_, Result<Verified, ReadBlobError>> {
        let found = self.bytes(digest).map(Verified::hash).ok_or(ReadBlobError::NotFound(digest));
        Box::pin(async { found })
    }

    fn open(&self, digest: Digest) -> BoxFuture<'_, Result<Reader, ReadBlobError>> {
        let found = self.bytes(digest).ok_or(ReadBlobError::NotFound(digest));
        Box::pin(async { found.map(Reader::whole) })
    }

    fn size(&self, digest: Digest) -> BoxFuture<'_, Result<Option<u64>, ReadBlobError>> {
        let size = self.bytes(digest).map(|bytes| bytes.len() as u64);
        Box::pin(async move { Ok(size) })
    }

    fn upload(&self) -> BoxFuture<'_, Result<Box<dyn Upload>, WriteBlobError>> {
        let upload: Box<dyn Upload> = Box::new(Partial { store: self.clone(), bytes: Vec::new() });
        Box::pin(async { Ok(upload) })
    }

    fn list(&self, after: Option<Digest>, limit: usize) -> BoxFuture<'_, Result<Vec<Digest>, ReadBlobError>> {
        let blobs = self.0.lock().unwrap();
        let list = blobs.keys().copied().filter(|digest| Some(*digest) > after).take(limit).collect();
        Box::pin(async { Ok(list) })
    }

    // All bytes are at hand, so nothing has to be remembered.
    fn alias(&self, _: Sha512, _: Digest) -> BoxFuture<'_, Result<(), WriteBlobError>> {
        Box::pin(async { Ok(()) })
    }

    fn aliased(&self, other: Sha512) -> BoxFuture<'_, std::io::Result<Option<Digest>>> {
        let blobs = self.0.lock().unwrap();
        let found = blobs.iter().find(|(_, bytes)| Sha512::of(bytes) == other).map(|(digest, _)| *digest);
        Box::pin(async move { Ok(found) })
    }

    fn aliases(&self, after: Option<Sha512>, limit: usize) -> BoxFuture<'_, std::io::Result<Vec<Sha512>>> {
        let mut all: Vec<_> = self.0.lock().unwrap().values().map(|bytes| Sha512::of(bytes)).collect();
        all.sort_unstable();
        all.retain(|other| Some(*other) > after);
        all.truncate(limit);
        Box::pin(async { Ok(all) })
    }

    fn touch(&self, digest: Digest) -> BoxFuture<'_, std::io::Result<Option<u64>>> {
        let found = self.bytes(digest).map(|bytes| bytes.len() as u64);
        Box::pin(async move { Ok(found) })
    }

    // Everything was used just now, so nothing is ever idle.
    fn used(&self, digest: Digest) -> BoxFuture<'_, std::io::Result<Option<SystemTime>>> {
        let used = self.bytes(digest).map(|_| SystemTime::now());
        Box::pin(async move { Ok(used) })
    }

    fn remove(&self, digest: Digest, idle_since: Option<SystemTime>) -> BoxFuture<'_, std::io::Result<bool>> {
        let mut blobs = self.0.lock().unwrap();
        if idle_since.is_none() {
            blobs.remove(&digest);
        }
        let gone = !blobs.contains_key(&digest);
        Box::pin(async move { Ok(gone) })
    }

    // Memory is not damaged.
    fn damaged(&self) -> BoxFuture<'_, Vec<(Digest, Digest)>> {
        Box::pin(async { Vec::new() })
    }

    fn damages(&self) -> u64 {
        0
    }
}

impl Upload for Partial {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), WriteBlobError>> {
        self.bytes.extend_from_slice(&bytes);
        Box::pin(async { Ok(()) })
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn finish(self: Box<Self>, expected: Option<Digest>) -> BoxFuture<'static, Result<(Digest, u64), WriteBlobError>> {
        Box::pin(async move {
            let blob = match expected {
                Some(expected) => Verified::check(expected, self.bytes)?,
                None => Verified::hash(self.bytes),
            };
            let found = (blob.digest(), blob.bytes().len() as u64);
            self.store.0.lock().unwrap().insert(blob.digest(), blob.into_bytes());
            Ok(found)
        })
    }
}

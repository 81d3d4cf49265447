//! Stores that fail on command.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use adamant_attest::predicate::BindingKind;
use adamant_digest::{Digest, Sha512, Verified};
use adamant_store::{
    AppendError, BlobStore, Bound, BoxFuture, Entry, Fact, Head, Ledger, LedgerError, Link, ReadBlobError, Reader,
    Receipt, Upload, WriteBlobError,
};
use bytes::Bytes;

/// Where a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nothing was persisted.
    Before,
    /// All was persisted, and the caller does not learn it.
    After,
}

/// Wraps a real store. Calls that persist (`put`, `finish` of an upload, `alias`,
/// `remove`, `append`) fail where
/// [`Faulty::arm`] said; everything else passes through.
#[derive(Debug, Clone)]
pub struct Faulty<S> {
    inner: S,
    plan: Arc<Plan>,
}

#[derive(Debug, Default)]
struct Plan(Mutex<Armed>);

#[derive(Debug, Default)]
struct Armed {
    fault: Option<(u64, When)>,
    calls: u64,
    fired: u64,
}

impl Plan {
    /// Counts a persisting call and tells whether it fails.
    fn next(&self) -> Option<When> {
        let mut armed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        armed.calls += 1;
        match armed.fault {
            Some((0, when)) => {
                armed.fault = None;
                armed.fired += 1;
                Some(when)
            }
            Some((left, when)) => {
                armed.fault = Some((left - 1, when));
                None
            }
            None => None,
        }
    }
}

impl<S> Faulty<S> {
    /// Wraps `inner`; nothing fails yet.
    pub fn new(inner: S) -> Self {
        Self { inner, plan: Arc::default() }
    }

    /// The persisting call after the next `skip` ones fails, once.
    pub fn arm(&self, skip: u64, when: When) {
        self.plan.0.lock().unwrap_or_else(PoisonError::into_inner).fault = Some((skip, when));
    }

    /// How many persisting calls were made.
    pub fn calls(&self) -> u64 {
        self.plan.0.lock().unwrap_or_else(PoisonError::into_inner).calls
    }

    /// How many of them failed on command.
    pub fn fired(&self) -> u64 {
        self.plan.0.lock().unwrap_or_else(PoisonError::into_inner).fired
    }

    /// The wrapped store.
    pub fn inner(&self) -> &S {
        &self.inner
    }
}

fn fault() -> WriteBlobError {
    WriteBlobError::Io(std::io::Error::other("a fault made on purpose"))
}

impl<S: BlobStore> BlobStore for Faulty<S> {
    fn put<'a>(&'a self, blob: &'a Verified) -> BoxFuture<'a, Result<(), WriteBlobError>> {
        Box::pin(async move {
            let when = self.plan.next();
            if when != Some(When::Before) {
                self.inner.put(blob).await?;
            }
            when.map_or(Ok(()), |_| Err(fault()))
        })
    }

    fn get(&self, digest: Digest) -> BoxFuture<'_, Result<Verified, ReadBlobError>> {
        self.inner.get(digest)
    }

    fn open(&self, digest: Digest) -> BoxFuture<'_, Result<Reader, ReadBlobError>> {
        self.inner.open(digest)
    }

    fn size(&self, digest: Digest) -> BoxFuture<'_, Result<Option<u64>, ReadBlobError>> {
        self.inner.size(digest)
    }

    fn upload(&self) -> BoxFuture<'_, Result<Box<dyn Upload>, WriteBlobError>> {
        Box::pin(async move {
            let upload = FaultyUpload { inner: self.inner.upload().await?, plan: Arc::clone(&self.plan) };
            Ok(Box::new(upload) as Box<dyn Upload>)
        })
    }

    fn list(&self, after: Option<Digest>, limit: usize) -> BoxFuture<'_, Result<Vec<Digest>, ReadBlobError>> {
        self.inner.list(after, limit)
    }

    fn alias(&self, other: Sha512, digest: Digest) -> BoxFuture<'_, Result<(), WriteBlobError>> {
        Box::pin(async move {
            let when = self.plan.next();
            if when != Some(When::Before) {
                self.inner.alias(other, digest).await?;
            }
            when.map_or(Ok(()), |_| Err(fault()))
        })
    }

    fn aliased(&self, other: Sha512) -> BoxFuture<'_, std::io::Result<Option<Digest>>> {
        self.inner.aliased(other)
    }

    fn aliases(&self, after: Option<Sha512>, limit: usize) -> BoxFuture<'_, std::io::Result<Vec<Sha512>>> {
        self.inner.aliases(after, limit)
    }

    fn touch(&self, digest: Digest) -> BoxFuture<'_, std::io::Result<Option<u64>>> {
        self.inner.touch(digest)
    }

    fn used(&self, digest: Digest) -> BoxFuture<'_, std::io::Result<Option<SystemTime>>> {
        self.inner.used(digest)
    }

    fn remove(&self, digest: Digest, idle_since: Option<SystemTime>) -> BoxFuture<'_, std::io::Result<bool>> {
        Box::pin(async move {
            let when = self.plan.next();
            let fault = || std::io::Error::other("a fault made on purpose");
            if when == Some(When::Before) {
                return Err(fault());
            }
            let removed = self.inner.remove(digest, idle_since).await?;
            when.map_or(Ok(removed), |_| Err(fault()))
        })
    }

    fn damaged(&self) -> BoxFuture<'_, Vec<(Digest, Digest)>> {
        self.inner.damaged()
    }

    fn damages(&self) -> u64 {
        self.inner.damages()
    }
}

struct FaultyUpload {
    inner: Box<dyn Upload>,
    plan: Arc<Plan>,
}

impl Upload for FaultyUpload {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), WriteBlobError>> {
        self.inner.write(bytes)
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn finish(self: Box<Self>, expected: Option<Digest>) -> BoxFuture<'static, Result<(Digest, u64), WriteBlobError>> {
        Box::pin(async move {
            let when = self.plan.next();
            if when == Some(When::Before) {
                return Err(fault());
            }
            let done = self.inner.finish(expected).await?;
            when.map_or(Ok(done), |_| Err(fault()))
        })
    }
}

impl<S: Ledger> Ledger for Faulty<S> {
    fn append(&self, facts: Vec<Fact>) -> BoxFuture<'_, Result<Vec<Receipt>, AppendError>> {
        Box::pin(async move {
            let fault = || AppendError::Ledger(LedgerError::Unavailable("a fault made on purpose".to_owned()));
            let when = self.plan.next();
            if when == Some(When::Before) {
                return Err(fault());
            }
            let receipts = self.inner.append(facts).await?;
            when.map_or(Ok(receipts), |_| Err(fault()))
        })
    }

    fn head(&self) -> BoxFuture<'_, Result<Head, LedgerError>> {
        self.inner.head()
    }

    fn binding<'a>(&'a self, kind: BindingKind, name: &'a str) -> BoxFuture<'a, Result<Option<Bound>, LedgerError>> {
        self.inner.binding(kind, name)
    }

    fn bindings<'a>(
        &'a self,
        kind: BindingKind,
        prefix: &'a str,
        after: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(String, Bound)>, LedgerError>> {
        self.inner.bindings(kind, prefix, after, limit)
    }

    fn entry(&self, index: u64) -> BoxFuture<'_, Result<Option<Entry>, LedgerError>> {
        self.inner.entry(index)
    }

    fn entries(&self, from: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Entry>, LedgerError>> {
        self.inner.entries(from, limit)
    }

    fn about(&self, digest: Digest, limit: usize) -> BoxFuture<'_, Result<Vec<u64>, LedgerError>> {
        self.inner.about(digest, limit)
    }

    fn chain_head<'a>(&'a self, chain: &'a str) -> BoxFuture<'a, Result<Option<Link>, LedgerError>> {
        self.inner.chain_head(chain)
    }

    fn chain<'a>(&'a self, chain: &'a str, from: u64, limit: usize) -> BoxFuture<'a, Result<Vec<Link>, LedgerError>> {
        self.inner.chain(chain, from, limit)
    }

    fn chains<'a>(&'a self, prefix: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<String>, LedgerError>> {
        self.inner.chains(prefix, limit)
    }

    fn inclusion(&self, index: u64, size: u64) -> BoxFuture<'_, Result<Vec<[u8; 32]>, LedgerError>> {
        self.inner.inclusion(index, size)
    }

    fn consistency(&self, old: u64, new: u64) -> BoxFuture<'_, Result<Vec<[u8; 32]>, LedgerError>> {
        self.inner.consistency(old, new)
    }
}

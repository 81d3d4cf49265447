//! Debian packages: signed suites, package indexes, closures.
//!
//! A package is trusted because its digest is in an index whose digest is in a suite's
//! `InRelease` that a key of the archive signed. Maintainer scripts are never read.

mod control;
mod index;
mod release;
mod resolve;
mod version;

pub use index::{Candidate, Index, Suite};
pub use release::{Release, ReleaseError, verify_cleartext};
pub use resolve::{Base, ResolveError, resolve};
pub use version::compare;

use std::io::Read as _;

use adamant_digest::{Digest, Verified};
use tokio::io::AsyncReadExt as _;

use crate::Fetcher;
use crate::config::Archive;
use crate::error::{FetchError, LockFetchError};

/// The Debian archive's public keys, as vendored in `keys/`.
pub fn archive_keys() -> Vec<Vec<u8>> {
    [
        include_bytes!("../keys/debian-archive-bookworm-automatic.gpg").as_slice(),
        include_bytes!("../keys/debian-archive-bookworm-security-automatic.gpg").as_slice(),
        include_bytes!("../keys/debian-archive-bookworm-stable.gpg").as_slice(),
        include_bytes!("../keys/debian-archive-bullseye-automatic.gpg").as_slice(),
        include_bytes!("../keys/debian-archive-bullseye-security-automatic.gpg").as_slice(),
        include_bytes!("../keys/debian-archive-bullseye-stable.gpg").as_slice(),
        include_bytes!("../keys/debian-archive-trixie-automatic.gpg").as_slice(),
        include_bytes!("../keys/debian-archive-trixie-security-automatic.gpg").as_slice(),
        include_bytes!("../keys/debian-archive-trixie-stable.gpg").as_slice(),
    ]
    .into_iter()
    .map(<[u8]>::to_vec)
    .collect()
}

/// Largest `InRelease`, in bytes; real ones have some 200 kB.
const MAX_RELEASE: u64 = 2 << 20;

impl Fetcher {
    /// Fetches and checks every configured suite and reads its package index. Compressed
    /// indexes are kept in the blob store, so an unchanged suite costs one small request.
    pub async fn debian_index(&self) -> Result<Index, LockFetchError> {
        let mut index = Index::default();
        for archive in &self.config.debian.archives {
            for suite in &archive.suites {
                let (release, packed) = self.suite(archive, suite).await?;
                let (arch, limit) = (self.config.debian.arch.clone(), self.config.limits.index_unpacked_bytes);
                let (suite, mut so_far) = (suite.clone(), std::mem::take(&mut index));
                // Unpacking and reading 45 MB of text is no work for the async threads.
                let read = tokio::task::spawn_blocking(move || {
                    let text = unpack_index(packed.bytes(), limit)
                        .map_err(|cause| ReleaseError::Index { suite: suite.clone(), cause })?;
                    let suite = Suite { name: suite, date: release.date, valid_until: release.valid_until };
                    so_far.add(suite, &text, &arch)?;
                    Ok::<_, LockFetchError>(so_far)
                });
                index = read.await.map_err(|error| FetchError::Worker(error.to_string()))??;
            }
        }
        Ok(index)
    }

    async fn suite(&self, archive: &Archive, suite: &str) -> Result<(Release, Verified), LockFetchError> {
        let debian = &self.config.debian;
        let base = format!("{}/dists/{suite}", archive.base);
        let signed = self.http.bytes(&format!("{base}/InRelease"), MAX_RELEASE).await?;
        let (keyrings, name) = (debian.keyrings.clone(), suite.to_owned());
        let checked = tokio::task::spawn_blocking(move || Release::parse(&name, &signed, &keyrings));
        let release = checked.await.map_err(|error| FetchError::Worker(error.to_string()))??;
        let file = format!("{}/binary-{}/Packages.xz", debian.component, debian.arch);
        let (digest, size) = release.file(&file)?;
        if size > self.config.limits.index_bytes {
            let limit = self.config.limits.index_bytes;
            return Err(FetchError::TooLarge { url: format!("{base}/{file}"), limit }.into());
        }
        if let Some(kept) = self.kept_index(digest, size).await? {
            return Ok((release, kept));
        }
        // By digest first: between two updates of a mirror the plain name is another file.
        let dir = file.trim_end_matches("Packages.xz");
        let by_hash = format!("{base}/{dir}by-hash/SHA256/{}", digest.hex());
        let bytes = if release.by_hash {
            match self.http.bytes(&by_hash, size).await {
                Err(FetchError::Gone { .. }) => self.http.bytes(&format!("{base}/{file}"), size).await?,
                other => other?,
            }
        } else {
            self.http.bytes(&format!("{base}/{file}"), size).await?
        };
        let url = format!("{base}/{file}");
        let checked = tokio::task::spawn_blocking(move || Verified::check(digest, bytes));
        let checked = checked.await.map_err(|error| FetchError::Worker(error.to_string()))?;
        let packed = checked.map_err(|mismatch| FetchError::Mismatch {
            name: format!("the package index of {suite}"),
            url,
            expected: mismatch.expected,
            found: mismatch.found,
        })?;
        self.blobs.put(&packed).await.map_err(FetchError::from)?;
        Ok((release, packed))
    }

    async fn kept_index(&self, digest: Digest, size: u64) -> Result<Option<Verified>, LockFetchError> {
        if self.blobs.touch(digest).await.map_err(adamant_store::WriteBlobError::from).map_err(FetchError::from)?
            != Some(size)
        {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        // A damaged copy is fetched again, which also heals it.
        let Ok(reader) = self.blobs.open(digest).await else { return Ok(None) };
        if reader.bytes.take(size + 1).read_to_end(&mut bytes).await.is_err() {
            return Ok(None);
        }
        Ok(Verified::check(digest, bytes).ok())
    }
}

/// Unpacks `Packages.xz` into text, at most `limit` bytes.
fn unpack_index(packed: &[u8], limit: u64) -> Result<String, String> {
    let mut text = String::new();
    let unpacked = liblzma::read::XzDecoder::new(packed).take(limit + 1).read_to_string(&mut text);
    unpacked.map_err(|error| error.to_string())?;
    if text.len() as u64 > limit {
        return Err(format!("it unpacks to more than {limit} bytes"));
    }
    Ok(text)
}

//! When a blob was last used, and taking it away.
//!
//! S3 cannot change the time of an object, so a use of a blob that is there already is an object of
//! its own, `used/<64 hex digits>`, with the moment in nanoseconds since 1970. It is this machine's
//! clock: S3 refuses the signature of one that is off by more than a quarter of an hour. A blob
//! without it was used when it was put, which S3 tells in whole seconds; the end of that second
//! counts.
//!
//! One lock orders uses and removals in one process. Two servers have no lock in common, so only one
//! of them may collect, with a grace period that a running push stays below (docs/scaling.md).

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adamant_digest::{Digest, Sha512};
use bytes::Bytes;

use super::upload::Source;
use super::{Inner, alias_key, blob_key};

/// Longest entry of a use, in bytes.
const MAX_USE_BYTES: u64 = 39;

fn use_key(digest: Digest) -> String {
    format!("used/{}", digest.hex())
}

/// Where the second names of a blob are found again: the object's name says it all.
fn names_of(digest: Digest) -> String {
    format!("names/{}/", digest.hex())
}

impl Inner {
    /// Says that the blob is used, and gives its length; `None` if it is not here or damaged.
    pub(super) async fn touch(&self, digest: Digest) -> io::Result<Option<u64>> {
        if self.is_damaged(digest).await? { Ok(None) } else { self.use_now(digest).await }
    }

    /// The same of a blob whose bytes were just compared.
    pub(super) async fn use_now(&self, digest: Digest) -> io::Result<Option<u64>> {
        let _names = self.names.read().await;
        let Some(found) = self.requests.head(&blob_key(digest)).await? else { return Ok(None) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
        let entry = Source::Memory(Bytes::from(now.as_nanos().to_string()));
        self.requests.put(&use_key(digest), &entry, None).await?;
        Ok(Some(found.size))
    }

    pub(super) async fn used(&self, digest: Digest) -> io::Result<Option<SystemTime>> {
        let Some(found) = self.requests.head(&blob_key(digest)).await? else { return Ok(None) };
        let put = found.modified + Duration::from_secs(1);
        let entry = self.requests.small(&use_key(digest), MAX_USE_BYTES).await?;
        // An entry that cannot be read says nothing.
        let since = entry.and_then(|text| text.parse().ok()).map(Duration::from_nanos);
        let again = since.and_then(|since| UNIX_EPOCH.checked_add(since));
        Ok(Some(again.map_or(put, |again| again.max(put))))
    }

    /// Removes second names, then bytes: a crash between leaves a blob without second names, which is
    /// still removed by the next try.
    pub(super) async fn remove(&self, digest: Digest, idle_since: Option<SystemTime>) -> io::Result<bool> {
        let _names = self.names.write().await;
        if let (Some(used), Some(idle_since)) = (self.used(digest).await?, idle_since)
            && used > idle_since
        {
            return Ok(false);
        }
        let names = names_of(digest);
        for name in self.keys(&names, None, usize::MAX).await? {
            if let Ok(other) = Sha512::from_hex(&name)
                && self.aliased(other).await? == Some(digest)
            {
                self.requests.delete(&alias_key(other)).await?;
            }
            self.requests.delete(&format!("{names}{name}")).await?;
        }
        self.requests.delete(&blob_key(digest)).await?;
        self.requests.delete(&use_key(digest)).await?;
        if self.damage.contains(digest) {
            self.unmark(digest).await?;
        }
        Ok(true)
    }

    pub(super) async fn aliased(&self, other: Sha512) -> io::Result<Option<Digest>> {
        // What cannot be an entry is none: the next push writes it again.
        let text = self.requests.small(&alias_key(other), super::ALIAS_BYTES).await?;
        Ok(text.and_then(|text| text.strip_suffix('\n')?.parse().ok()))
    }

    /// The way back first: an entry that a removal does not find would stay for ever.
    pub(super) async fn alias(&self, other: Sha512, digest: Digest) -> io::Result<()> {
        if self.aliased(other).await? == Some(digest) {
            return Ok(());
        }
        let back = format!("{}{}", names_of(digest), other.hex());
        self.requests.put(&back, &Source::Memory(Bytes::new()), None).await?;
        let entry = Source::Memory(Bytes::from(format!("{digest}\n")));
        self.requests.put(&alias_key(other), &entry, None).await
    }
}

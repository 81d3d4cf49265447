//! Single files by address.

use adamant_digest::Digest;
use adamant_recipe::{Source, UrlInput};

use crate::Fetcher;
use crate::ensure::Job;
use crate::error::FetchError;
use crate::http::Expect;

impl Job {
    /// A locked file.
    pub(crate) fn url(url: &UrlInput) -> Self {
        Self {
            name: format!("source {}", url.name),
            digest: url.digest,
            size: Some(url.size),
            max: url.size,
            urls: vec![url.url.clone()],
            fallbacks: Vec::new(),
            versioned: false,
        }
    }
}

impl Fetcher {
    /// Fetches a source that is not locked yet and keeps its bytes. If the recipe pins a
    /// digest, other bytes are refused.
    pub async fn lock_url(&self, source: &Source) -> Result<UrlInput, FetchError> {
        let name = format!("source {}", source.name);
        let max = self.config.limits.input_bytes;
        let expect = Expect { name: &name, digest: source.digest, size: None, max };
        let (digest, size): (Digest, u64) = self.http.store(&source.url, expect, &*self.blobs).await?;
        Ok(UrlInput { name: source.name.clone(), url: source.url.clone(), digest, size })
    }
}

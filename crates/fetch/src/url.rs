//! Single files by address, of a host or filled in from the mirrors.

use adamant_digest::Digest;
use adamant_recipe::{Mirrored, Source, UrlInput, mirrored};

use crate::crates_io::crate_address;
use crate::ensure::Job;
use crate::error::FetchError;
use crate::http::Expect;
use crate::{Config, Fetcher};

impl Job {
    /// A locked file.
    pub(crate) fn url(url: &UrlInput, config: &Config) -> Self {
        Self {
            name: format!("source {}", url.name),
            digest: url.digest,
            size: Some(url.size),
            max: url.size,
            urls: addresses(&url.url, config),
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
        let (mut gone, mut last) = (Vec::new(), None);
        for url in addresses(&source.url, &self.config) {
            let stored: Result<(Digest, u64), FetchError> = self.http.store(&url, expect, &*self.blobs).await;
            match stored {
                Ok((digest, size)) => {
                    return Ok(UrlInput { name: source.name.clone(), url: source.url.clone(), digest, size });
                }
                // Another archive may have it.
                Err(error @ FetchError::Gone { .. }) => {
                    gone.push(url);
                    last = Some(error);
                }
                // Nothing is locked yet: what was expected is what the recipe says.
                Err(FetchError::Mismatch { url, expected, found, .. }) => {
                    return Err(FetchError::OtherThanRecipe { name: source.name.clone(), url, expected, found });
                }
                Err(error) => return Err(error.of(&name)),
            }
        }
        Err(match last {
            None => FetchError::Config(format!("no mirror is set for {}", source.url)),
            Some(error) if gone.len() == 1 => error,
            Some(_) => FetchError::Nowhere { name, urls: gone },
        })
    }
}

/// Where the bytes of an address may be, in the order to ask.
fn addresses(url: &str, config: &Config) -> Vec<String> {
    match mirrored(url) {
        None => vec![url.to_owned()],
        Some(Mirrored::Debian(path)) => {
            let bases = config.debian.archives.iter().map(|archive| &archive.base).chain(&config.debian.snapshots);
            bases.map(|base| format!("{base}/{path}")).collect()
        }
        Some(Mirrored::Crate { name, version }) => vec![crate_address(&config.crates_base, name, version)],
    }
}

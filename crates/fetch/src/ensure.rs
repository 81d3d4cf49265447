//! Every input of a lock into the blob store, each once, checked while it streams.

use std::collections::BTreeSet;

use adamant_digest::Digest;
use adamant_recipe::cargo::Crate;
use adamant_recipe::{Lock, Package};
use futures_util::StreamExt as _;
use futures_util::stream;

use crate::Fetcher;
use crate::error::FetchError;
use crate::http::Expect;

/// What became of the inputs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Inputs that were there before.
    pub kept: u64,
    /// Inputs fetched now.
    pub new: u64,
    /// Bytes fetched now.
    pub bytes: u64,
}

/// One more input is there.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The input, for people: `gcc-12 12.2.0-14`.
    pub name: &'a str,
    /// Inputs done so far, this one included.
    pub done: u64,
    /// Inputs to fetch; those that were there before do not count.
    pub total: u64,
    /// Bytes fetched so far.
    pub bytes: u64,
}

/// One input to fetch.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// For errors and progress.
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) size: Option<u64>,
    pub(crate) max: u64,
    /// Tried in order while the answer is "no such file".
    pub(crate) urls: Vec<String>,
    /// Tried after those.
    pub(crate) fallbacks: Vec<String>,
    /// Whether upstream deletes old versions.
    pub(crate) versioned: bool,
}

impl Job {
    fn package(package: &Package, archives: &[crate::Archive], snapshots: &[String]) -> Self {
        let at = |base: &str| format!("{base}/{}", package.path);
        let mut bases: Vec<&str> = archives.iter().map(|archive| archive.base.as_str()).collect();
        // The security archive puts its pool under `updates`; asking it first saves a 404.
        let security = package.path.starts_with("pool/updates/");
        bases.sort_by_key(|base| base.ends_with("security") != security);
        Self {
            name: format!("{} {}", package.name, package.version),
            digest: package.digest,
            size: Some(package.size),
            max: package.size,
            urls: bases.into_iter().map(at).collect(),
            fallbacks: snapshots.iter().map(|base| at(base)).collect(),
            versioned: true,
        }
    }
}

impl Fetcher {
    /// Makes sure that every byte `lock` and `crates` name is in the blob store. Digests are
    /// checked while the bytes stream; an input is durable before it counts. Stops at the first
    /// error; what arrived before stays.
    pub async fn ensure(
        &self,
        lock: &Lock,
        crates: &[Crate],
        progress: &(dyn Fn(Progress<'_>) + Send + Sync),
    ) -> Result<Report, FetchError> {
        let debian = &self.config.debian;
        let packages = lock.packages.iter().map(|package| Job::package(package, &debian.archives, &debian.snapshots));
        let crate_max = self.config.limits.input_bytes;
        let crates = crates.iter().map(|krate| Job::krate(krate, &self.config.crates_base, crate_max));
        let jobs = packages.chain(lock.urls.iter().map(|url| Job::url(url, &self.config))).chain(crates).collect();
        self.run(jobs, progress).await
    }

    pub(crate) async fn run(
        &self,
        jobs: Vec<Job>,
        progress: &(dyn Fn(Progress<'_>) + Send + Sync),
    ) -> Result<Report, FetchError> {
        let mut report = Report::default();
        let mut seen = BTreeSet::new();
        let mut missing = Vec::new();
        for job in jobs {
            if !seen.insert(job.digest) {
                continue;
            }
            // A lock will count on it.
            match self.blobs.touch(job.digest).await.map_err(adamant_store::WriteBlobError::from)? {
                Some(size) if job.size.is_none_or(|expected| expected == size) => report.kept += 1,
                _ => missing.push(job),
            }
        }
        let total = missing.len() as u64;
        let parallel = self.config.limits.parallel.clamp(1, 64);
        let mut running = stream::iter(missing).map(|job| self.fetch_one(job)).buffer_unordered(parallel);
        while let Some(done) = running.next().await {
            let (name, bytes) = done?;
            report.new += 1;
            report.bytes += bytes;
            progress(Progress { name: &name, done: report.new, total, bytes: report.bytes });
        }
        Ok(report)
    }

    async fn fetch_one(&self, job: Job) -> Result<(String, u64), FetchError> {
        let expect = Expect { name: &job.name, digest: Some(job.digest), size: job.size, max: job.max };
        let mut gone = None;
        for url in job.urls.iter().chain(&job.fallbacks) {
            match self.http.store(url, expect, &*self.blobs).await {
                Ok((_, bytes)) => return Ok((job.name, bytes)),
                Err(error @ FetchError::Gone { .. }) => gone = Some(error),
                Err(error) => return Err(error.of(&job.name)),
            }
        }
        let mirrors = job.urls.iter().chain(&job.fallbacks).filter_map(|url| url.split("/pool/").next());
        let mirrors = mirrors.collect::<Vec<_>>().join(", ");
        match gone {
            Some(error) if !job.versioned && job.urls.len() == 1 => Err(error),
            Some(_) if !job.versioned => Err(FetchError::Nowhere { name: job.name, urls: job.urls }),
            _ => Err(FetchError::Vanished { name: job.name, mirrors }),
        }
    }
}

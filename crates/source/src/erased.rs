//! Blobs that were erased: out of every repository, refused when they come back, named to whoever
//! asks for them.
//!
//! Trees and commits name a blob by its hash and stay; they say nothing about its bytes. A pack that
//! holds it is written anew without it. The new pack is durable before the old one goes; what a crash
//! leaves of the old one is seen by the next try, or is half a pack, which the next start removes.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::io::AsyncReadExt as _;

use crate::git::{Git, unexpected};
use crate::read::parse_check;
use crate::repositories::blocking;
use crate::{GitError, Oid, OpenError, ReadError, Repositories, Repository, durable};

/// Bytes of a blob that are read at a time.
const PART: usize = 256 << 10;

/// What was erased, by blob, each with a line that says when, by whom and why.
#[derive(Debug, Default)]
pub(crate) struct Erased(RwLock<BTreeMap<Oid, Arc<str>>>);

impl Erased {
    pub(crate) fn why(&self, blob: Oid) -> Option<Arc<str>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&blob).cloned()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(crate) fn all(&self) -> BTreeMap<Oid, Arc<str>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first erased blob that `text` names.
    pub(crate) fn named_in(&self, text: &str) -> Option<(Oid, Arc<str>)> {
        let erased = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if erased.is_empty() {
            return None;
        }
        text.split(|c: char| !c.is_ascii_hexdigit())
            .filter_map(|word| word.parse::<Oid>().ok())
            .find_map(|oid| erased.get(&oid).map(|why| (oid, Arc::clone(why))))
    }
}

/// What is said about an erased blob.
pub(crate) fn line(blob: Oid, why: &str) -> String {
    format!("{blob} {why}")
}

/// Why erased blobs are still in a repository.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// The repository cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// git did not do its part.
    #[error("an erased object cannot be taken out of the repository of {project}: {source}")]
    Git {
        /// The project.
        project: String,
        /// What happened.
        #[source]
        source: GitError,
    },
    /// The file system did not do its part.
    #[error("an erased object cannot be taken out of {}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

impl Repositories {
    /// From now on `blob` is refused in every repository, and whoever asks for it hears `why`: a
    /// predicate, such as `was erased at …`. [`Repositories::erase`] takes it out.
    pub fn forbid(&self, blob: Oid, why: &str) {
        let mut erased = self.shared().erased.0.write().unwrap_or_else(PoisonError::into_inner);
        erased.insert(blob, crate::git::one_line(why, 1000).into());
    }

    /// Takes what is forbidden out of every repository; durable on return, repeatable. A crash leaves
    /// something to do for the next call, and nothing that is damaged.
    pub async fn erase(&self) -> Result<(), EraseError> {
        if self.shared().erased.is_empty() {
            return Ok(());
        }
        let mut first = Ok(());
        for project in self.projects().await? {
            let erased = async { self.get(&project).await?.erase().await };
            // One that is damaged does not keep what is in the others.
            first = first.and(erased.await);
        }
        first
    }
}

impl Repository {
    /// What the object is, such as `blob`, and its size in bytes; `None` if it is not here.
    pub async fn object(&self, oid: Oid) -> Result<Option<(String, u64)>, ReadError> {
        let mut found = None;
        self.check(&format!("{oid}\n"), |oid, kind, size| {
            found = oid.map(|_| (kind.to_owned(), size));
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// Hands the bytes of a blob to `on`, part by part.
    pub async fn read_blob(&self, blob: Oid, mut on: impl FnMut(&[u8])) -> Result<(), ReadError> {
        let git = self.0.git.within(self.0.limits.transfer_time);
        let command = git.command(["cat-file", "blob", &blob.to_string()]);
        let read = git.pump("cat-file", command, &[], async |stdout| -> Result<(), GitError> {
            let mut buffer = vec![0; PART];
            loop {
                let read = stdout.read(&mut buffer).await.map_err(|source| crate::git::io("cat-file", source))?;
                if read == 0 {
                    return Ok(());
                }
                on(&buffer[..read]);
            }
        });
        Ok(read.await?)
    }

    /// Erased blobs that are still here.
    pub(crate) async fn still_here(&self, git: &Git) -> Result<Vec<Oid>, GitError> {
        let erased = self.0.shared.erased.all();
        let mut found = Vec::new();
        if erased.is_empty() {
            return Ok(found);
        }
        let input = erased.keys().fold(String::new(), |mut input, oid| {
            let _ = writeln!(input, "{oid}");
            input
        });
        git.records(&["cat-file", "--batch-check"], input.as_bytes(), b'\n', |record| -> Result<(), GitError> {
            found.extend(parse_check(record)?.0);
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// Takes every erased blob out of this repository.
    async fn erase(&self) -> Result<(), EraseError> {
        // Nothing arrives meanwhile, and what arrives later is held against the list.
        let _packs = self.0.packs.write().await;
        let objects = self.path().join("objects");
        let of = |source| EraseError::Git { project: self.project().to_owned(), source };
        let at = |source| EraseError::Io { path: objects.clone(), source };
        self.0.digests.clear();
        if self.still_here(&self.0.git).await.map_err(of)?.is_empty() {
            return Ok(());
        }
        let erased: BTreeSet<Oid> = self.0.shared.erased.all().into_keys().collect();
        let dir = objects.clone();
        let loose = erased.clone();
        let indexes = blocking(move || {
            for oid in loose {
                let name = oid.to_string();
                durable::remove_file(&dir.join(&name[..2]).join(&name[2..]))?;
            }
            indexes(&dir.join("pack"))
        });
        for index in indexes.await.map_err(at)? {
            let held = self.indexed(&index).await?;
            if held.is_disjoint(&erased.iter().copied().collect()) {
                continue;
            }
            let rest: Vec<Oid> = held.into_iter().filter(|oid| !erased.contains(oid)).collect();
            self.pack_anew(&rest).await.map_err(of)?;
            let removed = index.clone();
            blocking(move || remove_pack(&removed)).await.map_err(at)?;
            tracing::info!(project = self.project(), pack = %index.display(), "a pack was written without what was erased");
        }
        Ok(())
    }

    /// The objects of a pack.
    async fn indexed(&self, index: &Path) -> Result<HashSet<Oid>, EraseError> {
        let read = index.to_owned();
        let bytes = blocking(move || std::fs::read(read)).await;
        let bytes = bytes.map_err(|source| EraseError::Io { path: index.to_owned(), source })?;
        let mut held = HashSet::new();
        let git = self.0.git.within(self.0.limits.transfer_time);
        // `<offset> <oid> (<crc>)`
        let listed = git.records(&["show-index"], &bytes, b'\n', |record| -> Result<(), GitError> {
            let oid = record.split(|b| *b == b' ').nth(1).ok_or_else(|| unexpected("show-index", record))?;
            held.insert(Oid::from_ascii(oid).map_err(|_| unexpected("show-index", record))?);
            Ok(())
        });
        listed.await.map_err(|source| EraseError::Git { project: self.project().to_owned(), source })?;
        Ok(held)
    }

    /// A new pack with these objects, whole in itself and durable on return.
    async fn pack_anew(&self, objects: &[Oid]) -> Result<(), GitError> {
        if objects.is_empty() {
            return Ok(());
        }
        let base = self.path().join("objects/pack/pack").to_string_lossy().into_owned();
        let input = objects.iter().fold(String::with_capacity(objects.len() * 41), |mut input, oid| {
            let _ = writeln!(input, "{oid}");
            input
        });
        let git = self.0.git.within(self.0.limits.transfer_time);
        git.run(&["pack-objects", "--quiet", "--delta-base-offset", &base], input.as_bytes(), 4096).await?;
        let dir = self.path().join("objects/pack");
        blocking(move || durable::sync_dir(&dir)).await.map_err(|source| crate::git::io("pack-objects", source))
    }
}

fn indexes(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "idx") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Removes a pack with all that belongs to it.
fn remove_pack(index: &Path) -> io::Result<()> {
    let dir = index.parent().unwrap_or(index);
    for beside in ["pack", "rev", "bitmap", "mtimes", "keep", "promisor"] {
        durable::remove_file(&index.with_extension(beside))?;
    }
    durable::sync_dir(dir)?;
    durable::remove_file(index)?;
    durable::sync_dir(dir)
}

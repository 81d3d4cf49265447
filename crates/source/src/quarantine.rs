//! A pack between arrival and acceptance: indexed and checked where no reader sees it.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::body::Body;
use crate::git::{Git, complaint, failed, one_line, unexpected};
use crate::read::parse_check;
use crate::repositories::{QUARANTINE, blocking};
use crate::request::Command;
use crate::{GitError, Limits, Oid, Repository, ServeError, durable};

/// A pack nobody vouches for yet. Dropping it removes it.
pub(crate) struct Quarantine {
    dir: TempDir,
    objects: PathBuf,
    git: Git,
}

/// Why a pack is not accepted, for the client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) String);

impl From<GitError> for Refused {
    fn from(error: GitError) -> Self {
        match error {
            GitError::Failed { message, .. } => Self(message),
            other => Self(other.to_string()),
        }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self(format!("the server cannot keep the pack: {error}"))
    }
}

/// What the pushed ids are, in the order of the commands that have one.
pub(crate) type Commits = Vec<(Oid, Oid)>;

impl Quarantine {
    /// Reads a pack from `body`. `Ok(Ok(None))`: it is empty.
    pub(crate) async fn receive(
        repository: &Repository,
        body: &mut Body,
    ) -> Result<Result<Option<Self>, Refused>, ServeError> {
        let limits = &repository.0.limits;
        let header = body.exactly(12).await?;
        let Some(count) = objects(&header) else {
            return Ok(Err(Refused("there is no pack, or it is not of version 2".to_owned())));
        };
        if count > limits.pack_objects {
            let most = limits.pack_objects;
            return Ok(Err(Refused(format!("the pack has {count} objects, above the limit of {most}"))));
        }
        if count == 0 {
            let rest = body.exactly(21).await?.len();
            let whole = rest == 20;
            return Ok(if whole { Ok(None) } else { Err(Refused("the pack is damaged".to_owned())) });
        }
        let quarantine = match Self::new(repository).await {
            Ok(quarantine) => quarantine,
            Err(error) => return Ok(Err(error.into())),
        };
        let indexed = quarantine.index(&header, body, limits).await?;
        Ok(indexed.map(|()| Some(quarantine)))
    }

    async fn new(repository: &Repository) -> io::Result<Self> {
        let objects = repository.path().join("objects");
        let parent = objects.clone();
        let dir = blocking(move || {
            let dir = tempfile::Builder::new().prefix(QUARANTINE).tempdir_in(parent)?;
            std::fs::create_dir(dir.path().join("pack"))?;
            Ok(dir)
        });
        let dir = dir.await?;
        let git = repository.0.git.quarantined(dir.path().to_owned()).within(repository.0.limits.transfer_time);
        Ok(Self { dir, objects, git })
    }

    /// Streams the pack through `index-pack`, which resolves deltas and runs fsck on each object.
    async fn index(&self, header: &[u8], body: &mut Body, limits: &Limits) -> Result<Result<(), Refused>, ServeError> {
        let most = format!("--max-input-size={}", limits.pack_bytes);
        let args = ["index-pack", "--stdin", "--fix-thin", "--strict", "--threads=2", &most];
        let mut child = self.git.spawn(self.git.command(args))?;
        let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut stdin), Some(stdout), Some(mut stderr)) = streams else {
            return Err(crate::git::io("index-pack", io::Error::other("no pipes")).into());
        };
        let feed = async move {
            let mut size = header.len() as u64;
            let mut alive = stdin.write_all(header).await.is_ok();
            while alive && let Some(chunk) = body.chunk().await? {
                size += chunk.len() as u64;
                if size > limits.pack_bytes {
                    return Ok(Err(Refused(format!("the pack is larger than {} bytes", limits.pack_bytes))));
                }
                alive = stdin.write_all(&chunk).await.is_ok();
            }
            Ok::<_, ServeError>(Ok(()))
        };
        let mut name = Vec::new();
        let mut stdout = stdout.take(256);
        let said = async {
            let (read, said) = tokio::join!(stdout.read_to_end(&mut name), complaint(&mut stderr));
            read.map(|_| said)
        };
        let work = async {
            // The reason for a pack that is too large must not wait for git to find it too.
            let (fed, said) = tokio::join!(feed, said);
            if let Err(refused) = fed? {
                return Ok(Err(refused));
            }
            let said = said.map_err(|source| crate::git::io("index-pack", source))?;
            let status = child.wait().await.map_err(|source| crate::git::io("index-pack", source))?;
            if status.success() {
                Ok(Ok(()))
            } else {
                tracing::info!(complaint = %one_line(&said, 1000), "pack refused");
                Ok(Err(failed("index-pack", &said, status).into()))
            }
        };
        match tokio::time::timeout(limits.transfer_time, work).await {
            Ok(done) => done,
            Err(_) => Err(ServeError::Interrupted("the pack took too long".to_owned())),
        }
    }

    /// Makes the objects part of the repository; durable on return.
    pub(crate) async fn migrate(self) -> Result<(), Refused> {
        let Self { dir, objects, .. } = self;
        let moved = blocking(move || {
            let target = objects.join("pack");
            let mut files = Vec::new();
            for entry in std::fs::read_dir(dir.path().join("pack"))? {
                let path = entry?.path();
                File::open(&path)?.sync_all()?;
                files.push(path);
            }
            // Readers find a pack by its index: it comes last.
            files.sort_by_key(|path| path.extension().is_some_and(|extension| extension == "idx"));
            for path in files {
                let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
                std::fs::rename(&path, target.join(name))?;
            }
            durable::sync_dir(&target)?;
            durable::sync_dir(&objects)?;
            dir.close()
        });
        Ok(moved.await?)
    }
}

/// Checks what the commands point to: there, commits, complete, within the limits. Returns for
/// each pushed id the commit it is or points to.
pub(crate) async fn check(
    repository: &Repository,
    quarantine: Option<&Quarantine>,
    commands: &[Command],
) -> Result<Commits, Refused> {
    let limits = &repository.0.limits;
    let own = repository.0.git.within(limits.transfer_time);
    let git = quarantine.map_or(&own, |quarantine| &quarantine.git);
    let wanted: Vec<&Command> = commands.iter().filter(|command| command.refused.is_none()).collect();
    let commits = tips(git, &wanted).await?;
    let mut input = String::new();
    for (id, _) in &commits {
        let _ = writeln!(input, "{id}");
    }
    let mut new = Vec::new();
    let args = ["rev-list", "--objects", "--stdin", "--not", "--all"];
    git.records(&args, input.as_bytes(), b'\n', |record| -> Result<(), Refused> {
        let (oid, path) = record.split_at(record.len().min(40));
        new.push(Oid::from_ascii(oid).map_err(|_| unexpected("rev-list", record))?);
        let path = path.get(1..).unwrap_or_default();
        let shown = || one_line(&String::from_utf8_lossy(path), 100);
        if path.len() > limits.path_bytes {
            return Err(Refused(format!("`{}` is longer than {} bytes", shown(), limits.path_bytes)));
        }
        if path.split(|b| *b == b'/').count() > limits.depth {
            return Err(Refused(format!("`{}` is deeper than {} directories", shown(), limits.depth)));
        }
        if new.len() > limits.pack_objects as usize {
            return Err(Refused(format!("the push has more than {} new objects", limits.pack_objects)));
        }
        Ok(())
    })
    .await?;
    sizes(git, &new, limits).await?;
    Ok(commits)
}

async fn tips(git: &Git, commands: &[&Command]) -> Result<Commits, Refused> {
    let mut input = String::new();
    let wanted: Vec<(Oid, &str)> =
        commands.iter().filter_map(|command| Some((command.new?, command.name.as_str()))).collect();
    for (id, _) in &wanted {
        let _ = write!(input, "{id}\n{id}^{{commit}}\n");
    }
    let mut kinds = Vec::new();
    let mut peeled = Vec::new();
    let mut own = true;
    git.records(&["cat-file", "--batch-check"], input.as_bytes(), b'\n', |record| -> Result<(), GitError> {
        let (oid, kind, _) = parse_check(record)?;
        if own {
            kinds.push(kind.to_owned());
        } else {
            peeled.push(oid);
        }
        own = !own;
        Ok(())
    })
    .await?;
    let mut commits = Vec::new();
    for ((id, name), (kind, peeled)) in wanted.into_iter().zip(kinds.into_iter().zip(peeled)) {
        match (kind.as_str(), peeled) {
            ("commit", Some(commit)) => commits.push((id, commit)),
            ("tag", Some(commit)) if name.starts_with("refs/tags/") => commits.push((id, commit)),
            ("missing", _) => return Err(Refused(format!("{id} for `{name}` is not in the pack"))),
            (kind, _) => return Err(Refused(format!("`{name}` would point to a {kind}, not to a commit"))),
        }
    }
    Ok(commits)
}

async fn sizes(git: &Git, objects: &[Oid], limits: &Limits) -> Result<(), Refused> {
    for part in objects.chunks(10_000) {
        let mut input = String::with_capacity(part.len() * 41);
        for oid in part {
            let _ = writeln!(input, "{oid}");
        }
        git.records(&["cat-file", "--batch-check"], input.as_bytes(), b'\n', |record| -> Result<(), Refused> {
            let (oid, kind, size) = parse_check(record)?;
            let limit = match kind {
                "blob" => limits.blob_bytes,
                "tree" => limits.tree_bytes,
                _ => limits.commit_bytes,
            };
            let Some(oid) = oid else { return Err(Refused("an object is missing".to_owned())) };
            if size > limit {
                return Err(Refused(format!("{kind} {oid} has {size} bytes, above the limit of {limit}")));
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// How many objects a pack says it has. Spec: gitformat-pack(5).
fn objects(header: &[u8]) -> Option<u32> {
    let rest = header.strip_prefix(b"PACK\0\0\0\x02")?;
    Some(u32::from_be_bytes(rest.try_into().ok()?))
}

impl Quarantine {
    /// What is said of an erased object that the pack brings back.
    pub(crate) async fn erased(&self, repository: &Repository) -> Result<Option<String>, Refused> {
        let found = repository.still_here(&self.git).await?;
        let erased = &repository.0.shared.erased;
        let first = found.first().and_then(|blob| Some((*blob, erased.why(*blob)?)));
        Ok(first.map(|(blob, why)| format!("{} is not kept again", crate::erased::line(blob, &why))))
    }

    /// Where it is, for log lines.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

#[cfg(test)]
mod tests {
    use super::objects;

    #[test]
    fn headers() {
        assert_eq!(objects(b"PACK\0\0\0\x02\0\0\x01\x02"), Some(258));
        for bytes in [&b""[..], b"PACK", b"PACK\0\0\0\x03\0\0\0\0", b"PACK\0\0\0\x02\0\0\0", b"KCAP\0\0\0\x02\0\0\0\0"]
        {
            assert_eq!(objects(bytes), None);
        }
    }
}

//! Lays inputs down in a work directory: source, archives, vendored crates, Cargo's home.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use adamant_digest::Digest;
use adamant_fetch::archive::Limits;
use adamant_recipe::Source;
use adamant_store::BlobStore;
use tokio::sync::Semaphore;

use crate::abi;
use crate::archive::{self, ArchiveError, Stage, read_tar};
use crate::layout::{Layout, LayoutError, Node, normal};
use crate::stream::{StreamError, with_blob};
use crate::write::{self, DiskError, Look};

/// A file from the outside, with the digest the lock gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceInput {
    /// What the recipe says about it.
    pub source: Source,
    /// Its bytes.
    pub digest: Digest,
}

/// A crate of a `Cargo.lock`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CrateInput {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Digest of the `.crate`, which is Cargo's checksum.
    pub digest: Digest,
}

/// Why inputs are not in place.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// A declared source.
    #[error("source `{name}`: {source}")]
    Source {
        /// Its name in the recipe.
        name: String,
        /// What is wrong.
        #[source]
        source: Box<StreamError<PlaceError>>,
    },
    /// A crate.
    #[error("crate {name} {version}: {source}")]
    Crate {
        /// Its name.
        name: String,
        /// Its version.
        version: String,
        /// What is wrong.
        #[source]
        source: Box<StreamError<PlaceError>>,
    },
    /// The work directory.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A thread was lost.
    #[error("the worker thread ended early: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

/// Why the bytes of one input are not where they belong.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// What is in it.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Names in it, or the directory it goes to.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The work directory; a file that is there already, for instance.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The directory it goes to is something else in the repository.
    #[error("`{0}` is not a directory in the repository")]
    Occupied(String),
}

/// Unpacks or copies declared sources into the work tree.
pub(crate) async fn sources(
    blobs: &Arc<dyn BlobStore>,
    inputs: &[SourceInput],
    work: &Path,
    stage: &Arc<Stage>,
    look: Look,
) -> Result<(), InputError> {
    for SourceInput { source, digest } in inputs {
        let (work, stage, own) = (work.to_owned(), stage.clone(), source.clone());
        let placed = with_blob(blobs, *digest, move |mut reader| place(&own, &mut reader, &work, &stage, look));
        placed.await.map_err(|error| InputError::Source { name: source.name.clone(), source: Box::new(error) })?;
    }
    Ok(())
}

fn place(source: &Source, reader: &mut impl Read, work: &Path, stage: &Stage, look: Look) -> Result<(), PlaceError> {
    let limits = Limits::default();
    let layout = if source.unpack {
        archive::layout(read_tar(reader, stage, &limits)?, true)?
    } else {
        let mut layout = Layout::default();
        layout.insert(source.file_name(), stage.keep(0o644, reader, limits.total_bytes)?)?;
        layout
    };
    let dir = directory(work, &source.dir)?;
    Ok(write::write(&layout, &dir, look)?)
}

/// Creates `dir` below `work`, following no link of the repository.
fn directory(work: &Path, dir: &str) -> Result<PathBuf, PlaceError> {
    let mut at = work.to_owned();
    for part in normal(dir)?.split('/').filter(|part| !part.is_empty()) {
        at.push(part);
        match fs::symlink_metadata(&at) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(PlaceError::Occupied(dir.to_owned())),
            Err(_) => fs::create_dir(&at).map_err(DiskError::on("create", &at))?,
        }
    }
    Ok(at)
}

/// Unpacks crates into a directory source: `<vendor>/<name>-<version>` with the checksum file
/// that Cargo asks for.
pub(crate) async fn vendor(
    blobs: &Arc<dyn BlobStore>,
    crates: &[CrateInput],
    vendor: &Path,
    stage: &Arc<Stage>,
    look: Look,
) -> Result<(), InputError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let slots = Arc::new(Semaphore::new(cores));
    let mut tasks = tokio::task::JoinSet::new();
    for one in crates.iter().cloned() {
        let (slots, stage, blobs, vendor) = (slots.clone(), stage.clone(), blobs.clone(), vendor.to_owned());
        tasks.spawn(async move {
            let _slot = slots.acquire().await;
            let own = one.clone();
            let done = with_blob(&blobs, one.digest, move |reader| unpack_crate(&own, reader, &vendor, &stage, look));
            done.await.map_err(|error| InputError::Crate {
                name: one.name,
                version: one.version,
                source: Box::new(error),
            })
        });
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    Ok(())
}

fn unpack_crate(
    one: &CrateInput,
    reader: impl Read,
    vendor: &Path,
    stage: &Stage,
    look: Look,
) -> Result<(), PlaceError> {
    let limits = Limits { entries: 50_000, total_bytes: 1 << 30, ..Limits::default() };
    let mut layout = archive::layout(read_tar(reader, stage, &limits)?, true)?;
    let checksum = serde_json::json!({ "files": {}, "package": one.digest.hex() }).to_string();
    layout.insert(".cargo-checksum.json", Node::bytes(0o644, checksum.into_bytes()))?;
    let dir = vendor.join(normal(&format!("{}-{}", one.name, one.version))?);
    fs::create_dir(&dir).map_err(DiskError::on("create", &dir))?;
    Ok(write::write(&layout, &dir, look)?)
}

/// Writes Cargo's configuration below the step's home.
pub(crate) fn cargo_home(home: &Path, look: Look) -> Result<(), PlaceError> {
    let mut layout = Layout::default();
    layout.insert("cargo/config.toml", Node::bytes(0o644, abi::CARGO_CONFIG.as_bytes()))?;
    Ok(write::write(&layout, home, look)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gzip(files: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (path, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(text.len() as u64);
            builder.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    const LOOK: Look = Look { owner: None, epoch: 0 };

    #[test]
    fn vendors_a_crate() {
        let dir = tempfile::tempdir().unwrap();
        let stage_dir = dir.path().join("stage");
        fs::create_dir(&stage_dir).unwrap();
        let bytes = gzip(&[("a-1.0.0/Cargo.toml", "[package]"), ("a-1.0.0/src/lib.rs", "")]);
        let one = CrateInput { name: "a".into(), version: "1.0.0".into(), digest: Digest::of(&bytes) };
        unpack_crate(&one, &bytes[..], dir.path(), &Stage::new(&stage_dir), LOOK).unwrap();
        assert!(dir.path().join("a-1.0.0/src/lib.rs").exists());
        let checksum = fs::read_to_string(dir.path().join("a-1.0.0/.cargo-checksum.json")).unwrap();
        assert_eq!(checksum, format!(r#"{{"files":{{}},"package":"{}"}}"#, one.digest.hex()));
    }

    fn source(dir: &str, unpack: bool) -> Source {
        Source { name: "x".into(), url: "https://x.org/p/x-1.tar.gz?y".into(), digest: None, dir: dir.into(), unpack }
    }

    #[test]
    fn places_archives_and_files() {
        let dir = tempfile::tempdir().unwrap();
        let (work, stage_dir) = (dir.path().join("work"), dir.path().join("stage"));
        fs::create_dir(&work).unwrap();
        fs::create_dir(&stage_dir).unwrap();
        let stage = Stage::new(&stage_dir);
        let bytes = gzip(&[("x-1/a", "1"), ("x-1/b/c", "2")]);
        place(&source("third/x", true), &mut &bytes[..], &work, &stage, LOOK).unwrap();
        assert_eq!(fs::read_to_string(work.join("third/x/b/c")).unwrap(), "2");
        place(&source(".", false), &mut &bytes[..], &work, &stage, LOOK).unwrap();
        assert_eq!(fs::read(work.join("x-1.tar.gz")).unwrap(), bytes);
        let again = place(&source("third/x", true), &mut &bytes[..], &work, &stage, LOOK);
        assert!(matches!(again, Err(PlaceError::Disk(_))), "{again:?}");
    }

    #[test]
    fn a_link_in_the_repository_leads_no_archive_out() {
        let dir = tempfile::tempdir().unwrap();
        let (work, out) = (dir.path().join("work"), dir.path().join("out"));
        fs::create_dir(&work).unwrap();
        fs::create_dir(&out).unwrap();
        std::os::unix::fs::symlink(&out, work.join("x")).unwrap();
        let stage = Stage::new(dir.path());
        let bytes = gzip(&[("x-1/a", "1"), ("x-1/b", "1")]);
        assert!(place(&source("x", true), &mut &bytes[..], &work, &stage, LOOK).is_err());
        let inner = gzip(&[("p/x/a", "1"), ("p/y", "1")]);
        assert!(place(&source(".", true), &mut &inner[..], &work, &stage, LOOK).is_err());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    }
}

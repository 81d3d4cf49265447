//! Recomputing everything: beside a live server, changing nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use adamant_api::{Finding, FsckReport};
use adamant_attest::predicate::{BindingKind, Predicate, Role};
use adamant_digest::{Digest, Sha512Hasher};
use adamant_ledger::{Keys, SqlLedger, TrustValues};
use adamant_oci::{Content, ContentDigest, Manifest};
use adamant_release::{Document as _, Release};
use adamant_source::{Depth, Repositories};
use adamant_store::{BlobStore, FsBlobs, Ledger, ReadBlobError};
use tokio::io::AsyncReadExt as _;

use crate::error::Problem;
use crate::facts::decode;
use crate::opening::AccessKey;
use crate::settings::Settings;

/// Entries read at once.
const PAGE: usize = 500;

/// What facts promise to be there.
#[derive(Default)]
struct Promised {
    /// Digest and what needs it.
    blobs: std::collections::BTreeMap<Digest, String>,
    manifests: BTreeSet<Digest>,
    commits: std::collections::BTreeMap<String, Vec<adamant_source::Oid>>,
    /// What must not be here.
    erased: BTreeSet<Digest>,
    erased_in_git: Vec<(adamant_source::Oid, String)>,
}

/// Recomputes ledger and views from the entries, hashes every blob and tree, and looks for
/// everything the facts promise. `progress` hears what is being looked at.
pub async fn fsck(
    data: &Path,
    settings: &Settings,
    key: &AccessKey,
    progress: &mut dyn FnMut(&str),
) -> Result<FsckReport, Problem> {
    if settings.database.url.is_none() && !data.join("adamant.db").exists() {
        return Err(Problem::usage(format!("{} holds no adamant data", data.display())).hint("pass `--data DIR`"));
    }
    let mut findings = Vec::new();
    let mut find = |object: String, problem: String| {
        // Errors name their object, too; once is enough.
        let problem = problem.strip_prefix(&format!("{object} ")).map(str::to_owned).unwrap_or(problem);
        findings.push(Finding { object, problem });
    };

    progress("ledger: statements, signatures, tree, views");
    let trust = trusted(data);
    if let Err(problem) = &trust {
        find("trust.json".to_owned(), problem.clone());
    }
    let ledger = crate::opening::ledger_to_read(data, settings, trust.ok()).await?;
    for found in ledger.check().await? {
        find(found.object, found.problem);
    }
    let head = ledger.head().await?;
    for problem in published(data, &ledger, head.size).await? {
        find("published log".to_owned(), problem);
    }
    let files = ledger.check_published(&data.join("log")).await;
    for found in files.map_err(|e| Problem::internal("cannot read the published log", e))? {
        find(found.object, found.problem);
    }
    for (object, problem) in keys(data, &ledger).await? {
        find(object, problem);
    }
    let promised = match promised(&ledger, head.size).await {
        Ok(promised) => promised,
        Err(problem) => {
            find("entries".to_owned(), problem.line());
            Promised::default()
        }
    };

    progress("blobs: every byte");
    let (blobs, files) = crate::opening::blobs(data, settings, key, FsBlobs::observe).await?;
    let count = hash_all(&blobs, &mut find).await?;
    second_names(&blobs, &mut find).await?;
    look_for(&blobs, &promised, &mut find).await?;
    let notes = match &files {
        Some(files) => aside(files, &promised).await?,
        None => Vec::new(),
    };

    progress("trees: what is unpacked to run");
    let trees = crate::hosting::check_trees(data, &mut find);

    progress("commits: every object");
    let mut commits = 0;
    let source = Repositories::observe(data.join("git"), adamant_source::Limits::default())
        .await
        .map_err(|e| Problem::internal("cannot open the git repositories", e))?;
    for (oid, why) in &promised.erased_in_git {
        source.forbid(*oid, why);
    }
    for (project, oids) in &promised.commits {
        commits += oids.len() as u64;
        match source.get(project).await {
            Ok(repository) => {
                let problems = repository.verify(oids, Depth::Content).await;
                for problem in problems.map_err(|e| Problem::internal(format!("cannot check {project}"), e))? {
                    find(format!("repository {project}"), problem);
                }
            }
            Err(error) => find(format!("repository {project}"), error.to_string()),
        }
    }
    Ok(FsckReport { entries: head.size, blobs: count, trees, commits, findings, notes })
}

/// The trust file as the ledger compares it.
fn trusted(data: &Path) -> Result<TrustValues, String> {
    let bytes = std::fs::read(data.join("trust.json")).map_err(|e| e.to_string())?;
    let trust = adamant_audit::Trust::parse(&bytes).map_err(|e| e.to_string())?;
    Ok(TrustValues { origin: trust.origin, log: trust.log_key.to_string(), root: trust.root_control_key })
}

/// Private keys that the ledger does not know: nothing they sign would hold.
async fn keys(data: &Path, ledger: &SqlLedger) -> Result<Vec<(String, String)>, Problem> {
    let keys = match Keys::open(&data.join("keys")) {
        Ok(keys) => keys,
        Err(error) => return Ok(vec![("keys".to_owned(), error.to_string())]),
    };
    let mut known = BTreeSet::new();
    let mut from = 1;
    loop {
        let page = ledger.chain("keys", from, PAGE).await?;
        let Some(last) = page.last() else { break };
        from = last.sequence + 1;
        for link in page {
            if let Some(entry) = ledger.entry(link.index).await?
                && let Predicate::Key(key) = decode(entry)?.predicate
            {
                known.insert((key.role, key.keyid));
            }
        }
    }
    let strange = |role: &Role| !known.contains(&(*role, keys.public(*role).keyid().to_owned()));
    let roles = [Role::Control, Role::Log, Role::Builder, Role::Host].into_iter().filter(strange);
    Ok(roles.map(|role| (format!("keys/{}", role.as_str()), "is not a key of this ledger".to_owned())).collect())
}

/// Published files against what the ledger says they are.
async fn published(data: &Path, ledger: &SqlLedger, size: u64) -> Result<Vec<String>, Problem> {
    let mut problems = Vec::new();
    let root = data.join("log");
    let mut dirs = vec![root.join("tile")];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
            // A writer's file of the moment is not published yet.
            if name.rsplit('/').next().is_some_and(|file| file.starts_with('.')) {
                continue;
            }
            let expected = ledger.tile(&name).await?;
            let found = match std::fs::read(&path) {
                // A partial tile goes when the full one is there; what must be there is asked apart.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                other => other?,
            };
            if expected.is_none_or(|expected| expected != found) {
                problems.push(format!("{name} is not what the ledger of {size} entries holds"));
            }
            if problems.len() >= 100 {
                return Ok(problems);
            }
        }
    }
    Ok(problems)
}

async fn promised(ledger: &SqlLedger, size: u64) -> Result<Promised, Problem> {
    let mut promised = Promised::default();
    let mut from = 0;
    while from < size {
        let page = ledger.entries(from, PAGE).await?;
        let Some(last) = page.last() else { break };
        from = last.index + 1;
        for entry in page {
            let index = entry.index;
            let fact = decode(entry)?;
            let mut need = |digest: Digest, what: String| {
                promised.blobs.entry(digest).or_insert(what);
            };
            match fact.predicate {
                Predicate::Lock(lock) => {
                    for input in lock.inputs {
                        need(input.digest, format!("input {} of entry {index}", input.name));
                    }
                }
                Predicate::Deployment(d) => {
                    for digest in [d.rollout, d.release_digest, d.configuration, d.policy] {
                        need(digest, format!("deployment {} to {}, entry {index}", d.release, d.environment));
                    }
                }
                Predicate::Configuration(c) => {
                    need(c.revision, format!("configuration of {}, entry {index}", c.project));
                }
                Predicate::Erasure(e) => {
                    promised.erased.insert(e.digest);
                }
                Predicate::ErasureV2(e) => {
                    promised.erased.insert(e.erasure.digest);
                    if let Ok(oid) = e.names.git_blob.parse() {
                        promised.erased_in_git.push((oid, format!("was erased by entry {index}")));
                    }
                }
                Predicate::Pointer(p) => {
                    need(p.digest, format!("pointer {}, entry {index}", p.name));
                    promised.manifests.insert(p.digest);
                }
                Predicate::Binding(b) => match b.kind {
                    // Its chain says where it leads.
                    BindingKind::Tag if b.digest == *adamant_registry::POINTER => {}
                    BindingKind::Tag | BindingKind::Artifact | BindingKind::Output => {
                        need(b.digest, format!("{} {}", b.kind.as_str(), b.name));
                        promised.manifests.insert(b.digest);
                    }
                    BindingKind::Release => need(b.digest, format!("release {}", b.name)),
                    BindingKind::Commit => {
                        if let Some((project, oid)) = b.name.split_once('@')
                            && let Ok(oid) = oid.parse()
                        {
                            promised.commits.entry(project.to_owned()).or_default().push(oid);
                        }
                    }
                    BindingKind::Lock | BindingKind::Upstream => {}
                },
                _ => {}
            }
        }
    }
    Ok(promised)
}

/// Hashes what each sha512 leads to.
async fn second_names(blobs: &Arc<dyn BlobStore>, find: &mut impl FnMut(String, String)) -> Result<(), Problem> {
    let mut after = None;
    let mut buffer = vec![0_u8; 1 << 20];
    loop {
        let page = blobs.aliases(after, 1000).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(*last);
        for other in page {
            let Some(digest) = blobs.aliased(other).await? else {
                find(format!("name {other}"), "is damaged: push its bytes again".to_owned());
                continue;
            };
            let Ok(mut reader) = blobs.open(digest).await else {
                find(format!("name {other}"), format!("leads to {digest}, which cannot be read"));
                continue;
            };
            let mut hasher = Sha512Hasher::new();
            while let Ok(n @ 1..) = reader.bytes.read(&mut buffer).await {
                hasher.update(&buffer[..n]);
            }
            // Bytes that are wrong by their own name are a finding of their own.
            if hasher.finish() != other {
                find(format!("name {other}"), format!("leads to {digest}, which has other bytes"));
            }
        }
    }
}

/// Reads every blob to its end.
async fn hash_all(blobs: &Arc<dyn BlobStore>, find: &mut impl FnMut(String, String)) -> Result<u64, Problem> {
    let mut after = None;
    let mut count = 0;
    let mut buffer = vec![0_u8; 1 << 20];
    loop {
        let page = blobs.list(after, 1000).await?;
        let Some(last) = page.last() else { return Ok(count) };
        after = Some(*last);
        for digest in page {
            count += 1;
            match blobs.open(digest).await {
                Ok(mut reader) => loop {
                    match reader.bytes.read(&mut buffer).await {
                        Ok(0) => break,
                        Ok(_) => {}
                        Err(error) => {
                            find(format!("blob {digest}"), format!("{error}; push the right bytes to heal it"));
                            break;
                        }
                    }
                },
                Err(error @ ReadBlobError::Corrupt { .. }) => {
                    find(format!("blob {digest}"), format!("{error}; push the right bytes to heal it"));
                }
                // Gone between list and open: nothing removes blobs, so it is found below if needed.
                Err(ReadBlobError::NotFound(_)) => {}
                Err(error) => find(format!("blob {digest}"), error.to_string()),
            }
        }
    }
}

/// Wrong bytes that were moved aside. The blob itself, if something needs it and it is not back, is
/// found where it is missing.
async fn aside(files: &FsBlobs, promised: &Promised) -> Result<Vec<Finding>, Problem> {
    let mut notes = Vec::new();
    for (path, digest) in files.aside()? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let state = if name.starts_with("pieces-") {
            "of pieces that other blobs rest on"
        } else if promised.erased.contains(&digest) {
            "of a blob that was erased"
        } else if files.size(digest).await?.is_some() {
            "of a blob that was healed"
        } else {
            "of a blob that is not back: push it to heal it"
        };
        notes.push(Finding { object: format!("quarantine {name}"), problem: format!("holds wrong bytes {state}") });
    }
    Ok(notes)
}

/// Everything that facts name is there: documents, manifests and what they name in turn.
async fn look_for(
    blobs: &Arc<dyn BlobStore>,
    promised: &Promised,
    find: &mut impl FnMut(String, String),
) -> Result<(), Problem> {
    for digest in &promised.erased {
        if blobs.size(*digest).await?.is_some() {
            find(
                format!("blob {digest}"),
                "was erased and is still here: start the server, which removes it".to_owned(),
            );
        }
    }
    for (digest, what) in promised.blobs.iter().filter(|(digest, _)| !promised.erased.contains(digest)) {
        if blobs.size(*digest).await?.is_none() {
            find(format!("blob {digest}"), format!("is missing; {what} needs it"));
        }
    }
    for manifest in &promised.manifests {
        let Ok(bytes) = blobs.get(*manifest).await else { continue };
        let parsed = match Manifest::from_verified(bytes) {
            Ok(parsed) => parsed,
            Err(error) => {
                find(format!("manifest {manifest}"), error.to_string());
                continue;
            }
        };
        let parts: Vec<_> = match parsed.content() {
            Content::Image { config, layers } => std::iter::once(&**config).chain(layers).collect(),
            Content::Index { manifests } => manifests.iter().collect(),
        };
        for part in parts {
            let digest = match &part.digest {
                ContentDigest::Sha256(digest) => Some(*digest),
                ContentDigest::Sha512(other) => blobs.aliased(*other).await?,
                ContentDigest::Other(_) => continue,
            };
            let kept = match digest {
                Some(digest) => promised.erased.contains(&digest) || blobs.size(digest).await?.is_some(),
                None => false,
            };
            if !kept && !adamant_oci::media::is_non_distributable(&part.media_type) {
                find(format!("blob {}", part.digest), format!("is missing; manifest {manifest} names it"));
            }
        }
    }
    for (digest, what) in promised.blobs.iter().filter(|(_, what)| what.starts_with("release ")) {
        if let Ok(bytes) = blobs.get(*digest).await
            && let Err(error) = Release::parse(bytes.bytes())
        {
            find(what.clone(), error.to_string());
        }
    }
    Ok(())
}

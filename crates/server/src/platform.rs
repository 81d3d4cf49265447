//! The composition: every part of the product behind one handle, without HTTP.
//!
//! The server holds one; a rollback without a server holds one for a moment. Whoever holds it
//! holds the data directory's lock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use adamant_attest::predicate::{Binding, BindingKind, Configuration as ConfigurationFact, Predicate, Role};
use adamant_build::Builder;
use adamant_deploy::Local;
use adamant_digest::Digest;
use adamant_fetch::Fetcher;
use adamant_ledger::SqlLedger;
use adamant_registry::Registry;
use adamant_release::{Configuration, Document, Policy, Release};
use adamant_source::{Oid, Push, Receiver, Repositories, Repository};
use adamant_store::{BlobStore, BoxFuture, Chain, Erased, Fact, FsBlobs, Ledger, Receipt, Subject, WithoutErased};
use tokio::sync::{OwnedMutexGuard, mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::error::Problem;
use crate::facts::Facts;
use crate::logs::Logs;
use crate::opening::{Claim, Claimed};

/// Where a server keeps its data and what it may reach.
#[derive(Debug, Clone)]
pub struct Config {
    /// Data directory.
    pub data: PathBuf,
    /// Address of the one port.
    pub listen: SocketAddr,
    /// Path of the `adamant` binary, for the helper processes.
    pub exe: PathBuf,
    /// `/v2/` without a token, on loopback alone.
    pub anonymous_registry: bool,
    /// Debian mirror to lock from; by default Debian's own.
    pub debian_mirror: Option<String>,
    /// Hosts or networks on private addresses that may be fetched from.
    pub allow_private: Vec<String>,
    /// First port for environments.
    pub environment_ports: Option<u16>,
    /// Proxies for fetching.
    pub proxy: crate::Proxy,
    /// What `server.toml` says.
    pub settings: crate::Settings,
    /// For a bucket whose settings name no file with one.
    pub access_key: crate::AccessKey,
}

/// Held by whoever changes something at the moment.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// Everything, composed.
pub struct Platform {
    pub(crate) config: Config,
    /// Without what was erased.
    pub(crate) blobs: Arc<dyn BlobStore>,
    /// The store itself, for whoever erases.
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) erased: Erased,
    /// What was erased and may still have copies here: all of it at a start.
    pub(crate) unfinished: Mutex<BTreeSet<Digest>>,
    pub(crate) collected: crate::collect::Counters,
    /// The same, as files, if that is what they are.
    pub(crate) files: Option<FsBlobs>,
    pub(crate) scrubbed: std::sync::atomic::AtomicU64,
    pub(crate) ledger: Arc<SqlLedger>,
    pub(crate) facts: Facts,
    pub(crate) source: Repositories,
    pub(crate) fetcher: Fetcher,
    pub(crate) builder: Builder,
    pub(crate) registry: Registry,
    pub(crate) hooks: Vec<Arc<crate::webhooks::Hook>>,
    pub(crate) local: Local,
    pub(crate) logs: Logs,
    pub(crate) origin: String,
    /// Work that outlives the request that started it.
    pub(crate) tasks: TaskTracker,
    address: OnceLock<SocketAddr>,
    turns: Mutex<HashMap<(String, String), Turn>>,
    active: Arc<Mutex<Active>>,
    rebuilt: watch::Sender<u64>,
    pub(crate) rebuild_slot: Arc<tokio::sync::Semaphore>,
    /// Last: everything else is closed before the directory is free.
    _claim: Claim,
}

/// What is being worked on now; known to this process alone.
#[derive(Default)]
struct Active {
    building: BTreeMap<(String, String), usize>,
    rebuilding: BTreeSet<(String, u64)>,
}

/// Marks a commit as being built until dropped.
pub(crate) struct Building {
    active: Arc<Mutex<Active>>,
    key: (String, String),
}

impl Drop for Building {
    fn drop(&mut self) {
        let mut active = lock(&self.active);
        if let Some(count) = active.building.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                active.building.remove(&self.key);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Platform {
    /// Opens or creates a data directory with everything in it.
    pub async fn open(config: Config) -> Result<Arc<Self>, Problem> {
        match crate::opening::claim(&config.data)? {
            Claimed::Ours(claim) => Self::open_claimed(config, claim).await,
            Claimed::Held { problem, .. } => Err(problem),
        }
    }

    /// Opens a data directory with everything in it, that of `config`.
    pub(crate) async fn open_claimed(config: Config, claim: Claim) -> Result<Arc<Self>, Problem> {
        let data = config.data.clone();
        let (store, files) = crate::opening::blobs(&data, &config.settings, &config.access_key, FsBlobs::open).await?;
        let ledger = Arc::new(crate::opening::ledger(&data, &config.settings).await?);
        let erased = Erased::default();
        crate::erase::load(Arc::clone(&ledger) as Arc<dyn Ledger>, &*store, &erased).await?;
        let blobs: Arc<dyn BlobStore> = Arc::new(WithoutErased::new(Arc::clone(&store), erased.clone()));
        let origin = ledger.trust_values().origin.clone();
        let facts = Facts { ledger: Arc::clone(&ledger) as Arc<dyn Ledger> };
        crate::opening::write_trust(&data, &ledger)?;
        let source = Repositories::open(data.join("git"), adamant_source::Limits::default())
            .await
            .map_err(|e| Problem::internal("cannot open the git repositories", e))?;
        crate::erase::forbid_all(&source, &erased);
        let fetcher = crate::opening::fetcher(&config, Arc::clone(&blobs))?;
        let builder = crate::opening::builder(&config, Arc::clone(&blobs))?;
        let registry = crate::opening::registry(&config, &blobs, &ledger, erased.clone()).await?;
        let local = crate::hosting::open(&config, Arc::clone(&blobs))?;
        let hooks = crate::webhooks::open(&config, *ledger.grown().borrow())?;
        Ok(Arc::new(Self {
            logs: Logs::open(&data.join("logs"))?,
            config,
            blobs,
            store,
            unfinished: Mutex::new(erased.digests().into_iter().collect()),
            erased,
            collected: crate::collect::Counters::default(),
            files,
            scrubbed: std::sync::atomic::AtomicU64::new(0),
            ledger,
            facts,
            source,
            fetcher,
            builder,
            registry,
            hooks,
            local,
            origin,
            tasks: TaskTracker::new(),
            address: OnceLock::new(),
            turns: Mutex::default(),
            active: Arc::default(),
            rebuilt: watch::channel(0).0,
            rebuild_slot: Arc::new(tokio::sync::Semaphore::new(1)),
            _claim: claim,
        }))
    }

    /// The address the server listens on, once it does.
    pub(crate) fn listens_on(&self, address: SocketAddr) {
        // Set once at start-up; a second value could only be the same.
        let _ = self.address.set(address);
    }

    /// Base URL of the server.
    pub(crate) fn base_url(&self) -> String {
        self.config.settings.base_url(*self.address.get().unwrap_or(&self.config.listen))
    }

    /// Records facts, all or none.
    pub(crate) async fn append(&self, facts: Vec<Fact>) -> Result<Vec<Receipt>, Problem> {
        Ok(self.facts.ledger.append(facts).await?)
    }

    /// Records one fact.
    pub(crate) async fn append_one(&self, fact: Fact) -> Result<Receipt, Problem> {
        self.append(vec![fact]).await?.pop().ok_or_else(|| Problem::damaged("a fact was recorded without a receipt"))
    }

    /// Waits for the right to change something named twice: one change at a time.
    pub(crate) async fn turn(&self, project: &str, environment: &str) -> OwnedMutexGuard<()> {
        let key = (project.to_owned(), environment.to_owned());
        let turn = Arc::clone(lock(&self.turns).entry(key).or_default());
        turn.lock_owned().await
    }

    /// Reads a document by digest.
    pub(crate) async fn document<D: Document>(&self, digest: Digest) -> Result<D, Problem> {
        let bytes = self.blobs.get(digest).await?;
        D::parse(bytes.bytes()).map_err(|e| Problem::damaged(format!("{} {digest}: {e}", D::NAME)))
    }

    /// The rules of a project with their digest; an error if there is no such project.
    pub(crate) async fn policy(&self, project: &str) -> Result<(Policy, Digest), Problem> {
        let revision = self.facts.revision(&crate::facts::policy(project)).await?;
        let Some(revision) = revision else {
            let hint = "run `adamant init` in its repository, or look at `adamant status`";
            return Err(Problem::usage(format!("there is no project `{project}`")).hint(hint));
        };
        Ok((self.document(revision).await?, revision))
    }

    pub(crate) async fn configuration_digest(&self, project: &str, environment: &str) -> Result<Digest, Problem> {
        let revision = self.facts.revision(&format!("configuration/{project}/{environment}")).await?;
        revision.ok_or_else(|| Problem::damaged(format!("{environment} of {project} has no configuration")))
    }

    pub(crate) async fn record_revision(
        &self,
        project: &str,
        environment: &str,
        revision: Digest,
        by: &str,
    ) -> Result<(), Problem> {
        let name = if environment.is_empty() {
            crate::facts::policy(project)
        } else {
            format!("configuration/{project}/{environment}")
        };
        let fact = Fact {
            role: Role::Control,
            subject: vec![Subject { name: name.clone(), digest: revision }],
            predicate: Predicate::Configuration(ConfigurationFact {
                project: project.to_owned(),
                environment: environment.to_owned(),
                revision,
                by: by.to_owned(),
            }),
            chain: Some(Chain { name, expect: None }),
        };
        self.append_one(fact).await?;
        Ok(())
    }

    /// Creates a project with its repository, rules and empty configurations. Repeatable.
    pub async fn create_project(&self, name: &str, by: &str) -> Result<adamant_api::Project, Problem> {
        if !adamant_release::valid_name(name) {
            return Err(Problem::usage(format!("`{name}` is not a project name"))
                .hint("use 1 to 40 lower-case letters, digits and inner hyphens"));
        }
        if self.config.settings.upstreams.iter().any(|upstream| upstream.name == name) {
            let message = format!("`{name}` is the name of an upstream in server.toml");
            return Err(Problem::new(adamant_api::Class::Conflict, message).hint("choose another name for the project"));
        }
        let _turn = self.turn(name, "").await;
        let is_new = self.facts.revision(&crate::facts::policy(name)).await?.is_none();
        // A release of the project would find its tags taken.
        if is_new
            && let Some((taken, _)) =
                self.facts.ledger.bindings(BindingKind::Tag, &format!("{name}/"), "", 1).await?.first()
        {
            return Err(Problem::new(
                adamant_api::Class::Conflict,
                format!("the repositories below `{name}/` are in use already: {taken} was pushed to the registry"),
            )
            .hint("choose another name for the project"));
        }
        self.source
            .create(name)
            .await
            .map_err(|e| Problem::internal(format!("cannot create the repository of {name}"), e))?;
        let policy = Policy::default();
        let empty = encode(&Configuration::default())?;
        self.blobs.put(&empty).await?;
        for environment in &policy.environments {
            let chain = format!("configuration/{name}/{}", environment.name);
            if self.facts.revision(&chain).await?.is_none() {
                self.record_revision(name, &environment.name, empty.digest(), by).await?;
            }
        }
        // The rules come last: a project exists once it has them.
        if self.facts.revision(&crate::facts::policy(name)).await?.is_none() {
            let policy = encode(&policy)?;
            self.blobs.put(&policy).await?;
            self.record_revision(name, "", policy.digest(), by).await?;
        }
        self.project(name).await
    }

    pub(crate) async fn repository(&self, project: &str) -> Result<Repository, Problem> {
        self.policy(project).await?;
        self.source
            .get(project)
            .await
            .map_err(|e| Problem::internal(format!("cannot open the repository of {project}"), e))
    }

    /// The release document with that number.
    pub(crate) async fn release(&self, project: &str, number: u64) -> Result<Release, Problem> {
        let commit = self.commit_numbered(project, number).await?;
        let name = format!("{project}/{number}");
        match self.facts.bound(BindingKind::Release, &name).await? {
            Some(digest) => self.document(digest).await,
            None if self.is_building(project, &commit.oid) => {
                Err(Problem::new(adamant_api::Class::Unavailable, format!("{name} is still being built"))
                    .hint(format!("watch it: adamant logs {name} --follow")))
            }
            None => Err(Problem::no(format!("{name} was not built"))
                .hint(format!("`adamant logs {name}` says why; push the commit again to retry"))),
        }
    }

    /// First line of a commit's message; empty if the commit cannot be read.
    pub(crate) async fn subject(&self, project: &str, oid: &str) -> String {
        let read = async {
            let repository = self.source.get(project).await.ok()?;
            repository.commit(oid.parse().ok()?).await.ok()
        };
        read.await.map(|commit| commit.subject).unwrap_or_default()
    }

    pub(crate) fn building(&self, project: &str, oid: &str) -> Building {
        let key = (project.to_owned(), oid.to_owned());
        *lock(&self.active).building.entry(key.clone()).or_default() += 1;
        Building { active: Arc::clone(&self.active), key }
    }

    pub(crate) fn is_building(&self, project: &str, oid: &str) -> bool {
        lock(&self.active).building.contains_key(&(project.to_owned(), oid.to_owned()))
    }

    /// Whether anything is being built now.
    pub(crate) fn is_making(&self) -> bool {
        let active = lock(&self.active);
        !active.building.is_empty() || !active.rebuilding.is_empty()
    }

    pub(crate) fn is_rebuilding(&self, project: &str, number: u64) -> bool {
        lock(&self.active).rebuilding.contains(&(project.to_owned(), number))
    }

    /// False if the rebuild is under way already.
    pub(crate) fn begin_rebuild(&self, project: &str, number: u64) -> bool {
        lock(&self.active).rebuilding.insert((project.to_owned(), number))
    }

    pub(crate) fn end_rebuild(&self, project: &str, number: u64) {
        lock(&self.active).rebuilding.remove(&(project.to_owned(), number));
        self.rebuilt.send_modify(|count| *count += 1);
    }

    /// Waits until no rebuild of the release is under way.
    pub(crate) async fn await_rebuild(&self, release: &Release, say: crate::ship::Say<'_>) {
        let mut ended = self.rebuilt.subscribe();
        let mut told = false;
        while self.is_rebuilding(&release.project, release.number) {
            if !told {
                say(format!("waiting for the rebuild of {}", release.name()));
                told = true;
            }
            if ended.changed().await.is_err() {
                return;
            }
        }
    }

    /// The pipeline as the git remote sees it.
    pub(crate) fn receiver(self: &Arc<Self>) -> Arc<dyn Receiver> {
        Arc::new(Pipeline(Arc::clone(self)))
    }

    /// Whether `name` of `kind` is bound.
    pub(crate) async fn is_bound(&self, kind: BindingKind, name: &str) -> Result<bool, Problem> {
        Ok(self.facts.bound(kind, name).await?.is_some())
    }
}

/// The commit a release was made from.
pub(crate) fn commit_of(release: &Release) -> Result<Oid, Problem> {
    release.commit.parse().map_err(|_| Problem::damaged(format!("{} names no commit", release.name())))
}

fn encode(document: &impl Document) -> Result<adamant_digest::Verified, Problem> {
    document.encode().map_err(|e| Problem::internal("a document cannot be written", e))
}

struct Pipeline(Arc<Platform>);

impl Receiver for Pipeline {
    fn received(&self, push: Push, progress: mpsc::Sender<String>) -> BoxFuture<'static, Result<(), String>> {
        let platform = Arc::clone(&self.0);
        Box::pin(async move {
            platform.push(push, progress).await.map_err(|problem| {
                if let Some(internal) = &problem.internal {
                    tracing::error!(error = %problem.error.message, internal, "push failed");
                }
                // A ref is refused in one line; the side band had them all.
                problem.short()
            })
        })
    }
}

/// The binding in a recorded predicate, if it is one.
pub(crate) fn as_binding(predicate: &Predicate) -> Option<&Binding> {
    match predicate {
        Predicate::Binding(binding) => Some(binding),
        _ => None,
    }
}

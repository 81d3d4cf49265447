//! Opening a ledger, and the contract of `store` on it.

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use adamant_attest::predicate::{BindingKind, Predicate, Role};
use adamant_attest::{PublicKey, Statement};
use adamant_digest::Digest;
use adamant_store::{AppendError, Bound, BoxFuture, Entry, Fact, Head, Ledger, LedgerError, Link, Receipt};
use adamant_tlog::{Checkpoint, Note, NoteSigner, VerifierKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::db::{Conn, Options, Pool, Query};
use crate::error::{OpenError, damaged};
use crate::keys::{KEY_CHAIN, Keys, ROLES, TrustValues};
use crate::place::postgres;
use crate::schema::{self, Found};
use crate::writer::{self, HeadRow, Job, MAX_WAITING_FACTS, Message, Writer};
use crate::{files, read, rebuild};

/// What time it is; the rim decides.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Longest wait for another process's lock on the database.
const BUSY: Duration = Duration::from_secs(10);
/// Calls that may wait in the writer's queue; their facts are bounded by [`MAX_WAITING_FACTS`].
const QUEUE: usize = MAX_WAITING_FACTS;
/// A ledger in one SQLite file or in a PostgreSQL database. Dropping it lets queued appends finish in the background;
/// [`SqlLedger::close`] waits for them.
pub struct SqlLedger {
    /// For people; holds no password.
    place: String,
    /// For readers.
    options: Options,
    pub(crate) readers: Pool,
    queue: Option<mpsc::Sender<Message>>,
    waiting: Arc<Semaphore>,
    task: Mutex<Option<JoinHandle<()>>>,
    trust: TrustValues,
    grown: watch::Sender<u64>,
}

impl SqlLedger {
    /// Opens the ledger at `path`, making it with its first facts (the keys) if there is none.
    /// `origin` names a new log; for an existing one it must be the same or `None`. The caller
    /// holds the lock on the data directory.
    pub async fn open(path: &Path, keys: Keys, clock: Clock, origin: Option<String>) -> Result<Self, OpenError> {
        create_file(path).await?;
        let options = options(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .auto_vacuum(SqliteAutoVacuum::None)
            // A checkpoint of the write-ahead log stalls the writer: seldom, but not so seldom
            // that the file grows large (4,096 pages of 8 KiB are 32 MiB).
            .page_size(8192)
            .pragma("wal_autocheckpoint", "4096")
            .pragma("journal_size_limit", "67108864")
            .pragma("cache_size", "-16384")
            .foreign_keys(true);
        let readers = Options::Sqlite(Box::new(read_options(path)));
        Self::open_by(path.display().to_string(), Options::Sqlite(Box::new(options)), readers, keys, clock, origin)
            .await
    }

    /// Opens the ledger in the PostgreSQL database that `url` names, making its tables and first facts
    /// if there are none. Any number of servers may do so, with the same keys: they append one after the
    /// other. Its certificate is verified, unless it is on this machine or `sslmode` in the URL is `disable`.
    pub async fn open_postgres(url: &str, keys: Keys, clock: Clock, origin: Option<String>) -> Result<Self, OpenError> {
        let (place, options) = postgres(url)?;
        Self::open_by(place, options.clone(), options, keys, clock, origin).await
    }

    async fn open_by(
        place: String,
        options: Options,
        readers: Options,
        keys: Keys,
        clock: Clock,
        origin: Option<String>,
    ) -> Result<Self, OpenError> {
        let mut conn = options.connect().await?;
        let existing = match schema::look(&mut conn).await? {
            Found::Nothing => None,
            Found::Current => HeadRow::load(&mut conn).await?,
            Found::OldViews => {
                rebuild::run(&mut conn).await?;
                HeadRow::load(&mut conn).await?
            }
        };
        let size = existing.as_ref().map_or(0, |head| head.range.size());
        let found = existing.map(|head| origin_of(&head.checkpoint)).transpose()?;
        let origin = match (found, origin) {
            (Some(found), Some(expected)) if found != expected => return Err(OpenError::Origin { expected, found }),
            (Some(found), _) => {
                same_keys(&mut conn, &keys).await?;
                found
            }
            (None, origin) => origin.unwrap_or_else(|| keys.origin()),
        };
        let host_like = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-');
        if origin.is_empty() || origin.len() > 200 || !origin.chars().all(host_like) {
            return Err(OpenError::BadOrigin(origin.chars().take(200).collect()));
        }
        let signer = NoteSigner::from_pkcs8(&origin, keys.signing(Role::Log).secret_pkcs8_der())
            .map_err(|_| OpenError::BadOrigin(origin.clone()))?;
        let trust = TrustValues { origin, log: signer.key().to_string(), root: keys.public(Role::Control).clone() };
        let grown = watch::Sender::new(size);
        let mut writer =
            Writer { options, conn: Some(conn), keys, signer: Arc::new(signer), clock, grown: grown.clone() };
        if !writer::begin(&mut writer).await? {
            // Another server was faster; that it is the same ledger is to be seen like any other time.
            let mut conn = writer.options.connect().await?;
            let head = HeadRow::load(&mut conn).await?.ok_or_else(|| damaged("head: the row is missing"))?;
            let found = origin_of(&head.checkpoint)?;
            if found != trust.origin {
                return Err(OpenError::Origin { expected: trust.origin, found });
            }
            same_keys(&mut conn, &writer.keys).await?;
            conn.close().await;
        }
        let (queue, messages) = mpsc::channel(QUEUE);
        let task = tokio::spawn(writer.run(messages));
        Ok(Self {
            place,
            readers: readers.clone().pool(),
            options: readers,
            queue: Some(queue),
            waiting: Arc::new(Semaphore::new(MAX_WAITING_FACTS)),
            task: Mutex::new(Some(task)),
            trust,
            grown,
        })
    }

    /// Opens an existing ledger for reading, also beside a server that writes to it. What it
    /// checks is held against `trust`, what a trust file says; without it the ledger's own word
    /// counts, and one replaced as a whole is not noticed.
    pub async fn open_read_only(path: &Path, trust: Option<TrustValues>) -> Result<Self, OpenError> {
        if let Err(source) = std::fs::metadata(path) {
            return Err(OpenError::Io { path: path.to_owned(), source });
        }
        Self::read_by(path.display().to_string(), Options::Sqlite(Box::new(read_options(path))), trust).await
    }

    /// The same for a ledger in PostgreSQL.
    pub async fn open_postgres_read_only(url: &str, trust: Option<TrustValues>) -> Result<Self, OpenError> {
        let (place, options) = postgres(url)?;
        Self::read_by(place, options, trust).await
    }

    async fn read_by(place: String, options: Options, trust: Option<TrustValues>) -> Result<Self, OpenError> {
        let readers = options.clone().pool();
        let mut conn = readers.acquire().await?;
        if schema::look(&mut conn).await? == Found::Nothing {
            return Err(damaged("the database holds no ledger").into());
        }
        let trust = match trust {
            Some(trust) => trust,
            None => own_trust(&mut conn).await?,
        };
        drop(conn);
        let waiting = Arc::new(Semaphore::new(MAX_WAITING_FACTS));
        Ok(Self {
            place,
            options,
            readers,
            queue: None,
            waiting,
            task: Mutex::new(None),
            trust,
            grown: watch::Sender::new(0),
        })
    }

    /// A connection of its own for a long reading.
    pub(crate) async fn connect(&self) -> Result<Conn<'static>, LedgerError> {
        self.options.connect().await
    }

    /// What a trust file says about this ledger.
    pub fn trust_values(&self) -> &TrustValues {
        &self.trust
    }

    /// The size of the log as far as this process knows: it changes with every append here, and when
    /// [`SqlLedger::look`] finds what another server appended.
    pub fn grown(&self) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    /// Looks whether another server has appended.
    pub async fn look(&self) -> Result<(), LedgerError> {
        writer::grow(&self.grown, read::head(&self.readers).await?.size);
        Ok(())
    }

    /// Waits until what was queued is recorded, and closes all connections.
    pub async fn close(mut self) {
        self.queue = None;
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the ledger's writer stopped early");
        }
        self.readers.close().await;
    }

    /// Makes all views again from the entries, in one transaction of the writer.
    pub async fn rebuild_views(&self) -> Result<(), LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.queue()?.send(Message::Rebuild(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    fn queue(&self) -> Result<&mpsc::Sender<Message>, LedgerError> {
        self.queue.as_ref().ok_or_else(|| LedgerError::Unavailable("it was opened for reading".to_owned()))
    }

    async fn record(&self, facts: Vec<Fact>) -> Result<Vec<Receipt>, AppendError> {
        if facts.is_empty() {
            return Ok(Vec::new());
        }
        let facts = writer::prepare(facts)?;
        let count = u32::try_from(facts.len()).map_err(|error| AppendError::Invalid(error.to_string()))?;
        let permit = Arc::clone(&self.waiting).acquire_many_owned(count).await.map_err(|_| stopped())?;
        let (job, answer) = Job::new(facts, permit);
        self.queue()?.send(Message::Append(job)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

impl std::fmt::Debug for SqlLedger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SqlLedger({}, {})", self.place, self.trust.origin)
    }
}

impl Ledger for SqlLedger {
    fn append(&self, facts: Vec<Fact>) -> BoxFuture<'_, Result<Vec<Receipt>, AppendError>> {
        Box::pin(self.record(facts))
    }

    fn head(&self) -> BoxFuture<'_, Result<Head, LedgerError>> {
        Box::pin(read::head(&self.readers))
    }

    fn binding<'a>(&'a self, kind: BindingKind, name: &'a str) -> BoxFuture<'a, Result<Option<Bound>, LedgerError>> {
        Box::pin(read::binding(&self.readers, kind, name))
    }

    fn bindings<'a>(
        &'a self,
        kind: BindingKind,
        prefix: &'a str,
        after: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(String, Bound)>, LedgerError>> {
        Box::pin(read::bindings(&self.readers, kind, prefix, after, limit))
    }

    fn entry(&self, index: u64) -> BoxFuture<'_, Result<Option<Entry>, LedgerError>> {
        Box::pin(
            async move { Ok(read::entries(&self.readers, index, 1).await?.into_iter().find(|e| e.index == index)) },
        )
    }

    fn entries(&self, from: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Entry>, LedgerError>> {
        Box::pin(read::entries(&self.readers, from, limit))
    }

    fn about(&self, digest: Digest, limit: usize) -> BoxFuture<'_, Result<Vec<u64>, LedgerError>> {
        Box::pin(read::about(&self.readers, digest, limit))
    }

    fn chain_head<'a>(&'a self, chain: &'a str) -> BoxFuture<'a, Result<Option<Link>, LedgerError>> {
        Box::pin(read::chain_head(&self.readers, chain))
    }

    fn chain<'a>(&'a self, chain: &'a str, from: u64, limit: usize) -> BoxFuture<'a, Result<Vec<Link>, LedgerError>> {
        Box::pin(read::chain(&self.readers, chain, from, limit))
    }

    fn chains<'a>(&'a self, prefix: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<String>, LedgerError>> {
        Box::pin(read::chains(&self.readers, prefix, limit))
    }

    fn inclusion(&self, index: u64, size: u64) -> BoxFuture<'_, Result<Vec<[u8; 32]>, LedgerError>> {
        Box::pin(read::inclusion(&self.readers, index, size))
    }

    fn consistency(&self, old: u64, new: u64) -> BoxFuture<'_, Result<Vec<[u8; 32]>, LedgerError>> {
        Box::pin(read::consistency(&self.readers, old, new))
    }
}

fn stopped() -> LedgerError {
    LedgerError::Unavailable("the writer has stopped".to_owned())
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).busy_timeout(BUSY).disable_statement_logging()
}

/// Options of a connection that cannot write.
fn read_options(path: &Path) -> SqliteConnectOptions {
    options(path).read_only(true)
}

/// Makes the file with a mode that keeps others out; SQLite's own files beside it follow it.
async fn create_file(path: &Path) -> Result<(), OpenError> {
    let path = path.to_owned();
    let failed = {
        let path = path.clone();
        move |source| OpenError::Io { path, source }
    };
    let made = tokio::task::spawn_blocking(move || {
        match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(_) => files::sync_dir(files::parent(&path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    });
    made.await.map_err(io::Error::other).flatten().map_err(failed)
}

fn origin_of(checkpoint: &str) -> Result<String, LedgerError> {
    let bad = |error: &dyn std::fmt::Display| damaged(format!("head: the checkpoint cannot be read: {error}"));
    let note = Note::parse(checkpoint).map_err(|error| bad(&error))?;
    Ok(Checkpoint::parse(note.text()).map_err(|error| bad(&error))?.origin)
}

/// What the head and the first entries say.
async fn own_trust(conn: &mut Conn<'_>) -> Result<TrustValues, LedgerError> {
    let head = HeadRow::load(conn).await?.ok_or_else(|| damaged("head: the row is missing"))?;
    let origin = origin_of(&head.checkpoint)?;
    let keys = introduced(conn, FIRST_KEYS).await?;
    let missing = || damaged("entries 0 to 3: they do not introduce the control and log keys");
    let key = |role: Role| keys.iter().find(|(of, _)| *of == role).map(|(_, key)| key.clone()).ok_or_else(missing);
    let log: [u8; 32] = key(Role::Log)?.raw().try_into().map_err(|_| missing())?;
    let log = VerifierKey::ed25519(&origin, log).map_err(|error| damaged(error.to_string()))?.to_string();
    Ok(TrustValues { origin, log, root: key(Role::Control)? })
}

/// Statements of all key facts, in order.
const ALL_KEYS: &str =
    "SELECT e.statement FROM chains AS c JOIN entries AS e ON e.idx = c.idx WHERE c.chain = $1 ORDER BY c.sequence";
/// Statements of the first of them; needs no view.
const FIRST_KEYS: &str = "SELECT statement FROM entries WHERE idx < 4 AND $1 IS NOT NULL ORDER BY idx";

/// The key that is valid for each role by key facts, in the order of introduction.
async fn introduced(conn: &mut Conn<'_>, facts: &'static str) -> Result<Vec<(Role, PublicKey)>, LedgerError> {
    let rows = Query::new(facts).bind(KEY_CHAIN).fetch_all(conn).await?;
    let mut keys: Vec<(Role, PublicKey)> = Vec::new();
    for row in rows {
        let bytes: &[u8] = row.get(0)?;
        let unreadable = |error: &dyn std::fmt::Display| damaged(format!("a key fact cannot be read: {error}"));
        let statement = Statement::parse(bytes).map_err(|error| unreadable(&error))?;
        let Predicate::Key(fact) = statement.predicate().map_err(|error| unreadable(&error))? else { continue };
        let der = STANDARD.decode(&fact.public_key).map_err(|error| unreadable(&error))?;
        let key = PublicKey::from_spki_der(&der).map_err(|error| unreadable(&error))?;
        if fact.action == "introduced" {
            keys.retain(|(role, _)| *role != fact.role);
            keys.push((fact.role, key));
        } else {
            keys.retain(|(_, other)| *other != key);
        }
    }
    Ok(keys)
}

/// A signature by a key the ledger never introduced would be worth nothing.
async fn same_keys(conn: &mut Conn<'_>, keys: &Keys) -> Result<(), OpenError> {
    let mut known = introduced(conn, ALL_KEYS).await?;
    if known.len() < ROLES.len() {
        // Every ledger introduces all roles first, so it is the view that lost them.
        tracing::warn!("the view of the key chain is damaged: all views are made again from the entries");
        rebuild::run(conn).await?;
        known = introduced(conn, ALL_KEYS).await?;
    }
    for role in ROLES {
        let found = keys.public(role);
        let expected = known.iter().find(|(of, _)| *of == role).map(|(_, key)| key);
        if expected != Some(found) {
            let expected = expected.map_or_else(|| "no key".to_owned(), |key| key.keyid().to_owned());
            return Err(OpenError::OtherKey { role, expected, found: found.keyid().to_owned() });
        }
    }
    Ok(())
}

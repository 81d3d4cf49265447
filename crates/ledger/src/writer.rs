//! The one writer. Appends that arrive while a transaction runs go into the next one together.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use adamant_attest::predicate::{BindingKind, Role};
use adamant_attest::{format_time, predicate};
use adamant_digest::Digest;
use adamant_store::{AppendError, Fact, Head, LedgerError, Receipt};
use adamant_tlog::{Checkpoint, CompactRange, NoteSigner};
use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::error::{copy, damaged, database};
use crate::keys::Keys;
use crate::open::Clock;
use crate::plan::{self, Binding, Known, Prepared};
use crate::seal::{self, Sealed};
use crate::sql::{self, Target};
use crate::tree::{self, Edge};
use crate::views::{self, Place, Rows};
use crate::{rebuild, schema};

/// Most facts in one call of `append`, and about as many in one transaction.
pub const MAX_FACTS: usize = 2_000;
/// Largest statement, in bytes.
pub const MAX_STATEMENT_BYTES: usize = 4 << 20;
/// Longest name of a binding or chain, in bytes.
const MAX_NAME_BYTES: usize = 4_000;
/// Facts that may wait or be written at a time; further callers wait before they queue.
pub(crate) const MAX_WAITING_FACTS: usize = 4 * MAX_FACTS;

/// What the writer is asked to do.
pub(crate) enum Message {
    Append(Job),
    Rebuild(oneshot::Sender<Result<(), LedgerError>>),
}

/// A call of `append`.
pub(crate) struct Job {
    facts: Vec<Prepared>,
    reply: oneshot::Sender<Result<Vec<Receipt>, AppendError>>,
    /// Its share of [`MAX_WAITING_FACTS`].
    permit: OwnedSemaphorePermit,
}

type Reply = (oneshot::Sender<Result<Vec<Receipt>, AppendError>>, OwnedSemaphorePermit);

impl Job {
    pub(crate) fn new(
        facts: Vec<Prepared>,
        permit: OwnedSemaphorePermit,
    ) -> (Self, oneshot::Receiver<Result<Vec<Receipt>, AppendError>>) {
        let (reply, answer) = oneshot::channel();
        (Self { facts, reply, permit }, answer)
    }
}

/// Checks what can be checked without the database.
pub(crate) fn prepare(facts: Vec<Fact>) -> Result<Vec<Prepared>, AppendError> {
    let invalid = |text: String| Err(AppendError::Invalid(text));
    if facts.len() > MAX_FACTS {
        return invalid(format!("{} facts in one call, the limit is {MAX_FACTS}", facts.len()));
    }
    let mut prepared = Vec::with_capacity(facts.len());
    for fact in facts {
        if fact.role == Role::Log {
            return invalid("the log key signs checkpoints alone".to_owned());
        }
        let binds = predicate::binds(&fact.predicate);
        let names = binds.iter().map(|(_, name, _)| name).chain(fact.chain.as_ref().map(|chain| &chain.name));
        for name in names {
            if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
                let shown: String = name.chars().take(100).collect();
                return invalid(format!(
                    "the name {shown:?} is empty, longer than {MAX_NAME_BYTES} bytes or holds a control character"
                ));
            }
        }
        prepared.push(Prepared { fact, binds });
    }
    Ok(prepared)
}

/// The head row.
#[derive(Debug, Clone)]
pub(crate) struct HeadRow {
    pub(crate) range: CompactRange,
    /// Unix seconds of the last entry.
    pub(crate) recorded_at: i64,
    pub(crate) checkpoint: String,
}

impl HeadRow {
    /// Reads it; `None` before the first entry.
    pub(crate) async fn load(conn: &mut SqliteConnection) -> Result<Option<Self>, LedgerError> {
        let row = sqlx::query("SELECT size, recorded_at, compact, checkpoint FROM head WHERE id = 1")
            .fetch_optional(conn)
            .await
            .map_err(database)?;
        let Some(row) = row else { return Ok(None) };
        let size = sql::unsigned(row.try_get(0).map_err(database)?)?;
        let compact: Vec<u8> = row.try_get(2).map_err(database)?;
        let range = CompactRange::from_bytes(&compact).map_err(|error| damaged(format!("head: {error}")))?;
        if range.size() != size {
            return Err(damaged(format!("head: size is {size}, the compact range says {}", range.size())));
        }
        let (recorded_at, checkpoint) = (row.try_get(1).map_err(database)?, row.try_get(3).map_err(database)?);
        Ok(Some(Self { range, recorded_at, checkpoint }))
    }

    pub(crate) fn head(&self) -> Head {
        Head { size: self.range.size(), checkpoint: self.checkpoint.clone() }
    }
}

pub(crate) struct Writer {
    pub(crate) options: SqliteConnectOptions,
    /// Dropped when its state is unknown, and made again for the next batch.
    pub(crate) conn: Option<SqliteConnection>,
    pub(crate) keys: Keys,
    pub(crate) signer: Arc<NoteSigner>,
    pub(crate) clock: Clock,
}

/// What planning and signing give back from the blocking thread.
struct Batch {
    outcomes: Vec<Result<Vec<Receipt>, AppendError>>,
    sealed: Vec<Sealed>,
    rows: Rows,
    edge: Edge,
    checkpoint: String,
}

impl Writer {
    /// Serves until every sender is gone, then answers what is left and closes.
    pub(crate) async fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        while let Some(message) = queue.recv().await {
            let mut next = Some(message);
            while let Some(message) = next.take() {
                match message {
                    Message::Rebuild(reply) => {
                        let done = self.rebuild().await;
                        let _ = reply.send(done);
                    }
                    Message::Append(job) => {
                        let mut count = job.facts.len();
                        let mut batch = vec![job];
                        while count < MAX_FACTS {
                            match queue.try_recv() {
                                Ok(Message::Append(job)) => {
                                    count += job.facts.len();
                                    batch.push(job);
                                }
                                Ok(other) => {
                                    next = Some(other);
                                    break;
                                }
                                Err(_) => break,
                            }
                        }
                        self.serve(batch).await;
                    }
                }
            }
        }
        if let Some(conn) = self.conn.take()
            && let Err(error) = conn.close().await
        {
            tracing::warn!(%error, "the ledger's writer did not close cleanly");
        }
    }

    async fn serve(&mut self, batch: Vec<Job>) {
        let (mut calls, mut replies): (_, Vec<Reply>) = (Vec::new(), Vec::new());
        for Job { facts, reply, permit } in batch {
            calls.push(facts);
            replies.push((reply, permit));
        }
        match self.append(calls).await {
            Ok(outcomes) => {
                for ((reply, _), outcome) in replies.into_iter().zip(outcomes) {
                    let _ = reply.send(outcome);
                }
            }
            Err(error) => {
                tracing::error!(%error, calls = replies.len(), "the ledger recorded nothing");
                for (reply, _) in replies {
                    let _ = reply.send(Err(copy(&error).into()));
                }
            }
        }
    }

    /// Records `calls` in one transaction. An error means that nothing was recorded, or that it
    /// is not known and a repeated call will tell.
    pub(crate) async fn append(
        &mut self,
        calls: Vec<Vec<Prepared>>,
    ) -> Result<Vec<Result<Vec<Receipt>, AppendError>>, LedgerError> {
        let mut conn = self.connection().await?;
        let done = self.transaction(&mut conn, calls).await;
        match done {
            Ok(outcomes) => {
                self.conn = Some(conn);
                Ok(outcomes)
            }
            Err(Failure::Before(error)) => {
                // The transaction was rolled back when it was dropped; if that did not work
                // either, the next use of the connection says so.
                self.conn = Some(conn);
                Err(error)
            }
            Err(Failure::Commit { error, last, outcomes }) => {
                let _ = conn.close().await;
                if self.committed(&last).await? { Ok(outcomes) } else { Err(error) }
            }
        }
    }

    async fn connection(&mut self) -> Result<SqliteConnection, LedgerError> {
        match self.conn.take() {
            Some(conn) => Ok(conn),
            None => self.options.connect().await.map_err(database),
        }
    }

    /// After a commit that reported an error: whether the batch is there after all.
    async fn committed(&mut self, last: &Last) -> Result<bool, LedgerError> {
        let unknown = |error: &dyn std::fmt::Display| {
            LedgerError::Unavailable(format!("it is not known whether the facts were recorded, ask again: {error}"))
        };
        let mut conn = self.options.connect().await.map_err(|error| unknown(&error))?;
        let leaf = sqlx::query("SELECT leaf FROM entries WHERE idx = ?")
            .bind(last.index)
            .fetch_optional(&mut conn)
            .await
            .and_then(|row| row.map(|row| row.try_get::<Vec<u8>, _>(0)).transpose())
            .map_err(|error| unknown(&error))?;
        self.conn = Some(conn);
        Ok(leaf.as_ref() == Some(&last.leaf))
    }

    async fn transaction(
        &mut self,
        conn: &mut SqliteConnection,
        calls: Vec<Vec<Prepared>>,
    ) -> Result<Vec<Result<Vec<Receipt>, AppendError>>, Failure> {
        let mut tx = conn.begin_with("BEGIN IMMEDIATE").await.map_err(database)?;
        let head = HeadRow::load(&mut tx).await?;
        let known = known(&mut tx, &calls).await?;
        let (before, edge) = match head {
            None => (i64::MIN, Edge::empty()),
            Some(head) => (head.recorded_at, Edge::load(&mut tx, head.range).await?),
        };
        let seconds = self.seconds()?.max(before);
        let first = edge.range.size();
        let (keys, signer) = (self.keys.clone(), Arc::clone(&self.signer));
        let batch = tokio::task::spawn_blocking(move || work(known, edge, seconds, &calls, &keys, &signer))
            .await
            .map_err(|error| LedgerError::Unavailable(format!("signing stopped: {error}")))??;
        let Batch { outcomes, sealed, rows, edge, checkpoint } = batch;
        let Some(last) = sealed.last() else {
            tx.rollback().await.map_err(database)?;
            return Ok(outcomes);
        };
        let size = sql::signed(edge.range.size())?;
        let last = Last { index: size - 1, leaf: last.leaf.clone() };
        insert_entries(&mut tx, first, seconds, sealed).await?;
        rows.insert(&mut tx, Place::Main).await?;
        let compact = edge.range.to_bytes();
        tree::store(&mut tx, edge.into_tiles()).await?;
        sqlx::query(
            "INSERT INTO head (id, size, recorded_at, compact, checkpoint) VALUES (1, ?, ?, ?, ?)
             ON CONFLICT (id) DO UPDATE SET size = excluded.size, recorded_at = excluded.recorded_at,
             compact = excluded.compact, checkpoint = excluded.checkpoint",
        )
        .bind(size)
        .bind(seconds)
        .bind(compact)
        .bind(checkpoint.clone())
        .execute(&mut *tx)
        .await
        .map_err(database)?;
        tracing::debug!(point = "before the commit", first, size);
        if let Err(error) = tx.commit().await {
            return Err(Failure::Commit { error: database(error), last, outcomes });
        }
        tracing::debug!(point = "after the commit", size);
        // Only what can be read back is told to anybody.
        match HeadRow::load(conn).await {
            Ok(Some(head)) if head.checkpoint == checkpoint => Ok(outcomes),
            Ok(_) => Err(damaged("head: the checkpoint read back is not the one committed").into()),
            Err(error) => Err(Failure::Commit { error, last, outcomes }),
        }
    }

    fn seconds(&self) -> Result<i64, LedgerError> {
        let since = (self.clock)().duration_since(UNIX_EPOCH);
        let seconds = since.ok().and_then(|since| i64::try_from(since.as_secs()).ok());
        seconds.ok_or_else(|| LedgerError::Unavailable("the clock stands before 1970".to_owned()))
    }

    async fn rebuild(&mut self) -> Result<(), LedgerError> {
        let mut conn = self.connection().await?;
        let done = rebuild::run(&mut conn).await;
        self.conn = Some(conn);
        done
    }
}

/// The last entry of a batch, to be recognized after an unknown commit.
struct Last {
    index: i64,
    leaf: Vec<u8>,
}

enum Failure {
    /// Nothing was committed.
    Before(LedgerError),
    /// The commit, or reading it back, went wrong.
    Commit { error: LedgerError, last: Last, outcomes: Vec<Result<Vec<Receipt>, AppendError>> },
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        Self::Before(error)
    }
}

/// Decides, writes, signs and hashes. Blocking.
fn work(
    known: Known,
    mut edge: Edge,
    seconds: i64,
    calls: &[Vec<Prepared>],
    keys: &Keys,
    signer: &NoteSigner,
) -> Result<Batch, LedgerError> {
    let unsigned = |error: &dyn std::fmt::Display| LedgerError::Unavailable(format!("cannot sign: {error}"));
    let first = edge.range.size();
    let plan = plan::plan(known, first, seconds, calls);
    let mut rows = Rows::default();
    let mut statements = Vec::with_capacity(plan.entries.len());
    for (index, entry) in (first..).zip(plan.entries) {
        rows.add(views::Row {
            index: sql::signed(index)?,
            statement: entry.digest,
            subject: &mut entry.subject.iter().copied(),
            predicate: &entry.predicate,
            recorded_at: seconds,
            link: match &entry.link {
                Some((chain, sequence)) => Some((chain, sql::signed(*sequence)?)),
                None => None,
            },
        });
        statements.push((entry.role, entry.statement));
    }
    let sealed = seal::seal(statements, keys).map_err(|error| unsigned(&error))?;
    for entry in &sealed {
        edge.append(entry.hash);
    }
    let origin = signer.key().name().to_owned();
    let checkpoint = Checkpoint { origin, size: edge.range.size(), root: edge.range.root(), extensions: Vec::new() };
    let checkpoint = checkpoint.sign(signer).map_err(|error| unsigned(&error))?.to_string();
    Ok(Batch { outcomes: plan.outcomes, sealed, rows, edge, checkpoint })
}

async fn insert_entries(
    conn: &mut SqliteConnection,
    first: u64,
    seconds: i64,
    sealed: Vec<Sealed>,
) -> Result<(), LedgerError> {
    let target = Target {
        insert: "INSERT INTO entries (idx, recorded_at, statement, envelope, leaf)",
        columns: 5,
        conflict: "",
    };
    let rows: Vec<(i64, Sealed)> = (sql::signed(first)?..).zip(sealed).collect();
    sql::insert(conn, target, rows, |(index, entry), values| {
        values.add(index).add(seconds).add(entry.statement).add(entry.envelope).add(entry.leaf);
    })
    .await
}

/// Looks up every name and chain that `calls` touch, each kind in one query.
async fn known(conn: &mut SqliteConnection, calls: &[Vec<Prepared>]) -> Result<Known, LedgerError> {
    let facts = || calls.iter().flatten();
    let mut known = Known::default();
    let names: HashSet<(&str, &str)> =
        facts().flat_map(|fact| &fact.binds).map(|(kind, name, _)| (kind.as_str(), name.as_str())).collect();
    if !names.is_empty() {
        let rows = sqlx::query(
            "SELECT b.kind, b.name, b.digest, b.idx, b.by_whom, b.recorded_at, b.statement, b.sequence
             FROM json_each(?) AS q CROSS JOIN bindings AS b
             ON b.kind = json_extract(q.value, '$[0]') AND b.name = json_extract(q.value, '$[1]')",
        )
        .bind(json(&names)?)
        .fetch_all(&mut *conn)
        .await
        .map_err(database)?;
        for row in rows {
            let (name, binding) = binding(&row)?;
            known.bindings.insert(name, binding);
        }
    }
    let chains: HashSet<&str> =
        facts().filter_map(|fact| fact.fact.chain.as_ref()).map(|chain| chain.name.as_str()).collect();
    if !chains.is_empty() {
        let rows = sqlx::query(
            "SELECT c.chain, c.sequence, c.statement FROM json_each(?) AS q CROSS JOIN chains AS c
             ON c.chain = q.value AND c.sequence = (SELECT max(sequence) FROM chains WHERE chain = q.value)",
        )
        .bind(json(&chains)?)
        .fetch_all(&mut *conn)
        .await
        .map_err(database)?;
        for row in rows {
            let sequence = sql::unsigned(row.try_get(1).map_err(database)?)?;
            known.chains.insert(row.try_get(0).map_err(database)?, (sequence, digest(&row, 2)?));
        }
    }
    // Only a conflict asks for divergences, and conflicts are rare. Those within the batch have
    // a name that is new, so nothing was recorded about it.
    let offered: HashSet<(&str, &str, String)> = facts()
        .flat_map(|fact| &fact.binds)
        .filter(|(kind, name, digest)| {
            known.bindings.get(&(*kind, name.clone())).is_some_and(|bound| bound.digest != *digest)
        })
        .map(|(kind, name, digest)| (kind.as_str(), name.as_str(), digest.hex()))
        .collect();
    if !offered.is_empty() {
        let rows = sqlx::query(
            "SELECT d.kind, d.name, d.offered FROM json_each(?) AS q CROSS JOIN divergences AS d
             ON d.kind = json_extract(q.value, '$[0]') AND d.name = json_extract(q.value, '$[1]')
             AND d.offered = unhex(json_extract(q.value, '$[2]'))",
        )
        .bind(json(&offered)?)
        .fetch_all(&mut *conn)
        .await
        .map_err(database)?;
        for row in rows {
            known.divergences.insert((kind(&row)?, row.try_get(1).map_err(database)?, digest(&row, 2)?));
        }
    }
    Ok(known)
}

/// A set of names as one parameter.
fn json<T: serde::Serialize>(names: &HashSet<T>) -> Result<String, LedgerError> {
    serde_json::to_string(names).map_err(|error| damaged(error.to_string()))
}

fn kind(row: &SqliteRow) -> Result<BindingKind, LedgerError> {
    row.try_get::<&str, _>(0).map_err(database)?.parse().map_err(damaged)
}

/// Reads the columns kind, name, digest, idx, by_whom, recorded_at, statement, sequence.
pub(crate) fn binding(row: &SqliteRow) -> Result<(plan::Name, Binding), LedgerError> {
    let binding = Binding {
        digest: digest(row, 2)?,
        index: sql::unsigned(row.try_get(3).map_err(database)?)?,
        by: row.try_get(4).map_err(database)?,
        at: time(row.try_get(5).map_err(database)?)?,
        statement: digest(row, 6)?,
        sequence: row.try_get::<Option<i64>, _>(7).map_err(database)?.map(sql::unsigned).transpose()?,
    };
    Ok(((kind(row)?, row.try_get(1).map_err(database)?), binding))
}

pub(crate) fn time(seconds: i64) -> Result<String, LedgerError> {
    format_time(seconds).ok_or_else(|| damaged(format!("{seconds} stands where a time belongs")))
}

pub(crate) fn digest(row: &SqliteRow, column: usize) -> Result<Digest, LedgerError> {
    let bytes: &[u8] = row.try_get(column).map_err(database)?;
    let raw = bytes.try_into().map_err(|_| damaged(format!("{} bytes stand where a digest belongs", bytes.len())))?;
    Ok(Digest::from_bytes(raw))
}

/// Makes the tables and records the first facts.
pub(crate) async fn begin(writer: &mut Writer) -> Result<(), LedgerError> {
    let mut conn = writer.connection().await?;
    let found = async {
        let mut tx = conn.begin_with("BEGIN IMMEDIATE").await.map_err(database)?;
        if schema::look(&mut tx).await? == schema::Found::Nothing {
            schema::create(&mut tx).await?;
        }
        let empty = HeadRow::load(&mut tx).await?.is_none();
        if empty {
            let row = sqlx::query("SELECT count(*) FROM (SELECT 1 FROM entries LIMIT 1)").fetch_one(&mut *tx).await;
            if row.and_then(|row| row.try_get::<i64, _>(0)).map_err(database)? > 0 {
                return Err(damaged("head: the row is missing, but there are entries"));
            }
        }
        tx.commit().await.map_err(database)?;
        Ok::<_, LedgerError>(empty)
    }
    .await;
    writer.conn = Some(conn);
    if found? {
        // A crash in between leaves tables without entries; the next start comes here again.
        let facts = prepare(writer.keys.facts()).map_err(|error| damaged(error.to_string()))?;
        for outcome in writer.append(vec![facts]).await? {
            outcome.map_err(|error| damaged(format!("the first facts cannot be recorded: {error}")))?;
        }
    }
    Ok(())
}

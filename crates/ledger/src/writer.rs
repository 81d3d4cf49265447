//! The one writer. Appends that arrive while a transaction runs go into the next one together.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use adamant_attest::predicate::{BindingKind, Role};
use adamant_attest::{format_time, predicate};
use adamant_digest::Digest;
use adamant_store::{AppendError, Fact, Head, LedgerError, Receipt};
use adamant_tlog::{Checkpoint, CompactRange, NoteSigner};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::db::{Conn, Dialect, Options, Query, Row};
use crate::error::{copy, damaged};
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
pub(crate) const MAX_NAME_BYTES: usize = 4_000;
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
        if predicate::actor(&fact.predicate).contains('\0') {
            return invalid("the name of who does it holds a zero byte".to_owned());
        }
        prepared.push(Prepared { fact, binds });
    }
    Ok(prepared)
}

const HEAD: &str = "SELECT size, recorded_at, compact, checkpoint FROM head WHERE id = 1";
const HEAD_FOR_UPDATE: &str = "SELECT size, recorded_at, compact, checkpoint FROM head WHERE id = 1 FOR UPDATE";

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
    pub(crate) async fn load(conn: &mut Conn<'_>) -> Result<Option<Self>, LedgerError> {
        Self::read(conn, HEAD).await
    }

    /// Reads it for whoever appends: it does not change until the transaction ends.
    async fn lock(conn: &mut Conn<'_>) -> Result<Option<Self>, LedgerError> {
        let sql = conn.dialect().pick([HEAD, HEAD_FOR_UPDATE]);
        Self::read(conn, sql).await
    }

    async fn read(conn: &mut Conn<'_>, sql: &'static str) -> Result<Option<Self>, LedgerError> {
        let row = Query::new(sql).fetch_optional(conn).await?;
        let Some(row) = row else { return Ok(None) };
        let size = sql::unsigned(row.get(0)?)?;
        let compact: Vec<u8> = row.get(2)?;
        let range = CompactRange::from_bytes(&compact).map_err(|error| damaged(format!("head: {error}")))?;
        if range.size() != size {
            return Err(damaged(format!("head: size is {size}, the compact range says {}", range.size())));
        }
        let (recorded_at, checkpoint) = (row.get(1)?, row.get(3)?);
        Ok(Some(Self { range, recorded_at, checkpoint }))
    }

    pub(crate) fn head(&self) -> Head {
        Head { size: self.range.size(), checkpoint: self.checkpoint.clone() }
    }
}

pub(crate) struct Writer {
    pub(crate) options: Options,
    /// Dropped when its state is unknown, and made again for the next batch.
    pub(crate) conn: Option<Conn<'static>>,
    pub(crate) keys: Keys,
    pub(crate) signer: Arc<NoteSigner>,
    pub(crate) clock: Clock,
    /// Size of the log, for whoever waits for more.
    pub(crate) grown: watch::Sender<u64>,
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
        if let Some(conn) = self.conn.take() {
            conn.close().await;
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
        let calls = Arc::new(calls);
        let mut stale = self.conn.is_some();
        loop {
            let mut conn = self.connection().await?;
            match self.transaction(&mut conn, &calls).await {
                Ok(outcomes) => {
                    self.conn = Some(conn);
                    return Ok(outcomes);
                }
                Err(Failure::Before(error)) if conn.dialect() == Dialect::Postgres => {
                    // What state it is in is the server's to know; it rolls back what is not committed.
                    drop(conn);
                    // It may have been started again since the connection was last used.
                    if stale && matches!(error, LedgerError::Unavailable(_)) {
                        tracing::info!(%error, "the connection to the ledger is made again");
                        stale = false;
                        continue;
                    }
                    return Err(error);
                }
                Err(Failure::Before(error)) => {
                    // The transaction was rolled back when it was dropped. Where the disk fails that may
                    // fail, too, and only the next use of the connection would say so.
                    if matches!(error, LedgerError::Unavailable(_)) {
                        conn.close().await;
                    } else {
                        self.conn = Some(conn);
                    }
                    return Err(error);
                }
                Err(Failure::Commit { error, last, outcomes }) => {
                    conn.close().await;
                    if !self.committed(&last).await? {
                        return Err(error);
                    }
                    self.tell(&last);
                    return Ok(outcomes);
                }
            }
        }
    }

    /// Tells that the log has grown.
    fn tell(&self, last: &Last) {
        grow(&self.grown, last.index.unsigned_abs() + 1);
    }

    async fn connection(&mut self) -> Result<Conn<'static>, LedgerError> {
        match self.conn.take() {
            Some(conn) => Ok(conn),
            None => self.options.connect().await,
        }
    }

    /// After a commit that reported an error: whether the batch is there after all. It may be under
    /// way still, and holds the writers' lock as long as it is: who has the lock knows.
    async fn committed(&mut self, last: &Last) -> Result<bool, LedgerError> {
        let unknown = |error: &dyn std::fmt::Display| {
            LedgerError::Unavailable(format!("it is not known whether the facts were recorded, ask again: {error}"))
        };
        let mut conn = self.options.connect().await.map_err(|error| unknown(&error))?;
        let look = async |conn: &mut Conn<'_>| {
            let mut tx = conn.begin_write().await?;
            let there = last.is_recorded(&mut tx).await?;
            tx.rollback().await?;
            Ok::<_, LedgerError>(there)
        };
        let there = look(&mut conn).await.map_err(|error| unknown(&error))?;
        self.conn = Some(conn);
        Ok(there)
    }

    async fn transaction(
        &mut self,
        conn: &mut Conn<'_>,
        calls: &Arc<Vec<Vec<Prepared>>>,
    ) -> Result<Vec<Result<Vec<Receipt>, AppendError>>, Failure> {
        let mut tx = conn.begin_write().await?;
        let head = HeadRow::lock(&mut tx).await?;
        let known = known(&mut tx, calls).await?;
        let (before, edge) = match head {
            None => (i64::MIN, Edge::empty()),
            Some(head) => (head.recorded_at, Edge::load(&mut tx, head.range).await?),
        };
        let seconds = self.seconds()?.max(before);
        let first = edge.range.size();
        let (keys, signer, calls) = (self.keys.clone(), Arc::clone(&self.signer), Arc::clone(calls));
        let batch = tokio::task::spawn_blocking(move || work(known, edge, seconds, &calls, &keys, &signer))
            .await
            .map_err(|error| LedgerError::Unavailable(format!("signing stopped: {error}")))??;
        let Batch { outcomes, sealed, rows, edge, checkpoint } = batch;
        let Some(last) = sealed.last() else {
            tx.rollback().await?;
            return Ok(outcomes);
        };
        let size = sql::signed(edge.range.size())?;
        let last = Last { index: size - 1, leaf: last.leaf.clone() };
        insert_entries(&mut tx, first, seconds, sealed).await?;
        rows.insert(&mut tx, Place::Main).await?;
        let compact = edge.range.to_bytes();
        tree::store(&mut tx, edge.into_tiles()).await?;
        Query::new(
            "INSERT INTO head (id, size, recorded_at, compact, checkpoint) VALUES (1, $1, $2, $3, $4)
             ON CONFLICT (id) DO UPDATE SET size = excluded.size, recorded_at = excluded.recorded_at,
             compact = excluded.compact, checkpoint = excluded.checkpoint",
        )
        .bind(size)
        .bind(seconds)
        .bind(compact)
        .bind(checkpoint.clone())
        .execute(&mut tx)
        .await?;
        tracing::debug!(point = "before the commit", first, size);
        if let Err(error) = tx.commit().await {
            return Err(Failure::Commit { error, last, outcomes });
        }
        tracing::debug!(point = "after the commit", size);
        // Only what can be read back is told to anybody. Another server may have gone on from it.
        match readable(conn, &checkpoint, &last).await {
            Ok(true) => {
                self.tell(&last);
                Ok(outcomes)
            }
            Ok(false) => Err(damaged("head: the checkpoint read back is not the one committed").into()),
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

/// Tells of a size, if it is news.
pub(crate) fn grow(grown: &watch::Sender<u64>, size: u64) {
    grown.send_if_modified(|known| std::mem::replace(known, size.max(*known)) < size);
}

/// The last entry of a batch, to be recognized after an unknown commit.
struct Last {
    index: i64,
    leaf: Vec<u8>,
}

impl Last {
    async fn is_recorded(&self, conn: &mut Conn<'_>) -> Result<bool, LedgerError> {
        let sql = "SELECT leaf FROM entries WHERE idx = $1";
        let row = Query::new(sql).bind(self.index).fetch_optional(conn).await?;
        let leaf = row.map(|row| row.get::<Vec<u8>>(0)).transpose()?;
        Ok(leaf.as_ref() == Some(&self.leaf))
    }
}

/// Whether the head is the one just committed, or a later one over the same entries.
async fn readable(conn: &mut Conn<'_>, checkpoint: &str, last: &Last) -> Result<bool, LedgerError> {
    match HeadRow::load(conn).await? {
        Some(head) if head.checkpoint == checkpoint => Ok(true),
        Some(head) if sql::signed(head.range.size())? > last.index + 1 => last.is_recorded(conn).await,
        _ => Ok(false),
    }
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

async fn insert_entries(conn: &mut Conn<'_>, first: u64, seconds: i64, sealed: Vec<Sealed>) -> Result<(), LedgerError> {
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

/// Looks up every name and chain that `calls` touch, each kind in one query. PostgreSQL takes any array
/// for a hundred elements and would rather read a table of thousands of names once than seek so often: what
/// is behind `LATERAL` with `OFFSET` or `LIMIT` it seeks for each.
async fn known(conn: &mut Conn<'_>, calls: &[Vec<Prepared>]) -> Result<Known, LedgerError> {
    let facts = || calls.iter().flatten();
    let mut known = Known::default();
    let names: HashSet<(&str, &str)> =
        facts().flat_map(|fact| &fact.binds).map(|(kind, name, _)| (kind.as_str(), name.as_str())).collect();
    if !names.is_empty() {
        let rows = Query::new(conn.dialect().pick([
            "SELECT b.kind, b.name, b.digest, b.idx, b.by_whom, b.recorded_at, b.statement, b.sequence
             FROM json_each($1) AS q CROSS JOIN bindings AS b
             ON b.kind = json_extract(q.value, '$[0]') AND b.name = json_extract(q.value, '$[1]')",
            "SELECT b.kind, b.name, b.digest, b.idx, b.by_whom, b.recorded_at, b.statement, b.sequence
             FROM json_array_elements($1::json) AS q(value) CROSS JOIN LATERAL (
                 SELECT * FROM bindings WHERE kind = q.value->>0 AND name = q.value->>1 OFFSET 0) AS b",
        ]))
        .bind(json(&names)?)
        .fetch_all(&mut *conn)
        .await?;
        for row in rows {
            let (name, binding) = binding(&row)?;
            known.bindings.insert(name, binding);
        }
    }
    let chains: HashSet<&str> =
        facts().filter_map(|fact| fact.fact.chain.as_ref()).map(|chain| chain.name.as_str()).collect();
    if !chains.is_empty() {
        let rows = Query::new(conn.dialect().pick([
            "SELECT c.chain, c.sequence, c.statement FROM json_each($1) AS q CROSS JOIN chains AS c
             ON c.chain = q.value AND c.sequence = (SELECT max(sequence) FROM chains WHERE chain = q.value)",
            "SELECT c.chain, c.sequence, c.statement
             FROM json_array_elements_text($1::json) AS q(value) CROSS JOIN LATERAL (
                 SELECT * FROM chains WHERE chain = q.value ORDER BY sequence DESC LIMIT 1) AS c",
        ]))
        .bind(json(&chains)?)
        .fetch_all(&mut *conn)
        .await?;
        for row in rows {
            let sequence = sql::unsigned(row.get(1)?)?;
            known.chains.insert(row.get(0)?, (sequence, digest(&row, 2)?));
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
        let rows = Query::new(conn.dialect().pick([
            "SELECT d.kind, d.name, d.offered FROM json_each($1) AS q CROSS JOIN divergences AS d
             ON d.kind = json_extract(q.value, '$[0]') AND d.name = json_extract(q.value, '$[1]')
             AND d.offered = unhex(json_extract(q.value, '$[2]'))",
            "SELECT d.kind, d.name, d.offered FROM json_array_elements($1::json) AS q(value) CROSS JOIN LATERAL (
                 SELECT * FROM divergences WHERE kind = q.value->>0 AND name = q.value->>1
                 AND offered = decode(q.value->>2, 'hex') OFFSET 0) AS d",
        ]))
        .bind(json(&offered)?)
        .fetch_all(&mut *conn)
        .await?;
        for row in rows {
            known.divergences.insert((kind(&row)?, row.get(1)?, digest(&row, 2)?));
        }
    }
    Ok(known)
}

/// A set of names as one parameter.
fn json<T: serde::Serialize>(names: &HashSet<T>) -> Result<String, LedgerError> {
    serde_json::to_string(names).map_err(|error| damaged(error.to_string()))
}

fn kind(row: &Row) -> Result<BindingKind, LedgerError> {
    row.get::<&str>(0)?.parse().map_err(damaged)
}

/// Reads the columns kind, name, digest, idx, by_whom, recorded_at, statement, sequence.
pub(crate) fn binding(row: &Row) -> Result<(plan::Name, Binding), LedgerError> {
    let binding = Binding {
        digest: digest(row, 2)?,
        index: sql::unsigned(row.get(3)?)?,
        by: row.get(4)?,
        at: time(row.get(5)?)?,
        statement: digest(row, 6)?,
        sequence: row.get::<Option<i64>>(7)?.map(sql::unsigned).transpose()?,
    };
    Ok(((kind(row)?, row.get(1)?), binding))
}

pub(crate) fn time(seconds: i64) -> Result<String, LedgerError> {
    format_time(seconds).ok_or_else(|| damaged(format!("{seconds} stands where a time belongs")))
}

pub(crate) fn digest(row: &Row, column: usize) -> Result<Digest, LedgerError> {
    let bytes: &[u8] = row.get(column)?;
    let raw = bytes.try_into().map_err(|_| damaged(format!("{} bytes stand where a digest belongs", bytes.len())))?;
    Ok(Digest::from_bytes(raw))
}

/// Makes the tables and records the first facts. False if another server did so meanwhile.
pub(crate) async fn begin(writer: &mut Writer) -> Result<bool, LedgerError> {
    let mut conn = writer.connection().await?;
    let found = async {
        let mut tx = conn.begin_write().await?;
        if schema::look(&mut tx).await? == schema::Found::Nothing {
            schema::create(&mut tx).await?;
        }
        let empty = HeadRow::load(&mut tx).await?.is_none();
        if empty {
            let row =
                Query::new("SELECT count(*) FROM (SELECT 1 FROM entries LIMIT 1) AS first").fetch_one(&mut tx).await;
            if row.and_then(|row| row.get::<i64>(0))? > 0 {
                return Err(damaged("head: the row is missing, but there are entries"));
            }
        }
        tx.commit().await?;
        Ok::<_, LedgerError>(empty)
    }
    .await;
    writer.conn = Some(conn);
    if !found? {
        return Ok(true);
    }
    // A crash in between leaves tables without entries; the next start comes here again.
    let mut facts = writer.keys.facts();
    for (sequence, fact) in (1..).zip(&mut facts) {
        if let Some(chain) = &mut fact.chain {
            chain.expect = Some(sequence);
        }
    }
    let facts = prepare(facts).map_err(|error| damaged(error.to_string()))?;
    for outcome in writer.append(vec![facts]).await? {
        match outcome {
            Ok(_) => {}
            Err(AppendError::ChainMoved { .. }) => return Ok(false),
            Err(error) => return Err(damaged(format!("the first facts cannot be recorded: {error}"))),
        }
    }
    Ok(true)
}

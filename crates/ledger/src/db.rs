//! The seam to the database: SQLite or PostgreSQL, by the same statements wherever they agree.
//!
//! Parameters are `$1`, `$2`, …, which both take. Where the two differ, the caller gives both texts.

use std::borrow::Cow;
use std::time::Duration;

use adamant_store::LedgerError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteRow};
use sqlx::{
    Arguments as _, AssertSqlSafe, ConnectOptions as _, Connection as _, Decode, PgConnection, Postgres, Row as _,
    SqlSafeStr as _, SqlStr, Sqlite, SqliteConnection, Transaction, Type,
};

use crate::error::{damaged, database};

/// Connections of readers.
const READERS: u32 = 4;
/// Longest wait for one of them.
const ACQUIRE: Duration = Duration::from_secs(30);

/// Begins a transaction of the one writer: SQLite has a lock for it. In PostgreSQL all servers share
/// this advisory lock (`adamant` in ASCII), which is there before any table is; the head row is locked
/// besides.
const WRITE: [&str; 2] = ["BEGIN IMMEDIATE", "BEGIN; SELECT pg_advisory_xact_lock(27413325341157748)"];
/// Begins a transaction that sees one state.
const SNAPSHOT: [&str; 2] = ["BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ"];

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    /// Of two texts, SQLite's first, the right one.
    pub(crate) const fn pick(self, texts: [&'static str; 2]) -> &'static str {
        match self {
            Self::Sqlite => texts[0],
            Self::Postgres => texts[1],
        }
    }
}

/// A parameter.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Int(i64),
    OptionalInt(Option<i64>),
    Text(String),
    Bytes(Vec<u8>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::OptionalInt(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        Self::Bytes(value.to_owned())
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(value)
    }
}

/// A statement with its parameters.
pub(crate) struct Query {
    sql: Cow<'static, str>,
    values: Vec<Value>,
}

/// Adds values to the arguments of either database: their traits have no common bound.
macro_rules! add {
    ($arguments:ident, $values:ident) => {
        for value in $values {
            match value {
                Value::Int(value) => $arguments.add(value),
                Value::OptionalInt(value) => $arguments.add(value),
                Value::Text(value) => $arguments.add(value),
                Value::Bytes(value) => $arguments.add(value),
            }
            .map_err(|error| damaged(format!("a value cannot be stored: {error}")))?;
        }
    };
}

/// Binds every value and runs the statement by one method of sqlx.
macro_rules! run {
    ($query:expr, $conn:expr, $method:ident, $map:expr) => {{
        let Query { sql, values } = $query;
        let sql: SqlStr = match sql {
            Cow::Borrowed(sql) => sql.into_sql_str(),
            Cow::Owned(sql) => AssertSqlSafe(sql).into_sql_str(),
        };
        match $conn.db() {
            Db::Sqlite(conn) => {
                let mut arguments = SqliteArguments::default();
                add!(arguments, values);
                sqlx::query_with(sql, arguments).$method(conn).await.map($map(Row::Sqlite)).map_err(database)
            }
            Db::Postgres(conn) => {
                let mut arguments = PgArguments::default();
                add!(arguments, values);
                sqlx::query_with(sql, arguments).$method(conn).await.map($map(Row::Postgres)).map_err(database)
            }
        }
    }};
}

fn all<R>(row: fn(R) -> Row) -> impl Fn(Vec<R>) -> Vec<Row> {
    move |rows| rows.into_iter().map(row).collect()
}

fn optional<R>(row: fn(R) -> Row) -> impl Fn(Option<R>) -> Option<Row> {
    move |found| found.map(row)
}

fn nothing<R, T>(_: fn(R) -> Row) -> impl Fn(T) {
    |_| ()
}

impl Query {
    pub(crate) fn new(sql: impl Into<Cow<'static, str>>) -> Self {
        Self { sql: sql.into(), values: Vec::new() }
    }

    pub(crate) fn with(sql: String, values: Vec<Value>) -> Self {
        Self { sql: sql.into(), values }
    }

    pub(crate) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    pub(crate) async fn fetch_all(self, conn: &mut Conn<'_>) -> Result<Vec<Row>, LedgerError> {
        run!(self, conn, fetch_all, all)
    }

    pub(crate) async fn fetch_optional(self, conn: &mut Conn<'_>) -> Result<Option<Row>, LedgerError> {
        run!(self, conn, fetch_optional, optional)
    }

    pub(crate) async fn fetch_one(self, conn: &mut Conn<'_>) -> Result<Row, LedgerError> {
        self.fetch_optional(conn).await?.ok_or_else(|| damaged("a query that has one row gave none"))
    }

    pub(crate) async fn execute(self, conn: &mut Conn<'_>) -> Result<(), LedgerError> {
        run!(self, conn, execute, nothing)
    }
}

/// A row of a result.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    /// The value of a column.
    pub(crate) fn get<'r, T>(&'r self, column: usize) -> Result<T, LedgerError>
    where
        T: Decode<'r, Sqlite> + Type<Sqlite> + Decode<'r, Postgres> + Type<Postgres>,
    {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
        .map_err(database)
    }
}

/// How a database is reached.
#[derive(Debug, Clone)]
pub(crate) enum Options {
    Sqlite(Box<SqliteConnectOptions>),
    Postgres(Box<PgConnectOptions>),
}

impl Options {
    /// A SQLite database that goes with its connection.
    pub(crate) fn in_memory() -> Self {
        Self::Sqlite(Box::new(SqliteConnectOptions::new().in_memory(true)))
    }

    pub(crate) async fn connect(&self) -> Result<Conn<'static>, LedgerError> {
        match self {
            Self::Sqlite(options) => Ok(Conn::Sqlite(Box::new(options.connect().await.map_err(database)?))),
            Self::Postgres(options) => Ok(Conn::Postgres(Box::new(options.connect().await.map_err(database)?))),
        }
    }

    /// A pool that connects when it is asked.
    pub(crate) fn pool(self) -> Pool {
        match self {
            Self::Sqlite(options) => Pool::Sqlite(
                SqlitePoolOptions::new()
                    .min_connections(0)
                    .max_connections(READERS)
                    .acquire_timeout(ACQUIRE)
                    .test_before_acquire(false)
                    .connect_lazy_with(*options),
            ),
            // A connection that stood idle is tried first: its server may have been started again.
            Self::Postgres(options) => Pool::Postgres(
                PgPoolOptions::new()
                    .min_connections(0)
                    .max_connections(READERS)
                    .acquire_timeout(ACQUIRE)
                    .test_before_acquire(true)
                    .connect_lazy_with(*options),
            ),
        }
    }
}

/// Connections of readers.
pub(crate) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Pool {
    pub(crate) async fn acquire(&self) -> Result<Conn<'static>, LedgerError> {
        match self {
            Self::Sqlite(pool) => pool.acquire().await.map(Conn::PooledSqlite).map_err(database),
            Self::Postgres(pool) => pool.acquire().await.map(Conn::PooledPostgres).map_err(database),
        }
    }

    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// A connection, or a transaction on one; dropping a transaction rolls it back.
pub(crate) enum Conn<'c> {
    Sqlite(Box<SqliteConnection>),
    PooledSqlite(PoolConnection<Sqlite>),
    WithinSqlite(Transaction<'c, Sqlite>),
    Postgres(Box<PgConnection>),
    PooledPostgres(PoolConnection<Postgres>),
    WithinPostgres(Transaction<'c, Postgres>),
}

enum Db<'c> {
    Sqlite(&'c mut SqliteConnection),
    Postgres(&'c mut PgConnection),
}

impl Conn<'_> {
    fn db(&mut self) -> Db<'_> {
        match self {
            Self::Sqlite(conn) => Db::Sqlite(conn),
            Self::PooledSqlite(conn) => Db::Sqlite(conn),
            Self::WithinSqlite(conn) => Db::Sqlite(conn),
            Self::Postgres(conn) => Db::Postgres(conn),
            Self::PooledPostgres(conn) => Db::Postgres(conn),
            Self::WithinPostgres(conn) => Db::Postgres(conn),
        }
    }

    pub(crate) const fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) | Self::PooledSqlite(_) | Self::WithinSqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) | Self::PooledPostgres(_) | Self::WithinPostgres(_) => Dialect::Postgres,
        }
    }

    /// A transaction that may write; waits for the other writers, but not for ever.
    pub(crate) async fn begin_write(&mut self) -> Result<Conn<'_>, LedgerError> {
        self.begin(WRITE).await
    }

    /// A transaction that sees one state throughout.
    pub(crate) async fn begin_snapshot(&mut self) -> Result<Conn<'_>, LedgerError> {
        self.begin(SNAPSHOT).await
    }

    async fn begin(&mut self, texts: [&'static str; 2]) -> Result<Conn<'_>, LedgerError> {
        match self.db() {
            Db::Sqlite(conn) => conn.begin_with(texts[0]).await.map(Conn::WithinSqlite),
            Db::Postgres(conn) => conn.begin_with(texts[1]).await.map(Conn::WithinPostgres),
        }
        .map_err(database)
    }

    /// Several statements without parameters.
    pub(crate) async fn script(&mut self, sql: String) -> Result<(), LedgerError> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql));
        match self.db() {
            Db::Sqlite(conn) => sql.execute(conn).await.map(drop),
            Db::Postgres(conn) => sql.execute(conn).await.map(drop),
        }
        .map_err(database)
    }

    /// Ends a transaction; of a connection by itself there is nothing to commit.
    pub(crate) async fn commit(self) -> Result<(), LedgerError> {
        match self {
            Self::WithinSqlite(tx) => tx.commit().await.map_err(database),
            Self::WithinPostgres(tx) => tx.commit().await.map_err(database),
            _ => Ok(()),
        }
    }

    /// Ends a transaction as if it had never been.
    pub(crate) async fn rollback(self) -> Result<(), LedgerError> {
        match self {
            Self::WithinSqlite(tx) => tx.rollback().await.map_err(database),
            Self::WithinPostgres(tx) => tx.rollback().await.map_err(database),
            _ => Ok(()),
        }
    }

    /// Closes it; there is nothing to lose if that fails.
    pub(crate) async fn close(self) {
        let closed = match self {
            Self::Sqlite(conn) => conn.close().await,
            Self::Postgres(conn) => conn.close().await,
            Self::PooledSqlite(conn) => conn.close().await,
            Self::PooledPostgres(conn) => conn.close().await,
            Self::WithinSqlite(tx) => tx.rollback().await,
            Self::WithinPostgres(tx) => tx.rollback().await,
        };
        if let Err(error) = closed {
            tracing::debug!(%error, "a connection to the ledger did not close cleanly");
        }
    }
}

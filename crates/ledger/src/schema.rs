//! Tables. `entries` is the truth and never migrated; the rest are views of it.

use std::collections::BTreeMap;

use adamant_store::LedgerError;
use sqlx::{Connection, Row, SqliteConnection};

use crate::error::{damaged, database};

/// Number of the shape of `entries` this binary writes and the highest it reads.
pub(crate) const ENTRIES: i64 = 1;
/// Number of the shape of the views. A lower one found is rebuilt, a higher one refused.
pub(crate) const VIEWS: i64 = 1;

/// The tables that stay.
const BASE: &str = "
CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    entries_schema INTEGER NOT NULL,
    views_schema INTEGER NOT NULL
) STRICT;
CREATE TABLE entries (
    idx INTEGER PRIMARY KEY,
    recorded_at INTEGER NOT NULL,
    statement BLOB NOT NULL,
    envelope BLOB NOT NULL,
    leaf BLOB NOT NULL
) STRICT;
CREATE TABLE head (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    size INTEGER NOT NULL,
    recorded_at INTEGER NOT NULL,
    compact BLOB NOT NULL,
    checkpoint TEXT NOT NULL
) STRICT;
CREATE TABLE tiles (
    level INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    hashes BLOB NOT NULL,
    PRIMARY KEY (level, idx)
) STRICT;
";

/// The views; `{}` is the database they lie in. Times are Unix seconds, digests 32 bytes.
const VIEW_TABLES: [(&str, &str); 4] = [
    (
        "bindings",
        "kind TEXT NOT NULL, name TEXT NOT NULL, digest BLOB NOT NULL, idx INTEGER NOT NULL, by_whom TEXT NOT NULL,
         recorded_at INTEGER NOT NULL, statement BLOB NOT NULL, sequence INTEGER, PRIMARY KEY (kind, name)",
    ),
    (
        "chains",
        "chain TEXT NOT NULL, sequence INTEGER NOT NULL, idx INTEGER NOT NULL, statement BLOB NOT NULL,
         PRIMARY KEY (chain, sequence)",
    ),
    ("subjects", "digest BLOB NOT NULL, idx INTEGER NOT NULL, PRIMARY KEY (digest, idx)"),
    (
        "divergences",
        "kind TEXT NOT NULL, name TEXT NOT NULL, offered BLOB NOT NULL, idx INTEGER NOT NULL,
         PRIMARY KEY (kind, name, offered)",
    ),
];

/// Names of the views, with the columns of each row in order.
pub(crate) const VIEW_COLUMNS: [(&str, &[&str], usize); 4] = [
    ("bindings", &["kind", "name", "digest", "idx", "by_whom", "recorded_at", "statement", "sequence"], 2),
    ("chains", &["chain", "sequence", "idx", "statement"], 2),
    ("subjects", &["digest", "idx"], 2),
    ("divergences", &["kind", "name", "offered", "idx"], 3),
];

/// What a database holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// No ledger yet.
    Nothing,
    /// A ledger whose views are of this version.
    Current,
    /// A ledger whose views are of an earlier version.
    OldViews,
}

/// Looks, and refuses what a newer binary wrote.
pub(crate) async fn look(conn: &mut SqliteConnection) -> Result<Found, LedgerError> {
    let tables = sqlx::query("SELECT count(*), sum(name = 'meta') FROM sqlite_schema WHERE type = 'table'")
        .fetch_one(&mut *conn)
        .await
        .map_err(database)?;
    if tables.try_get::<i64, _>(0).map_err(database)? == 0 {
        return Ok(Found::Nothing);
    }
    if tables.try_get::<Option<i64>, _>(1).map_err(database)? != Some(1) {
        return Err(damaged("the database is not a ledger: it has no table `meta`"));
    }
    let row = sqlx::query("SELECT entries_schema, views_schema FROM meta WHERE id = 1")
        .fetch_optional(conn)
        .await
        .map_err(database)?
        .ok_or_else(|| damaged("meta: the row that holds the schema numbers is missing"))?;
    let (entries, views): (i64, i64) = (row.try_get(0).map_err(database)?, row.try_get(1).map_err(database)?);
    for (found, known) in [(entries, ENTRIES), (views, VIEWS)] {
        if found > known {
            return Err(LedgerError::Newer { found, known });
        }
    }
    if entries < 1 || views < 0 {
        return Err(damaged(format!("meta: schema numbers {entries} and {views} were never used")));
    }
    Ok(if views < VIEWS { Found::OldViews } else { Found::Current })
}

/// What stands in the database's schema and was not put there by [`create`], or is not as it was: a
/// trigger can undo what an insert has just made true, and an index can hide a row.
pub(crate) async fn differences(conn: &mut SqliteConnection) -> Result<Vec<String>, LedgerError> {
    let mut fresh = SqliteConnection::connect("sqlite::memory:").await.map_err(database)?;
    create(&mut fresh).await?;
    let (expected, found) = (objects(&mut fresh).await?, objects(conn).await?);
    fresh.close().await.map_err(database)?;
    let mut problems = Vec::new();
    for (object, sql) in &found {
        match expected.get(object) {
            None => problems.push(format!("{object} is none of ours: {}", sql.chars().take(200).collect::<String>())),
            Some(right) if right != sql => problems.push(format!("{object} was changed")),
            Some(_) => {}
        }
    }
    problems.extend(
        expected.keys().filter(|object| !found.contains_key(*object)).map(|object| format!("{object} is missing")),
    );
    Ok(problems)
}

/// `table bindings` → its definition.
async fn objects(conn: &mut SqliteConnection) -> Result<BTreeMap<String, String>, LedgerError> {
    let rows = sqlx::query("SELECT type, name, coalesce(sql, '') FROM main.sqlite_schema").fetch_all(conn).await;
    let rows = rows.map_err(database)?;
    let object = |row: &sqlx::sqlite::SqliteRow| -> Result<(String, String), LedgerError> {
        let (kind, name): (String, String) = (row.try_get(0).map_err(database)?, row.try_get(1).map_err(database)?);
        let sql: String = row.try_get(2).map_err(database)?;
        // Views are made with the database's name before theirs; SQLite keeps it or not.
        Ok((format!("{kind} {name}"), sql.replace("main.", "")))
    };
    rows.iter().map(object).collect()
}

/// Makes all tables in an empty database. Inside a transaction.
pub(crate) async fn create(conn: &mut SqliteConnection) -> Result<(), LedgerError> {
    sqlx::raw_sql(BASE).execute(&mut *conn).await.map_err(database)?;
    create_views(conn, "main").await?;
    sqlx::query("INSERT INTO meta (id, entries_schema, views_schema) VALUES (1, ?, ?)")
        .bind(ENTRIES)
        .bind(VIEWS)
        .execute(conn)
        .await
        .map_err(database)?;
    Ok(())
}

/// Makes empty views in `database` (`main` or `temp`).
pub(crate) async fn create_views(conn: &mut SqliteConnection, place: &str) -> Result<(), LedgerError> {
    for (table, columns) in VIEW_TABLES {
        let sql = format!("CREATE TABLE {place}.{table} ({columns}) STRICT, WITHOUT ROWID");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *conn).await.map_err(database)?;
    }
    Ok(())
}

/// Removes the views, of whatever version. Inside a transaction.
pub(crate) async fn drop_views(conn: &mut SqliteConnection) -> Result<(), LedgerError> {
    for (table, _) in VIEW_TABLES {
        let sql = format!("DROP TABLE IF EXISTS main.{table}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *conn).await.map_err(database)?;
    }
    Ok(())
}

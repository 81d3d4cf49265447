//! Tables. `entries` is the truth and never migrated; the rest are views of it.

use std::collections::BTreeMap;

use adamant_store::LedgerError;

use crate::db::{Conn, Dialect, Options, Query, Row};
use crate::error::damaged;
use crate::views::Place;

/// Number of the shape of `entries` this binary writes and the highest it reads.
pub(crate) const ENTRIES: i64 = 1;
/// Number of the shape of the views. A lower one found is rebuilt, a higher one refused.
pub(crate) const VIEWS: i64 = 1;

/// The tables that stay, as SQLite writes them; [`ddl`] makes PostgreSQL's of it.
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

/// The views. Times are Unix seconds, digests 32 bytes.
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
pub(crate) async fn look(conn: &mut Conn<'_>) -> Result<Found, LedgerError> {
    let tables = Query::new(conn.dialect().pick([
        "SELECT count(*), sum(name = 'meta') FROM sqlite_schema WHERE type = 'table'",
        "SELECT count(*), count(*) FILTER (WHERE table_name = 'meta')
         FROM information_schema.tables WHERE table_schema = current_schema()",
    ]))
    .fetch_one(&mut *conn)
    .await?;
    if tables.get::<i64>(0)? == 0 {
        return Ok(Found::Nothing);
    }
    if tables.get::<Option<i64>>(1)? != Some(1) {
        return Err(damaged("the database is not a ledger: it has tables, but none that is called `meta`"));
    }
    let row = Query::new("SELECT entries_schema, views_schema FROM meta WHERE id = 1")
        .fetch_optional(conn)
        .await?
        .ok_or_else(|| damaged("meta: the row that holds the schema numbers is missing"))?;
    let (entries, views): (i64, i64) = (row.get(0)?, row.get(1)?);
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
/// trigger can undo what an insert has just made true, and an index can hide a row. Inside a
/// transaction that is rolled back.
pub(crate) async fn differences(conn: &mut Conn<'_>) -> Result<Vec<String>, LedgerError> {
    let found = objects(conn).await?;
    let expected = match conn.dialect() {
        Dialect::Sqlite => {
            let mut fresh = Options::in_memory().connect().await?;
            create(&mut fresh).await?;
            let expected = objects(&mut fresh).await?;
            fresh.close().await;
            expected
        }
        Dialect::Postgres => {
            let before: String = Query::new("SELECT current_setting('search_path')").fetch_one(conn).await?.get(0)?;
            conn.script("CREATE SCHEMA adamant_fresh; SET LOCAL search_path = adamant_fresh".to_owned()).await?;
            create(conn).await?;
            let expected = objects(conn).await?;
            conn.script("DROP SCHEMA adamant_fresh CASCADE".to_owned()).await?;
            Query::new("SELECT set_config('search_path', $1, true)").bind(before).execute(conn).await?;
            expected
        }
    };
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

/// Everything in PostgreSQL's current schema, with what defines it and without the schema's name.
const POSTGRES_OBJECTS: &str = "
SELECT kind, name, replace(definition, quote_ident(current_schema()) || '.', '') FROM (
    SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'i' THEN 'index' ELSE 'object' END AS kind, c.relname::text AS name,
        CASE c.relkind WHEN 'i' THEN pg_get_indexdef(c.oid) ELSE coalesce((
            SELECT string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull
                || ' ' || coalesce(l.collname, ''), ', ' ORDER BY a.attnum)
            FROM pg_attribute AS a LEFT JOIN pg_collation AS l ON l.oid = a.attcollation
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '')
            || ' row security ' || c.relrowsecurity END AS definition, c.relnamespace AS place
    FROM pg_class AS c WHERE c.relkind <> 't'
    UNION ALL
    SELECT 'constraint', c.relname || '.' || o.conname, pg_get_constraintdef(o.oid), c.relnamespace
    FROM pg_constraint AS o JOIN pg_class AS c ON c.oid = o.conrelid
    UNION ALL
    SELECT 'trigger', c.relname || '.' || t.tgname, pg_get_triggerdef(t.oid), c.relnamespace
    FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
    UNION ALL
    SELECT 'rule', c.relname || '.' || r.rulename, pg_get_ruledef(r.oid), c.relnamespace
    FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class
) AS objects WHERE place = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())";

/// `table bindings` → its definition.
async fn objects(conn: &mut Conn<'_>) -> Result<BTreeMap<String, String>, LedgerError> {
    let sql = conn.dialect().pick(["SELECT type, name, coalesce(sql, '') FROM main.sqlite_schema", POSTGRES_OBJECTS]);
    let rows = Query::new(sql).fetch_all(conn).await?;
    let object = |row: &Row| -> Result<(String, String), LedgerError> {
        let (kind, name, sql): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        // Views were once made with the database's name before theirs; SQLite keeps it or not.
        Ok((format!("{kind} {name}"), sql.replace("main.", "")))
    };
    rows.iter().map(object).collect()
}

/// SQLite's definition of tables in the words of `dialect`. Texts are compared bytewise in both.
fn ddl(dialect: Dialect, sql: &str) -> String {
    match dialect {
        Dialect::Sqlite => sql.to_owned(),
        Dialect::Postgres => [
            ("INTEGER", "BIGINT"),
            ("BLOB", "BYTEA"),
            ("TEXT", "TEXT COLLATE \"C\""),
            (" STRICT, WITHOUT ROWID", ""),
            (" STRICT", ""),
        ]
        .into_iter()
        .fold(sql.to_owned(), |sql, (from, to)| sql.replace(from, to)),
    }
}

/// Makes all tables in an empty database. Inside a transaction.
pub(crate) async fn create(conn: &mut Conn<'_>) -> Result<(), LedgerError> {
    let sql = ddl(conn.dialect(), BASE);
    conn.script(sql).await?;
    create_views(conn, Place::Main).await?;
    Query::new("INSERT INTO meta (id, entries_schema, views_schema) VALUES (1, $1, $2)")
        .bind(ENTRIES)
        .bind(VIEWS)
        .execute(conn)
        .await
}

/// Makes empty views, or temporary ones for a comparison.
pub(crate) async fn create_views(conn: &mut Conn<'_>, place: Place) -> Result<(), LedgerError> {
    for (table, columns) in VIEW_TABLES {
        let head = match place {
            Place::Main => format!("CREATE TABLE {table}"),
            Place::Temp => format!("CREATE TEMPORARY TABLE fresh_{table}"),
        };
        let sql = ddl(conn.dialect(), &format!("{head} ({columns}) STRICT, WITHOUT ROWID"));
        conn.script(sql).await?;
    }
    Ok(())
}

/// Removes the views, of whatever version. Inside a transaction.
pub(crate) async fn drop_views(conn: &mut Conn<'_>) -> Result<(), LedgerError> {
    for (table, _) in VIEW_TABLES {
        conn.script(format!("DROP TABLE IF EXISTS {table}")).await?;
    }
    Ok(())
}

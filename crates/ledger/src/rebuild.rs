//! Views from entries.

use adamant_attest::{Link, Statement};
use adamant_digest::Digest;
use adamant_store::LedgerError;
use sqlx::{Connection, Row, SqliteConnection};

use crate::error::{damaged, database};
use crate::schema;
use crate::sql;
use crate::views::{self, Place, Rows};

/// Entries read at a time.
pub(crate) const PAGE: i64 = 500;

/// Makes the views again, in a transaction of its own.
pub(crate) async fn run(conn: &mut SqliteConnection) -> Result<(), LedgerError> {
    let mut tx = conn.begin_with("BEGIN IMMEDIATE").await.map_err(database)?;
    views(&mut tx).await?;
    tx.commit().await.map_err(database)
}

/// Drops the views and makes them again. Inside a transaction.
async fn views(conn: &mut SqliteConnection) -> Result<(), LedgerError> {
    schema::drop_views(conn).await?;
    schema::create_views(conn, "main").await?;
    let mut next = 0i64;
    loop {
        let page = sqlx::query("SELECT idx, recorded_at, statement FROM entries WHERE idx >= ? ORDER BY idx LIMIT ?")
            .bind(next)
            .bind(PAGE)
            .fetch_all(&mut *conn)
            .await
            .map_err(database)?;
        let Some(last) = page.last() else { break };
        next = last.try_get::<i64, _>(0).map_err(database)? + 1;
        let mut rows = Rows::default();
        for row in &page {
            let (index, recorded_at): (i64, i64) =
                (row.try_get(0).map_err(database)?, row.try_get(1).map_err(database)?);
            let bytes: &[u8] = row.try_get(2).map_err(database)?;
            add(&mut rows, index, recorded_at, bytes)
                .map_err(|text| damaged(format!("entries: index {index}: {text}")))?;
        }
        rows.insert(conn, Place::Main).await?;
    }
    sqlx::query("UPDATE meta SET views_schema = ? WHERE id = 1")
        .bind(schema::VIEWS)
        .execute(conn)
        .await
        .map_err(database)?;
    Ok(())
}

/// Adds what the statement `bytes` says; an error tells what is wrong with it.
pub(crate) fn add(rows: &mut Rows, index: i64, recorded_at: i64, bytes: &[u8]) -> Result<(), String> {
    let statement = Statement::parse(bytes).map_err(|error| error.to_string())?;
    add_parsed(rows, index, recorded_at, Digest::of(bytes), &statement)
}

pub(crate) fn add_parsed(
    rows: &mut Rows,
    index: i64,
    recorded_at: i64,
    digest: Digest,
    statement: &Statement,
) -> Result<(), String> {
    let predicate = statement.predicate().map_err(|error| error.to_string())?;
    let link: Option<Link> = statement.link().map_err(|error| error.to_string())?;
    let link = match &link {
        Some(link) => Some((link.chain.as_str(), sql::signed(link.sequence).map_err(|error| error.to_string())?)),
        None => None,
    };
    let subject = &mut statement.subject.iter().map(|(_, digest)| *digest);
    rows.add(views::Row { index, statement: digest, subject, predicate: &predicate, recorded_at, link });
    Ok(())
}

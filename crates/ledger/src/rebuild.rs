//! Views from entries.

use adamant_attest::{Link, Statement};
use adamant_digest::Digest;
use adamant_store::LedgerError;

use crate::db::{Conn, Query};
use crate::error::damaged;
use crate::schema;
use crate::sql;
use crate::views::{self, Place, Rows};

/// Entries read at a time.
pub(crate) const PAGE: i64 = 500;

/// Makes the views again, in a transaction of its own.
pub(crate) async fn run(conn: &mut Conn<'_>) -> Result<(), LedgerError> {
    let mut tx = conn.begin_write().await?;
    views(&mut tx).await?;
    tx.commit().await
}

/// Drops the views and makes them again. Inside a transaction.
async fn views(conn: &mut Conn<'_>) -> Result<(), LedgerError> {
    schema::drop_views(conn).await?;
    schema::create_views(conn, Place::Main).await?;
    let mut next = 0i64;
    loop {
        let page = Query::new("SELECT idx, recorded_at, statement FROM entries WHERE idx >= $1 ORDER BY idx LIMIT $2")
            .bind(next)
            .bind(PAGE)
            .fetch_all(&mut *conn)
            .await?;
        let Some(last) = page.last() else { break };
        next = last.get::<i64>(0)? + 1;
        let mut rows = Rows::default();
        for row in &page {
            let (index, recorded_at): (i64, i64) = (row.get(0)?, row.get(1)?);
            let bytes: &[u8] = row.get(2)?;
            add(&mut rows, index, recorded_at, bytes)
                .map_err(|text| damaged(format!("entries: index {index}: {text}")))?;
        }
        rows.insert(conn, Place::Main).await?;
    }
    Query::new("UPDATE meta SET views_schema = $1 WHERE id = 1").bind(schema::VIEWS).execute(conn).await?;
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

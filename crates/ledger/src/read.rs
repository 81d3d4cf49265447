//! Reading. Each call is one query, or one transaction where several must agree.

use adamant_attest::predicate::BindingKind;
use adamant_digest::Digest;
use adamant_store::{Bound, Entry, Head, LedgerError, Link};
use adamant_tlog::{Hash, Node, nodes_for_consistency, nodes_for_inclusion};
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{Connection, Row};

use crate::error::{damaged, database};
use crate::writer::{self, HeadRow};
use crate::{plan, sql, tree};

pub(crate) async fn head(pool: &SqlitePool) -> Result<Head, LedgerError> {
    let mut conn = pool.acquire().await.map_err(database)?;
    let head = HeadRow::load(&mut conn).await?;
    Ok(head.ok_or_else(|| damaged("head: the row is missing"))?.head())
}

fn bound(row: &SqliteRow) -> Result<(String, Bound), LedgerError> {
    let ((_, name), plan::Binding { digest, index, by, at, .. }) = writer::binding(row)?;
    Ok((name, Bound { digest, index, by, at }))
}

pub(crate) async fn binding(pool: &SqlitePool, kind: BindingKind, name: &str) -> Result<Option<Bound>, LedgerError> {
    let row = sqlx::query(
        "SELECT kind, name, digest, idx, by_whom, recorded_at, statement, sequence FROM bindings
         WHERE kind = ? AND name = ?",
    )
    .bind(kind.as_str())
    .bind(name)
    .fetch_optional(pool)
    .await
    .map_err(database)?;
    Ok(row.as_ref().map(bound).transpose()?.map(|(_, bound)| bound))
}

pub(crate) async fn bindings(
    pool: &SqlitePool,
    kind: BindingKind,
    prefix: &str,
    after: &str,
    limit: usize,
) -> Result<Vec<(String, Bound)>, LedgerError> {
    let rows = sqlx::query(
        "SELECT kind, name, digest, idx, by_whom, recorded_at, statement, sequence FROM bindings
         WHERE kind = ? AND name >= ? AND name > ? AND name < ? ORDER BY name LIMIT ?",
    )
    .bind(kind.as_str())
    // SQLite seeks by the first bound alone and looks at every name from there to the second.
    .bind(prefix.max(after))
    .bind(after)
    .bind(Above::of(prefix))
    .bind(sql::limit(limit))
    .fetch_all(pool)
    .await
    .map_err(database)?;
    rows.iter().map(bound).collect()
}

pub(crate) async fn entries(pool: &SqlitePool, from: u64, limit: usize) -> Result<Vec<Entry>, LedgerError> {
    // Nothing lies beyond what SQL can count.
    let Ok(from) = i64::try_from(from) else { return Ok(Vec::new()) };
    let rows = sqlx::query(
        "SELECT idx, statement, envelope, leaf, recorded_at FROM entries WHERE idx >= ? ORDER BY idx LIMIT ?",
    )
    .bind(from)
    .bind(sql::limit(limit))
    .fetch_all(pool)
    .await
    .map_err(database)?;
    rows.iter()
        .map(|row| {
            Ok(Entry {
                index: sql::unsigned(row.try_get(0).map_err(database)?)?,
                statement: row.try_get(1).map_err(database)?,
                envelope: row.try_get(2).map_err(database)?,
                leaf: row.try_get(3).map_err(database)?,
                recorded_at: writer::time(row.try_get(4).map_err(database)?)?,
            })
        })
        .collect()
}

pub(crate) async fn about(pool: &SqlitePool, digest: Digest, limit: usize) -> Result<Vec<u64>, LedgerError> {
    let rows = sqlx::query("SELECT idx FROM subjects WHERE digest = ? ORDER BY idx LIMIT ?")
        .bind(digest.as_bytes().as_slice())
        .bind(sql::limit(limit))
        .fetch_all(pool)
        .await
        .map_err(database)?;
    rows.iter().map(|row| sql::unsigned(row.try_get(0).map_err(database)?)).collect()
}

fn link(row: &SqliteRow) -> Result<Link, LedgerError> {
    Ok(Link {
        sequence: sql::unsigned(row.try_get(0).map_err(database)?)?,
        index: sql::unsigned(row.try_get(1).map_err(database)?)?,
        statement: writer::digest(row, 2)?,
    })
}

pub(crate) async fn chain_head(pool: &SqlitePool, chain: &str) -> Result<Option<Link>, LedgerError> {
    let sql = "SELECT sequence, idx, statement FROM chains WHERE chain = ? ORDER BY sequence DESC LIMIT 1";
    let row = sqlx::query(sql).bind(chain).fetch_optional(pool).await.map_err(database)?;
    row.as_ref().map(link).transpose()
}

pub(crate) async fn chain(pool: &SqlitePool, chain: &str, from: u64, limit: usize) -> Result<Vec<Link>, LedgerError> {
    let Ok(from) = i64::try_from(from) else { return Ok(Vec::new()) };
    let rows = sqlx::query(
        "SELECT sequence, idx, statement FROM chains WHERE chain = ? AND sequence >= ? ORDER BY sequence LIMIT ?",
    )
    .bind(chain)
    .bind(from)
    .bind(sql::limit(limit))
    .fetch_all(pool)
    .await
    .map_err(database)?;
    rows.iter().map(link).collect()
}

pub(crate) async fn chains(pool: &SqlitePool, prefix: &str, limit: usize) -> Result<Vec<String>, LedgerError> {
    // From name to name by the index: chains are few, their links many.
    let rows = sqlx::query(
        "WITH RECURSIVE names (name) AS (
             SELECT min(chain) FROM chains WHERE chain >= ?1
             UNION ALL
             SELECT (SELECT min(chain) FROM chains WHERE chain > names.name) FROM names WHERE names.name < ?2
         )
         SELECT name FROM names WHERE name < ?2 LIMIT ?3",
    )
    .bind(prefix)
    .bind(Above::of(prefix))
    .bind(sql::limit(limit))
    .fetch_all(pool)
    .await
    .map_err(database)?;
    rows.iter().map(|row| row.try_get(0).map_err(database)).collect()
}

pub(crate) async fn inclusion(pool: &SqlitePool, index: u64, size: u64) -> Result<Vec<Hash>, LedgerError> {
    let nodes = nodes_for_inclusion(index, size);
    let outside = || damaged(format!("entry {index} is not within a tree of {size} entries"));
    proof(pool, size, nodes.ok_or_else(outside)?, |read| adamant_tlog::inclusion(index, size, read).ok()).await
}

pub(crate) async fn consistency(pool: &SqlitePool, old: u64, new: u64) -> Result<Vec<Hash>, LedgerError> {
    let nodes = nodes_for_consistency(old, new);
    let outside = || damaged(format!("a tree of {old} entries is no prefix of one of {new}"));
    proof(pool, new, nodes.ok_or_else(outside)?, |read| adamant_tlog::consistency(old, new, read).ok()).await
}

async fn proof(
    pool: &SqlitePool,
    size: u64,
    nodes: Vec<Node>,
    build: impl FnOnce(&dyn Fn(Node) -> Result<Hash, ()>) -> Option<Vec<Hash>>,
) -> Result<Vec<Hash>, LedgerError> {
    let mut conn = pool.acquire().await.map_err(database)?;
    let mut tx = conn.begin().await.map_err(database)?;
    let stored = HeadRow::load(&mut tx).await?.map_or(0, |head| head.range.size());
    if size > stored {
        return Err(damaged(format!("there is no tree of {size} entries yet, the log has {stored}")));
    }
    let hashes = tree::hashes(&mut tx, &nodes, size).await?;
    tx.rollback().await.map_err(database)?;
    build(&|node| hashes.get(&node).copied().ok_or(())).ok_or_else(|| damaged("tiles: a node of a proof is missing"))
}

/// The least value above every text that starts with a prefix. SQLite sorts any blob above any
/// text, which serves where there is no such text.
enum Above {
    Text(String),
    Everything,
}

impl Above {
    fn of(prefix: &str) -> Self {
        let mut text = prefix.to_owned();
        while let Some(last) = text.pop() {
            // Bytes of UTF-8 sort as their characters do.
            let next = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
            if let Some(next) = next {
                text.push(next);
                return Self::Text(text);
            }
        }
        Self::Everything
    }
}

impl sqlx::Type<sqlx::Sqlite> for Above {
    fn type_info() -> sqlx::sqlite::SqliteTypeInfo {
        <String as sqlx::Type<sqlx::Sqlite>>::type_info()
    }
}

impl sqlx::Encode<'_, sqlx::Sqlite> for Above {
    fn encode_by_ref(
        &self,
        buffer: &mut sqlx::sqlite::SqliteArgumentsBuffer,
    ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        match self {
            Self::Text(text) => <String as sqlx::Encode<sqlx::Sqlite>>::encode_by_ref(text, buffer),
            Self::Everything => <Vec<u8> as sqlx::Encode<sqlx::Sqlite>>::encode_by_ref(&Vec::new(), buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn above_is_just_above() {
        let check = |prefix: &str, expect: Option<&str>| match Above::of(prefix) {
            Above::Text(text) => assert_eq!(Some(text.as_str()), expect, "{prefix:?}"),
            Above::Everything => assert_eq!(None, expect, "{prefix:?}"),
        };
        check("", None);
        check("a", Some("b"));
        check("a\u{10ffff}", Some("b"));
        check("\u{10ffff}", None);
        check("a\u{d7ff}", Some("a\u{e000}"));
        check("shop/", Some("shop0"));
    }
}

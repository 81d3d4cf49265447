//! Reading. Each call is one query, or one transaction where several must agree.

use adamant_attest::predicate::BindingKind;
use adamant_digest::Digest;
use adamant_store::{Bound, Entry, Head, LedgerError, Link};
use adamant_tlog::{Hash, Node, nodes_for_consistency, nodes_for_inclusion};

use crate::db::{Pool, Query, Row};
use crate::error::damaged;
use crate::writer::{self, HeadRow, MAX_NAME_BYTES};
use crate::{plan, sql, tree};

pub(crate) async fn head(pool: &Pool) -> Result<Head, LedgerError> {
    let mut conn = pool.acquire().await?;
    let head = HeadRow::load(&mut conn).await?;
    Ok(head.ok_or_else(|| damaged("head: the row is missing"))?.head())
}

fn bound(row: &Row) -> Result<(String, Bound), LedgerError> {
    let ((_, name), plan::Binding { digest, index, by, at, .. }) = writer::binding(row)?;
    Ok((name, Bound { digest, index, by, at }))
}

pub(crate) async fn binding(pool: &Pool, kind: BindingKind, name: &str) -> Result<Option<Bound>, LedgerError> {
    let row = Query::new(
        "SELECT kind, name, digest, idx, by_whom, recorded_at, statement, sequence FROM bindings
         WHERE kind = $1 AND name = $2",
    )
    .bind(kind.as_str())
    .bind(name)
    .fetch_optional(&mut pool.acquire().await?)
    .await?;
    Ok(row.as_ref().map(bound).transpose()?.map(|(_, bound)| bound))
}

pub(crate) async fn bindings(
    pool: &Pool,
    kind: BindingKind,
    prefix: &str,
    after: &str,
    limit: usize,
) -> Result<Vec<(String, Bound)>, LedgerError> {
    let rows = Query::new(
        "SELECT kind, name, digest, idx, by_whom, recorded_at, statement, sequence FROM bindings
         WHERE kind = $1 AND name >= $2 AND name > $3 AND name < $4 ORDER BY name LIMIT $5",
    )
    .bind(kind.as_str())
    // SQLite seeks by the first bound alone and looks at every name from there to the second.
    .bind(prefix.max(after))
    .bind(after)
    .bind(above(prefix))
    .bind(sql::limit(limit))
    .fetch_all(&mut pool.acquire().await?)
    .await?;
    rows.iter().map(bound).collect()
}

pub(crate) async fn entries(pool: &Pool, from: u64, limit: usize) -> Result<Vec<Entry>, LedgerError> {
    // Nothing lies beyond what SQL can count.
    let Ok(from) = i64::try_from(from) else { return Ok(Vec::new()) };
    let rows = Query::new(
        "SELECT idx, statement, envelope, leaf, recorded_at FROM entries WHERE idx >= $1 ORDER BY idx LIMIT $2",
    )
    .bind(from)
    .bind(sql::limit(limit))
    .fetch_all(&mut pool.acquire().await?)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Entry {
                index: sql::unsigned(row.get(0)?)?,
                statement: row.get(1)?,
                envelope: row.get(2)?,
                leaf: row.get(3)?,
                recorded_at: writer::time(row.get(4)?)?,
            })
        })
        .collect()
}

pub(crate) async fn about(pool: &Pool, digest: Digest, limit: usize) -> Result<Vec<u64>, LedgerError> {
    let rows = Query::new("SELECT idx FROM subjects WHERE digest = $1 ORDER BY idx LIMIT $2")
        .bind(digest.as_bytes().as_slice())
        .bind(sql::limit(limit))
        .fetch_all(&mut pool.acquire().await?)
        .await?;
    rows.iter().map(|row| sql::unsigned(row.get(0)?)).collect()
}

fn link(row: &Row) -> Result<Link, LedgerError> {
    Ok(Link {
        sequence: sql::unsigned(row.get(0)?)?,
        index: sql::unsigned(row.get(1)?)?,
        statement: writer::digest(row, 2)?,
    })
}

pub(crate) async fn chain_head(pool: &Pool, chain: &str) -> Result<Option<Link>, LedgerError> {
    let sql = "SELECT sequence, idx, statement FROM chains WHERE chain = $1 ORDER BY sequence DESC LIMIT 1";
    let row = Query::new(sql).bind(chain).fetch_optional(&mut pool.acquire().await?).await?;
    row.as_ref().map(link).transpose()
}

pub(crate) async fn chain(pool: &Pool, chain: &str, from: u64, limit: usize) -> Result<Vec<Link>, LedgerError> {
    let Ok(from) = i64::try_from(from) else { return Ok(Vec::new()) };
    let rows = Query::new(
        "SELECT sequence, idx, statement FROM chains WHERE chain = $1 AND sequence >= $2 ORDER BY sequence LIMIT $3",
    )
    .bind(chain)
    .bind(from)
    .bind(sql::limit(limit))
    .fetch_all(&mut pool.acquire().await?)
    .await?;
    rows.iter().map(link).collect()
}

pub(crate) async fn chains(pool: &Pool, prefix: &str, limit: usize) -> Result<Vec<String>, LedgerError> {
    // From name to name by the index: chains are few, their links many.
    let rows = Query::new(
        "WITH RECURSIVE names (name) AS (
             SELECT min(chain) FROM chains WHERE chain >= $1
             UNION ALL
             SELECT (SELECT min(chain) FROM chains WHERE chain > names.name) FROM names WHERE names.name < $2
         )
         SELECT name FROM names WHERE name < $2 LIMIT $3",
    )
    .bind(prefix)
    .bind(above(prefix))
    .bind(sql::limit(limit))
    .fetch_all(&mut pool.acquire().await?)
    .await?;
    rows.iter().map(|row| row.get(0)).collect()
}

pub(crate) async fn inclusion(pool: &Pool, index: u64, size: u64) -> Result<Vec<Hash>, LedgerError> {
    let nodes = nodes_for_inclusion(index, size);
    let outside = || damaged(format!("entry {index} is not within a tree of {size} entries"));
    proof(pool, size, nodes.ok_or_else(outside)?, |read| adamant_tlog::inclusion(index, size, read).ok()).await
}

pub(crate) async fn consistency(pool: &Pool, old: u64, new: u64) -> Result<Vec<Hash>, LedgerError> {
    let nodes = nodes_for_consistency(old, new);
    let outside = || damaged(format!("a tree of {old} entries is no prefix of one of {new}"));
    proof(pool, new, nodes.ok_or_else(outside)?, |read| adamant_tlog::consistency(old, new, read).ok()).await
}

async fn proof(
    pool: &Pool,
    size: u64,
    nodes: Vec<Node>,
    build: impl FnOnce(&dyn Fn(Node) -> Result<Hash, ()>) -> Option<Vec<Hash>>,
) -> Result<Vec<Hash>, LedgerError> {
    let mut conn = pool.acquire().await?;
    let mut tx = conn.begin_snapshot().await?;
    let stored = HeadRow::load(&mut tx).await?.map_or(0, |head| head.range.size());
    if size > stored {
        return Err(damaged(format!("there is no tree of {size} entries yet, the log has {stored}")));
    }
    let hashes = tree::hashes(&mut tx, &nodes, size).await?;
    tx.rollback().await?;
    build(&|node| hashes.get(&node).copied().ok_or(())).ok_or_else(|| damaged("tiles: a node of a proof is missing"))
}

/// A text above every name that starts with a prefix, and below or at all others above them.
fn above(prefix: &str) -> String {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        // Bytes of UTF-8 sort as their characters do.
        let next = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
        if let Some(next) = next {
            text.push(next);
            return text;
        }
    }
    // Longer than any name, of the last character there is.
    char::MAX.to_string().repeat(MAX_NAME_BYTES / char::MAX.len_utf8() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn above_is_just_above() {
        let check = |prefix: &str, expect: Option<&str>| match expect {
            Some(expect) => assert_eq!(above(prefix), expect, "{prefix:?}"),
            None => assert!(above(prefix) > char::MAX.to_string().repeat(MAX_NAME_BYTES / 4), "{prefix:?}"),
        };
        check("", None);
        check("a", Some("b"));
        check("a\u{10ffff}", Some("b"));
        check("\u{10ffff}", None);
        check("a\u{d7ff}", Some("a\u{e000}"));
        check("shop/", Some("shop0"));
    }
}

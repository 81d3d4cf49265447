//! Rows edited by hand: the check names each.

use adamant_conformance::ledger::{link, tag};
use adamant_ledger::{Finding, SqlLedger};
use adamant_store::Ledger;
use sqlx::Executor;

use crate::{Place, clean, raw};

/// A ledger of 304 entries with every kind of row.
async fn filled() -> Place {
    let place = Place::new();
    let ledger = place.open().await;
    for n in 0..99 {
        let facts = vec![tag(&format!("t:{n}"), "1"), link("c/a", None), link("c/b", None)];
        ledger.append(facts).await.unwrap();
    }
    ledger.append(vec![tag("t:0", "2")]).await.unwrap_err();
    ledger.append(vec![tag("t:0", "3")]).await.unwrap_err();
    ledger.append(vec![tag("t:last", "1")]).await.unwrap();
    clean(&ledger).await;
    ledger.close().await;
    place
}

async fn findings(place: &Place) -> Vec<Finding> {
    SqlLedger::open_read_only(&place.db(), None).await.unwrap().check().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_edit_is_named() {
    let place = filled().await;
    let trust = SqlLedger::open_read_only(&place.db(), None).await.unwrap().trust_values().clone();
    let copy = place.dir.path().join("copy.db");
    // The edit, and the start of a finding it must cause.
    let edits: &[(&str, &[&str])] = &[
        (
            "UPDATE entries SET statement = CAST(replace(CAST(statement AS TEXT), '\"ann\"', '\"bob\"') AS BLOB) WHERE idx = 4",
            &["entries 4: the statement is not the one in the envelope", "bindings tag t:0: differs"],
        ),
        ("UPDATE entries SET statement = x'00' WHERE idx = 7", &["entries 7: the statement cannot be read"]),
        ("UPDATE entries SET envelope = x'7b7d' WHERE idx = 8", &["entries 8: the envelope cannot be read"]),
        (
            "UPDATE entries SET envelope = (SELECT envelope FROM entries WHERE idx = 10) WHERE idx = 9",
            &["entries 9: the statement is not the one in the envelope", "entries 9: the leaf"],
        ),
        (
            "UPDATE entries SET envelope = CAST(replace(CAST(envelope AS TEXT), '\"sig\":\"ME', '\"sig\":\"MF') AS BLOB) WHERE idx = 11",
            &["entries 11: "],
        ),
        (
            "UPDATE entries SET leaf = (SELECT leaf FROM entries WHERE idx = 1) WHERE idx = 12",
            &[
                "entries 12: the leaf",
                "tiles 0/0: the hashes",
                "tiles 1/0: the hashes",
                "head: the compact range",
                "head: the checkpoint",
            ],
        ),
        ("UPDATE entries SET recorded_at = recorded_at - 1 WHERE idx = 13", &["entries 13: recorded_at is"]),
        ("DELETE FROM entries WHERE idx = 20", &["entries 20: missing", "head: size is"]),
        ("DELETE FROM entries WHERE idx = 303", &["head: size is", "bindings tag t:last: no entry says so"]),
        (
            "INSERT INTO entries SELECT 304, recorded_at, statement, envelope, leaf FROM entries WHERE idx = 5",
            &["entries 304: is 1 in chain", "head: size is"],
        ),
        ("UPDATE entries SET idx = -1 WHERE idx = 0", &["entries 0: missing"]),
        (
            "UPDATE bindings SET digest = zeroblob(32) WHERE name = 't:5'",
            &["bindings tag t:5: differs from the entries in digest"],
        ),
        (
            "UPDATE bindings SET by_whom = 'eve', sequence = 7 WHERE name = 't:5'",
            &["bindings tag t:5: differs from the entries in by_whom sequence"],
        ),
        (
            "UPDATE bindings SET name = 't:new' WHERE name = 't:5'",
            &["bindings tag t:5: missing", "bindings tag t:new: no entry says so"],
        ),
        ("DELETE FROM bindings WHERE name = 't:6'", &["bindings tag t:6: missing"]),
        (
            "UPDATE chains SET idx = 1 WHERE chain = 'c/a' AND sequence = 4",
            &["chains c/a 4: differs from the entries in idx"],
        ),
        ("DELETE FROM chains WHERE chain = 'c/b' AND sequence = 99", &["chains c/b 99: missing"]),
        (
            "INSERT INTO subjects VALUES (zeroblob(32), 3)",
            &["subjects 0000000000000000000000000000000000000000000000000000000000000000 3: no entry says so"],
        ),
        (
            "DELETE FROM subjects WHERE idx = 4",
            &["subjects 6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b 4: missing"],
        ),
        ("DELETE FROM divergences WHERE idx = (SELECT min(idx) FROM divergences)", &["divergences tag t:0 d4735e"]),
        ("UPDATE tiles SET hashes = zeroblob(8192) WHERE level = 0 AND idx = 0", &["tiles 0/0: the hashes"]),
        ("UPDATE tiles SET hashes = substr(hashes, 1, 32) WHERE level = 0 AND idx = 1", &["tiles 0/1: the hashes"]),
        ("DELETE FROM tiles WHERE level = 1", &["tiles 1/0: missing"]),
        (
            "INSERT INTO tiles VALUES (0, 2, zeroblob(32)), (2, 0, zeroblob(32)), (9, 0, x'')",
            &["tiles 0/2: no tree", "tiles 2/0: no tree", "tiles 9/0: no tree"],
        ),
        ("UPDATE head SET size = size - 1", &["head: size is"]),
        ("UPDATE head SET recorded_at = recorded_at + 1", &["head: recorded_at"]),
        ("UPDATE head SET compact = CAST(compact || x'00' AS BLOB)", &["head: "]),
        (
            "UPDATE head SET checkpoint = replace(checkpoint, char(10) || '304' || char(10), char(10) || '303' || char(10))",
            &["head: the checkpoint does not hold"],
        ),
        ("UPDATE head SET checkpoint = checkpoint || '— other.example AAAAAAAA' || char(10)", &[]),
        (
            "PRAGMA writable_schema = 1; UPDATE sqlite_schema SET sql = replace(sql, 'by_whom TEXT', 'by_whom BLOB') WHERE name = 'bindings'",
            &["database: "],
        ),
    ];
    for (edit, expected) in edits {
        std::fs::copy(place.db(), &copy).unwrap();
        let mut conn = raw(&copy).await;
        conn.execute(sqlx::raw_sql(*edit)).await.unwrap_or_else(|error| panic!("{edit}: {error}"));
        drop(conn);
        let ledger = SqlLedger::open_read_only(&copy, Some(trust.clone())).await.unwrap();
        let found = ledger.check().await.unwrap_or_else(|error| panic!("{edit}: {error}"));
        let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
        for start in *expected {
            assert!(shown.iter().any(|shown| shown.starts_with(start)), "{edit}: no `{start}` in {shown:#?}");
        }
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(place.dir.path().join(format!("copy.db{suffix}")));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_views_are_made_again() {
    let place = filled().await;
    let mut conn = raw(&place.db()).await;
    conn.execute(
        "UPDATE bindings SET digest = zeroblob(32) WHERE name = 't:5'; DELETE FROM chains WHERE sequence > 50 OR chain = 'keys';
         DROP TABLE subjects; DELETE FROM divergences",
    )
    .await
    .unwrap();
    drop(conn);
    let ledger = place.open().await;
    ledger.rebuild_views().await.unwrap();
    clean(&ledger).await;
    assert_eq!(ledger.chain_head("c/a").await.unwrap().unwrap().sequence, 99);
    assert!(!ledger.append(vec![tag("t:5", "1")]).await.unwrap()[0].new);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_a_page_is_a_finding() {
    use std::os::unix::fs::FileExt;
    let place = filled().await;
    let file = std::fs::OpenOptions::new().write(true).open(place.db()).unwrap();
    let pages = file.metadata().unwrap().len() / 8192;
    for page in [pages / 3, pages / 2, pages - 1] {
        file.write_all_at(&[0x5a; 8192], page * 8192).unwrap();
    }
    assert!(!findings(&place).await.is_empty());
}

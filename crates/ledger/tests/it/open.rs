//! Opening: keys, origin, schema numbers.

use std::os::unix::fs::PermissionsExt;

use adamant_attest::Statement;
use adamant_attest::predicate::{Predicate, Role};
use adamant_conformance::ledger::tag;
use adamant_ledger::{Keys, OpenError, SqlLedger, TrustValues};
use adamant_store::{Ledger, LedgerError};
use sqlx::Executor;

use crate::{Place, clean, clock, raw};

#[tokio::test]
async fn the_first_facts_are_the_keys() {
    let place = Place::new();
    let ledger = place.open().await;
    let entries = ledger.entries(0, 10).await.unwrap();
    let keys: Vec<_> = entries
        .iter()
        .map(|entry| match Statement::parse(&entry.statement).unwrap().predicate().unwrap() {
            Predicate::Key(key) => (key.role, key.keyid),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [Role::Control, Role::Log, Role::Builder, Role::Host];
    assert_eq!(keys, expected.map(|role| (role, place.keys.public(role).keyid().to_owned())));
    assert_eq!(ledger.chain("keys", 1, 10).await.unwrap().len(), 4);
    assert_eq!(std::fs::metadata(place.db()).unwrap().permissions().mode() & 0o777, 0o600);

    let trust = ledger.trust_values().clone();
    assert_eq!(trust.root, *place.keys.public(Role::Control));
    assert!(trust.origin.starts_with("adamant-") && trust.origin.len() == "adamant-012345678901.log".len());
    assert!(trust.log.starts_with(&format!("{}+", trust.origin)));
    let head = ledger.head().await.unwrap();
    assert!(head.checkpoint.starts_with(&format!("{}\n4\n", trust.origin)), "{}", head.checkpoint);
    ledger.close().await;
    let again = place.open().await;
    assert_eq!(again.head().await.unwrap(), head, "opening again writes nothing");
    assert_eq!(*again.trust_values(), trust);
    assert_eq!(*SqlLedger::open_read_only(&place.db(), None).await.unwrap().trust_values(), trust);
}

#[tokio::test]
async fn an_origin_is_for_ever() {
    let place = Place::new();
    let open = async |origin: Option<&str>| {
        SqlLedger::open(&place.db(), place.keys.clone(), clock(), origin.map(str::to_owned)).await
    };
    for bad in ["", "a b", "a/b", "a+b", "ä.log", "a\n"] {
        assert!(matches!(open(Some(bad)).await, Err(OpenError::BadOrigin(_))), "{bad:?}");
    }
    let ledger = open(Some("log.example.org")).await.unwrap();
    assert_eq!(ledger.trust_values().origin, "log.example.org");
    ledger.close().await;
    assert_eq!(open(None).await.unwrap().trust_values().origin, "log.example.org");
    let error = open(Some("other.example.org")).await.unwrap_err();
    assert!(matches!(&error, OpenError::Origin { .. }), "{error}");
}

#[tokio::test]
async fn other_keys_are_refused_before_they_sign() {
    let place = Place::new();
    place.open().await.close().await;
    let before = SqlLedger::open_read_only(&place.db(), None).await.unwrap().head().await.unwrap();
    let error = SqlLedger::open(&place.db(), Keys::generate().unwrap(), clock(), None).await.unwrap_err();
    assert!(matches!(&error, OpenError::OtherKey { role: Role::Control, .. }), "{error}");
    std::fs::remove_file(place.dir.path().join("keys/host")).unwrap();
    let keys = Keys::open_or_create(&place.dir.path().join("keys")).unwrap();
    let error = SqlLedger::open(&place.db(), keys, clock(), None).await.unwrap_err();
    assert!(matches!(&error, OpenError::OtherKey { role: Role::Host, .. }), "{error}");
    let ledger = place.open().await;
    assert_eq!(ledger.head().await.unwrap(), before);
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_older_views_are_rebuilt() {
    let place = Place::new();
    let ledger = place.open().await;
    ledger.append(vec![tag("a", "1")]).await.unwrap();
    ledger.close().await;
    for column in ["entries_schema", "views_schema"] {
        let set = |number: i64| format!("UPDATE meta SET {column} = {number}");
        let mut conn = raw(&place.db()).await;
        conn.execute(sqlx::AssertSqlSafe(set(2))).await.unwrap();
        let opened = SqlLedger::open(&place.db(), place.keys.clone(), clock(), None).await;
        assert!(matches!(opened, Err(OpenError::Ledger(LedgerError::Newer { found: 2, known: 1 }))), "{opened:?}");
        let opened = SqlLedger::open_read_only(&place.db(), None).await;
        assert!(matches!(opened, Err(OpenError::Ledger(LedgerError::Newer { .. }))), "{opened:?}");
        conn.execute(sqlx::AssertSqlSafe(set(1))).await.unwrap();
    }
    let mut conn = raw(&place.db()).await;
    conn.execute("UPDATE meta SET views_schema = 0").await.unwrap();
    conn.execute("DROP TABLE subjects; ALTER TABLE bindings ADD COLUMN old TEXT; DELETE FROM chains").await.unwrap();
    clean(&place.open().await).await;
}

#[tokio::test]
async fn what_is_no_ledger_is_named() {
    let place = Place::new();
    raw_file(
        &place,
        b"this is not a database, not at all, and it is long enough to have a header of one hundred bytes...",
    );
    let error = SqlLedger::open(&place.db(), place.keys.clone(), clock(), None).await.unwrap_err();
    assert!(matches!(&error, OpenError::Ledger(LedgerError::Damaged(_))), "{error}");
    std::fs::remove_file(place.db()).unwrap();
    let error = SqlLedger::open_read_only(&place.db(), None).await.unwrap_err();
    assert!(matches!(&error, OpenError::Io { .. }) && error.to_string().contains("adamant.db"), "{error}");
    raw_file(&place, b"");
    let mut conn = raw(&place.db()).await;
    conn.execute("CREATE TABLE other (a)").await.unwrap();
    let error = SqlLedger::open(&place.db(), place.keys.clone(), clock(), None).await.unwrap_err();
    assert!(error.to_string().contains("not a ledger"), "{error}");
}

fn raw_file(place: &Place, bytes: &[u8]) {
    std::fs::write(place.db(), bytes).unwrap();
}

#[tokio::test]
async fn a_ledger_replaced_as_a_whole_fails_against_the_trust_file() {
    let place = Place::new();
    let trust = place.open().await.trust_values().clone();
    let other = Place::new();
    let theirs = other.open().await;
    clean(&theirs).await;
    let held = async |trust: &TrustValues| {
        let ledger = SqlLedger::open_read_only(&other.db(), Some(trust.clone())).await.unwrap();
        ledger.check().await.unwrap()
    };
    let findings = held(&trust).await;
    let objects: Vec<_> = findings.iter().map(|finding| finding.object.as_str()).collect();
    assert_eq!(objects, ["entries 0", "head"], "{findings:#?}");
    let half = TrustValues { log: trust.log, ..theirs.trust_values().clone() };
    assert_eq!(held(&half).await.len(), 1);
}

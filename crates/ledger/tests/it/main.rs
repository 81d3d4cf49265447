//! The SQLite ledger: the conformance suite and what only a file can show.
#![expect(clippy::unwrap_used, reason = "a test that panics says where")]

mod cost;
mod crash;
mod open;
mod postgres;
mod publish;
mod tamper;
mod tls;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adamant_conformance::ledger::{link, suite, tag};
use adamant_conformance::{Faulty, When};
use adamant_ledger::{Clock, Keys, SqlLedger};
use adamant_store::{AppendError, Ledger, LedgerError};

/// A data directory with keys.
struct Place {
    dir: tempfile::TempDir,
    keys: Keys,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open_or_create(&dir.path().join("keys")).unwrap();
        Self { dir, keys }
    }

    fn db(&self) -> std::path::PathBuf {
        self.dir.path().join("adamant.db")
    }

    async fn open(&self) -> SqlLedger {
        SqlLedger::open(&self.db(), self.keys.clone(), clock(), None).await.unwrap()
    }
}

fn clock() -> Clock {
    Arc::new(SystemTime::now)
}

async fn clean(ledger: &SqlLedger) {
    let findings = ledger.check().await.unwrap();
    assert!(findings.is_empty(), "{findings:#?}");
}

/// A connection that does what it likes.
async fn raw(path: &Path) -> sqlx::SqliteConnection {
    use sqlx::ConnectOptions;
    sqlx::sqlite::SqliteConnectOptions::new().filename(path).connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let place = Place::new();
    suite(async || place.open().await, "a/").await;
    clean(&place.open().await).await;
    // Again on what is there, now with full tiles.
    suite(async || place.open().await, "b/").await;
    let ledger = place.open().await;
    assert!(ledger.head().await.unwrap().size > 900);
    clean(&ledger).await;
    ledger.rebuild_views().await.unwrap();
    clean(&ledger).await;
    ledger.close().await;
    clean(&SqlLedger::open_read_only(&place.db(), None).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn time_never_runs_backwards() {
    let place = Place::new();
    let at = |seconds| -> Clock { Arc::new(move || UNIX_EPOCH + Duration::from_secs(seconds)) };
    let mut times = Vec::new();
    for (n, seconds) in [1_800_000_000, 1_700_000_000, 1_800_000_001].into_iter().enumerate() {
        let ledger = SqlLedger::open(&place.db(), place.keys.clone(), at(seconds), None).await.unwrap();
        let receipts = ledger.append(vec![tag(&format!("t:{n}"), "1")]).await.unwrap();
        times.push(receipts[0].recorded_at.clone());
        clean(&ledger).await;
        ledger.close().await;
    }
    assert_eq!(times, ["2027-01-15T08:00:00Z", "2027-01-15T08:00:00Z", "2027-01-15T08:00:01Z"]);
    let clock: Clock = Arc::new(|| UNIX_EPOCH - Duration::from_secs(1));
    let ledger = SqlLedger::open(&place.db(), place.keys.clone(), clock, None).await.unwrap();
    let error = ledger.append(vec![tag("t:9", "1")]).await.unwrap_err();
    assert!(matches!(error, AppendError::Ledger(LedgerError::Unavailable(_))), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_call_and_one_too_large() {
    let place = Place::new();
    let ledger = place.open().await;
    let facts = |count: usize| (0..count).map(|n| tag(&format!("large:{n}"), "1")).collect::<Vec<_>>();
    let error = ledger.append(facts(adamant_ledger::MAX_FACTS + 1)).await.unwrap_err();
    assert!(matches!(error, AppendError::Invalid(_)), "{error}");
    assert_eq!(ledger.append(facts(adamant_ledger::MAX_FACTS)).await.unwrap().len(), adamant_ledger::MAX_FACTS);
    clean(&ledger).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_beside_the_writer_see_whole_states() {
    let place = Place::new();
    let ledger = Arc::new(place.open().await);
    let writer = {
        let ledger = Arc::clone(&ledger);
        tokio::spawn(async move {
            for n in 0..150 {
                ledger.append(vec![tag(&format!("w:{n}"), "1"), link("w", None)]).await.unwrap();
            }
        })
    };
    while !writer.is_finished() {
        let reader = SqlLedger::open_read_only(&place.db(), None).await.unwrap();
        clean(&reader).await;
        assert!(reader.append(vec![tag("no", "1")]).await.is_err());
    }
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_cancels_nothing() {
    let place = Place::new();
    let ledger = place.open().await;
    let from = ledger.head().await.unwrap().size;
    for n in 0..20 {
        let append = ledger.append(vec![tag(&format!("left:{n}"), "1")]);
        let _ = tokio::time::timeout(Duration::from_micros(n * 50), append).await;
    }
    ledger.append(vec![tag("stayed", "1")]).await.unwrap();
    let size = ledger.head().await.unwrap().size;
    assert!(size > from && size <= from + 21);
    clean(&ledger).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_after_persisting_is_cured_by_asking_again() {
    let place = Place::new();
    let ledger = Faulty::new(place.open().await);
    for (when, new) in [(When::Before, true), (When::After, false)] {
        let fact = tag(&format!("faulty:{when:?}"), "1");
        ledger.arm(0, when);
        ledger.append(vec![fact.clone()]).await.unwrap_err();
        assert_eq!(ledger.append(vec![fact]).await.unwrap()[0].new, new);
    }
    assert_eq!(ledger.fired(), 2);
    clean(ledger.inner()).await;
}

#[tokio::test]
async fn whoever_waits_is_told_of_every_growth() {
    let place = Place::new();
    let ledger = place.open().await;
    let mut grown = ledger.grown();
    assert_eq!(*grown.borrow_and_update(), ledger.head().await.unwrap().size);
    ledger.append(vec![tag("a:1", "1")]).await.unwrap();
    assert!(grown.has_changed().unwrap());
    grown.mark_unchanged();
    // The same again writes nothing; another digest leaves a divergence.
    ledger.append(vec![tag("a:1", "1")]).await.unwrap();
    assert!(!grown.has_changed().unwrap());
    ledger.append(vec![tag("a:1", "2")]).await.unwrap_err();
    assert_eq!(*grown.borrow_and_update(), ledger.head().await.unwrap().size);
}

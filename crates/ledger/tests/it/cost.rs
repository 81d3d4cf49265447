//! A page costs what is on it, however many names there are.

use std::time::{Duration, Instant};

use adamant_attest::predicate::BindingKind;
use adamant_conformance::ledger::tag;
use adamant_store::Ledger;

use crate::Place;

/// Names in the large repository; the small one has a tenth.
const MANY: usize = 20_000;
const PAGE: usize = 10;

/// The middle of 31 times.
async fn time(mut work: impl AsyncFnMut()) -> Duration {
    let mut times = Vec::new();
    for _ in 0..31 {
        let begin = Instant::now();
        work().await;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_costs_the_same_of_many_names_and_of_few() {
    let place = Place::new();
    let ledger = place.open().await;
    let name = |repository: &str, n: usize| format!("{repository}:{n:06}");
    for (repository, count) in [("m/few", MANY / 10), ("m/many", MANY)] {
        for from in (0..count).step_by(2_000) {
            let facts = (from..from + 2_000).map(|n| tag(&name(repository, n), repository)).collect();
            ledger.append(facts).await.unwrap();
        }
    }
    ledger.append(vec![tag("a/first:1", "a"), tag("z/last:1", "z")]).await.unwrap();
    let page = async |prefix: &str, after: &str, expected: usize| {
        let found = ledger.bindings(BindingKind::Tag, prefix, after, PAGE).await.unwrap();
        assert_eq!(found.len(), expected, "{prefix} after {after}");
    };
    let few = time(async || page("m/few:", &name("m/few", MANY / 10 - PAGE - 1), PAGE).await).await;
    for (what, prefix, after, expected) in [
        ("the first page", "m/many:", String::new(), PAGE),
        ("the last page", "m/many:", name("m/many", MANY - PAGE - 1), PAGE),
        ("the page of the last repository", "z/last:", String::new(), 1),
        ("the next repository", "", "m/many@~".to_owned(), 1),
        ("one that is not there", "y/none:", String::new(), 0),
    ] {
        let many = time(async || page(prefix, &after, expected).await).await;
        // What grows with the names would take tens of times as long.
        assert!(many < few * 5 + Duration::from_millis(1), "{what}: {many:?}, of few names {few:?}");
    }
    let one = time(async || {
        assert!(ledger.binding(BindingKind::Tag, &name("m/many", MANY - 1)).await.unwrap().is_some());
    });
    let one = one.await;
    assert!(one < few * 5 + Duration::from_millis(1), "one name: {one:?}, a page {few:?}");
}

/// What one new tag writes, counted: times say nothing on a busy machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_tag_writes_as_many_pages_among_many_repositories_as_among_few() {
    let place = Place::new();
    let ledger = place.open().await;
    let repository = |n: usize| format!("curve/many/t{n:06}");
    let mut most = Vec::new();
    let mut there = 0;
    for count in [100, 10_000] {
        while there < count {
            let next = count.min(there + 1_000);
            let facts = (there..next).map(|n| tag(&format!("{}:v1", repository(n)), "the same"));
            ledger.append(facts.collect()).await.unwrap();
            there = next;
        }
        let mut pages = Vec::new();
        for n in 0..31 {
            let written = empty_wal(&place.db()).await;
            let name = format!("{}:new-{count}", repository(n * 97 % count));
            ledger.append(vec![tag(&name, "the same")]).await.unwrap();
            pages.push(written());
        }
        pages.sort_unstable();
        most.push(pages[pages.len() / 2]);
    }
    let [few, many] = most[..] else { panic!("{most:?}") };
    // A tree of names that is one level deeper may be written through, no more.
    assert!(few > 0 && many <= few + 4, "{few} pages among few repositories, {many} among many");
}

/// Moves the write-ahead log into the database; the answer tells how many pages were written since.
async fn empty_wal(db: &std::path::Path) -> impl Fn() -> u64 + use<> {
    use sqlx::Connection as _;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(db);
    let mut conn = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut conn).await.unwrap();
    let wal = db.with_extension("db-wal");
    // A header, then frames of a header and a page of 8 KiB; other connections keep the file.
    move || std::fs::metadata(&wal).unwrap().len().saturating_sub(32) / (24 + 8192)
}

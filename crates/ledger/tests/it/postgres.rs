//! The ledger in PostgreSQL: the conformance suite, and what only several servers and a network can
//! show.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use adamant_conformance::ledger::{link, suite, tag};
use adamant_conformance::services::Postgres;
use adamant_ledger::{Keys, OpenError, SqlLedger};
use adamant_store::{AppendError, Fact, Ledger, LedgerError, Receipt};
use sqlx::Connection as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{clean, clock};

async fn open(url: &str, keys: &Keys) -> SqlLedger {
    SqlLedger::open_postgres(url, keys.clone(), clock(), None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let Some(server) = Postgres::start("ledger postgres::conforms") else { return };
    let (url, keys) = (server.database("conforms"), Keys::generate().unwrap());
    suite(async || open(&url, &keys).await, "a/").await;
    clean(&open(&url, &keys).await).await;
    suite(async || open(&url, &keys).await, "b/").await;
    let ledger = open(&url, &keys).await;
    assert!(ledger.head().await.unwrap().size > 900);
    clean(&ledger).await;
    ledger.rebuild_views().await.unwrap();
    clean(&ledger).await;
    let log = tempfile::tempdir().unwrap();
    let published = ledger.publish(log.path()).await.unwrap();
    assert_eq!(published, ledger.head().await.unwrap().size);
    assert_eq!(ledger.check_published(log.path()).await.unwrap(), []);
    let trust = ledger.trust_values().clone();
    ledger.close().await;
    let reader = SqlLedger::open_postgres_read_only(&url, Some(trust)).await.unwrap();
    clean(&reader).await;
    assert!(reader.append(vec![tag("no", "1")]).await.is_err());
    let error = SqlLedger::open_postgres(&url, Keys::generate().unwrap(), clock(), None).await.unwrap_err();
    assert!(matches!(error, OpenError::OtherKey { .. }), "a server with other keys must not sign: {error}");
}

/// Whatever is changed behind the ledger's back is found.
#[tokio::test(flavor = "multi_thread")]
async fn tampering_is_found() {
    let Some(server) = Postgres::start("ledger postgres::tampering_is_found") else { return };
    let keys = Keys::generate().unwrap();
    for (n, (sql, object)) in [
        ("UPDATE entries SET statement = statement || 'x'::bytea WHERE idx = 4", "entries 4"),
        ("DELETE FROM entries WHERE idx = 5", "entries 5"),
        ("UPDATE bindings SET digest = decode(repeat('00', 32), 'hex') WHERE name = 't:1'", "bindings tag t:1"),
        ("DELETE FROM bindings WHERE name = 't:2'", "bindings tag t:2"),
        ("INSERT INTO bindings SELECT kind, 't:9', digest, idx, by_whom, recorded_at, statement, sequence FROM bindings WHERE name = 't:1'", "bindings tag t:9"),
        ("UPDATE tiles SET hashes = substring(hashes from 1 for 32)", "tiles 0/0"),
        ("UPDATE head SET recorded_at = 1", "head"),
        ("CREATE INDEX other ON bindings (digest)", "schema"),
        ("CREATE RULE keep AS ON DELETE TO bindings DO INSTEAD NOTHING", "schema"),
        ("ALTER TABLE chains DROP CONSTRAINT chains_pkey", "schema"),
    ]
    .into_iter()
    .enumerate()
    {
        let url = server.database(&format!("tampered{n}"));
        let ledger = open(&url, &keys).await;
        ledger.append((0..4).map(|n| tag(&format!("t:{n}"), "1")).collect()).await.unwrap();
        clean(&ledger).await;
        let mut raw = sqlx::PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(sql).execute(&mut raw).await.unwrap();
        let findings = ledger.check().await.unwrap();
        assert!(findings.iter().any(|finding| finding.object == object), "{sql}: {findings:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_servers_begin_one_ledger_together() {
    let Some(server) = Postgres::start("ledger postgres::several_servers_begin_one_ledger_together") else { return };
    let (url, keys) = (server.database("begin"), Keys::generate().unwrap());
    let opened = (0..4).map(|_| {
        let (url, keys) = (url.clone(), keys.clone());
        tokio::spawn(async move { open(&url, &keys).await })
    });
    for ledger in futures_util::future::join_all(opened).await {
        assert_eq!(ledger.unwrap().head().await.unwrap().size, 4, "the keys are introduced once");
    }
    clean(&open(&url, &keys).await).await;
}

/// Two servers, 8 clients, 30 rounds: exactly one binds each name, and nothing forks.
#[tokio::test(flavor = "multi_thread")]
async fn two_writers_race_and_one_wins() {
    let Some(server) = Postgres::start("ledger postgres::two_writers_race_and_one_wins") else { return };
    let (url, keys) = (server.database("race"), Keys::generate().unwrap());
    let ledgers = [Arc::new(open(&url, &keys).await), Arc::new(open(&url, &keys).await)];
    for round in 0..30 {
        let name = format!("race:{round}");
        let tasks = (0..8).map(|n: usize| {
            let (ledger, fact) = (Arc::clone(&ledgers[n % 2]), tag(&name, &format!("{n}")));
            tokio::spawn(async move { ledger.append(vec![fact, link("race", None)]).await })
        });
        let outcomes = futures_util::future::join_all(tasks).await;
        let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
        let won: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
        let lost = outcomes.iter().filter(|o| matches!(o, Err(AppendError::Conflict(_)))).count();
        assert_eq!((won.len(), lost), (1, 7), "round {round}: {outcomes:?}");
        for ledger in &ledgers {
            let bound = ledger.binding(adamant_attest::predicate::BindingKind::Tag, &name).await.unwrap().unwrap();
            assert_eq!(bound.index, won[0][0].index, "both servers tell the same");
        }
    }
    let [head, other] = [ledgers[0].head().await.unwrap(), ledgers[1].head().await.unwrap()];
    assert_eq!(head, other);
    assert_eq!(ledgers[0].chain("race", 1, 100).await.unwrap().len(), 30);
    clean(&ledgers[0]).await;
}

/// A connection idle since before the database was started again is made anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_database_costs_no_append() {
    let Some(mut server) = Postgres::start("ledger postgres::a_restart_of_the_database_costs_no_append") else {
        return;
    };
    let (url, keys) = (server.database("restart"), Keys::generate().unwrap());
    let ledger = open(&url, &keys).await;
    ledger.append(vec![tag("before", "1")]).await.unwrap();
    server.restart();
    ledger.append(vec![tag("after", "1")]).await.unwrap();
    assert_eq!(ledger.head().await.unwrap().size, 6);
    clean(&ledger).await;
}

/// What is done to a connection when a COMMIT passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The database never hears it.
    Before,
    /// The database does it, and nobody hears of it.
    After,
}

/// Passes bytes on and, when armed, cuts the connection that sends COMMIT.
struct Proxy {
    address: SocketAddr,
    armed: Arc<AtomicBool>,
    after: Arc<AtomicBool>,
    cut: Arc<AtomicUsize>,
}

impl Proxy {
    async fn start(target: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Self { address, armed: Arc::default(), after: Arc::default(), cut: Arc::default() };
        let (armed, after, cut) = (Arc::clone(&proxy.armed), Arc::clone(&proxy.after), Arc::clone(&proxy.cut));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (armed, after, cut) = (Arc::clone(&armed), Arc::clone(&after), Arc::clone(&cut));
                tokio::spawn(async move {
                    let server = tokio::net::TcpStream::connect(target).await.unwrap();
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let silent = Arc::new(AtomicBool::new(false));
                    let muted = Arc::clone(&silent);
                    let down = tokio::spawn(async move {
                        let mut buffer = vec![0; 64 << 10];
                        while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                            // The answer to the COMMIT: the database has done it, and nobody is told.
                            if muted.load(Ordering::SeqCst) || to_client.write_all(&buffer[..n]).await.is_err() {
                                break;
                            }
                        }
                    });
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
                        let commit = buffer[..n].windows(6).any(|word| word == b"COMMIT");
                        if commit && armed.swap(false, Ordering::SeqCst) {
                            cut.fetch_add(1, Ordering::SeqCst);
                            if !after.load(Ordering::SeqCst) {
                                break;
                            }
                            silent.store(true, Ordering::SeqCst);
                            let _ = to_server.write_all(&buffer[..n]).await;
                            let _ = down.await;
                            return;
                        }
                        if to_server.write_all(&buffer[..n]).await.is_err() {
                            break;
                        }
                    }
                    down.abort();
                });
            }
        });
        proxy
    }

    fn arm(&self, cut: Cut) {
        self.after.store(cut == Cut::After, Ordering::SeqCst);
        self.armed.store(true, Ordering::SeqCst);
    }
}

fn facts(round: usize) -> Vec<Fact> {
    vec![tag(&format!("cut:{round}"), "1"), link("cut", None), tag(&format!("also:{round}"), "1")]
}

/// The connection is lost while the COMMIT is under way, before or after the database has done it,
/// with another server appending beside: nothing acknowledged is lost, nothing is half there, and
/// what was done is acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_looked_up() {
    let Some(server) = Postgres::start("ledger postgres::a_commit_whose_answer_is_lost_is_looked_up") else { return };
    let (url, keys) = (server.database("cut"), Keys::generate().unwrap());
    let proxy = Proxy::start(server.address()).await;
    let by_proxy = url.replace(&server.address().to_string(), &proxy.address.to_string());
    let ledger = open(&format!("{by_proxy}?sslmode=disable"), &keys).await;
    let other = Arc::new(open(&url, &keys).await);
    let stop = Arc::new(AtomicBool::new(false));
    let beside = tokio::spawn({
        let (other, stop) = (Arc::clone(&other), Arc::clone(&stop));
        async move {
            let mut n = 0;
            while !stop.load(Ordering::SeqCst) {
                other.append(vec![tag(&format!("beside:{n}"), "1")]).await.unwrap();
                n += 1;
            }
            n
        }
    });
    let mut acknowledged: Vec<(usize, Vec<Receipt>)> = Vec::new();
    for round in 0..20 {
        let cut = if round % 2 == 0 { Cut::Before } else { Cut::After };
        proxy.arm(cut);
        match ledger.append(facts(round)).await {
            Ok(receipts) => {
                assert_eq!(cut, Cut::After, "round {round}: what the database never heard of is not acknowledged");
                acknowledged.push((round, receipts));
            }
            Err(AppendError::Ledger(LedgerError::Unavailable(_))) => {
                assert_eq!(cut, Cut::Before, "round {round}: what was committed is found and acknowledged");
                assert_eq!(
                    other.binding(adamant_attest::predicate::BindingKind::Tag, &format!("cut:{round}")).await.unwrap(),
                    None
                );
                // Asking again is all that a caller has to do.
                acknowledged.push((round, ledger.append(facts(round)).await.unwrap()));
            }
            Err(error) => panic!("round {round}, {cut:?}: {error}"),
        }
    }
    stop.store(true, Ordering::SeqCst);
    assert!(beside.await.unwrap() > 0, "the other server appended meanwhile");
    assert_eq!(proxy.cut.load(Ordering::SeqCst), 20);
    let mut indices = HashSet::new();
    for (round, receipts) in &acknowledged {
        assert!(receipts.iter().all(|receipt| receipt.new), "round {round}");
        for receipt in receipts {
            let entry = other.entry(receipt.index).await.unwrap().unwrap();
            assert_eq!(adamant_digest::Digest::of(&entry.statement), receipt.statement, "round {round}");
            assert!(indices.insert(receipt.index));
        }
    }
    assert_eq!(other.chain("cut", 1, 100).await.unwrap().len(), 20, "each once");
    clean(&other).await;
}

/// An append seeks what it needs; it reads no table, however many names there are.
#[tokio::test(flavor = "multi_thread")]
async fn an_append_reads_no_table_of_names() {
    let Some(server) = Postgres::start("ledger postgres::an_append_reads_no_table_of_names") else { return };
    let (url, keys) = (server.database("many"), Keys::generate().unwrap());
    let ledger = open(&url, &keys).await;
    for from in (0..6_000).step_by(2_000) {
        let facts =
            (from..from + 2_000).flat_map(|n| [tag(&format!("many/{n:05}:v1"), "1"), link(&format!("c/{n}"), None)]);
        for facts in facts.collect::<Vec<_>>().chunks(1_000) {
            ledger.append(facts.to_vec()).await.unwrap();
        }
    }
    ledger.close().await;
    let mut raw = sqlx::PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("ANALYZE").execute(&mut raw).await.unwrap();
    let mut counts = async |table: &str| -> (i64, i64) {
        let sql = "SELECT seq_tup_read, idx_scan FROM pg_stat_user_tables WHERE relname = $1";
        sqlx::query_as(sql).bind(table.to_owned()).fetch_one(&mut raw).await.unwrap()
    };
    let before = [counts("bindings").await, counts("chains").await];
    let ledger = open(&url, &keys).await;
    for n in 0..20 {
        let facts = vec![tag(&format!("many/{n:05}:v2"), "2"), tag(&format!("many/{n:05}:v1"), "1"), link("c/7", None)];
        ledger.append(facts).await.unwrap();
    }
    ledger.close().await;
    for (table, (read, seeks)) in ["bindings", "chains"].into_iter().zip(before) {
        // What a session counted is told when it ends, a moment after its connection.
        let begin = std::time::Instant::now();
        let (read_now, _) = loop {
            let now = counts(table).await;
            if now.1 >= seeks + 20 {
                break now;
            }
            assert!(
                begin.elapsed() < std::time::Duration::from_secs(20),
                "{table} is not searched by its key: {now:?}"
            );
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        };
        assert!(read_now - read < 6_000, "{} rows of {table} were read", read_now - read);
    }
}

//! A PostgreSQL that takes TLS alone: who is believed to be it.

use adamant_conformance::ledger::tag;
use adamant_conformance::services::{Authority, Postgres};
use adamant_ledger::{Keys, SqlLedger};
use adamant_store::Ledger as _;

use super::clock;

#[tokio::test(flavor = "multi_thread")]
async fn only_a_database_that_proves_its_name_is_used() {
    const TEST: &str = "ledger tls::only_a_database_that_proves_its_name_is_used";
    let (Some(authority), Some(stranger)) = (Authority::new(TEST), Authority::new(TEST)) else { return };
    let (certificate, key) = authority.certify("DNS:localhost");
    let Some(server) = Postgres::start_with_tls(TEST, &certificate, &key) else { return };
    let by_address = server.database("ledger");
    let by_name = by_address.replace("127.0.0.1", "localhost");
    let keys = Keys::generate().unwrap();
    let open = async |url: &str, query: &str| {
        let opened = SqlLedger::open_postgres(&format!("{url}?{query}"), keys.clone(), clock(), None).await;
        opened.map_err(|error| error.to_string())
    };
    let (ours, theirs) = (authority.file().display().to_string(), stranger.file().display().to_string());

    for mode in ["require", "verify-full", "verify-ca"] {
        let ledger = open(&by_name, &format!("sslmode={mode}&sslrootcert={ours}")).await.unwrap();
        ledger.append(vec![tag(&format!("shop:{mode}"), "1")]).await.unwrap();
        ledger.close().await;

        // Somebody else's authority, or none but the system's.
        for query in [format!("sslmode={mode}&sslrootcert={theirs}"), format!("sslmode={mode}")] {
            let error = open(&by_name, &query).await.unwrap_err();
            assert!(error.contains("invalid peer certificate") && error.contains("`sslrootcert`"), "{query}: {error}");
        }
    }
    // The right authority and another name.
    for mode in ["require", "verify-full"] {
        let error = open(&by_address, &format!("sslmode={mode}&sslrootcert={ours}")).await.unwrap_err();
        assert!(error.contains("not valid for name") && error.contains("for the host in the URL"), "{mode}: {error}");
    }
    let error = open(&by_name, "sslmode=disable").await.unwrap_err();
    assert!(error.contains("no encryption"), "the server of this test takes nothing else: {error}");
    let reader = SqlLedger::open_postgres_read_only(&format!("{by_name}?sslmode=require"), None).await.unwrap_err();
    assert!(reader.to_string().contains("UnknownIssuer"), "whoever only reads is not deceived either: {reader}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_tls_is_not_used_where_it_is_asked_for() {
    let Some(server) = Postgres::start("ledger tls::a_database_without_tls_is_not_used_where_it_is_asked_for") else {
        return;
    };
    let url = format!("{}?sslmode=require", server.database("ledger"));
    let error = SqlLedger::open_postgres(&url, Keys::generate().unwrap(), clock(), None).await.unwrap_err().to_string();
    assert!(error.contains("does not support TLS") && error.contains("`sslmode=disable`"), "{error}");
}

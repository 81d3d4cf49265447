//! Where a PostgreSQL is, and how it is trusted.

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::db::Options;
use crate::error::OpenError;

/// What PostgreSQL is told about every session of ours, besides bounding its waits: a commit is
/// durable before it is acknowledged, and a server of ours that hangs in a transaction does not hold
/// up the others for long.
const SESSION: [(&str, &str); 5] = [
    ("synchronous_commit", "on"),
    ("lock_timeout", "20s"),
    ("idle_in_transaction_session_timeout", "15s"),
    ("default_transaction_isolation", "read committed"),
    ("client_connection_check_interval", "5s"),
];

/// How to reach a PostgreSQL, and where that is in words without a password.
pub(crate) fn postgres(url: &str) -> Result<(String, Options), OpenError> {
    let bad = |reason: String| OpenError::BadUrl { reason };
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(bad("it does not begin with `postgres://`".to_owned()));
    }
    let options: PgConnectOptions = url.parse().map_err(|error: sqlx::Error| bad(error.to_string()))?;
    let database = options.get_database().unwrap_or_else(|| options.get_username());
    let place = format!("postgres://{}:{}/{database}", options.get_host(), options.get_port());
    let here = options.get_socket().is_some() || is_here(options.get_host());
    // What the library takes from the environment does not count.
    let said = url.split_once('?').is_some_and(|(_, query)| {
        query.split('&').any(|pair| matches!(pair.split('=').next(), Some("sslmode" | "ssl-mode")))
    });
    let mode = if said { options.get_ssl_mode() } else { PgSslMode::Prefer };
    let mode = trusted(mode, here);
    let options = options.ssl_mode(mode).application_name("adamant").options(SESSION).disable_statement_logging();
    Ok((place, Options::Postgres(Box::new(options))))
}

/// The mode that is used where the URL says `mode`. TLS that is not verified keeps out nobody who can
/// stand between, so there is TLS with a verified name, TLS with a verified authority for who says so,
/// and none: only on this machine, or for who says so.
fn trusted(mode: PgSslMode, here: bool) -> PgSslMode {
    match mode {
        PgSslMode::Disable | PgSslMode::VerifyCa => mode,
        PgSslMode::Prefer | PgSslMode::Allow if here => mode,
        _ => PgSslMode::VerifyFull,
    }
}

/// Whether `host` is a directory of sockets or a name of this machine that no resolver decides.
fn is_here(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host.starts_with('/') || host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_the_machine_is_verified_unless_the_url_says_otherwise() {
        let check = |url: &str, expect: PgSslMode| {
            let (_, options) = postgres(url).unwrap();
            let Options::Postgres(options) = options else { panic!("{url} is a PostgreSQL") };
            assert_eq!(format!("{:?}", options.get_ssl_mode()), format!("{expect:?}"), "{url}");
        };
        check("postgres://a@db.internal/a", PgSslMode::VerifyFull);
        check("postgres://a@10.0.0.1/a", PgSslMode::VerifyFull);
        check("postgres://a@db.internal/a?sslmode=prefer", PgSslMode::VerifyFull);
        check("postgres://a@db.internal/a?sslmode=allow", PgSslMode::VerifyFull);
        check("postgres://a@db.internal/a?sslmode=verify-ca", PgSslMode::VerifyCa);
        check("postgres://a@db.internal/a?sslmode=disable", PgSslMode::Disable);
        for here in ["127.0.0.1", "[::1]", "localhost", "%2Frun%2Fpostgresql"] {
            check(&format!("postgres://a@{here}/a"), PgSslMode::Prefer);
            check(&format!("postgres://a@{here}/a?sslmode=require"), PgSslMode::VerifyFull);
        }
        check("postgres://a@127.0.0.1.example/a", PgSslMode::VerifyFull);
    }
}

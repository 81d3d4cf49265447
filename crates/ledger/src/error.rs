//! Why things did not work, and which of them a second try can cure.

use std::path::PathBuf;

use adamant_attest::KeyError;
use adamant_attest::predicate::Role;
use adamant_store::LedgerError;
use sqlx::postgres::PgDatabaseError;

/// Why a ledger cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The file system.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// The key at hand is not the one the ledger introduced.
    #[error("the {} key is {found}, the ledger was written with {expected}: restore the keys that belong to it", role.as_str())]
    OtherKey {
        /// What the key is for.
        role: Role,
        /// Fingerprint the ledger names.
        expected: String,
        /// Fingerprint of the key at hand.
        found: String,
    },
    /// The origin asked for is not the one of the log.
    #[error("the log's origin is `{found}` for ever, not `{expected}`: take the origin out of the configuration")]
    Origin {
        /// What was configured.
        expected: String,
        /// What the log says.
        found: String,
    },
    /// The URL of the database.
    #[error("the database's URL cannot be used: {reason}; write `postgres://user@host:port/database`")]
    BadUrl {
        /// What is wrong with it.
        reason: String,
    },
    /// The origin cannot be used as a name of a log.
    #[error("`{0}` cannot be the origin of a log: write a host-like name of up to 200 letters, digits, `.` and `-`")]
    BadOrigin(String),
}

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file system.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// Others can read a private key.
    #[error("{} is readable by others (mode {mode:o}): run `chmod 600` on it and consider the key known", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key of the right kind.
    #[error("{}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: KeyError,
    },
    /// A key of another scheme than its role needs.
    #[error("{} holds a key of another scheme than its role needs", path.display())]
    Scheme {
        /// The file.
        path: PathBuf,
    },
}

/// Why tiles were not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The database.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The file system.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// What was published is newer than the database: it is an old copy.
    #[error(
        "the published log has {published} entries, the database {stored}: the database is an old copy, restore a newer one"
    )]
    Ahead {
        /// Entries in the published checkpoint.
        published: u64,
        /// Entries in the database.
        stored: u64,
    },
}

/// Sorts a database error by what can be done about it.
pub(crate) fn database(error: sqlx::Error) -> LedgerError {
    use sqlx::Error as E;
    let text = error.to_string();
    match error {
        // Found while the connection is made, as an error of reading.
        E::Io(_) | E::Tls(_) if text.contains("invalid peer certificate") => LedgerError::Unavailable(format!(
            "{text}: the certificate must be for the host in the URL, from an authority of this system, \
             in SSL_CERT_FILE or in the file that `sslrootcert` in the URL names"
        )),
        E::Tls(_) => LedgerError::Unavailable(format!(
            "{text}: turn it on there, or write `sslmode=disable` into the URL if nobody can stand between"
        )),
        E::Database(inner) => match inner.try_downcast_ref::<PgDatabaseError>() {
            Some(error) => postgres(error),
            None => sqlite(&*inner),
        },
        E::Io(_)
        | E::Protocol(_)
        | E::BeginFailed
        | E::PoolTimedOut
        | E::PoolClosed
        | E::WorkerCrashed
        | E::Configuration(_) => LedgerError::Unavailable(text),
        _ => LedgerError::Damaged(text),
    }
}

/// Primary result codes, https://www.sqlite.org/rescode.html; the rest of the number is detail.
fn sqlite(error: &dyn sqlx::error::DatabaseError) -> LedgerError {
    let code = error.code().and_then(|code| code.parse::<i64>().ok()).unwrap_or(0) & 0xff;
    match code {
        13 => LedgerError::Unavailable(format!("the disk is full: {}", error.message())),
        4..=10 | 14 | 15 | 22 => LedgerError::Unavailable(error.message().to_owned()),
        _ => LedgerError::Damaged(error.message().to_owned()),
    }
}

/// Classes of SQLSTATE, https://www.postgresql.org/docs/current/errcodes-appendix.html: what another
/// try, another time or the operator can cure.
fn postgres(error: &PgDatabaseError) -> LedgerError {
    let code = error.code();
    let text = format!("{} (SQLSTATE {code})", error.message());
    match code.get(..2).unwrap_or_default() {
        "08" | "25" | "28" | "3D" | "40" | "53" | "55" | "57" | "58" => LedgerError::Unavailable(text),
        _ if code == "42501" => LedgerError::Unavailable(text),
        _ => LedgerError::Damaged(text),
    }
}

/// The same error for each of several waiting callers.
pub(crate) fn copy(error: &LedgerError) -> LedgerError {
    match error {
        LedgerError::Unavailable(text) => LedgerError::Unavailable(text.clone()),
        LedgerError::Damaged(text) => LedgerError::Damaged(text.clone()),
        LedgerError::Newer { found, known } => LedgerError::Newer { found: *found, known: *known },
    }
}

pub(crate) fn damaged(text: impl Into<String>) -> LedgerError {
    LedgerError::Damaged(text.into())
}

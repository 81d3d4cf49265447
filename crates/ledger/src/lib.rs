//! Facts in SQLite or PostgreSQL, signed and Merkle-hashed in the transaction that makes them true.
//!
//! [`SqlLedger`] has one writer, which gathers concurrent appends into one transaction: lock
//! the head, look up every name and chain the facts touch, decide (`plan`, pure), sign (`seal`),
//! insert facts, views, tiles and checkpoint, commit, read the head back, answer. A signature
//! leaves the process only after that. Readers have connections of their own.
//!
//! Several servers may share a PostgreSQL database: the writers' lock lets one append at a time, and
//! after a lost connection it says whether a commit happened.
//!
//! The entries are the truth and are never changed; every other table can be made from them
//! ([`SqlLedger::rebuild_views`]) and is compared with them ([`SqlLedger::check`]).
//! Published tiles follow behind the commit ([`SqlLedger::publish`]).

mod check;
mod db;
mod error;
mod files;
mod keys;
mod open;
mod place;
mod plan;
mod publish;
mod read;
mod rebuild;
mod schema;
mod seal;
mod sql;
mod tree;
mod views;
mod writer;

pub use check::Finding;
pub use error::{KeysError, OpenError, PublishError};
pub use keys::{Keys, TrustValues};
pub use open::{Clock, SqlLedger};
pub use writer::{MAX_FACTS, MAX_STATEMENT_BYTES};

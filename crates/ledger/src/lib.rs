//! Facts in SQL, signed and Merkle-hashed in the transaction that makes them true.
//!
//! [`SqliteLedger`] has one writer, which gathers concurrent appends into one transaction: lock
//! the head, look up every name and chain the facts touch, decide (`plan`, pure), sign (`seal`),
//! insert facts, views, tiles and checkpoint, commit, read the head back, answer. A signature
//! leaves the process only after that. Readers have connections of their own.
//!
//! The entries are the truth and are never changed; every other table can be made from them
//! ([`SqliteLedger::rebuild_views`]) and is compared with them ([`SqliteLedger::check`]).
//! Published tiles follow behind the commit ([`SqliteLedger::publish`]).

mod check;
mod error;
mod files;
mod keys;
mod open;
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
pub use open::{Clock, SqliteLedger};
pub use writer::{MAX_FACTS, MAX_STATEMENT_BYTES};

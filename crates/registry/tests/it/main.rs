//! The registry over a real HTTP server, raw and with real clients. Test names follow the
//! clauses of distribution-spec 1.1; `end-N` is its table of endpoints.

mod blobs;
mod clients;
mod damage;
mod hostile;
mod listing;
mod manifests;
mod memory;
mod naming;
mod uploads;
mod world;

//! The registry over a real HTTP server, raw and with real clients. Test names follow the
//! clauses of distribution-spec 1.1; `end-N` is its table of endpoints.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod access;
mod blobs;
mod clients;
mod collecting;
mod damage;
mod erasing;
mod gates;
mod hostile;
mod listing;
mod manifests;
mod memory;
mod moving;
mod naming;
mod pointers;
mod quotas;
mod reasons;
mod sha512;
mod uploads;
mod upstream;
mod world;

//! Fetching from outside: a mirror made and signed here, hostile servers and archives, and the
//! real mirror where it can be reached.

#![expect(clippy::unwrap_used, reason = "helpers of tests; what cannot go on must fail")]

mod archive;
mod debian;
mod http;
mod live;
mod remote;
mod repo;
mod server;
mod store;

//! Fetching from outside: a mirror made and signed here, hostile servers and archives, and the
//! real mirror where it can be reached.

mod archive;
mod debian;
mod http;
mod live;
mod repo;
mod server;
mod store;

//! The front of an environment: one process that holds the listening socket and passes requests
//! to instances. It outlives the server, and hands its socket to its successor at an upgrade.

mod backend;
mod body;
mod client;
mod control;
mod headers;
mod process;
mod proxy;
mod state;
mod table;

pub(crate) use client::FrontClient;
pub use process::front;
pub(crate) use table::{FrontConfig, ProjectRoutes, Table};

/// Names of the files in an environment's directory.
pub(crate) mod file {
    pub(crate) const CONFIG: &str = "front.json";
    pub(crate) const ROUTES: &str = "routes.json";
    pub(crate) const CONTROL: &str = "front.sock";
    pub(crate) const LOCK: &str = "front.lock";
    pub(crate) const LOG: &str = "front.log";
}

/// The argument that starts a front.
pub(crate) const WORD: &str = "__front";

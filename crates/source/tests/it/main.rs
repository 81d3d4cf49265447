//! The git remote as git clients see it, over HTTP, and as the rest of the server reads it.

#![expect(clippy::unwrap_used, reason = "what a test cannot go on without fails it")]

mod erasing;
mod hostile;
mod pushing;
mod raw;
mod reading;
mod world;

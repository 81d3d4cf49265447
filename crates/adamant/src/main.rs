//! One binary: server, client and helpers
fn main() {}

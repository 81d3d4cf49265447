//! Runs steps, packs artifacts, compares rebuilds

//! The local target with real processes: fronts, supervisors and sandboxes.

mod http;
mod instances;
mod support;
mod switching;
mod trees;

//! One process per instance: verifies, starts, watches and restarts a program.

mod health;
mod prepare;
mod status;
mod supervisor;

pub use prepare::{Claim, Verify};
pub(crate) use prepare::{Description, file};
pub use status::{InstanceStatus, Phase};
pub(crate) use status::{look, stop};
pub use supervisor::instance;

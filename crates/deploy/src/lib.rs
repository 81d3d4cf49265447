//! The local target: verified trees, instances with a supervisor each, one front per environment.
//!
//! Nothing that serves users runs in the process that uses [`Local`]: fronts and instances are
//! processes of their own that outlive it and are found again through their sockets. They run the
//! same executable, as `__front` ([`front`]) and `__instance` ([`instance`]).
//!
//! Invariants: an instance starts only after its documents, its evidence and every byte of its
//! tree were checked, by its own supervisor, each time. A deployment older than the newest one
//! accepted is refused. Routes are durable before they are in force.

mod daemon;
mod durable;
mod front;
mod instance;
mod local;
mod log;
mod socket;
mod tree;

pub use front::front;
pub use instance::{Claim, InstanceStatus, Phase, Verify, instance};
pub use local::{
    Applied, ApplyError, Down, Event, InstanceView, Local, LocalError, LogFollower, LogLine, Observed, Options,
    Outcome, Record,
};
pub use tree::{Damage, HashError, ImageConfig, ImageError, Trees, UnpackError, Unpacked, check_tree};

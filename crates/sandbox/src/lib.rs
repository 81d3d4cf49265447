//! Runs one program in namespaces, mounts and limits of its own.
//!
//! [`Sandbox::spawn`] starts the helper (`<exe> __sandbox`, which calls [`entry`]); the helper makes
//! the namespaces, and the first process inside mounts what [`Spec`] lists, drops every right and
//! executes the program. When the program ends, when the helper or the caller dies, or when a limit
//! strikes, every process inside is killed by the kernel with its pid namespace.
//!
//! Invariants: a program sees its root read-only, its mounts, private `/proc`, `/dev` and `/tmp`, a
//! network of loopback alone, and no descriptor but 0, 1 and 2. It has no capability and cannot gain
//! one. It runs as [`owner`], never as root of the host.
//!
//! Known bounds: an ordinary user's supplementary groups stay with the program (the kernel lets none
//! be dropped), though no mount shows what they open. `/proc` tells the processor's model and the
//! size of memory. Needs Linux 5.12.
//!
//! Absent: images, networks between sandboxes, terminals, a way in for a running sandbox.
//!
//! Why not bubblewrap: a program of its own that users would have to install, that sets no limits,
//! gives no structured errors and hands no sockets out. Why not hakoniwa: it joins a command builder
//! to its own idea of mounts and network helpers, while root as host user 886000, mounts from an open
//! descriptor and the socket giver need each step in our order; those steps are what is left here.

mod cgroup;
mod child;
mod error;
mod filter;
mod giver;
mod helper;
mod host;
mod inside;
mod mounts;
mod program;
mod raw;
mod spec;
mod wire;

pub use child::{Child, Sandbox};
pub use error::{Failure, SandboxError, Stage};
pub use helper::entry;
pub use host::{Host, owner};
pub use spec::{Access, Exit, Fds, Kind, Limit, Limits, Mount, Outcome, Source, Spec};

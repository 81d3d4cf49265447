//! `adamant.toml`, `adamant.lock`, native locks and build keys.
//!
//! The recipe says how artifacts are made, the lock says from which bytes, the key names one
//! run of one step. Everything here is pure: text in, decisions out. No I/O, clock or network.

mod agree;
mod artifact;
pub mod cargo;
mod diff;
mod inputs;
mod lock;
mod names;
mod propose;
mod read;
mod recipe;
mod step;

pub use agree::{LockError, lock_agrees};
pub use artifact::{Artifact, Recipe, Source, Template};
pub use diff::{Change, diff};
pub use inputs::{InputError, inputs, lock_digest};
pub use lock::{Lock, Package, PackageSet, UrlInput, set_name};
pub use names::{
    Mirrored, NameError, PackageRequest, image_path, label, mirrored, package_name, package_version, relative_path, url,
};
pub use propose::{Choice, Facts, Proposal, ProposeError, Unused, propose};
pub use read::{Place, RecipeError};
pub use step::{Commit, Machine, Step, StepInput};

/// The build ABI this version writes: a number for everything the server contributes to bytes
/// (mounts, environment, link table, passwd, packer, compressor). DESIGN §6.
pub const BUILD_ABI: u32 = 1;

/// The one timestamp every build sees, in seconds since 1970: 1980-01-01T00:00:00Z, the first
/// moment the FAT and zip formats can express.
pub const EPOCH: u64 = 315_532_800;

/// File name of the recipe, at the root of the repository.
pub const RECIPE_FILE: &str = "adamant.toml";

/// File name of the lock, beside the recipe.
pub const LOCK_FILE: &str = "adamant.lock";

//! Artifacts as directories: unpacking verified layers and hashing what lies on disk.

mod hash;
mod image;
mod overlay;
mod tar;
mod unpack;

pub use hash::{Damage, HashError};
pub(crate) use hash::{compare, open_dir};
pub(crate) use image::config_of;
pub use image::{ImageConfig, ImageError};
pub(crate) use unpack::verify;
pub use unpack::{Trees, UnpackError, Unpacked, check_tree};

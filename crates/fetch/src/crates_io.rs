//! Published crates by the checksum in `Cargo.lock`.

use adamant_recipe::cargo::Crate;

use crate::ensure::Job;

impl Job {
    /// A crate; its file is content the registry never changes, wherever it is mirrored.
    pub(crate) fn krate(krate: &Crate, base: &str, max: u64) -> Self {
        let Crate { name, version, checksum } = krate;
        Self {
            name: format!("crate {name} {version}"),
            digest: *checksum,
            size: None,
            max,
            urls: vec![crate_address(base, name, version)],
            fallbacks: Vec::new(),
            versioned: false,
        }
    }
}

/// Where a crate is below the base of downloads.
pub(crate) fn crate_address(base: &str, name: &str, version: &str) -> String {
    // `+` may stand in versions, and some object stores read it as a space.
    let file = version.replace('+', "%2B");
    format!("{base}/{name}/{name}-{file}.crate")
}

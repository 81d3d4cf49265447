//! The service the tour builds: the files of `examples/shop`, carried in the binary.

use std::path::Path;

use crate::output::Failure;

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../../../../examples/shop/", $path)))),*]
    };
}

/// Path and text of each file.
const FILES: &[(&str, &str)] = files![
    ".gitignore",
    "Makefile",
    "README.md",
    "adamant.toml",
    "test.sh",
    "src/http.c",
    "src/http.h",
    "src/main.c",
    "src/pages.c",
    "src/pages.h",
    "src/version.h",
];
/// The file with the version.
const VERSION_FILE: &str = "src/version.h";

/// Writes the example into `dir`; false if a tour before this one did.
pub(super) fn write(dir: &Path) -> Result<bool, Failure> {
    if dir.join(".git").exists() {
        return Ok(false);
    }
    for (path, text) in FILES {
        let path = dir.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, text)?;
        if text.starts_with("#!") {
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
    }
    Ok(true)
}

/// Changes what the service calls itself.
pub(super) fn set_version(dir: &Path, version: &str) -> Result<(), Failure> {
    let path = dir.join(VERSION_FILE);
    let text: String = std::fs::read_to_string(&path)?
        .lines()
        .map(|line| {
            if line.starts_with("#define SHOP_VERSION ") {
                format!("#define SHOP_VERSION \"{version}\"\n")
            } else {
                format!("{line}\n")
            }
        })
        .collect();
    std::fs::write(&path, text)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_is_whole_and_its_version_can_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(super::write(dir.path()).unwrap());
        super::set_version(dir.path(), "take 7").unwrap();
        let text = std::fs::read_to_string(dir.path().join(super::VERSION_FILE)).unwrap();
        assert!(text.contains("#define SHOP_VERSION \"take 7\"\n") && text.contains("#endif\n"));
        // A file added to the example without being listed here would be missing from the tour.
        let there = walk(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/shop"));
        assert_eq!(there, super::FILES.len());
    }

    fn walk(dir: &std::path::Path) -> usize {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| if path.is_dir() { walk(&path) } else { 1 }).sum()
    }
}

//! The repository a command is run in: which project, which server.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::output::Failure;

/// Keys in the repository's own git configuration. Names and paths alone: nothing secret.
pub(crate) const PROJECT_KEY: &str = "adamant.project";
pub(crate) const DATA_KEY: &str = "adamant.data";

/// Runs git in `dir` and gives its output, or what it complained about.
pub(crate) fn git(dir: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(dir)
        .args(arguments)
        .output()
        .map_err(|error| format!("cannot run git: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// The root of the work tree we are in.
pub(crate) fn root() -> Result<PathBuf, Failure> {
    git(Path::new("."), &["rev-parse", "--show-toplevel"]).map(PathBuf::from).map_err(|problem| {
        Failure::usage("this is not a git repository").cause(problem).hint("run it inside one, or `git init` first")
    })
}

fn configured(key: &str) -> Option<String> {
    git(Path::new("."), &["config", "--get", key]).ok().filter(|value| !value.is_empty())
}

/// The project: as named, else the one of this repository.
pub(crate) fn project(named: Option<&str>) -> Result<String, Failure> {
    named.map(str::to_owned).or_else(|| configured(PROJECT_KEY)).ok_or_else(|| {
        Failure::usage("which project?")
            .hint("run it inside a repository set up by `adamant init`, or name the project")
    })
}

/// The data directory: as given, else the one noted in this repository, else the user's own.
pub(crate) fn data_dir(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(dir) = given {
        return Ok(std::path::absolute(dir)?);
    }
    if let Some(dir) = configured(DATA_KEY) {
        return Ok(dir.into());
    }
    default_data_dir()
}

/// Where a server keeps its data unless told otherwise.
pub(crate) fn default_data_dir() -> Result<PathBuf, Failure> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("XDG_DATA_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("adamant"))
        .ok_or_else(|| {
            Failure::usage("no data directory: neither XDG_DATA_HOME nor HOME is set").hint("pass `--data DIR`")
        })
}

/// A release as people write it: `shop/214` or `214`.
pub(crate) fn release(text: &str, named: Option<&str>) -> Result<(String, u64), Failure> {
    let bad = || {
        Failure::usage(format!("`{text}` is not a release")).hint("write `shop/214`, or `214` inside the repository")
    };
    if let Some((name, number)) = text.split_once('/') {
        return Ok((name.to_owned(), number.parse().map_err(|_| bad())?));
    }
    let number = text.parse().map_err(|_| bad())?;
    Ok((project(named)?, number))
}

#[cfg(test)]
mod tests {
    #[test]
    fn releases_are_written_with_and_without_project() {
        assert_eq!(super::release("shop/214", None).unwrap(), ("shop".to_owned(), 214));
        assert_eq!(super::release("214", Some("shop")).unwrap(), ("shop".to_owned(), 214));
        assert!(super::release("shop/x", None).is_err());
        assert!(super::release("prod", Some("shop")).is_err());
    }
}

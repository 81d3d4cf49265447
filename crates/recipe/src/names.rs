//! What names, paths and addresses may look like. Everything that later becomes a file name, a
//! host name, a URL or an argument is checked here first.

use std::fmt;
use std::str::FromStr;

/// Why a text is not the name it should be: what it is, and what is expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct NameError {
    /// The text, at most 100 characters of it.
    pub text: String,
    /// What was expected, in words.
    pub expected: &'static str,
}

fn refuse<T>(text: &str, expected: &'static str) -> Result<T, NameError> {
    let text = text.chars().take(100).flat_map(char::escape_debug).collect();
    Err(NameError { text, expected })
}

/// Longest path accepted, in bytes.
const MAX_PATH: usize = 1024;

/// Checks a project's or artifact's name: a DNS label, since it becomes a host name and a
/// repository name.
pub fn label(text: &str) -> Result<(), NameError> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fine = (1..=40).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--");
    if fine { Ok(()) } else { refuse(text, "a name: use 1 to 40 of a-z, 0-9 and single `-` inside") }
}

/// Checks a Debian package name. Policy §5.6.1.
pub fn package_name(text: &str) -> Result<(), NameError> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.');
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if first && (2..=100).contains(&text.len()) && text.bytes().all(inner) {
        Ok(())
    } else {
        refuse(text, "a Debian package name: use a-z, 0-9, `+`, `-` and `.`")
    }
}

/// Checks a Debian version. Policy §5.6.12.
pub fn package_version(text: &str) -> Result<(), NameError> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-' | b'~' | b':');
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && text.len() <= 100 && text.bytes().all(inner) { Ok(()) } else { refuse(text, "a Debian version") }
}

/// Checks a path below some root and returns it without `./` before and `/` behind; `.` stays.
pub fn relative_path(text: &str) -> Result<String, NameError> {
    const EXPECTED: &str = "a relative path below the project: no leading `/`, no `..`";
    if text == "." || text == "./" {
        return Ok(".".to_owned());
    }
    let path = text.strip_prefix("./").unwrap_or(text);
    let path = path.strip_suffix('/').unwrap_or(path);
    let parts = path.split('/').all(|part| !matches!(part, "" | "." | "..") && part.len() <= 255);
    if parts && path.len() <= MAX_PATH && !path.chars().any(char::is_control) {
        Ok(path.to_owned())
    } else {
        refuse(text, EXPECTED)
    }
}

/// Checks an absolute path inside an image, one that is not mounted over when it runs.
pub fn image_path(text: &str) -> Result<(), NameError> {
    let Some(path) = text.strip_prefix('/') else {
        return refuse(text, "an absolute path in the image: begin it with `/`");
    };
    if relative_path(path).as_deref() != Ok(path) || path == "." {
        return refuse(text, "an absolute path in the image: no `..`, `.` or empty parts");
    }
    if matches!(path.split('/').next(), Some("proc" | "sys" | "dev" | "tmp")) {
        return refuse(text, "a path that is visible at run time: /proc, /sys, /dev and /tmp are mounted over");
    }
    Ok(())
}

/// An address that names an ecosystem instead of a host: the server fills in its mirrors, so
/// that the same recipe works behind any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mirrored<'a> {
    /// `debian:pool/…`: a file of the Debian archives, source packages for example.
    Debian(&'a str),
    /// `crate:<name>@<version>`: a published crate.
    Crate {
        /// Its name.
        name: &'a str,
        /// Its version.
        version: &'a str,
    },
}

/// Reads an address as one that mirrors fill in; `None` for an address of its own host.
pub fn mirrored(text: &str) -> Option<Mirrored<'_>> {
    if let Some(path) = text.strip_prefix("debian:") {
        let plain = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._+~-".contains(&b));
        return (path.starts_with("pool/") && plain && relative_path(path).as_deref() == Ok(path))
            .then_some(Mirrored::Debian(path));
    }
    let (name, version) = text.strip_prefix("crate:")?.split_once('@')?;
    let named = |text: &str, more: &[u8]| {
        (1..=100).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    (named(name, b"_-") && named(version, b".+-")).then_some(Mirrored::Crate { name, version })
}

/// Checks the address of a file: `http` or `https`, a host, no credentials, no fragment; or one
/// that mirrors fill in, see [`mirrored`].
pub fn url(text: &str) -> Result<(), NameError> {
    const EXPECTED: &str =
        "an address: write `https://host/path` without credentials, `debian:pool/…` or `crate:<name>@<version>`";
    if mirrored(text).is_some() {
        return Ok(());
    }
    let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
        return refuse(text, EXPECTED);
    };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
    let visible = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'<' | b'>' | b'`' | b'#');
    let fine = !authority.is_empty()
        && authority.bytes().all(host)
        && rest.len() > authority.len()
        && text.len() <= 2048
        && text.bytes().all(visible);
    if fine { Ok(()) } else { refuse(text, EXPECTED) }
}

/// A package asked for: `gcc`, or `gcc=4:12.2.0-3` to insist on a version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackageRequest {
    /// Package name.
    pub name: String,
    /// The one version that will do.
    pub version: Option<String>,
}

impl FromStr for PackageRequest {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, version) = match text.split_once('=') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        package_name(name)?;
        version.map_or(Ok(()), package_version)?;
        Ok(Self { name: name.to_owned(), version: version.map(str::to_owned) })
    }
}

impl fmt::Display for PackageRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{}={version}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for good in ["a", "shop", "mini-httpd", "a1", "0", &"a".repeat(40)] {
            assert_eq!(label(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a--b", "a.b", "a/b", &"a".repeat(41), "ä"] {
            assert!(label(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths() {
        for (text, path) in [(".", "."), ("./", "."), ("web", "web"), ("./web/", "web"), ("a/b.c", "a/b.c")] {
            assert_eq!(relative_path(text).as_deref(), Ok(path));
        }
        for bad in ["", "/", "/a", "..", "a/..", "a//b", "a/./b", "../a", "a\0", "a\nb", "a//"] {
            assert!(relative_path(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "/", "app", "/app/", "/a/../b", "/proc/x", "/dev", "/tmp/x", "/./a", "//a"] {
            assert!(image_path(bad).is_err(), "{bad:?}");
        }
        assert_eq!(image_path("/app/web"), Ok(()));
    }

    #[test]
    fn packages_and_addresses() {
        let pinned: PackageRequest = "gcc=4:12.2.0-3".parse().unwrap();
        assert_eq!(pinned.to_string(), "gcc=4:12.2.0-3");
        assert_eq!(pinned.version.as_deref(), Some("4:12.2.0-3"));
        for bad in ["", "g", "Gcc", "gcc=", "gcc= 1", "gcc:amd64", "-gcc", "gcc/x", "gcc=1/../2"] {
            assert!(bad.parse::<PackageRequest>().is_err(), "{bad:?}");
        }
        for good in [
            "https://example.org/a.tar.gz",
            "http://[::1]:80/a?b=c",
            "https://a/",
            "debian:pool/main/w/webfs/webfs_1.21+ds1.orig.tar.gz",
            "crate:serde@1.0.1+x",
        ] {
            assert_eq!(url(good), Ok(()), "{good}");
        }
        for bad in
            ["debian:", "debian:dists/a", "debian:pool/../a", "debian:pool/a?b", "crate:a", "crate:@1", "crate:a@../1"]
        {
            assert!(url(bad).is_err(), "{bad:?}");
        }
        for bad in
            ["", "ftp://a/b", "https://", "https:///a", "https://u:p@h/a", "https://h", "https://h/a b", "https://h/#f"]
        {
            assert!(url(bad).is_err(), "{bad:?}");
        }
    }
}

//! Every input byte of a lock under the name it is bound by, once and for ever.

use std::collections::BTreeMap;

use adamant_attest::predicate::Input;
use adamant_digest::{Digest, Hasher};

use crate::Lock;
use crate::cargo::Crate;

/// The locks of one commit name different bytes for one thing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the locks name two digests for `{name}`, {first} and {second}: run `adamant lock` and look at the one that is wrong"
)]
pub struct InputError {
    /// Name of the input.
    pub name: String,
    /// One digest.
    pub first: Digest,
    /// The other.
    pub second: Digest,
}

/// All inputs, sorted by name, each once:
/// `debian:bookworm/gcc-12=12.2.0-14+deb12u1:amd64`, `crate:serde@1.0.1`, `url:<name>@<url>`.
/// Crates have size 0, since Cargo.lock does not say it.
pub fn inputs(lock: &Lock, crates: &[Crate]) -> Result<Vec<Input>, InputError> {
    let packages = lock.packages.iter().map(|package| Input {
        name: format!("debian:{}/{}:{}", lock.debian, package.id(), package.arch),
        digest: package.digest,
        size: package.size,
    });
    let urls = lock.urls.iter().map(|url| Input {
        name: format!("url:{}@{}", url.name, url.url),
        digest: url.digest,
        size: url.size,
    });
    let crates = crates.iter().map(|krate| Input {
        name: format!("crate:{}@{}", krate.name, krate.version),
        digest: krate.checksum,
        size: 0,
    });
    let mut all: BTreeMap<String, Input> = BTreeMap::new();
    for input in packages.chain(urls).chain(crates) {
        let first = all.entry(input.name.clone()).or_insert_with(|| input.clone());
        if first.digest != input.digest {
            return Err(InputError { name: input.name, first: first.digest, second: input.digest });
        }
    }
    Ok(all.into_values().collect())
}

/// One digest for `adamant.lock` and the native locks a commit uses: paths from the root of the
/// repository and exact bytes.
///
/// Shape hashed (version 1): the line `adamant locks v1\n`, then for each file in byte order of
/// its path one record `<digest> <size> <path length> <path>\n`.
pub fn lock_digest(files: &BTreeMap<String, Vec<u8>>) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(b"adamant locks v1\n");
    for (path, bytes) in files {
        hasher.update(format!("{} {} {} {path}\n", Digest::of(bytes), bytes.len(), path.len()).as_bytes());
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Package, UrlInput};

    #[test]
    fn names_of_inputs() {
        let mut lock = Lock::new("bookworm");
        lock.packages.push(Package {
            name: "gcc-12".into(),
            version: "12.2.0-14+deb12u1".into(),
            arch: "amd64".into(),
            digest: Digest::of(b"deb"),
            size: 3,
            path: "pool/main/g/gcc-12/gcc-12.deb".into(),
        });
        let url = "https://example.org/a.tar.gz".to_owned();
        lock.urls.push(UrlInput { name: "a".into(), url, digest: Digest::of(b"a"), size: 1 });
        let krate = Crate { name: "serde".into(), version: "1.0.1".into(), checksum: Digest::of(b"c") };
        let names =
            |crates: &[Crate]| inputs(&lock, crates).map(|all| all.into_iter().map(|i| i.name).collect::<Vec<_>>());
        let expected = vec![
            "crate:serde@1.0.1".to_owned(),
            "debian:bookworm/gcc-12=12.2.0-14+deb12u1:amd64".to_owned(),
            "url:a@https://example.org/a.tar.gz".to_owned(),
        ];
        assert_eq!(names(&[krate.clone(), krate.clone()]), Ok(expected));
        let other = Crate { checksum: Digest::of(b"other"), ..krate.clone() };
        assert!(names(&[krate, other]).is_err());
    }

    #[test]
    fn digest_of_locks_is_a_format() {
        let files =
            BTreeMap::from([("adamant.lock".to_owned(), b"a".to_vec()), ("web/Cargo.lock".to_owned(), b"b".to_vec())]);
        let text = format!(
            "adamant locks v1\n{} 1 12 adamant.lock\n{} 1 14 web/Cargo.lock\n",
            Digest::of(b"a"),
            Digest::of(b"b")
        );
        assert_eq!(lock_digest(&files), Digest::of(text.as_bytes()));
        assert_eq!(
            lock_digest(&files).to_string(),
            "sha256:93ef2e2125a4284cda10f456b62eab65eb535c4f51e0e97598f06a9df93f8072"
        );
    }
}

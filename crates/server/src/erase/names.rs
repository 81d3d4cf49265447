//! The names of the same bytes: what is erased under one is erased under all.

use adamant_api::{Class, Erasable};
use adamant_attest::predicate::Names;
use adamant_digest::{Digest, Hasher, Sha512Hasher};
use adamant_source::Oid;
use adamant_store::Tombstone;
use tokio::io::AsyncReadExt as _;

use crate::error::Problem;
use crate::platform::Platform;

/// Bytes of a blob that are hashed at a time.
const PART: usize = 256 << 10;

/// Bytes by their other names.
pub(super) struct Named {
    pub(super) names: Names,
    pub(super) size_bytes: u64,
}

/// Hashes bytes by all algorithms that name them.
struct Namer {
    sha256: Hasher,
    sha512: Sha512Hasher,
    git: ring::digest::Context,
}

impl Namer {
    fn new(size_bytes: u64) -> Self {
        let mut git = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
        git.update(format!("blob {size_bytes}\0").as_bytes());
        Self { sha256: Hasher::new(), sha512: Sha512Hasher::new(), git }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.sha512.update(bytes);
        self.git.update(bytes);
    }

    fn finish(self) -> (Digest, Names) {
        let git_blob = self.git.finish().as_ref().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        (self.sha256.finish(), Names { sha512: self.sha512.finish(), git_blob })
    }
}

impl Platform {
    /// The digest of the bytes that are meant, and their other names if they are here.
    pub(super) async fn named(&self, what: &Erasable) -> Result<(Digest, Option<Named>), Problem> {
        match what {
            Erasable::Digest(digest) => Ok((*digest, self.named_in_store(*digest).await?)),
            Erasable::Git { project, object } => {
                let (digest, named) = self.named_in_git(project, object).await?;
                Ok((digest, Some(named)))
            }
        }
    }

    pub(super) async fn named_in_store(&self, digest: Digest) -> Result<Option<Named>, Problem> {
        let Some(size_bytes) = self.blobs.size(digest).await? else { return Ok(None) };
        let mut namer = Namer::new(size_bytes);
        let mut reader = self.blobs.open(digest).await?.bytes;
        let mut buffer = vec![0; PART];
        loop {
            match reader.read(&mut buffer).await? {
                0 => break,
                read => namer.update(&buffer[..read]),
            }
        }
        Ok(Some(Named { names: namer.finish().1, size_bytes }))
    }

    async fn named_in_git(&self, project: &str, object: &str) -> Result<(Digest, Named), Problem> {
        let oid: Oid = object.parse().map_err(|_| {
            Problem::usage(format!("`{object}` is no id of a git object"))
                .hint("give all 40 digits: git rev-parse COMMIT:PATH")
        })?;
        let repository = self.repository(project).await?;
        let failed = |e| Problem::internal(format!("cannot read {oid} of {project}"), e);
        let Some((kind, size_bytes)) = repository.object(oid).await.map_err(failed)? else {
            return Err(match self.erased_in_git(oid) {
                Some((_, tombstone)) => Problem::new(Class::Conflict, format!("{oid} {tombstone}")),
                None => Problem::no(format!("{oid} is not in the repository of {project}"))
                    .hint("find it: git rev-parse COMMIT:PATH"),
            });
        };
        if kind != "blob" {
            return Err(Problem::usage(format!("{oid} is a {kind}: only the bytes of files are erased"))
                .hint("commits and trees name files by their hashes and stay; give the id of the file: git rev-parse COMMIT:PATH"));
        }
        let mut namer = Namer::new(size_bytes);
        repository.read_blob(oid, |part| namer.update(part)).await.map_err(failed)?;
        let (digest, names) = namer.finish();
        if names.git_blob != oid.to_string() {
            return Err(Problem::damaged(format!("the bytes of {oid} in the repository of {project} are others")));
        }
        Ok((digest, Named { names, size_bytes }))
    }

    fn erased_in_git(&self, oid: Oid) -> Option<(Digest, Tombstone)> {
        let named = |tombstone: &Tombstone| tombstone.git_blob.as_deref() == Some(&*oid.to_string());
        let all = self.erased.digests().into_iter();
        all.filter_map(|digest| Some((digest, self.erased.tombstone(digest)?))).find(|(_, found)| named(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_names_that_other_programs_give_them() {
        let mut namer = Namer::new(6);
        namer.update(b"hel");
        namer.update(b"lo\n");
        let (digest, names) = namer.finish();
        assert_eq!(digest, Digest::of(b"hello\n"));
        assert_eq!(names.sha512, adamant_digest::Sha512::of(b"hello\n"));
        // git hash-object
        assert_eq!(names.git_blob, "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}

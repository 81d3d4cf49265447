//! How a repository stands in the ledger: four forms of `tag` bindings. A repository name has
//! neither `:` nor `@`, so the forms cannot be mistaken for one another.
//!
//! - `repository:tag` → manifest: the tag. Of a list of signatures, the first manifest it led to; of a
//!   pointer that the operator names, the mark that says so (see `pointers`).
//! - `repository@digest` → the same digest: the manifest was pushed to the repository. Made in
//!   the same append as the tag, so every manifest of a repository has it. A manifest that was
//!   pushed by its sha512 has that name as well, which leads to its sha256.
//! - `repository@subject/referrers/digest` → the same digest: the manifest names that subject, by
//!   whichever algorithm it does.
//! - `repository@tag:tag/digest` → manifest: the tag was made by a push of that sha512.

use adamant_digest::Digest;
use adamant_oci::{ContentDigest, RepositoryName, Tag};

pub(crate) fn tag(repository: &RepositoryName, tag: &Tag) -> String {
    format!("{repository}:{tag}")
}

pub(crate) fn tags(repository: &RepositoryName) -> String {
    format!("{repository}:")
}

pub(crate) fn member(repository: &RepositoryName, digest: &ContentDigest) -> String {
    format!("{repository}@{digest}")
}

/// The name under which a manifest is a member of a repository, for whoever records bindings of
/// its own: without it the manifest is not found by digest.
pub fn member_name(repository: &str, digest: Digest) -> String {
    format!("{repository}@{digest}")
}

pub(crate) fn members(repository: &RepositoryName) -> String {
    format!("{repository}@")
}

pub(crate) fn referrer(repository: &RepositoryName, subject: &ContentDigest, digest: Digest) -> String {
    format!("{}{digest}", referrers(repository, subject))
}

pub(crate) fn referrers(repository: &RepositoryName, subject: &ContentDigest) -> String {
    format!("{repository}@{subject}/referrers/")
}

pub(crate) fn pushed_by(repository: &RepositoryName, tag: &Tag, digest: &ContentDigest) -> String {
    format!("{}{digest}", pushed_bys(repository, tag))
}

pub(crate) fn pushed_bys(repository: &RepositoryName, tag: &Tag) -> String {
    format!("{repository}@tag:{tag}/")
}

/// The repository of any of the four forms.
pub(crate) fn repository(name: &str) -> &str {
    name.split([':', '@']).next().unwrap_or(name)
}

/// Sorts after every name of `repository` and before those of the next one: `~` is above all
/// that can follow `@`, and no separator of a longer repository name lies between `:` and `@`.
pub(crate) fn after(repository: &str) -> String {
    format!("{repository}@~")
}

/// Whether a tag is a release number or a commit id.
pub(crate) fn is_release(tag: &Tag) -> bool {
    let text = tag.as_str();
    let commit = matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    commit || text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_told_apart() {
        let name: RepositoryName = "a/b".parse().unwrap();
        let (one, two) = (Digest::of(b"1").into(), Digest::of(b"2"));
        let other = adamant_digest::Sha512::of(b"1").into();
        let all = [
            tag(&name, &"v".parse().unwrap()),
            member(&name, &one),
            member(&name, &other),
            referrer(&name, &one, two),
            referrer(&name, &other, two),
            pushed_by(&name, &"referrers".parse().unwrap(), &other),
        ];
        for text in &all {
            assert_eq!(repository(text), "a/b");
            assert!(*text < after("a/b"));
        }
        assert!(!member(&name, &one).starts_with(&tags(&name)));
        assert!(!member(&name, &one).starts_with(&referrers(&name, &one)));
        for next in ["a/b_c:v", "a/ba:v"] {
            assert!(*next > *after("a/b"), "{next}");
        }
    }
}

//! Repository names, tags, references and digests.
#![no_main]

use adamant_digest::{Digest, Sha512};
use adamant_oci::{ContentDigest, Reference, RepositoryName, Tag};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<RepositoryName>() {
        assert_eq!(name.to_string(), text);
        assert!(text.len() <= RepositoryName::MAX && !text.is_empty());
        assert!(!text.contains("..") && !text.contains("//") && !text.starts_with('/') && !text.ends_with('/'));
        assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/".contains(&b)));
    }
    if let Ok(tag) = text.parse::<Tag>() {
        assert_eq!(tag.to_string(), text);
        assert!(text.len() <= Tag::MAX && !text.contains('/') && !text.starts_with('.'));
    }
    if let Ok(digest) = text.parse::<ContentDigest>() {
        assert_eq!(digest.to_string(), text);
        assert!(!text.contains('/') && !text.contains('\0'));
        assert_eq!(Reference::parse(text), Ok(Reference::Digest(digest)));
    }
    if let Ok(reference) = Reference::parse(text) {
        assert_eq!(reference.to_string(), text);
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    for digest in [Digest::from_hex(text).map(|d| d.hex()).ok(), Sha512::from_hex(text).map(|d| d.hex()).ok()] {
        assert!(digest.is_none_or(|hex| hex == text));
    }
});

//! Properties of the wire types.

use std::collections::BTreeMap;

use adamant_digest::Digest;
use adamant_oci::{ArtifactMeta, ContentDigest, Descriptor, Manifest, Reference, RepositoryName, Tag, media};
use proptest::prelude::*;

fn descriptor() -> impl Strategy<Value = Descriptor> {
    (any::<[u8; 32]>(), any::<u64>(), proptest::option::of("[a-z]{1,8}/[a-z]{1,8}"), annotations()).prop_map(
        |(raw, size, artifact_type, annotations)| Descriptor {
            artifact_type,
            annotations,
            ..Descriptor::new(media::OCI_LAYER, Digest::from_bytes(raw), size)
        },
    )
}

fn annotations() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map(".{0,8}", ".{0,16}", 0..3)
}

fn meta() -> impl Strategy<Value = ArtifactMeta> {
    (proptest::option::of("[a-z]{1,9}"), proptest::option::of(descriptor()), annotations())
        .prop_map(|(artifact_type, subject, annotations)| ArtifactMeta { artifact_type, subject, annotations })
}

proptest! {
    /// What the grammar of the specification generates is a name and prints as itself.
    #[test]
    fn names_round_trip(text in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,3}(/[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}){0,4}") {
        prop_assert_eq!(text.parse::<RepositoryName>().unwrap().to_string(), text);
    }

    /// Whatever is accepted as a name can neither leave a directory nor be mistaken for a
    /// name with a tag or a digest.
    #[test]
    fn accepted_names_are_safe(text in "[a-z0-9._/:@%A-Z\\-]{0,24}") {
        if let Ok(name) = text.parse::<RepositoryName>() {
            prop_assert!(!name.as_str().contains([':', '@', '%']));
            prop_assert!(name.as_str().split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
        }
    }

    #[test]
    fn tags_round_trip(text in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}") {
        prop_assert_eq!(text.parse::<Tag>().unwrap().to_string(), text.clone());
        prop_assert_eq!(Reference::parse(&text).unwrap().to_string(), text);
    }

    #[test]
    fn digests_round_trip(text in "[a-z0-9]{1,6}([+._-][a-z0-9]{1,4}){0,2}:[a-zA-Z0-9=_-]{1,140}") {
        if let Ok(digest) = text.parse::<ContentDigest>() {
            prop_assert_eq!(digest.to_string(), text);
        }
    }

    /// No input panics a parser.
    #[test]
    fn parsers_take_anything(text in ".{0,64}", bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = (text.parse::<RepositoryName>(), text.parse::<Tag>(), text.parse::<ContentDigest>());
        let _ = (Reference::parse(&text), Manifest::parse(bytes));
    }

    /// A made manifest reads back as itself, and making it again gives the same bytes.
    #[test]
    fn manifests_round_trip(config in descriptor(), layers in proptest::collection::vec(descriptor(), 0..4), meta in meta()) {
        let image = Manifest::image(config.clone(), layers.clone(), meta.clone());
        prop_assert_eq!(&Manifest::from_verified(image.bytes().clone()).unwrap(), &image);
        prop_assert_eq!(Manifest::image(config, layers.clone(), meta.clone()).digest(), image.digest());
        let index = Manifest::index(layers, meta);
        prop_assert_eq!(&Manifest::from_verified(index.bytes().clone()).unwrap(), &index);
    }
}

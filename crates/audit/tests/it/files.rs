//! The capsule and trust files: one meaning, bounded.

use adamant_audit::{Capsule, CapsuleError, MAX_CAPSULE_BYTES, Trust};

use crate::world::{Alter, Keys, capsule};

#[test]
fn other_shapes_of_a_capsule_are_refused() {
    let keys = Keys::new();
    let good = String::from_utf8(capsule(&Alter::default(), &keys).to_bytes().unwrap()).unwrap();
    let check = |from: &str, to: &str| {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from}");
        Capsule::parse(bad.as_bytes()).expect_err(to)
    };
    assert!(matches!(check("\"claim\":", "\"claim\":{},\"claim\":"), CapsuleError::Json(_)));
    assert!(matches!(check("\"sequence\":2", "\"sequence\":2,\"sequence\":3"), CapsuleError::Json(_)));
    assert!(matches!(check("\"sequence\":2", "\"sequence\":2.0"), CapsuleError::Json(_)));
    assert!(matches!(check("\"sequence\":2", "\"sequence\":-2"), CapsuleError::Shape(_)));
    assert!(matches!(check("\"sequence\":2", "\"sequence\":2,\"more\":1"), CapsuleError::Shape(_)));
    assert!(matches!(check("\"claim\":", "\"more\":1,\"claim\":"), CapsuleError::Shape(_)));
    assert!(matches!(check("\"documents\":", "\"documentz\":"), CapsuleError::Shape(_)));
    assert!(matches!(check("capsule.v1", "capsule.v2"), CapsuleError::MediaType(_)));
    assert!(matches!(check("\"envelope\":\"", "\"envelope\":\"*"), CapsuleError::Base64(_)));
    assert!(matches!(check("\"proof\":[\"", "\"proof\":[\"AAAA\",\""), CapsuleError::Base64(_)));
    assert!(matches!(check("\"bytes\":\"", "\"bytes\":\"="), CapsuleError::Base64(_)));
    let hash = format!("\"{}=\",", "A".repeat(43)).repeat(129);
    assert!(matches!(check("\"proof\":[", &format!("\"proof\":[{hash}")), CapsuleError::Limit { .. }));
    assert!(Capsule::parse(&good.as_bytes()[..good.len() - 1]).is_err());
    assert!(matches!(Capsule::parse(&vec![b' '; MAX_CAPSULE_BYTES + 1]), Err(CapsuleError::Limit { .. })));
}

#[test]
fn other_shapes_of_a_trust_file_are_refused() {
    let keys = Keys::new();
    let checkpoint = capsule(&Alter::default(), &keys).checkpoint;
    let good = Trust { checkpoint: Some(checkpoint), ..keys.trust() }.to_bytes().unwrap();
    let good = String::from_utf8(good).unwrap();
    assert!(Trust::parse(good.as_bytes()).is_ok());
    for (from, to) in [
        ("\"version\":1", "\"version\":2"),
        ("\"version\":1", "\"version\":1,\"version\":1"),
        ("\"version\":1", "\"version\":1,\"more\":1"),
        ("\"origin\":\"log.test\"", "\"origin\":\"log.other\""),
        ("\"logKey\":\"log.test+", "\"logKey\":\"log.other+"),
        ("\"rootControlKey\":\"MFkw", "\"rootControlKey\":\"MFkx"),
        ("log.test\\n25\\n", "log.test\\n26\\n"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from}");
        assert!(Trust::parse(bad.as_bytes()).is_err(), "{to}");
    }
}

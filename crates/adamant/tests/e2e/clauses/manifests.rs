//! end-7: pushing manifests.

use adamant_digest::Sha512;
use serde_json::json;

use super::{EMPTY, INDEX, MANIFEST, Target, code, descriptor, fails, location, print, sha256};
use crate::client::Ask;

/// "Pushing Manifests": `201 Created` and a pullable `Location`, by tag and by digest.
#[test]
fn end_7_by_tag_and_by_digest() {
    let target = Target::new("end_7");
    let repo = target.repo("a");
    for (content, by_tag) in [("one", true), ("two", false)] {
        let manifest = target.image(&repo, content);
        let digest = sha256(&manifest);
        let reference = if by_tag { "v1" } else { &digest };
        let answer = target.put(&repo, reference, &manifest).expect(201);
        assert_eq!(answer.header("docker-content-digest"), digest);
        let pulled = target.send(Ask::new("GET", &location(&answer)).header("Accept", MANIFEST)).expect(200);
        assert_eq!((pulled.body.as_slice(), pulled.header("content-type")), (manifest.as_slice(), MANIFEST));
    }
}

/// "The registry MUST store the manifest in the exact byte representation provided by the client".
#[test]
fn end_7_keeps_the_exact_bytes() {
    let target = Target::new("end_7_bytes");
    let repo = target.repo("a");
    let config = target.push(&repo, b"{}");
    // Order, white space, escapes, numbers, members that no specification knows, no mediaType.
    let text = format!(
        "{{\n\t\"layers\" : [ ], \"org.example.custom\": {{\"n\": 1.50, \"e\": \"\\u00e9\"}},\n  \"config\": \
         {{\"size\":2,\"digest\":\"{config}\",\"custom\":null,\"mediaType\":\"{EMPTY}\"}}, \"schemaVersion\": 2\n}}\n\n"
    );
    target.put(&repo, "v1", text.as_bytes()).expect(201);
    let answer = target.manifest(&repo, "v1").expect(200);
    assert_eq!(answer.text(), text);
    assert_eq!(answer.header("content-type"), MANIFEST);
}

/// "The registry SHOULD ignore parameters on the `Content-Type` header".
#[test]
fn end_7_ignores_parameters_of_the_type() {
    let target = Target::new("end_7_type");
    let repo = target.repo("a");
    let manifest = target.image(&repo, "end_7_type");
    let path = format!("/v2/{repo}/manifests/v1");
    let kind = format!("{MANIFEST}; charset=utf-8");
    target.send(Ask::new("PUT", &path).body(&kind, &manifest)).expect(201);
    assert_eq!(target.manifest(&repo, "v1").expect(200).header("content-type"), MANIFEST);
}

/// "A registry MAY reject a manifest" that names what is not there, by `MANIFEST_BLOB_UNKNOWN`.
#[test]
fn end_7_of_missing_content() {
    let target = Target::new("end_7_missing");
    let repo = target.repo("a");
    let config = target.describe(&repo, EMPTY, b"{}");
    let missing = format!("missing {}", target.prefix).into_bytes();
    let image = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [descriptor("x/y", &missing)],
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(MANIFEST, &missing)]});
    for manifest in [image, index] {
        let answer = target.put(&repo, "v1", &print(&manifest));
        assert!((400..500).contains(&answer.status), "{}", answer.text());
        assert!(matches!(code(&answer).as_str(), "MANIFEST_BLOB_UNKNOWN" | "MANIFEST_UNKNOWN"), "{}", answer.text());
        // Nothing is listed that cannot be pulled.
        target.manifest(&repo, "v1").expect(404);
    }
}

/// "at least 4 megabytes", and beyond the limit `413 Payload Too Large`.
#[test]
fn end_7_large_manifests() {
    let target = Target::new("end_7_large");
    let repo = target.repo("a");
    let config = target.describe(&repo, EMPTY, b"{}");
    let sized = |length: usize| {
        let image = |filler: String| {
            print(&json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [],
                "annotations": {"filler": filler},
            }))
        };
        image("a".repeat(length - image(String::new()).len()))
    };
    let most = sized(4_000_000);
    target.put(&repo, "most", &most).expect(201);
    assert_eq!(target.manifest(&repo, "most").expect(200).body, most);
    if target.is_ours() {
        let limit = 4 * 1024 * 1024;
        target.put(&repo, "limit", &sized(limit)).expect(201);
        fails(&target.put(&repo, "more", &sized(limit + 1)), 413, "MANIFEST_INVALID");
        target.manifest(&repo, "more").expect(404);
    }
}

/// "`Docker-Content-Digest` … MUST be equal to the client provided digest": other bytes are 400.
#[test]
fn end_7_other_bytes_than_announced_are_400() {
    let target = Target::new("end_7_wrong");
    let repo = target.repo("a");
    let manifest = target.image(&repo, "end_7_wrong");
    let padded = [manifest.as_slice(), b"  "].concat();
    fails(&target.put(&repo, &sha256(&manifest), &padded), 400, "DIGEST_INVALID");
    if target.is_ours() {
        fails(&target.put(&repo, &Sha512::of(&manifest).to_string(), &padded), 400, "DIGEST_INVALID");
        fails(&target.put(&repo, "sha256:baddigeststring", &manifest), 400, "DIGEST_INVALID");
    }
    target.manifest(&repo, &sha256(&manifest)).expect(404);
    target.manifest(&repo, &sha256(&padded)).expect(404);
}

/// `MANIFEST_INVALID` for what is no manifest, or another one than it says.
#[test]
fn end_7_what_is_no_manifest_is_400() {
    let target = Target::new("end_7_invalid");
    let repo = target.repo("a");
    let path = format!("/v2/{repo}/manifests/v1");
    for text in ["", "{", "[]", "null", "not json", r#"{"schemaVersion":1,"fsLayers":[]}"#] {
        let answer = target.send(Ask::new("PUT", &path).body(MANIFEST, text.as_bytes()));
        fails(&answer, 400, "MANIFEST_INVALID");
    }
    let image = target.image(&repo, "end_7_invalid");
    fails(&target.send(Ask::new("PUT", &path).body(INDEX, &image)), 400, "MANIFEST_INVALID");
    target.manifest(&repo, "v1").expect(404);
}

/// "Pushing Manifests with Subject": `OCI-Subject`, for images and indexes, "that does not yet exist" too.
#[test]
fn end_7_with_a_subject() {
    let target = Target::new("end_7_subject");
    let repo = target.repo("a");
    let subject = target.image(&repo, "end_7_subject");
    let empty = target.describe(&repo, EMPTY, b"{}");
    let to = descriptor(MANIFEST, &subject);
    let artifact = print(&json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "x/a", "config": empty, "layers": [empty],
        "subject": to,
    }));
    let index = print(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "subject": to}));
    // Before its subject, by digest; after it, by tag; and without one there is no header.
    for (manifest, reference) in [(&artifact, sha256(&artifact)), (&index, sha256(&index))] {
        let answer = target.put(&repo, &reference, manifest).expect(201);
        assert_eq!(answer.header("oci-subject"), sha256(&subject));
    }
    let answer = target.put(&repo, "v1", &subject).expect(201);
    assert_eq!(answer.header("oci-subject"), "");
    for (manifest, reference) in [(&artifact, "a1"), (&index, "i1")] {
        let answer = target.put(&repo, reference, manifest).expect(201);
        assert_eq!(answer.header("oci-subject"), sha256(&subject));
    }
}

/// 1.1+dev, "Pushing Manifests with Tags": several tags beside a digest, each in `OCI-Tag`.
#[test]
fn end_7_tags_beside_a_digest() {
    let target = Target::new("end_7_tags");
    let repo = target.repo("a");
    let manifest = target.image(&repo, "end_7_tags");
    for (digest, tags) in [
        (sha256(&manifest), vec!["s1", "s2", "s3"]),
        (Sha512::of(&manifest).to_string(), vec!["t1", "t2"]),
        (sha256(&manifest), vec!["u0", "u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8", "u9"]),
    ] {
        let query: Vec<String> = tags.iter().map(|tag| format!("tag={tag}")).collect();
        let answer = target.put(&repo, &format!("{digest}?{}", query.join("&")), &manifest).expect(201);
        let told: Vec<&str> = answer.header("oci-tag").split(", ").collect();
        assert_eq!(told, tags);
        assert_eq!(answer.header("docker-content-digest"), digest);
        for tag in tags {
            assert_eq!(target.manifest(&repo, tag).expect(200).body, manifest, "{tag}");
        }
    }
    target.put(&repo, &format!("{}?tag=.bad", sha256(&manifest)), &manifest).expect(400);
}

/// image-spec, "Registered Algorithms": a manifest by its sha512 and of content by sha512.
#[test]
fn end_3_7_by_sha512() {
    let target = Target::new("end_7_sha512");
    let repo = target.repo("a");
    let described = |kind: &str, bytes: &[u8]| {
        let digest = Sha512::of(bytes).to_string();
        target.send_bytes("PUT", &super::finish(&target.start(&repo), &digest), bytes).expect(201);
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    };
    let (config, layer) = (described(super::CONFIG, b"{}"), described(super::LAYER, b"by sha512"));
    let image = print(&json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}));
    let child = json!({"mediaType": MANIFEST, "digest": Sha512::of(&image).to_string(), "size": image.len()});
    let index = print(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child]}));
    for manifest in [&image, &index] {
        let digest = Sha512::of(manifest).to_string();
        let answer = target.put(&repo, &digest, manifest).expect(201);
        assert_eq!(answer.header("docker-content-digest"), digest);
        let answer = target.manifest(&repo, &digest).expect(200);
        assert_eq!(answer.body, *manifest);
        assert_eq!(answer.header("docker-content-digest"), digest);
        let head = target.head(&format!("/v2/{repo}/manifests/{digest}")).expect(200);
        assert_eq!(head.header("docker-content-digest"), digest);
    }
}

/// "Pushing Manifests": the digest of a tag that was pushed beside one is that one, whatever the algorithm.
#[test]
fn end_7b_a_tag_beside_a_sha512() {
    let target = Target::new("end_7b_sha512");
    let repo = target.repo("a");
    let image = target.image(&repo, "tagged by sha512");
    let digest = Sha512::of(&image).to_string();
    let answer = target.put(&repo, &format!("{digest}?tag=v1&tag=v2"), &image).expect(201);
    if answer.header("oci-tag").is_empty() && !target.is_ours() {
        return;
    }
    for tag in ["v1", "v2"] {
        let answer = target.manifest(&repo, tag).expect(200);
        assert_eq!(answer.header("docker-content-digest"), digest);
        assert_eq!(answer.body, image);
        let head = target.head(&format!("/v2/{repo}/manifests/{tag}")).expect(200);
        assert_eq!(head.header("docker-content-digest"), digest);
    }
}

/// The naming law, where the specification is silent: the same again is `201`, another digest `409` with
/// both digests in a body that clients print; of several tags, all or none.
#[test]
fn ours_7_a_tag_is_bound_once() {
    let target = Target::new("ours_7");
    if !target.is_ours() {
        return;
    }
    let repo = target.repo("a");
    let (one, two) = (target.image(&repo, "one"), target.image(&repo, "two"));
    for _ in 0..2 {
        target.put(&repo, "v1", &one).expect(201);
    }
    let refused = target.put(&repo, "v1", &two);
    fails(&refused, 409, "TAG_INVALID");
    let text = refused.json()["errors"][0]["message"].as_str().unwrap().to_owned();
    assert!(text.contains(&sha256(&one)) && text.contains(&sha256(&two)) && text.contains("new tag"), "{text}");
    fails(&target.put(&repo, &format!("{}?tag=v2&tag=v1", sha256(&two)), &two), 409, "TAG_INVALID");
    target.manifest(&repo, "v2").expect(404);
    assert_eq!(target.manifest(&repo, "v1").expect(200).body, one);
}

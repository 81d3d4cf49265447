//! end-1, end-2, end-3: the check, and pulling.

use super::{INDEX, MANIFEST, Target, code, fails, sha256};
use crate::client::Ask;

/// "Determining Support": `200 OK` if the registry implements this specification.
#[test]
fn end_1_says_that_this_is_a_registry() {
    let target = Target::new("end_1");
    let answer = target.get("/v2/").expect(200);
    // The name that docker's clients look for.
    assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
}

/// "Pulling blobs": `200`, the bytes, and `Docker-Content-Digest`.
#[test]
fn end_2_get_gives_the_bytes_and_their_digest() {
    let target = Target::new("end_2_get");
    let repo = target.repo("a");
    for bytes in [b"some content".to_vec(), vec![7; 3 << 20]] {
        let digest = target.push(&repo, &bytes);
        let answer = target.get(&format!("/v2/{repo}/blobs/{digest}")).expect(200);
        assert_eq!(answer.body, bytes);
        assert_eq!(answer.header("docker-content-digest"), digest);
        assert_eq!(answer.header("content-length"), bytes.len().to_string());
    }
}

/// "Checking if content exists": `HEAD` has digest and length and no body.
#[test]
fn end_2_head_tells_digest_and_length() {
    let target = Target::new("end_2_head");
    let repo = target.repo("a");
    let digest = target.push(&repo, b"some content");
    let answer = target.head(&format!("/v2/{repo}/blobs/{digest}")).expect(200);
    assert_eq!(answer.header("content-length"), "12");
    assert_eq!(answer.header("docker-content-digest"), digest);
    assert!(answer.body.is_empty());
}

/// "Pulling blobs": "If the blob is not found in the repository, the response code MUST be 404".
#[test]
fn end_2_unknown_blobs_are_404() {
    let target = Target::new("end_2_unknown");
    let repo = target.repo("a");
    target.push(&repo, b"there");
    for repo in [repo, target.repo("nowhere")] {
        let path = format!("/v2/{repo}/blobs/{}", sha256(repo.as_bytes()));
        let answer = target.get(&path).expect(404);
        assert!(matches!(code(&answer).as_str(), "BLOB_UNKNOWN" | "NAME_UNKNOWN"), "{}", answer.text());
        assert!(target.head(&path).expect(404).body.is_empty());
    }
}

/// A digest that is none is the client's mistake, never the server's.
#[test]
fn end_2_malformed_digests_are_400() {
    let target = Target::new("end_2_malformed");
    let repo = target.repo("a");
    target.push(&repo, b"there");
    let long = format!("sha256:{}", "a".repeat(65));
    let upper = format!("sha256:{}", "A".repeat(64));
    for digest in ["sha256:baddigeststring", "sha256:", "sha256", "notadigest", &long, &upper] {
        let answer = target.get(&format!("/v2/{repo}/blobs/{digest}"));
        // One that looks like a tag has no route in some registries.
        assert!(answer.status == 400 || (answer.status == 404 && !target.is_ours()), "{digest}: {}", answer.status);
        if target.is_ours() {
            fails(&answer, 400, "DIGEST_INVALID");
        }
    }
}

/// "Pulling blobs": "A registry SHOULD support the `Range` request header in accordance with RFC 9110".
#[test]
fn end_2_ranges() {
    let target = Target::new("end_2_ranges");
    let repo = target.repo("a");
    let bytes: Vec<u8> = (0..2048_u32).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect();
    let path = format!("/v2/{repo}/blobs/{}", target.push(&repo, &bytes));
    let ranged = |range: &str| target.send(Ask::new("GET", &path).header("Range", range));
    for (range, from, to) in [
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, 2048),
        ("bytes=-500", 1548, 2048),
        ("bytes=2000-5000", 2000, 2048),
        ("bytes=0-0", 0, 1),
        ("bytes=0-2047", 0, 2048),
    ] {
        let answer = ranged(range).expect(206);
        assert_eq!(answer.body, &bytes[from..to], "{range}");
        assert_eq!(answer.header("content-range"), format!("bytes {from}-{}/2048", to - 1), "{range}");
        assert_eq!(answer.header("content-length"), (to - from).to_string(), "{range}");
    }
    for range in ["bytes=500-0", "bytes=5000-10000", "bytes=2048-"] {
        ranged(range).expect(416);
    }
}

/// RFC 9110, 13.1.2 and 13.1.5: content that a digest names never changes, so a cache is right.
#[test]
fn end_2_conditional_requests() {
    let target = Target::new("end_2_conditional");
    let repo = target.repo("a");
    let path = format!("/v2/{repo}/blobs/{}", target.push(&repo, b"some content"));
    let etag = target.get(&path).expect(200).header("etag").to_owned();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "{etag}");
    let answer = target.send(Ask::new("GET", &path).header("If-None-Match", &etag)).expect(304);
    assert!(answer.body.is_empty());
}

/// "Pulling manifests": `200`, the bytes, `Content-Type` and `Docker-Content-Digest`, by tag and by digest.
#[test]
fn end_3_get_by_tag_and_by_digest() {
    let target = Target::new("end_3_get");
    let repo = target.repo("a");
    let manifest = target.image(&repo, "end_3_get");
    let digest = sha256(&manifest);
    target.put(&repo, "v1", &manifest).expect(201);
    for reference in ["v1", &digest] {
        let answer = target.manifest(&repo, reference).expect(200);
        assert_eq!(answer.body, manifest, "{reference}");
        assert_eq!(answer.header("content-type"), MANIFEST);
        assert_eq!(answer.header("docker-content-digest"), digest);
        assert_eq!(answer.header("content-length"), manifest.len().to_string());
    }
}

/// "Checking if content exists": the same for `HEAD`, without the body.
#[test]
fn end_3_head_by_tag_and_by_digest() {
    let target = Target::new("end_3_head");
    let repo = target.repo("a");
    let manifest = target.image(&repo, "end_3_head");
    let digest = sha256(&manifest);
    target.put(&repo, "v1", &manifest).expect(201);
    for reference in ["v1", &digest] {
        let path = format!("/v2/{repo}/manifests/{reference}");
        let answer = target.send(Ask::new("HEAD", &path).header("Accept", MANIFEST)).expect(200);
        assert_eq!(answer.header("content-type"), MANIFEST);
        assert_eq!(answer.header("docker-content-digest"), digest);
        assert_eq!(answer.header("content-length"), manifest.len().to_string());
        assert!(answer.body.is_empty());
    }
}

/// "Pulling manifests": "If the manifest is not found in the repository, the response code MUST be 404".
#[test]
fn end_3_unknown_manifests_are_404() {
    let target = Target::new("end_3_unknown");
    let (repo, nowhere) = (target.repo("a"), target.repo("nowhere"));
    let manifest = target.image(&repo, "end_3_unknown");
    target.put(&repo, "v1", &manifest).expect(201);
    for (repo, reference) in
        [(&repo, "v2".to_owned()), (&repo, sha256(b"x")), (&nowhere, "v1".to_owned()), (&nowhere, sha256(&manifest))]
    {
        let answer = target.manifest(repo, &reference).expect(404);
        assert!(matches!(code(&answer).as_str(), "MANIFEST_UNKNOWN" | "NAME_UNKNOWN"), "{}", answer.text());
        assert!(target.head(&format!("/v2/{repo}/manifests/{reference}")).expect(404).body.is_empty());
    }
}

/// A malformed digest is a bad request or nothing that exists, and no error of the server.
#[test]
fn end_3_malformed_digests_are_no_server_error() {
    let target = Target::new("end_3_malformed");
    let repo = target.repo("a");
    for digest in ["sha256:baddigeststring", "sha256:", "sha256:0"] {
        let answer = target.manifest(&repo, digest);
        assert!(matches!(answer.status, 400 | 404), "{digest}: {}", answer.text());
        if target.is_ours() {
            fails(&answer, 400, "DIGEST_INVALID");
        }
    }
}

/// "Pulling manifests": `<name>` and `<reference>` as the expressions of the specification have them.
#[test]
fn end_3_names_and_tags_as_the_grammar_has_them() {
    let target = Target::new("end_3_grammar");
    let longest = "a".repeat(128);
    for name in ["a", "0", "a.b", "a_b", "a__b", "a-b", "a---b", "a/b/c", "a1/b2"] {
        let repo = target.repo(name);
        let manifest = target.image(&repo, "end_3_grammar");
        for tag in ["v1", "_", "A.b-c_d", &longest] {
            target.put(&repo, tag, &manifest).expect(201);
            assert_eq!(target.manifest(&repo, tag).expect(200).body, manifest, "{repo}:{tag}");
        }
    }
    let repo = target.repo("a");
    let manifest = target.image(&repo, "end_3_grammar");
    for tag in [".v1", "-v1", &"a".repeat(129)] {
        let answer = target.put(&repo, tag, &manifest);
        assert!(matches!(answer.status, 400 | 404), "{tag}: {}", answer.status);
    }
    for name in ["A", "a..b", "a___b", "-a", "a-", "a/-b", ".a"] {
        let answer = target.put(&target.repo(name), "v1", &manifest);
        assert!(matches!(answer.status, 400 | 404), "{name}: {}", answer.status);
        if target.is_ours() {
            fails(&answer, 400, "NAME_INVALID");
        }
    }
}

/// RFC 9110, 12.5.1: a registry that has one form of a manifest sends it whatever `Accept` says; an
/// index is never turned into one of its images.
#[test]
fn end_3_an_index_stays_an_index() {
    let target = Target::new("end_3_index");
    let repo = target.repo("a");
    let image = target.image(&repo, "end_3_index");
    target.put(&repo, &sha256(&image), &image).expect(201);
    let index = super::print(&serde_json::json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [super::descriptor(MANIFEST, &image)],
    }));
    target.put(&repo, "v1", &index).expect(201);
    let answer = target.manifest(&repo, "v1").expect(200);
    assert_eq!((answer.header("content-type"), answer.body.as_slice()), (INDEX, index.as_slice()));
}

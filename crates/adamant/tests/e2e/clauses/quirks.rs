//! What clients do that trips registries, byte for byte as they send it.

use serde_json::json;

use super::{EMPTY, INDEX, MANIFEST, Target, finish, location, print, sha256};
use crate::client::Ask;

/// skopeo, podman and buildah send one `Accept` line for each media type they know.
#[test]
fn one_accept_line_for_each_type() {
    let target = Target::new("accept");
    let repo = target.repo("a");
    let manifest = target.image(&repo, "accept");
    target.put(&repo, "v1", &manifest).expect(201);
    let path = format!("/v2/{repo}/manifests/v1");
    let mut ask = Ask::new("GET", &path);
    for kind in [
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        INDEX,
        MANIFEST,
        "*/*",
    ] {
        ask = ask.header("Accept", kind);
    }
    let answer = target.send(ask).expect(200);
    assert_eq!((answer.header("content-type"), answer.body.as_slice()), (MANIFEST, manifest.as_slice()));
}

/// They ask whether a blob is there, mount it, send it by one `PATCH` without `Content-Range`, and close
/// it by an empty `PUT`.
#[test]
fn head_then_mount_then_one_patch_then_an_empty_put() {
    let target = Target::new("skopeo");
    let (repo, known) = (target.repo("a"), target.repo("b"));
    let bytes = format!("a layer {}", target.prefix).into_bytes();
    let digest = sha256(&bytes);
    target.head(&format!("/v2/{repo}/blobs/{digest}")).expect(404);
    let answer = target.ask("POST", &format!("/v2/{repo}/blobs/uploads/?from={known}&mount={digest}")).expect(202);
    let answer = target.send(Ask::new("PATCH", &location(&answer)).body("application/octet-stream", &bytes).chunked());
    assert_eq!(answer.status, 202, "{}", answer.text());
    let path = finish(&location(&answer), &digest.replace(':', "%3A"));
    let answer = target.send(Ask::new("PUT", &path).body("application/octet-stream", b"")).expect(201);
    target.holds(&location(&answer), &bytes);
    target.head(&format!("/v2/{repo}/blobs/{digest}")).expect(200);
}

/// docker sends `PATCH` without `Content-Type`, then `PUT` with an empty body and none of either.
#[test]
fn a_patch_without_a_type() {
    let target = Target::new("docker");
    let repo = target.repo("a");
    let bytes = b"a layer of docker's";
    let at = target.start(&repo);
    let mut ask = Ask::new("PATCH", &at).chunked();
    ask.body = bytes;
    let answer = target.send(ask).expect(202);
    let answer = target.ask("PUT", &finish(&location(&answer), &sha256(bytes))).expect(201);
    target.holds(&location(&answer), bytes);
}

/// ctr mounts with `from=a/b` as it is, and gives up the upload that begins if the blob is there by then.
#[test]
fn a_mount_from_an_unescaped_name() {
    let target = Target::new("ctr");
    let (from, to) = (target.repo("a/b"), target.repo("c/d"));
    let digest = target.push(&from, b"a layer of ctr's");
    let path = format!("/v2/{to}/blobs/uploads/?mount={}&from={from}", digest.replace(':', "%3A"));
    let answer = target.ask("POST", &path).expect(201);
    target.holds(&location(&answer), b"a layer of ctr's");
}

/// crane begins an upload with `Content-Type: application/json`, and a mount with `origin=` as well.
#[test]
fn a_post_of_json_and_with_an_origin() {
    let target = Target::new("crane");
    let (repo, other) = (target.repo("a"), target.repo("b"));
    let path = format!("/v2/{repo}/blobs/uploads/");
    let answer = target.send(Ask::new("POST", &path).body("application/json", b"")).expect(202);
    let at = location(&answer);
    let mut ask = Ask::new("PATCH", &at).chunked();
    ask.body = b"a layer of crane's";
    let at = location(&target.send(ask).expect(202));
    let digest = sha256(b"a layer of crane's");
    let path = finish(&at, &digest);
    target.send(Ask::new("PUT", &path).body("application/json", b"")).expect(201);
    let path = format!("/v2/{other}/blobs/uploads/?from={repo}&mount={digest}&origin=127.0.0.1%3A5000");
    let answer = target.send(Ask::new("POST", &path).body("application/json", b"")).expect(201);
    target.holds(&location(&answer), b"a layer of crane's");
}

/// oras sends the whole body by `PUT`, with its length and type, to the location it was given.
#[test]
fn a_put_of_the_whole_body() {
    let target = Target::new("oras");
    let repo = target.repo("a");
    let empty = target.describe(&repo, EMPTY, b"{}");
    let layer = target.describe(&repo, "text/plain", b"a file of oras's");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.unknown.artifact.v1",
        "config": empty, "layers": [layer], "annotations": {"org.opencontainers.image.created": "2026-01-01T00:00:00Z"},
    });
    let manifest = print(&manifest);
    target.put(&repo, &sha256(&manifest), &manifest).expect(201);
    target.put(&repo, "v1", &manifest).expect(201);
    assert_eq!(target.manifest(&repo, "v1").expect(200).body, manifest);
}

/// containerd pulls with `Range: bytes=0-` and goes on from where it was.
#[test]
fn a_pull_that_goes_on() {
    let target = Target::new("resume");
    let repo = target.repo("a");
    let bytes: Vec<u8> = (0..40_000_u32).map(|n| u8::try_from(n % 239).unwrap()).collect();
    let path = format!("/v2/{repo}/blobs/{}", target.push(&repo, &bytes));
    let part = |range: &str| target.send(Ask::new("GET", &path).header("Range", range)).expect(206).body;
    assert_eq!(part("bytes=0-"), bytes);
    assert_eq!([part("bytes=0-12344"), part("bytes=12345-")].concat(), bytes);
}

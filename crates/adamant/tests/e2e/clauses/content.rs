//! Kinds of content: each is pushed, listed and pulled again as it was, blob by blob and by every name.

use serde_json::{Value, json};

use super::{CONFIG, EMPTY, INDEX, LAYER, MANIFEST, OCTETS, Target, descriptor, print, sha256};
use crate::client::Ask;

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Pushes a manifest by digest and by tag; it must come back by both, as `GET` and as `HEAD`.
#[track_caller]
fn round(target: &Target, repo: &str, tag: &str, manifest: &[u8]) {
    let value: Value = serde_json::from_slice(manifest).unwrap();
    let kind = value["mediaType"].as_str().unwrap_or(MANIFEST);
    let digest = sha256(manifest);
    for reference in [digest.as_str(), tag] {
        target.put(repo, reference, manifest).expect(201);
    }
    for reference in [digest.as_str(), tag] {
        let path = format!("/v2/{repo}/manifests/{reference}");
        for method in ["GET", "HEAD"] {
            let answer = target.send(Ask::new(method, &path).header("Accept", kind)).expect(200);
            assert_eq!(answer.header("content-type"), kind, "{method} {reference}");
            assert_eq!(answer.header("docker-content-digest"), digest, "{method} {reference}");
            assert_eq!(answer.header("content-length"), manifest.len().to_string(), "{method} {reference}");
            assert!(method == "HEAD" || answer.body == manifest, "{reference}");
        }
    }
    let tags = target.get(&format!("/v2/{repo}/tags/list")).expect(200).json();
    assert!(tags["tags"].as_array().unwrap().contains(&json!(tag)), "{tags}");
}

/// image-spec, manifest.md: an image with compressed and with plain layers, and one without any.
#[test]
fn end_3_7_8_images() {
    let target = Target::new("images");
    let repo = target.repo("a");
    round(&target, &repo, "image", &target.image(&repo, "images"));
    let config = target.describe(&repo, CONFIG, br#"{"architecture":"amd64","os":"linux"}"#);
    let gzip = target.describe(&repo, &format!("{LAYER}+gzip"), b"\x1f\x8b not really");
    let zstd = target.describe(&repo, &format!("{LAYER}+zstd"), b"\x28\xb5\x2f\xfd not really");
    let image = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [gzip, zstd, gzip]});
    round(&target, &repo, "compressed", &print(&image));
    let image = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []});
    round(&target, &repo, "no-layers", &print(&image));
}

/// image-spec, image-index.md: platforms, an index in an index, an empty one.
#[test]
fn end_3_7_8_indexes() {
    let target = Target::new("indexes");
    let repo = target.repo("a");
    let mut children = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let image = target.image(&repo, architecture);
        target.put(&repo, &sha256(&image), &image).expect(201);
        let mut child = descriptor(MANIFEST, &image);
        child["platform"] = json!({"os": "linux", "architecture": architecture});
        children.push(child);
    }
    let index = print(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": children}));
    round(&target, &repo, "index", &index);
    let nested = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(INDEX, &index)]});
    round(&target, &repo, "nested", &print(&nested));
    let empty = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []});
    round(&target, &repo, "empty", &print(&empty));
}

/// image-spec, "Guidelines for Artifact Usage": with and without layers, alone and in an index.
#[test]
fn end_3_7_8_artifacts() {
    let target = Target::new("artifacts");
    let repo = target.repo("a");
    let empty = target.describe(&repo, EMPTY, b"{}");
    let content = target.describe(&repo, "application/vnd.example.v1", b"the artifact");
    let artifact = |config: &Value, layers: Value| {
        print(&json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.example.v1",
            "config": config, "layers": layers,
        }))
    };
    let whole = artifact(&empty, json!([content]));
    round(&target, &repo, "artifact", &whole);
    round(&target, &repo, "without-content", &artifact(&empty, json!([empty])));
    round(&target, &repo, "without-layers", &artifact(&empty, json!([])));
    // Of older clients: the type of the artifact is that of the configuration.
    let typed = target.describe(&repo, "application/vnd.example.config.v1+json", b"{\"a\":1}");
    let old = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": typed, "layers": [content]});
    round(&target, &repo, "old", &print(&old));
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX, "artifactType": "application/vnd.example.v1",
        "manifests": [descriptor(MANIFEST, &whole)],
    });
    round(&target, &repo, "index", &print(&index));
}

/// image-spec, descriptor.md, "data": the content beside its descriptor, which is still a blob.
#[test]
fn end_3_7_data_in_descriptors() {
    let target = Target::new("data");
    let repo = target.repo("a");
    let mut config = target.describe(&repo, EMPTY, b"{}");
    config["data"] = json!("e30=");
    let image = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "x/y", "config": config, "layers": [config],
    });
    round(&target, &repo, "data", &print(&image));
}

/// image-spec, layer.md, "Non-Distributable Layers": they lie elsewhere.
#[test]
fn end_3_7_non_distributable_layers() {
    let target = Target::new("foreign");
    let repo = target.repo("a");
    let config = target.describe(&repo, CONFIG, b"{}");
    let elsewhere = |kind: &str, content: &str| {
        let mut layer = descriptor(kind, content.as_bytes());
        layer["urls"] = json!([format!("https://store.example.com/{content}")]);
        layer
    };
    let image = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config,
        "layers": [
            elsewhere("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "one"),
            elsewhere("application/vnd.oci.image.layer.nondistributable.v1.tar", "two"),
            target.describe(&repo, LAYER, b"here"),
        ],
    });
    round(&target, &repo, "foreign", &print(&image));
}

/// "exact byte representation": members that no specification knows, in every document.
#[test]
fn end_3_7_custom_fields() {
    let target = Target::new("custom");
    let repo = target.repo("a");
    let config = target.describe(&repo, CONFIG, br#"{"architecture":"amd64","os":"linux","org.example":"x"}"#);
    let image = print(&json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [], "org.example": {"a": [1, null]},
    }));
    round(&target, &repo, "image", &image);
    let mut child = descriptor(MANIFEST, &image);
    child["org.example"] = json!(true);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child], "org.example": "y"});
    round(&target, &repo, "index", &print(&index));
}

/// Docker's schema 2 and manifest lists, from which these formats come.
#[test]
fn end_3_7_docker_manifests_and_lists() {
    let target = Target::new("docker");
    let repo = target.repo("a");
    let config = target.describe(&repo, "application/vnd.docker.container.image.v1+json", b"{}");
    let layer = target.describe(&repo, "application/vnd.docker.image.rootfs.diff.tar.gzip", b"layer");
    let image = json!({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config, "layers": [layer]});
    let image = print(&image);
    round(&target, &repo, "image", &image);
    let mut child = descriptor(DOCKER_MANIFEST, &image);
    child["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let list = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [child]});
    round(&target, &repo, "list", &print(&list));
}

/// "Pushing blobs": the well-known small ones.
#[test]
fn end_2_6_empty_and_tiny_blobs() {
    let target = Target::new("tiny");
    let repo = target.repo("a");
    for bytes in [b"".as_slice(), b"{}", b"\0"] {
        let digest = target.push(&repo, bytes);
        let path = format!("/v2/{repo}/blobs/{digest}");
        target.holds(&path, bytes);
        assert_eq!(target.head(&path).expect(200).header("content-length"), bytes.len().to_string());
        assert_eq!(target.get(&path).header("content-type"), OCTETS);
    }
}

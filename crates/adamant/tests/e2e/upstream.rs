//! One server reads another one's repositories through: first sight, a moved tag, the other's end.

use std::path::Path;
use std::process::Command;

use adamant_digest::Digest;
use serde_json::{Value, json};

use crate::client::Ask;
use crate::process::{Ended, installed, run, skipped};
use crate::template::exe;
use crate::world::{Server, fresh};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Pushes an image with one layer; gives its digest.
pub(crate) fn push(url: &str, repository: &str, tag: &str, layer: &[u8]) -> Digest {
    let describe = |bytes: &[u8], kind: &str| {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", Digest::of(bytes));
        let answer = Ask::new("POST", &path).body("application/octet-stream", bytes).send(url).unwrap();
        assert_eq!(answer.status, 201, "{}", answer.text());
        json!({"mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
    };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": describe(b"{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[]}}", "application/vnd.oci.image.config.v1+json"),
        "layers": [describe(layer, "application/vnd.oci.image.layer.v1.tar")],
    });
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let path = format!("/v2/{repository}/manifests/{tag}");
    let answer = Ask::new("PUT", &path).body(MANIFEST, &bytes).send(url).unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    Digest::of(&bytes)
}

fn reading_through(dir: &Path, url: &str) -> Server {
    let data = dir.join("data");
    std::fs::create_dir_all(&data).unwrap();
    let settings = format!("[[upstream]]\nname = \"up.example\"\nurl = \"{url}\"\nrepositories = [\"library/*\"]\n");
    std::fs::write(data.join("server.toml"), settings).unwrap();
    Server::start(&data, exe(), &["--anonymous-registry"])
}

fn upstream(server: &Server, arguments: &[&str]) -> Ended {
    run(Command::new(&server.exe).args(["upstream", "--json", "--data"]).arg(&server.data).args(arguments))
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_server_reads_another_one_through_and_outlives_it() {
    let dir = fresh("upstream");
    let mut there = Server::start(&dir.join("there"), exe(), &["--anonymous-registry"]);
    let one = push(&there.url, "library/x", "1", b"layer one");
    let here = reading_through(&dir, &there.url);
    let pull = |path: &str| Ask::new("GET", &format!("/v2/up.example/{path}")).send(&here.url).unwrap();
    let first = pull("library/x/manifests/1");
    assert_eq!((first.status, Digest::of(&first.body)), (200, one), "{}", first.text());
    assert_eq!(pull("library/none/manifests/1").status, 404);
    assert_eq!(pull("private/x/manifests/1").status, 403);

    // The other server binds its tags once as well, so the tag moves with the server.
    assert_eq!(parse(&upstream(&here, &["check"]).ok())["checked"], 1);
    let address = there.url.trim_start_matches("http://").to_owned();
    there.stop();
    drop(there);
    let mut command = Command::new(exe());
    command.args(["up", "--listen", &address, "--anonymous-registry", "--data"]).arg(dir.join("moved"));
    let process = crate::process::Background::spawn(&mut command);
    let mut there = Server::of(process, &dir.join("moved"), exe());
    let two = push(&there.url, "library/x", "1", b"layer two");
    for _ in 0..2 {
        let moved = upstream(&here, &["check", "up.example/library/x:1"]);
        assert_eq!(moved.code, 1, "{}", moved.err);
        let moved = parse(&moved.out);
        assert_eq!(moved["moved"][0]["bound"], one.to_string());
        assert_eq!(moved["moved"][0]["now"], two.to_string());
    }
    assert_eq!(Digest::of(&pull("library/x/manifests/1").body), one);
    let updated = parse(&upstream(&here, &["update", "up.example/library/x:1"]).ok());
    let name = updated["updated"].as_str().unwrap();
    assert!(name.starts_with("up.example/library/x:1-seen-2"), "{name}");
    assert_eq!(updated["digest"], two.to_string());

    there.kill();
    let tag = name.rsplit(':').next().unwrap();
    for (tag, digest, layer) in [("1", one, &b"layer one"[..]), (tag, two, b"layer two")] {
        assert_eq!(Digest::of(&pull(&format!("library/x/manifests/{tag}")).body), digest);
        assert_eq!(pull(&format!("library/x/blobs/{}", Digest::of(layer))).body, layer);
    }
    let gone = pull("library/x/manifests/2");
    assert_eq!(gone.status, 502);
    assert!(gone.text().contains("up.example") && gone.text().contains(&address), "{}", gone.text());
    assert_eq!(upstream(&here, &["check"]).code, 3);

    let listed = parse(&upstream(&here, &["list"]).ok());
    let tags = listed[0]["tags"].as_array().unwrap();
    assert_eq!(tags.len(), 2, "{listed}");
    assert_eq!((&tags[0]["by"], &tags[0]["moved"]), (&json!("upstream up.example"), &json!(two.to_string())));
    let metrics = Ask::new("GET", "/metrics").send(&here.url).unwrap().text();
    assert!(metrics.contains("adamant_upstream_moved_tags{upstream=\"up.example\"} 1"), "{metrics}");
    let fsck = run(Command::new(&here.exe).args(["fsck", "--data"]).arg(&here.data));
    assert_eq!(fsck.code, 0, "{}{}", fsck.out, fsck.err);
}

#[test]
fn skopeo_pulls_through_and_cannot_push() {
    let test = "skopeo_pulls_through_and_cannot_push";
    if !installed("skopeo") {
        return skipped(test, "skopeo is not installed");
    }
    let dir = fresh("upstream-skopeo");
    let there = Server::start(&dir.join("there"), exe(), &["--anonymous-registry"]);
    let one = push(&there.url, "library/x", "1", b"layer one");
    let here = reading_through(&dir, &there.url);
    let registry = here.url.trim_start_matches("http://");
    let image = format!("docker://{registry}/up.example/library/x:1");
    let to = dir.join("image");
    let copy = |from: &str, to: &str| {
        let options = ["copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", "--insecure-policy"];
        run(Command::new("skopeo").args(options).args([from, to]))
    };
    copy(&image, &format!("dir:{}", to.display())).ok();
    assert_eq!(Digest::of(&std::fs::read(to.join("manifest.json")).unwrap()), one);
    let refused = copy(&format!("dir:{}", to.display()), &format!("docker://{registry}/up.example/library/y:1"));
    assert!(refused.code != 0 && refused.err.contains("denied"), "{}", refused.err);
}

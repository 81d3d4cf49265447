//! Images that umoci makes, and artifacts of oras.

use std::path::Path;

use super::{bound, done, errors, is_missing, run, skipped};
use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn images_of_umoci() {
    let test = "images_of_umoci";
    if is_missing(test, "umoci") || is_missing(test, "skopeo") {
        return;
    }
    let world = World::new().await;
    let here = tempfile::tempdir().unwrap();
    let layout = here.path().join("layout").to_str().unwrap().to_owned();
    done("umoci", &["init", "--layout", &layout]).await;
    for (name, command) in [("one", "/bin/one"), ("two", "/bin/two")] {
        let image = format!("{layout}:{name}");
        let created = "--created=2026-01-01T00:00:00Z";
        done("umoci", &["new", "--image", &image]).await;
        done("umoci", &["config", "--image", &image, "--config.cmd", command, created, "--no-history"]).await;
    }
    // An image without a layer: umoci begins with none.
    let to = format!("docker://{}/shop/umoci:v1", world.address);
    let copy = async |from: &str, to: &str| {
        let both = ["--src-tls-verify=false", "--dest-tls-verify=false"];
        run("skopeo", &[&["copy", "--preserve-digests"], &both[..], &[from, to]].concat()).await
    };
    let mut written = None;
    for _ in 0..2 {
        let pushed = copy(&format!("oci:{layout}:one"), &to).await;
        assert!(pushed.status.success(), "{}", errors(&pushed));
        assert_eq!(*written.get_or_insert(world.ledger.size()), world.ledger.size());
    }
    let digest = bound(&world, "shop/umoci", "v1").await;
    let refused = copy(&format!("oci:{layout}:two"), &to).await;
    assert!(!refused.status.success());
    assert!(errors(&refused).contains(&digest) && errors(&refused).contains("new tag"), "{}", errors(&refused));
    // Back into a layout, by tag and by digest, and umoci reads it.
    for (name, from) in [("tag", to.clone()), ("digest", format!("docker://{}/shop/umoci@{digest}", world.address))] {
        let pulled = copy(&from, &format!("oci:{layout}:{name}")).await;
        assert!(pulled.status.success(), "{}", errors(&pulled));
        done("umoci", &["stat", "--image", &format!("{layout}:{name}")]).await;
    }
    let copied = copy(&to, &format!("docker://{}/copy/umoci:v1", world.address)).await;
    assert!(copied.status.success(), "{}", errors(&copied));
    assert_eq!(bound(&world, "copy/umoci", "v1").await, digest);
    let tags = done("skopeo", &["list-tags", "--tls-verify=false", to.trim_end_matches(":v1")]).await;
    assert!(tags.contains("\"v1\""), "{tags}");
}

/// All that is asked of a client, in the Python client's words; it prints `ok` at the end.
const ORAS: &str = r#"
import os, sys
import oras.client

address, here = sys.argv[1], sys.argv[2]
os.chdir(here)
client = oras.client.OrasClient(hostname=address, insecure=True)
with open("file.txt", "w") as file:
    file.write("an artifact")
target = f"{address}/shop/oras"
for _ in range(2):
    answer = client.push(target=f"{target}:v1", files=["file.txt"], disable_path_validation=True)
    assert answer.status_code == 201, answer.status_code
digest = answer.headers["Docker-Content-Digest"]
for reference in (f"{target}:v1", f"{target}@{digest}"):
    for file in client.pull(target=reference, outdir="pulled"):
        assert open(file).read() == "an artifact", file
assert client.get_tags(f"{target}:v1") == ["v1"], client.get_tags(f"{target}:v1")
client.push(target=f"{address}/copy/oras:v1", files=["pulled/file.txt"], disable_path_validation=True)
with open("file.txt", "w") as file:
    file.write("another one")
try:
    client.push(target=f"{target}:v1", files=["file.txt"], disable_path_validation=True)
except Exception as error:
    print("refused:", error)
else:
    sys.exit("a bound tag was bound again")
print(digest)
print("ok")
"#;

/// `./test --packages` puts the Python client into a directory of its own below `target`.
#[tokio::test(flavor = "multi_thread")]
async fn artifacts_of_oras() {
    let test = "artifacts_of_oras";
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/oras/bin/python");
    let python = python.to_str().unwrap();
    if !Path::new(python).exists() {
        return skipped(test, "oras is not installed: run ./test --packages");
    }
    let world = World::new().await;
    let here = tempfile::tempdir().unwrap();
    let output = run(python, &["-c", ORAS, &world.address.to_string(), here.path().to_str().unwrap()]).await;
    assert!(output.status.success(), "{}", errors(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let digest = bound(&world, "shop/oras", "v1").await;
    assert!(said.trim().ends_with("ok") && said.contains(&digest), "{said}");
    // It prints the status line of an answer and never its body.
    let refused = said.lines().find(|line| line.starts_with("refused:")).unwrap();
    for part in ["Conflict: `shop/oras:v1`", &digest, "by alice", "new tag"] {
        assert!(refused.contains(part), "{part} is not in: {refused}");
    }
    bound(&world, "copy/oras", "v1").await;
}

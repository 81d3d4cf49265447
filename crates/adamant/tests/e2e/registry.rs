//! `/v2/` of the real server: the naming law under races, readers, and other people's clients.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

use adamant_digest::Digest;
use serde_json::json;

use crate::client::{Ask, Connection};
use crate::process::{installed, run, skipped, wait_for};
use crate::world::{World, fresh};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image manifest of blobs that `seed` pushed, told apart by its annotation.
fn manifest(mark: &str) -> Vec<u8> {
    let empty = json!({
        "mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}").to_string(), "size": 2,
    });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/x.test",
        "config": empty, "layers": [empty], "annotations": { "mark": mark },
    });
    serde_json::to_vec(&manifest).unwrap()
}

fn seed(url: &str, token: &str, repository: &str) {
    let path = format!("/v2/{repository}/blobs/uploads/?digest={}", Digest::of(b"{}"));
    let answer = Ask::new("POST", &path).token(token).body("application/octet-stream", b"{}").send(url).unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
}

#[test]
fn of_eight_clients_that_race_for_a_tag_one_gets_it() {
    let Some(world) = World::new("of_eight_clients_that_race_for_a_tag_one_gets_it") else { return };
    let (url, token) = (world.server.url.clone(), world.token());
    seed(&url, &token, "race/one");
    for round in 0..30 {
        let path = format!("/v2/race/one/manifests/round-{round}");
        let start = Arc::new(Barrier::new(10));
        let done = Arc::new(AtomicBool::new(false));
        // Readers see one value from the first to the last look.
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (url, token, path) = (url.clone(), token.clone(), path.clone());
                let (start, done) = (Arc::clone(&start), Arc::clone(&done));
                std::thread::spawn(move || {
                    let mut seen = BTreeSet::new();
                    let mut connection = Connection::open(&url).unwrap();
                    start.wait();
                    loop {
                        let last = done.load(Ordering::SeqCst);
                        let answer = connection.ask(&Ask::new("GET", &path).token(&token), false).unwrap();
                        match answer.status {
                            200 => drop(seen.insert(Digest::of(&answer.body))),
                            404 => assert!(seen.is_empty(), "a bound tag was gone"),
                            other => panic!("{other}: {}", answer.text()),
                        }
                        if last {
                            return seen;
                        }
                    }
                })
            })
            .collect();
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let (url, token, path) = (url.clone(), token.clone(), path.clone());
                let start = Arc::clone(&start);
                std::thread::spawn(move || {
                    let bytes = manifest(&format!("{round}/{writer}"));
                    let mut connection = Connection::open(&url).unwrap();
                    start.wait();
                    let ask = Ask::new("PUT", &path).token(&token).body(MANIFEST, &bytes);
                    let answer = connection.ask(&ask, true).unwrap();
                    (answer.status, Digest::of(&bytes), answer.text())
                })
            })
            .collect();
        let answers: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        done.store(true, Ordering::SeqCst);
        let winners: Vec<_> = answers.iter().filter(|(status, ..)| *status == 201).collect();
        assert_eq!(winners.len(), 1, "{answers:?}");
        for (status, digest, text) in answers.iter().filter(|(status, ..)| *status != 201) {
            assert_eq!(*status, 409, "{text}");
            // Both digests are named.
            assert!(text.contains(&digest.to_string()) && text.contains(&winners[0].1.to_string()), "{text}");
        }
        for reader in readers {
            assert_eq!(reader.join().unwrap(), BTreeSet::from([winners[0].1]));
        }
    }
    world.assert_sound("after the races");
}

#[test]
fn a_thousand_identical_pushes_disturb_no_reader() {
    let Some(world) = World::new("a_thousand_identical_pushes_disturb_no_reader") else { return };
    let (url, token) = (world.server.url.clone(), world.token());
    seed(&url, &token, "race/same");
    let bytes = manifest("same");
    let digest = Digest::of(&bytes);
    let path = "/v2/race/same/manifests/v1";
    let first = Ask::new("PUT", path).token(&token).body(MANIFEST, &bytes).send(&url).unwrap();
    assert_eq!(first.status, 201, "{}", first.text());
    let size = world.shop.status().log_size;
    let (done, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let readers: Vec<_> = (0..4)
        .map(|reader| {
            let (url, token, done, reads) = (url.clone(), token.clone(), Arc::clone(&done), Arc::clone(&reads));
            let path = if reader % 2 == 0 { path.to_owned() } else { format!("/v2/race/same/manifests/{digest}") };
            std::thread::spawn(move || {
                let mut connection = Connection::open(&url).unwrap();
                while !done.load(Ordering::Relaxed) {
                    let answer = connection.ask(&Ask::new("GET", &path).token(&token), false).unwrap();
                    assert_eq!((answer.status, Digest::of(&answer.body)), (200, digest), "a bad read");
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut connection = Connection::open(&url).unwrap();
    for _ in 0..1000 {
        let answer = connection.ask(&Ask::new("PUT", path).token(&token).body(MANIFEST, &bytes), false).unwrap();
        assert_eq!(answer.status, 201, "{}", answer.text());
    }
    wait_for("reads", || (reads.load(Ordering::Relaxed) > 100).then_some(()));
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
    // The same binding again writes nothing.
    assert_eq!(world.shop.status().log_size, size);
}

#[test]
fn an_anonymous_registry_opens_v2_alone_on_loopback_alone() {
    let test = "an_anonymous_registry_opens_v2_alone_on_loopback_alone";
    let Some(mut world) = World::with(test, &["--anonymous-registry"]) else { return };
    let url = world.server.url.clone();
    let status = |method: &str, path: &str| Ask::new(method, path).send(&url).unwrap().status;
    assert_eq!(status("GET", "/v2/"), 200);
    assert_eq!(status("GET", "/v2/shop/web/manifests/2"), 200);
    assert_eq!(status("DELETE", "/v2/shop/web/manifests/2"), 405);
    for path in ["/api/v1/projects", "/", "/git/shop.git/info/refs?service=git-upload-pack"] {
        assert_eq!(status("GET", path), 401, "{path}");
    }
    // A token that does not hold is refused, not ignored.
    assert_eq!(Ask::new("GET", "/v2/").token("guess").send(&url).unwrap().status, 401);
    world.server.stop();
    let mut command = Command::new(&world.exe);
    command.args(["up", "--anonymous-registry", "--listen", "0.0.0.0:0", "--data"]).arg(&world.data);
    let text = run(&mut command).fails(2);
    assert!(text.contains("loopback"), "{text}");
}

#[test]
fn what_a_client_pushes_is_published() {
    let Some(world) = World::new("what_a_client_pushes_is_published") else { return };
    let (url, token) = (world.server.url.clone(), world.token());
    seed(&url, &token, "tools/other");
    let size = world.shop.status().log_size;
    wait_for("the published checkpoint", || {
        let answer = Ask::new("GET", "/log/checkpoint").send(&url).unwrap();
        let text = String::from_utf8(answer.body).unwrap();
        (text.lines().nth(1) == Some(size.to_string().as_str())).then_some(())
    });
}

/// Nothing a registry client may do keeps a project from being released.
#[test]
fn clients_cannot_stand_in_the_way_of_a_project() {
    let Some(world) = World::new("clients_cannot_stand_in_the_way_of_a_project") else { return };
    let (url, token) = (world.server.url.clone(), world.token());
    let put = |repository: &str, tag: &str, bytes: &[u8]| {
        let path = format!("/v2/{repository}/manifests/{tag}");
        Ask::new("PUT", &path).token(&token).body(MANIFEST, bytes).send(&url).unwrap()
    };
    // The next release's number, and more facts about the artifact than anybody reads.
    seed(&url, &token, "shop/web");
    assert_eq!(put("shop/web", "3", &manifest("squat")).status, 403);
    let digest = world.shop.status().releases[0].artifacts[0].digest;
    let path = format!("/v2/shop/web/manifests/{digest}");
    let artifact = Ask::new("GET", &path).token(&token).send(&url).unwrap().body;
    let config: serde_json::Value = serde_json::from_slice(&artifact).unwrap();
    assert!(config["layers"].is_array());
    for n in 0..1100 {
        assert_eq!(put("flood/web", &format!("t{n}"), &artifact).status, 201);
    }
    let commit = world.shop.commit("the same tree again");
    let pushed = world.shop.push();
    assert!(pushed.err.contains("reused from shop/2") && pushed.err.contains("dev     healthy"), "{}", pushed.err);
    let release = world.shop.release_of(&commit);
    assert_eq!(release, "shop/3");
    world.shop.adamant(&["promote", &release, "staging"]).ok();
    // A refusal that is asked for again and again is one fact.
    let size = world.shop.status().log_size;
    let fourth = world.shop.commit("and again");
    world.shop.push().ok();
    let fourth = world.shop.release_of(&fourth);
    let before = world.shop.status().log_size;
    assert!(before > size);
    for _ in 0..3 {
        world.shop.adamant(&["promote", &fourth, "prod"]).fails(1);
    }
    assert_eq!(world.shop.status().log_size, before + 1);
    let capsule = world.dir.join("staging.capsule");
    world.shop.adamant(&["prove", "staging", "-o", &capsule.display().to_string()]).ok();
    let trust = world.data.join("trust.json");
    world.shop.adamant(&["verify", &capsule.display().to_string(), "--trust", &trust.display().to_string()]).ok();
    world.assert_sound("after the flood");
}

#[test]
fn skopeo_copies_by_tag_and_by_digest() {
    let test = "skopeo_copies_by_tag_and_by_digest";
    if !installed("skopeo") {
        return skipped(test, "skopeo is not installed");
    }
    let Some(world) = World::new(test) else { return };
    let registry = world.server.url.trim_start_matches("http://");
    let digest = world.shop.status().releases[0].artifacts[0].digest;
    let credentials = format!("me:{}", world.token());
    for (name, reference) in
        [("tag", format!("{registry}/shop/web:2")), ("digest", format!("{registry}/shop/web@{digest}"))]
    {
        let to = world.dir.join(name);
        let copied = run(Command::new("skopeo")
            .args(["copy", "--quiet", "--src-tls-verify=false", "--src-creds", &credentials, "--insecure-policy"])
            .arg(format!("docker://{reference}"))
            .arg(format!("dir:{}", to.display())));
        copied.ok();
        assert_eq!(Digest::of(&std::fs::read(to.join("manifest.json")).unwrap()), digest, "{name}");
    }
}

#[test]
fn podman_pulls_and_runs_what_was_built() {
    let test = "podman_pulls_and_runs_what_was_built";
    if !installed("podman") {
        return skipped(test, "podman is not installed");
    }
    let Some(world) = World::new(test) else { return };
    let registry = world.server.url.trim_start_matches("http://");
    let digest = world.shop.status().releases[0].artifacts[0].digest;
    let dir = fresh("podman");
    // Above the limits that podman has itself (of processes it gives itself fewer), nothing starts.
    let limit = |resource, most: u64| rustix::process::getrlimit(resource).maximum.unwrap_or(most).min(most);
    let files = limit(rustix::process::Resource::Nofile, 1 << 20);
    let processes = limit(rustix::process::Resource::Nproc, 1 << 15);
    let settings = dir.join("containers.conf");
    let ulimits = format!("\"nofile={files}:{files}\", \"nproc={processes}:{processes}\"");
    // runc, because crun refuses hosts with control groups of both versions.
    let engine = "[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";
    std::fs::write(&settings, format!("[containers]\ndefault_ulimits = [{ulimits}]\n{engine}")).unwrap();
    let podman = |arguments: &[&str]| {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", &settings);
        command.args(["--storage-driver", "vfs", "--root"]).arg(dir.join("root"));
        command.arg("--runroot").arg(dir.join("run")).args(arguments);
        run(&mut command)
    };
    let credentials = format!("me:{}", world.token());
    for reference in [format!("{registry}/shop/web:2"), format!("{registry}/shop/web@{digest}")] {
        podman(&["pull", "--quiet", "--tls-verify=false", "--creds", &credentials, &reference]).ok();
    }
    let image = format!("{registry}/shop/web@{digest}");
    let known = podman(&["image", "inspect", "--format", "{{.Digest}}", &image]).ok();
    assert_eq!(known.trim(), digest.to_string());
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let started =
        podman(&["run", "--detach", "--name", "shop", "--network=host", "--env", &format!("PORT={port}"), &image]);
    if started.code == 0 {
        let page = wait_for("the program under podman", || {
            crate::client::get(&format!("http://127.0.0.1:{port}/")).ok().filter(|answer| answer.status == 200)
        });
        assert!(page.text().contains("version second"), "{}", page.text());
    } else {
        skipped(
            test,
            &format!("pulled, but podman cannot run programs here: {}", started.err.trim().replace('\n', "; ")),
        );
    }
    let _ = podman(&["rm", "--force", "--time", "0", "shop"]);
    let _ = podman(&["rmi", "--all", "--force"]);
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn a_pointer_of_the_operator_moves_and_its_log_says_how() {
    let Some(mut world) = World::new("a_pointer_of_the_operator_moves_and_its_log_says_how") else { return };
    world.server.stop();
    std::fs::write(world.server.data.join("server.toml"), "[registry]\npointers = [\"latest\"]\n").unwrap();
    world.server = crate::world::Server::start(&world.server.data, &world.server.exe, &[]);
    let (url, token) = (world.server.url.clone(), world.token());
    seed(&url, &token, "tools/tool");
    let put = |mark: &str| {
        let bytes = manifest(mark);
        let path = "/v2/tools/tool/manifests/latest";
        let answer = Ask::new("PUT", path).token(&token).body(MANIFEST, &bytes).send(&url).unwrap();
        assert_eq!(answer.status, 201, "{}", answer.text());
        Digest::of(&bytes)
    };
    let (one, two) = (put("one"), put("two"));
    let shown = world.shop.adamant(&["pointer", "log", "tools/tool:latest"]).ok();
    let digests: Vec<_> = shown.lines().map(|line| line.split_whitespace().nth(2).unwrap().to_owned()).collect();
    assert_eq!(digests, [two.to_string(), one.to_string()], "{shown}");
    let json: serde_json::Value =
        serde_json::from_str(&world.shop.adamant(&["pointer", "log", "tools/tool:latest", "--json"]).ok()).unwrap();
    assert_eq!((&json[0]["from"], &json[1]["sequence"]), (&json!(one.to_string()), &json!(1)));
    world.assert_sound("after a pointer moved");
}

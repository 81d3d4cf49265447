//! Two servers with data directories of their own on one PostgreSQL and one bucket.

use std::path::Path;
use std::sync::{Arc, Barrier};

use adamant_conformance::services::{Postgres, S3};
use adamant_digest::Digest;
use serde_json::json;

use crate::client::{Ask, Connection};
use crate::process::{Background, run};
use crate::template::exe;
use crate::world::{Server, fresh, up};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const TEST: &str = "two_servers_on_one_database_and_bucket";

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

fn start(data: &Path, s3: &S3) -> Server {
    let mut command = up(data, exe(), &["--anonymous-registry"]);
    command.envs(s3.key().clone());
    Server::of(Background::spawn(&mut command), data, exe())
}

/// A tag raced over both servers is bound once; what is pushed to one is pulled from the other; an
/// upload belongs to the server it was begun on; the whole is sound when looked at from either.
#[test]
fn two_servers_on_one_database_and_bucket() {
    let (Some(postgres), Some(s3)) = (Postgres::start(TEST), S3::start(TEST)) else { return };
    s3.bucket("artifacts");
    let (first, second) = (fresh("first"), fresh("second"));
    let settings = format!(
        "[database]\nurl = \"{}\"\n[blobs]\nurl = \"s3://artifacts/{}\"\nendpoint = \"{}\"\npath-style = true\n",
        postgres.database("adamant"),
        // Of this run: a store that is named may hold what earlier ones left.
        std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos(),
        s3.endpoint(),
    );
    for data in [&first, &second] {
        std::fs::write(data.join("server.toml"), &settings).unwrap();
    }
    let one = start(&first, &s3);
    // Other keys are refused before they sign anything.
    let refused = run(up(&second, exe(), &[]).envs(s3.key().clone()));
    assert!(refused.code != 0 && refused.err.contains("copy that directory"), "{}", refused.err);
    std::fs::remove_dir_all(second.join("keys")).unwrap();
    assert_eq!(run(std::process::Command::new("cp").arg("-a").arg(first.join("keys")).arg(&second)).code, 0);
    let two = start(&second, &s3);
    let urls = [one.url.clone(), two.url.clone()];
    assert!(!first.join("adamant.db").exists() && !first.join("blobs").exists(), "nothing is kept beside");

    let path = format!("/v2/race/one/blobs/uploads/?digest={}", Digest::of(b"{}"));
    let answer = Ask::new("POST", &path).body("application/octet-stream", b"{}").send(&urls[0]).unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    for round in 0..30 {
        let path = format!("/v2/race/one/manifests/round-{round}");
        let begin = Arc::new(Barrier::new(8));
        let writers: Vec<_> = (0..8)
            .map(|writer: usize| {
                let (url, path, begin) = (urls[writer % 2].clone(), path.clone(), Arc::clone(&begin));
                std::thread::spawn(move || {
                    let bytes = manifest(&format!("{round}/{writer}"));
                    let mut connection = Connection::open(&url).unwrap();
                    begin.wait();
                    let answer = connection.ask(&Ask::new("PUT", &path).body(MANIFEST, &bytes), true).unwrap();
                    (answer.status, Digest::of(&bytes), answer.text())
                })
            })
            .collect();
        let answers: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        let winners: Vec<_> = answers.iter().filter(|(status, ..)| *status == 201).collect();
        assert_eq!(winners.len(), 1, "round {round}: {answers:?}");
        for (status, digest, text) in answers.iter().filter(|(status, ..)| *status != 201) {
            assert_eq!(*status, 409, "{text}");
            assert!(text.contains(&digest.to_string()) && text.contains(&winners[0].1.to_string()), "{text}");
        }
        for url in &urls {
            let answer = Ask::new("GET", &path).send(url).unwrap();
            assert_eq!((answer.status, Digest::of(&answer.body)), (200, winners[0].1), "both tell the same");
        }
    }

    // Not on the server it was begun on: a clean refusal, and the client starts again.
    let begun = Ask::new("POST", "/v2/race/one/blobs/uploads/").send(&urls[0]).unwrap();
    assert_eq!(begun.status, 202, "{}", begun.text());
    let location = begun.header("location").to_owned();
    let there = location.find("/v2/").map_or(location.as_str(), |at| &location[at..]);
    let answer = Ask::new("PATCH", there).body("application/octet-stream", b"x").send(&urls[1]).unwrap();
    assert_eq!(answer.status, 404, "{}", answer.text());
    assert!(answer.text().contains("BLOB_UPLOAD_UNKNOWN"), "{}", answer.text());
    let answer = Ask::new("PATCH", there).body("application/octet-stream", b"x").send(&urls[0]).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());

    for data in [&first, &second] {
        let fsck = run(std::process::Command::new(exe()).args(["fsck", "--data"]).arg(data).envs(s3.key().clone()));
        assert_eq!(fsck.code, 0, "{}{}", fsck.out, fsck.err);
    }
}

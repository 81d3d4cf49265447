//! Two servers with data directories of their own on one PostgreSQL and one bucket.

use std::path::Path;
use std::sync::{Arc, Barrier};

use adamant_conformance::services::{Postgres, S3};
use adamant_digest::{Digest, Sha512};
use serde_json::json;
use sqlx::Connection as _;

use crate::client::{Ask, Connection};
use crate::erase::Person;
use crate::process::{Background, run, wait_for};
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

/// Two data directories with the same keys over one database and one prefix of a bucket, each with a
/// running server.
struct Pair {
    data: [std::path::PathBuf; 2],
    servers: [Server; 2],
    database: String,
    /// Bucket and prefix.
    place: String,
}

impl Pair {
    /// `more` are further settings of the first one.
    fn start(postgres: &Postgres, s3: &S3, more: &str) -> Self {
        s3.bucket("artifacts");
        // Of this run: a store that is named may hold what earlier ones left.
        let place = format!("artifacts/{}", std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos());
        let (first, second) = (fresh("first"), fresh("second"));
        let database = postgres.database("adamant");
        let settings = format!(
            "[database]\nurl = \"{database}\"\n[blobs]\nurl = \"s3://{place}\"\nendpoint = \"{}\"\npath-style = true\n",
            s3.endpoint(),
        );
        std::fs::write(first.join("server.toml"), format!("{settings}{more}")).unwrap();
        std::fs::write(second.join("server.toml"), settings).unwrap();
        let one = start(&first, s3);
        // Other keys are refused before they sign anything.
        let refused = run(up(&second, exe(), &[]).envs(s3.key().clone()));
        assert!(refused.code != 0 && refused.err.contains("copy that directory"), "{}", refused.err);
        std::fs::remove_dir_all(second.join("keys")).unwrap();
        assert_eq!(run(std::process::Command::new("cp").arg("-a").arg(first.join("keys")).arg(&second)).code, 0);
        let two = start(&second, s3);
        Self { data: [first, second], servers: [one, two], database, place }
    }

    fn urls(&self) -> [String; 2] {
        [self.servers[0].url.clone(), self.servers[1].url.clone()]
    }
}

/// A tag raced over both servers is bound once; what is pushed to one is pulled from the other; an
/// upload belongs to the server it was begun on; the whole is sound when looked at from either.
#[test]
fn two_servers_on_one_database_and_bucket() {
    let (Some(postgres), Some(s3)) = (Postgres::start(TEST), S3::start(TEST)) else { return };
    let pair = Pair::start(&postgres, &s3, "");
    let (urls, [first, second]) = (pair.urls(), &pair.data);
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
    assert!(answer.text().contains("another server began it; start again"), "{}", answer.text());
    let answer = Ask::new("PATCH", there).body("application/octet-stream", b"x").send(&urls[0]).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());

    for data in [first, second] {
        let fsck = run(std::process::Command::new(exe()).args(["fsck", "--data"]).arg(data).envs(s3.key().clone()));
        assert_eq!(fsck.code, 0, "{}{}", fsck.out, fsck.err);
    }
}

/// What the chain `damage` says: of which digest, in which state, how.
fn damages(database: &str) -> Vec<(String, String, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let statements: Vec<Vec<u8>> = runtime.block_on(async {
        let mut connection = sqlx::PgConnection::connect(database).await.unwrap();
        sqlx::query_scalar("SELECT statement FROM entries ORDER BY idx").fetch_all(&mut connection).await.unwrap()
    });
    let parsed = statements.iter().map(|bytes| serde_json::from_slice::<serde_json::Value>(bytes).unwrap());
    let damages = parsed.filter(|of| of["predicateType"] == "https://adamant.dev/predicate/damage/v1");
    let text = |of: &serde_json::Value, key: &str| of["predicate"][key].as_str().unwrap().to_owned();
    damages.map(|of| (text(&of, "digest"), text(&of, "state"), text(&of, "how"))).collect()
}

/// Wrong bytes in a bucket: found by the scrub of one server, refused by both, told once, and healed by
/// a push to the other.
#[test]
fn damage_in_a_bucket_is_known_to_both_servers_and_healed_over_either() {
    const TEST: &str = "damage_in_a_bucket_is_known_to_both_servers_and_healed_over_either";
    let (Some(postgres), Some(s3)) = (Postgres::start(TEST), S3::start(TEST)) else { return };
    let mut pair = Pair::start(&postgres, &s3, "[store]\nscrub-mb-per-second = 1000\n");
    let bytes: Vec<u8> = (0..60_000_u32).flat_map(|n| *Digest::of(&n.to_le_bytes()).as_bytes()).collect();
    let digest = Digest::of(&bytes);
    let push = |url: &str| {
        let path = format!("/v2/a/blobs/uploads/?digest={digest}");
        Ask::new("POST", &path).body("application/octet-stream", &bytes).send(url).unwrap().expect(201);
    };
    let ask = |method: &str, url: &str| Ask::new(method, &format!("/v2/a/blobs/{digest}")).send(url).unwrap();
    push(&pair.servers[1].url);
    for url in pair.urls() {
        assert_eq!(ask("GET", &url).expect(200).body, bytes);
    }
    for server in &mut pair.servers {
        server.stop();
    }
    let object = format!("{}/sha256/{}", pair.place, digest.hex());
    let mut wrong = s3.object(&object);
    wrong[1_000_000] ^= 1;
    s3.overwrite(&object, &wrong);

    pair.servers[0] = start(&pair.data[0], &s3);
    let fact = |state: &str, how: &str| (digest.to_string(), state.to_owned(), how.to_owned());
    let found = || Some(damages(&pair.database)).filter(|facts| !facts.is_empty());
    assert_eq!(wait_for("the damage is recorded", found), [fact("found", "scrub")]);
    // Known to a server that never read it.
    pair.servers[1] = start(&pair.data[1], &s3);
    for url in pair.urls() {
        assert_eq!(ask("HEAD", &url).status, 404, "so that clients send it again");
        assert_eq!(ask("GET", &url).status, 500);
        let metrics = Ask::new("GET", "/metrics").send(&url).unwrap().text();
        assert!(metrics.contains("adamant_blobs_damaged 1\n"), "{metrics}");
    }

    push(&pair.servers[1].url);
    for url in pair.urls() {
        assert_eq!(ask("HEAD", &url).status, 200);
        assert_eq!(ask("GET", &url).expect(200).body, bytes);
    }
    let healed = || Some(damages(&pair.database)).filter(|facts| facts.len() > 1);
    assert_eq!(wait_for("the healing is recorded", healed), [fact("found", "scrub"), fact("healed", "read")]);
    // Time for both servers to look again: one damage and one healing are told once.
    std::thread::sleep(std::time::Duration::from_secs(12));
    assert_eq!(damages(&pair.database).len(), 2, "{:?}", damages(&pair.database));
}

/// What one server erases is refused by the other within seconds, by all names, and so it stays after
/// a start; a copy that it took before it knew goes.
#[test]
fn an_erasure_by_one_server_holds_on_the_other() {
    const TEST: &str = "an_erasure_by_one_server_holds_on_the_other";
    let (Some(postgres), Some(s3)) = (Postgres::start(TEST), S3::start(TEST)) else { return };
    let mut pair = Pair::start(&postgres, &s3, "");
    let urls = pair.urls();
    let (bob, carol) = (Person::new(&pair.data[0], "bob", "bob"), Person::new(&pair.data[1], "carol", "carol"));
    let secret = b"a private key";
    let (digest, other) = (Digest::of(secret).to_string(), Sha512::of(secret).to_string());
    let push = |url: &str| {
        let path = format!("/v2/some/where/blobs/uploads/?digest={digest}");
        Ask::new("POST", &path).body("application/octet-stream", secret).send(url).unwrap()
    };
    assert_eq!(push(&urls[0]).status, 201);
    let get = |url: &str, name: &str| Ask::new("GET", &format!("/v2/some/where/blobs/{name}")).send(url).unwrap();
    for url in &urls {
        assert_eq!(get(url, &digest).status, 200);
    }
    bob.erase(&urls[0], &[&digest, "--reason", "a key leaked"]).ok();
    wait_for("bob's token on the other server", || (bob.erase(&urls[1], &["--list"]).code == 0).then_some(()));
    assert!(bob.erase(&urls[1], &[&digest, "--approve"]).fails(1).contains("two people"));
    carol.erase(&urls[1], &[&digest, "--approve"]).ok();
    assert_eq!(get(&urls[1], &digest).status, 410);
    let begin = std::time::Instant::now();
    wait_for("the other server's tombstone", || (get(&urls[0], &digest).status == 410).then_some(()));
    assert!(begin.elapsed().as_secs() < 15, "{:?}", begin.elapsed());
    let known = |urls: &[String; 2]| {
        for url in urls {
            for name in [&digest, &other] {
                let answer = get(url, name);
                assert!(answer.status == 410 && answer.text().contains("a key leaked"), "{}", answer.text());
            }
            assert_eq!(push(url).status, 403);
        }
    };
    known(&urls);
    pair.servers[0].kill();
    pair.servers[0] = start(&pair.data[0], &s3);
    known(&pair.urls());
    for data in &pair.data {
        let fsck = run(std::process::Command::new(exe()).args(["fsck", "--data"]).arg(data).envs(s3.key().clone()));
        assert_eq!(fsck.code, 0, "{}{}", fsck.out, fsck.err);
    }
}

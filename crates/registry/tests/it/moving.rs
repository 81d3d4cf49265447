//! Pointers that the operator names: another type than tags, with a history and compare-and-swap.

use std::sync::Arc;

use adamant_digest::Digest;
use adamant_oci::Manifest;
use serde_json::json;

use crate::world::{Answer, World};

async fn images(world: &World, marks: &[&str]) -> Vec<Manifest> {
    let mut all = Vec::new();
    for mark in marks {
        all.push(world.image("a", mark).await);
    }
    all
}

fn etag(manifest: &Manifest) -> String {
    format!("\"{}\"", manifest.digest())
}

/// Where `a:<tag>` leads.
async fn led(world: &World, tag: &str) -> String {
    let answer = world.get(&format!("/v2/a/manifests/{tag}")).await.expect(200);
    assert_eq!(answer.header("docker-content-digest"), Digest::of(answer.bytes()).to_string());
    answer.header("docker-content-digest").to_owned()
}

async fn history(world: &World, tag: &str) -> Vec<(u64, Digest, Option<Digest>)> {
    let moves = world.registry.moves(&"a".parse().unwrap(), &tag.parse().unwrap(), 100).await.unwrap();
    moves.into_iter().map(|m| (m.sequence, m.digest, m.from)).collect()
}

#[tokio::test]
async fn a_pointer_moves_and_keeps_its_history() {
    let world = World::pointing(&["latest"]).await;
    let all = images(&world, &["1", "2"]).await;
    let (one, two) = (&all[0], &all[1]);
    for manifest in [one, two, two, one] {
        world.put("a", "latest", manifest).await.expect(201);
        assert_eq!(led(&world, "latest").await, manifest.digest().to_string());
    }
    let (a, b) = (one.digest(), two.digest());
    assert_eq!(history(&world, "latest").await, [(3, a, Some(b)), (2, b, Some(a)), (1, a, None)]);
    assert_eq!(world.ledger.divergences(), 0);
    // It is listed once and answers as a tag does; what it led to stays; it is not deleted.
    let answer = world.get("/v2/a/manifests/latest").await.expect(200);
    assert_eq!((answer.header("etag"), answer.header("cache-control")), (&*etag(one), "no-cache"));
    world.send("GET", "/v2/a/manifests/latest", &[("if-none-match", &etag(one))], b"").await.expect(304);
    world.put("a", "v1", two).await.expect(201);
    assert_eq!(world.get("/v2/a/tags/list").await.expect(200).json()["tags"], json!(["latest", "v1"]));
    world.get(&format!("/v2/a/manifests/{b}")).await.expect(200);
    world.send("DELETE", "/v2/a/manifests/latest", &[], b"").await.fails(405, "UNSUPPORTED");
    // Other tags are tags.
    world.put("a", "v1", one).await.fails(409, "TAG_INVALID");
    assert_eq!(history(&world, "v1").await, []);
}

#[tokio::test]
async fn a_push_by_digest_may_move_a_pointer_and_bind_a_tag_or_neither() {
    let world = World::pointing(&["latest"]).await;
    let all = images(&world, &["1", "2"]).await;
    let path = |manifest: &Manifest, tag: &str| format!("{}?tag=latest&tag={tag}", manifest.digest());
    world.put("a", &path(&all[0], "v1"), &all[0]).await.expect(201);
    world.put("a", &path(&all[1], "v1"), &all[1]).await.fails(409, "TAG_INVALID");
    assert_eq!(led(&world, "latest").await, all[0].digest().to_string());
    world.put("a", &path(&all[1], "v2"), &all[1]).await.expect(201);
    assert_eq!(led(&world, "latest").await, all[1].digest().to_string());
}

#[tokio::test]
async fn a_condition_decides() {
    let world = World::pointing(&["latest"]).await;
    let all = images(&world, &["1", "2", "3"]).await;
    let [one, two, three] = all.as_slice() else { panic!() };
    let put = async |manifest: &Manifest, tag: &str, name: &str, value: &str| -> Answer {
        world.put_if("a", tag, manifest, &[(name, value)]).await
    };
    put(one, "latest", "if-match", "*").await.fails(412, "TAG_INVALID");
    put(one, "latest", "if-none-match", "*").await.expect(201);
    put(two, "latest", "if-none-match", "*").await.fails(412, "TAG_INVALID");
    let answer = put(two, "latest", "if-match", &etag(three)).await;
    answer.fails(412, "TAG_INVALID");
    assert_eq!(answer.json()["errors"][0]["detail"]["current"], one.digest().to_string());
    assert_eq!(led(&world, "latest").await, one.digest().to_string());
    put(two, "latest", "if-match", &format!("{}, {}", etag(three), etag(one))).await.expect(201);
    assert_eq!(history(&world, "latest").await.len(), 2);
    // Tags honour them, too; they never move for that.
    put(one, "v1", "if-none-match", "*").await.expect(201);
    put(one, "v1", "if-none-match", "*").await.fails(412, "TAG_INVALID");
    put(one, "v1", "if-match", &etag(one)).await.expect(201);
    put(two, "v1", "if-match", &etag(one)).await.fails(409, "TAG_INVALID");
    // A condition is about one name.
    let several = format!("{}?tag=latest&tag=v9", one.digest());
    world.put_if("a", &several, one, &[("if-match", "*")]).await.fails(400, "UNSUPPORTED");
    let by_digest = one.digest().to_string();
    world.put_if("a", &by_digest, one, &[("if-match", "*")]).await.fails(400, "UNSUPPORTED");
}

#[tokio::test]
async fn what_is_a_tag_stays_one_and_what_is_a_pointer_stays_one() {
    let world = World::pointing(&["latest"]).await;
    let beside = world.beside(&["stable"]).await;
    let all = images(&world, &["1", "2"]).await;
    let (one, two) = (&all[0], &all[1]);
    // Bound before its name was made a pointer's: `stable` is a tag here and a pointer's name there.
    world.put("a", "stable", one).await.expect(201);
    beside.put("a", "stable", one).await.expect(201);
    beside.put("a", "stable", two).await.fails(409, "TAG_INVALID");
    assert_eq!(history(&world, "stable").await, []);
    // The other way round: it stays where it is, and the answer says why.
    world.put("a", "latest", one).await.expect(201);
    let answer = beside.put("a", "latest", two).await;
    answer.fails(409, "TAG_INVALID");
    let text = String::from_utf8_lossy(answer.bytes()).into_owned();
    assert!(text.contains("server.toml") && text.contains(&one.digest().to_string()), "{text}");
    beside.put("a", "latest", one).await.expect(201);
    assert_eq!(led(&beside, "latest").await, one.digest().to_string());
    assert_eq!(world.ledger.divergences(), 1, "of the tag alone");
    world.put("a", "latest", two).await.expect(201);
    assert_eq!(led(&beside, "latest").await, two.digest().to_string());
    // Only some repositories, if the setting says so.
    let some = world.beside(&["b/*:edge"]).await;
    some.put("a", "edge", one).await.expect(201);
    some.put("a", "edge", two).await.fails(409, "TAG_INVALID");
}

/// Pushes by two servers, which share nothing but the ledger, in turn and at the same time.
async fn race(conditional: bool) -> usize {
    let first = Arc::new(World::pointing(&["latest"]).await);
    let second = Arc::new(first.beside(&["latest"]).await);
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..16_u32 {
        let world = if i % 2 == 0 { first.clone() } else { second.clone() };
        let manifest = world.image("a", &i.to_string()).await;
        tasks.spawn(async move {
            let mut won = 0;
            for round in 0..8 {
                // Each round pushes what nobody else does.
                let list = Manifest::index(
                    vec![],
                    adamant_oci::ArtifactMeta {
                        annotations: [("who".to_owned(), format!("{i}/{round}"))].into(),
                        ..Default::default()
                    },
                );
                let manifest = if round == 0 { &manifest } else { &list };
                let current = world.get("/v2/a/manifests/latest").await;
                let etag = current.header("etag").to_owned();
                let seen = [if etag.is_empty() { ("if-none-match", "*") } else { ("if-match", &*etag) }];
                let condition: &[_] = if conditional { &seen } else { &[] };
                let answer = world.put_if("a", "latest", manifest, condition).await;
                match answer.status.as_u16() {
                    201 => won += 1,
                    412 if conditional => {}
                    other => panic!("{other}: {}", String::from_utf8_lossy(answer.bytes())),
                }
            }
            won
        });
    }
    let mut won = 0;
    while let Some(done) = tasks.join_next().await {
        won += done.unwrap();
    }
    let all = first.registry.moves(&"a".parse().unwrap(), &"latest".parse().unwrap(), 1000).await.unwrap();
    for pair in all.windows(2) {
        assert_eq!(pair[0].from, Some(pair[1].digest), "the history has no gap");
    }
    assert_eq!(led(&second, "latest").await, all[0].digest.to_string());
    assert_eq!(first.ledger.divergences(), 0);
    assert_eq!(all.len(), won, "each push that was acknowledged moved it once");
    won
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_a_condition_every_push_by_two_servers_takes_effect() {
    assert_eq!(race(false).await, 16 * 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_a_condition_none_of_two_servers_overwrites_what_it_has_not_seen() {
    let won = race(true).await;
    assert!((1..=16 * 8).contains(&won), "{won}");
}

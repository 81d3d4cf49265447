//! How much repositories may hold, and what is kept free.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use adamant_digest::Digest;
use adamant_registry::{Quota, Reserve};

use crate::world::World;

fn quota(repositories: &str, bytes: u64) -> Quota {
    Quota { repositories: repositories.parse().unwrap(), bytes }
}

#[tokio::test]
async fn a_repository_holds_what_its_quota_allows() {
    let world = World::bounded(vec![quota("team/*", 1800), quota("*", 1 << 20)], None).await;
    let image = |content: &str| content.repeat(600);
    let first = world.image("team/a", &image("1")).await;
    world.put("team/a", "v1", &first).await.expect(201);
    let size = first.size() + 600 + 2;
    // Again costs nothing, and neither does another tag.
    world.put("team/a", "v1", &first).await.expect(201);
    world.put("team/a", "v1-again", &first).await.expect(201);
    let second = world.image("team/a", &image("2")).await;
    let refused = world.put("team/a", "v2", &second).await;
    refused.fails(403, "DENIED");
    let detail = &refused.json()["errors"][0]["detail"];
    assert_eq!((detail["quota"].as_u64(), detail["used"].as_u64()), (Some(1800), Some(size)));
    // The configuration is there already.
    assert_eq!(detail["needed"].as_u64(), Some(second.size() + 600));
    let text = String::from_utf8_lossy(refused.bytes()).into_owned();
    assert!(text.contains("quota `team/*`") && text.contains("1800 bytes"), "{text}");
    world.get("/v2/team/a/manifests/v2").await.fails(404, "MANIFEST_UNKNOWN");
    // Each repository has its own, and after a restart all is counted as before.
    world.put("team/b", "v2", &second).await.expect(201);
    let world = world.reopen().await;
    let third = world.image("team/a", &image("3")).await;
    let refused = world.put("team/a", "v3", &third).await;
    assert_eq!(refused.json()["errors"][0]["detail"]["used"].as_u64(), Some(size));
    world.put("other", "v3", &third).await.expect(201);
    world.put("team/a", "v1-more", &first).await.expect(201);
}

#[tokio::test]
async fn an_upload_longer_than_what_is_left_is_cut_off() {
    let world = World::bounded(vec![quota("team/*", 2000)], None).await;
    let large = vec![7; 2001];
    let digest = Digest::of(&large);
    let once = format!("/v2/team/a/blobs/uploads/?digest={digest}");
    world.send("POST", &once, &[], &large).await.fails(403, "DENIED");
    let begun = world.send("POST", "/v2/team/a/blobs/uploads/", &[], b"").await.expect(202);
    let address = begun.header("location").to_owned();
    world.send("PATCH", &address, &[], &large[..1500]).await.expect(202);
    world.send("PATCH", &address, &[], &large[1500..]).await.fails(403, "DENIED");
    world.send("PUT", &format!("{address}?digest={digest}"), &[], &large[1500..]).await.fails(403, "DENIED");
    world.push_blob("team/a", &large[..2000]).await;
    world.push_blob("free", &large).await;
}

#[tokio::test]
async fn of_pushes_at_once_no_more_is_taken_than_fits() {
    let world = World::bounded(vec![quota("team/*", 4000)], None).await;
    let mut images = Vec::new();
    for n in 0..8 {
        images.push(world.image("team/a", &n.to_string().repeat(700)).await);
    }
    let puts = images.iter().enumerate().map(|(n, image)| {
        let tag = format!("v{n}");
        let world = &world;
        async move { world.put("team/a", &tag, image).await.status.as_u16() }
    });
    let answers = futures_util::future::join_all(puts).await;
    let each = images[0].size() + 700;
    let fit = usize::try_from((4000 - 2) / each).unwrap();
    assert_eq!(answers.iter().filter(|status| **status == 201).count(), fit, "{answers:?}");
    assert_eq!(answers.iter().filter(|status| **status == 403).count(), 8 - fit, "{answers:?}");
}

#[tokio::test]
async fn below_the_reserve_pushes_are_refused_and_pulls_go_on() {
    let free = Arc::new(AtomicU64::new(u64::MAX));
    let told = Arc::clone(&free);
    let reserve = Reserve { bytes: 1000, free: Arc::new(move || Ok(told.load(Ordering::Relaxed))) };
    let world = World::bounded(Vec::new(), Some(reserve)).await;
    let image = world.image("a", "x").await;
    world.put("a", "v1", &image).await.expect(201);
    let begun = world.send("POST", "/v2/a/blobs/uploads/", &[], b"").await.expect(202);
    let address = begun.header("location").to_owned();
    free.store(999, Ordering::Relaxed);
    let refused = world.put("a", "v2", &image).await;
    refused.fails(507, "UNAVAILABLE");
    let text = String::from_utf8_lossy(refused.bytes()).into_owned();
    assert!(text.contains("999 bytes are free") && text.contains("1000 are kept in reserve"), "{text}");
    world.send("POST", "/v2/a/blobs/uploads/", &[], b"").await.fails(507, "UNAVAILABLE");
    // While bytes arrive, too.
    world.send("PATCH", &address, &[], b"more").await.fails(507, "UNAVAILABLE");
    let whole = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(b"whole"));
    world.send("POST", &whole, &[], b"whole").await.fails(507, "UNAVAILABLE");
    world.get("/v2/a/manifests/v1").await.expect(200);
    world.get(&format!("/v2/a/blobs/{}", Digest::of(b"x"))).await.expect(200);
    free.store(1000, Ordering::Relaxed);
    world.send("PATCH", &address, &[], b"more").await.expect(202);
    world.put("a", "v2", &image).await.expect(201);
}

//! Who may do what, repository by repository.

use adamant_digest::Digest;
use adamant_registry::{Access, Action, Realm, Rights, Within};

use crate::world::World;

fn rights(scopes: &[&str]) -> Rights {
    Rights::new(scopes.iter().map(|scope| scope.parse().unwrap()).collect()).unwrap()
}

fn bot(scopes: &[&str]) -> Access {
    Access::known("token:bot", rights(scopes))
}

fn realm() -> Realm {
    Realm { url: "https://r.example/v2/token".to_owned(), service: "r.example".to_owned() }
}

#[tokio::test]
async fn access_is_decided_before_anything_else() {
    let world = World::new().await;
    let manifest = world.image("a", "x").await;
    world.put("a", "v1", &manifest).await.expect(201);
    world.allow(Access::anonymous(Rights::none()));
    for (method, path) in [
        ("GET", "/v2/"),
        ("GET", "/v2/a/manifests/v1"),
        ("GET", "/v2/a/tags/list"),
        ("GET", "/v2/_catalog"),
        ("POST", "/v2/a/blobs/uploads/"),
        ("DELETE", "/v2/a/manifests/v1"),
    ] {
        let answer = world.send(method, path, &[], b"").await;
        answer.fails(401, "UNAUTHORIZED");
        assert!(answer.header("www-authenticate").starts_with("Basic realm="), "{method} {path}");
    }
    world.allow(Access::denied());
    world.get("/v2/").await.fails(401, "UNAUTHORIZED");
    world.allow(Access::anonymous(Rights::everywhere(&[Action::Pull])));
    world.get("/v2/a/manifests/v1").await.expect(200);
    // A client that was not challenged here would never log in to push.
    world.get("/v2/").await.fails(401, "UNAUTHORIZED");
    world.put("a", "v2", &manifest).await.fails(401, "UNAUTHORIZED");
    for path in ["/v2/a/blobs/uploads/x", "/v2/a/blobs/%75ploads/x"] {
        for method in ["GET", "DELETE"] {
            world.send(method, path, &[], b"").await.fails(401, "UNAUTHORIZED");
        }
    }
    world.allow(bot(&["*:pull"]));
    world.get("/v2/").await.expect(200);
    world.get("/v2/a/manifests/v1").await.expect(200);
    let refused = world.put("a", "v2", &manifest).await;
    refused.fails(403, "DENIED");
    assert!(String::from_utf8_lossy(refused.bytes()).contains("token:bot may not push to a"));
    world.get("/v2/a/manifests/v2").await.fails(404, "MANIFEST_UNKNOWN");
    world.allow(bot(&["a:push"]));
    world.put("a", "v2", &manifest).await.expect(201);
    world.get("/v2/a/manifests/v2").await.fails(403, "DENIED");
}

#[tokio::test]
async fn challenges_name_what_is_needed() {
    let world = World::new().await;
    let challenge = async |method: &str, path: &str| {
        let answer = world.send(method, path, &[], b"").await;
        assert_eq!(answer.status, 401, "{method} {path}");
        assert_eq!(answer.headers.get_all("www-authenticate").iter().count(), 1);
        answer.header("www-authenticate").to_owned()
    };
    world.allow(Access { realm: Some(realm()), ..Access::anonymous(Rights::none()) });
    let base = r#"Bearer realm="https://r.example/v2/token",service="r.example""#;
    assert_eq!(challenge("GET", "/v2/").await, base);
    assert_eq!(challenge("GET", "/v2/a/b/manifests/x").await, format!("{base},scope=\"repository:a/b:pull\""));
    for (method, path) in [("POST", "/v2/a/b/blobs/uploads/"), ("PUT", "/v2/a/b/manifests/x")] {
        assert_eq!(challenge(method, path).await, format!("{base},scope=\"repository:a/b:pull,push\""));
    }
    assert_eq!(challenge("GET", "/v2/_catalog").await, format!("{base},scope=\"registry:catalog:*\""));
    world.allow(Access { realm: Some(realm()), ..Access::denied() });
    assert_eq!(challenge("GET", "/v2/").await, format!("{base},error=\"invalid_token\""));
    let within = Some(Within { rights: rights(&["a/b:pull"]), catalog: false });
    world.allow(Access { realm: Some(realm()), within, ..bot(&["a/*:pull,push"]) });
    world.get("/v2/a/b/manifests/x").await.fails(404, "MANIFEST_UNKNOWN");
    let more = format!("{base},scope=\"repository:a/b:pull,push\",error=\"insufficient_scope\"");
    assert_eq!(challenge("POST", "/v2/a/b/blobs/uploads/").await, more);
    // No token would help.
    world.send("POST", "/v2/b/blobs/uploads/", &[], b"").await.fails(403, "DENIED");
}

#[tokio::test]
async fn the_catalog_lists_what_may_be_pulled() {
    let world = World::new().await;
    let manifest = world.image("x", "x").await;
    for name in ["team/a", "team/b-c", "team/b", "team/d", "other/web", "zone/web"] {
        world.put(name, "v1", &manifest).await.expect(201);
    }
    let names = async |path: &str| {
        let answer = world.get(path).await.expect(200);
        let names: Vec<String> = serde_json::from_value(answer.json()["repositories"].clone()).unwrap();
        (names, answer.header("link").to_owned())
    };
    world.allow(bot(&["team/*:pull"]));
    assert_eq!(names("/v2/_catalog").await.0, ["team/a", "team/b-c", "team/b", "team/d"]);
    let mut all = Vec::new();
    let mut next = "/v2/_catalog?n=1".to_owned();
    loop {
        let (page, link) = names(&next).await;
        assert!(page.len() <= 1);
        all.extend(page);
        let Some(address) = link.strip_prefix('<').and_then(|rest| rest.split('>').next()) else { break };
        address.clone_into(&mut next);
    }
    assert_eq!(all, ["team/a", "team/b-c", "team/b", "team/d"]);
    world.allow(bot(&["*/web:pull", "team/*:push", "team/d:pull"]));
    assert_eq!(names("/v2/_catalog").await.0, ["other/web", "team/d", "zone/web"]);
    world.allow(bot(&["team/*:push"]));
    world.get("/v2/_catalog").await.fails(403, "DENIED");
}

#[tokio::test]
async fn a_blob_is_read_through_a_repository_that_has_it() {
    let world = World::new().await;
    let secret = world.image("secret/a", "the secret").await;
    world.put("secret/a", "v1", &secret).await.expect(201);
    let public = world.image("public/a", "for all").await;
    world.put("public/a", "v1", &public).await.expect(201);
    let (secret_blob, public_blob) = (Digest::of(b"the secret"), Digest::of(b"for all"));
    let path = |repository: &str, digest: Digest| format!("/v2/{repository}/blobs/{digest}");
    // Whoever may pull everything needs no more than a digest.
    world.get(&path("public/a", secret_blob)).await.expect(200);

    world.allow(bot(&["public/*:pull,push"]));
    world.get(&path("public/a", public_blob)).await.expect(200);
    world.send("HEAD", &path("public/a", public_blob), &[], b"").await.expect(200);
    world.get(&path("secret/a", secret_blob)).await.fails(403, "DENIED");
    world.get(&path("public/a", secret_blob)).await.fails(404, "BLOB_UNKNOWN");
    // The same as for one that is nowhere.
    let nowhere = Digest::of(b"nowhere");
    let text = |bytes: &[u8], digest: Digest| String::from_utf8_lossy(bytes).replace(&digest.to_string(), "D");
    let (hidden, absent) =
        (world.get(&path("public/a", secret_blob)).await, world.get(&path("public/a", nowhere)).await);
    assert_eq!(text(hidden.bytes(), secret_blob), text(absent.bytes(), nowhere));
    world.get(&path("public/a", secret.digest())).await.fails(404, "BLOB_UNKNOWN");
    world.get(&path("public/a", public.digest())).await.expect(200);

    // Nor is it had by a mount or by naming it in a manifest.
    for from in ["&from=secret/a", "&from=public/a", "&from=NO", ""] {
        let mount = format!("/v2/public/b/blobs/uploads/?mount={secret_blob}{from}");
        world.send("POST", &mount, &[], b"").await.expect(202);
    }
    world.put("public/b", "v1", &secret).await.fails(400, "MANIFEST_BLOB_UNKNOWN");
    world.get(&path("public/b", secret_blob)).await.fails(404, "BLOB_UNKNOWN");
    // What they may pull is mounted.
    let mount = format!("/v2/public/b/blobs/uploads/?mount={public_blob}&from=public/a");
    world.send("POST", &mount, &[], b"").await.expect(201);
    world.get(&path("public/b", public_blob)).await.expect(200);
    // Whoever has the bytes may push them.
    let own = world.image("public/b", "the secret").await;
    world.put("public/b", "v1", &own).await.expect(201);
    world.get(&path("public/b", secret_blob)).await.expect(200);
    world.get(&path("public/a", secret_blob)).await.fails(404, "BLOB_UNKNOWN");
}

#[tokio::test]
async fn what_was_uploaded_is_reachable_for_a_while_and_what_was_pushed_for_ever() {
    let world = World::new().await;
    world.allow(bot(&["team/*:pull,push"]));
    let kept = world.image("team/a", "kept").await;
    world.put("team/a", "v1", &kept).await.expect(201);
    let stray = world.push_blob("team/a", b"stray").await;
    let path = |digest: Digest| format!("/v2/team/a/blobs/{digest}");
    world.get(&path(stray)).await.expect(200);
    world.pass(std::time::Duration::from_hours(25));
    world.get(&path(stray)).await.fails(404, "BLOB_UNKNOWN");
    world.get(&path(Digest::of(b"kept"))).await.expect(200);
    // A restart forgets what no fact says, and nothing else.
    let world = world.reopen().await;
    world.allow(bot(&["team/*:pull,push"]));
    world.get(&path(Digest::of(b"kept"))).await.expect(200);
    world.get(&path(stray)).await.fails(404, "BLOB_UNKNOWN");
    // What others push later is found without listing anew.
    world.allow(Access::known("alice", Rights::all()));
    let later = world.image("team/a", "later").await;
    world.put("team/a", "v2", &later).await.expect(201);
    world.allow(bot(&["team/*:pull"]));
    world.get(&path(Digest::of(b"later"))).await.expect(200);
}

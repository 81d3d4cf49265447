//! end-8, end-12: tags, repositories, referrers.

use adamant_digest::Digest;
use adamant_oci::{ArtifactMeta, Descriptor, Manifest, media};
use adamant_registry::Limits;
use serde_json::json;

use crate::world::{Answer, World};

fn referrer(subject: &Manifest, kind: Option<&str>, note: &str) -> Manifest {
    let meta = ArtifactMeta {
        artifact_type: kind.map(str::to_owned),
        subject: Some(Descriptor::new(media::OCI_MANIFEST, subject.digest(), subject.size())),
        annotations: [("note".to_owned(), note.to_owned())].into(),
    };
    Manifest::index(vec![], meta)
}

fn next(answer: &Answer) -> Option<String> {
    let link = answer.header("link");
    (!link.is_empty()).then(|| {
        assert!(link.ends_with(">; rel=\"next\""), "{link}");
        link[1..link.find('>').unwrap()].to_owned()
    })
}

async fn pages(world: &World, first: &str, member: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut path = Some(first.to_owned());
    while let Some(here) = path {
        let answer = world.get(&here).await.expect(200);
        pages.push(serde_json::from_value(answer.json()[member].clone()).unwrap());
        path = next(&answer);
    }
    pages
}

#[tokio::test]
async fn end_8_tags_in_order_with_pages() {
    let world = World::new().await;
    let manifest = world.image("a", "x").await;
    let mut tags = ["v1", "v10", "v2", "A", "_z", "0"];
    for tag in tags {
        world.put("a", tag, &manifest).await.expect(201);
    }
    // Neighbours in the order of names must not leak in.
    for other in ["a/b", "a-b", "a.b", "aa"] {
        world.put(other, "other", &manifest).await.expect(201);
    }
    tags.sort_unstable();
    let all = world.get("/v2/a/tags/list").await.expect(200);
    assert_eq!(all.json(), json!({"name": "a", "tags": tags}));
    assert_eq!(next(&all), None);
    assert_eq!(pages(&world, "/v2/a/tags/list?n=2", "tags").await, tags.chunks(2).collect::<Vec<_>>());
    assert_eq!(pages(&world, "/v2/a/tags/list?n=4", "tags").await.concat(), tags);
    assert_eq!(world.get("/v2/a/tags/list?n=0").await.expect(200).json()["tags"], json!([]));
    assert_eq!(world.get("/v2/a/tags/list?last=v1").await.expect(200).json()["tags"], json!(["v10", "v2"]));
    assert_eq!(world.get("/v2/a/tags/list?last=v11").await.expect(200).json()["tags"], json!(["v2"]));
    assert_eq!(world.get("/v2/a/tags/list?last=zzz").await.expect(200).json()["tags"], json!([]));
    world.get("/v2/a/tags/list?n=x").await.fails(400, "PAGINATION_NUMBER_INVALID");
    world.get("/v2/unknown/tags/list").await.fails(404, "NAME_UNKNOWN");
    world.send("HEAD", "/v2/a/tags/list", &[], b"").await.expect(200);
}

#[tokio::test]
async fn the_catalog_names_every_repository_once() {
    let world = World::new().await;
    assert_eq!(world.get("/v2/_catalog").await.expect(200).json(), json!({"repositories": []}));
    let manifest = Manifest::index(vec![], ArtifactMeta::default());
    let mut names = ["a", "a-b", "a.b", "a/b", "a0", "a_b", "ab", "b", "z/y/x"];
    for name in names {
        for tag in ["1", "2"] {
            world.put(name, tag, &manifest).await.expect(201);
        }
    }
    for n in [1, 2, 3, 100] {
        let mut found = pages(&world, &format!("/v2/_catalog?n={n}"), "repositories").await.concat();
        found.sort_unstable();
        names.sort_unstable();
        assert_eq!(found, names, "n={n}");
    }
}

#[tokio::test]
async fn end_12_referrers() {
    let world = World::new().await;
    let subject = world.image("a", "x").await;
    let path = format!("/v2/a/referrers/{}", subject.digest());
    let none = world.get(&path).await.expect(200);
    assert_eq!(none.header("content-type"), media::OCI_INDEX);
    assert_eq!(none.json()["manifests"], json!([]));

    // The subject may come later.
    let (sbom, signature) = (referrer(&subject, Some("x/sbom"), "1"), referrer(&subject, Some("x/sig"), "2"));
    let answer = world.put("a", &sbom.digest().to_string(), &sbom).await.expect(201);
    assert_eq!(answer.header("oci-subject"), subject.digest().to_string());
    world.put("a", "signature", &signature).await.expect(201);
    world.put("a", "again", &signature).await.expect(201);
    world.put("a", "v1", &subject).await.expect(201);
    world.put("b", "x", &referrer(&subject, None, "3")).await.expect(201);

    let all = world.get(&path).await.expect(200).json();
    let mut expected =
        vec![serde_json::to_value(sbom.referrer()).unwrap(), serde_json::to_value(signature.referrer()).unwrap()];
    expected.sort_by_key(|descriptor| descriptor["digest"].to_string());
    assert_eq!(all["manifests"], json!(expected));
    assert_eq!(all["schemaVersion"], 2);
    assert_eq!(all["manifests"][0]["annotations"].as_object().unwrap().len(), 1);

    let some = world.get(&format!("{path}?artifactType=x%2Fsbom")).await.expect(200);
    assert_eq!(some.header("oci-filters-applied"), "artifactType");
    assert_eq!(some.json()["manifests"], json!([sbom.referrer()]));
    assert_eq!(world.get(&format!("{path}?artifactType=none")).await.expect(200).json()["manifests"], json!([]));
    world.get("/v2/a/referrers/x").await.fails(400, "DIGEST_INVALID");
    let unknown = format!("/v2/nowhere/referrers/{}", Digest::of(b"x"));
    assert_eq!(world.get(&unknown).await.expect(200).json()["manifests"], json!([]));
    // A referrer is about its subject in the ledger too.
    let about = adamant_store::Ledger::about(&*world.ledger, subject.digest(), 100).await.unwrap();
    assert!(about.len() >= 4, "{about:?}");
}

#[tokio::test]
async fn end_12_referrers_with_much_text_come_in_pages() {
    let world = World::with(Limits { manifest_bytes: 20_000, ..Limits::default() }).await;
    let subject = world.image("a", "subject").await;
    world.put("a", "v1", &subject).await.expect(201);
    for n in 0..5 {
        let text = format!("{n}{}", "x".repeat(9_000));
        world.put("a", &format!("r{n}"), &referrer(&subject, None, &text)).await.expect(201);
    }
    let mut path = format!("/v2/a/referrers/{}", subject.digest());
    let (mut seen, mut pages) = (Vec::new(), 0);
    loop {
        let answer = world.get(&path).await.expect(200);
        assert!(answer.bytes().len() <= 20_500, "{} bytes", answer.bytes().len());
        seen.extend(answer.json()["manifests"].as_array().unwrap().iter().map(|d| d["digest"].to_string()));
        pages += 1;
        let Some(next) = answer.header("link").strip_prefix('<').and_then(|rest| rest.split('>').next()) else { break };
        path = next.to_owned();
    }
    seen.sort();
    seen.dedup();
    assert_eq!((seen.len(), pages), (5, 3));
}

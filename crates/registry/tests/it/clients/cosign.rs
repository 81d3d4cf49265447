//! Signatures and attestations by cosign itself: whatever it pushes is taken, and opens the gates of its
//! keys and no others. Two versions: one that writes signature tags alone, one that also attaches bundles.

use adamant_attest::PublicKey;
use adamant_registry::{Demand, Gate, GateError};

use super::newer::Program;
use crate::world::World;

const SLSA: &str = "https://slsa.dev/provenance/v1";
const PREDICATE: &str = r#"{"buildDefinition": {"buildType": "https://example.com/make", "externalParameters": {"x": 1}},
    "runDetails": {"builder": {"id": "https://example.com/builder"}}}"#;

/// Where signatures go, and the options that say so.
struct Style {
    tags: bool,
    sign: &'static [&'static str],
    verify: &'static [&'static str],
}

/// The one style of version 2, and the one that version 3 still knows.
const TAGS_2: Style = Style { tags: true, sign: &["--tlog-upload=false"], verify: &["--insecure-ignore-tlog"] };
const TAGS_3: Style = Style {
    tags: true,
    sign: &["--tlog-upload=false", "--use-signing-config=false", "--new-bundle-format=false"],
    verify: &["--insecure-ignore-tlog", "--new-bundle-format=false"],
};
const BUNDLES: Style =
    Style { tags: false, sign: &["--signing-config", "config.json"], verify: &["--insecure-ignore-tlog"] };

async fn is_open(world: &World, digest: &str) -> bool {
    match world.registry.may_deploy(&"shop/web".parse().unwrap(), digest.parse().unwrap(), "alice").await {
        Ok(()) => true,
        Err(GateError::Closed { .. }) => false,
        Err(other) => panic!("{other}"),
    }
}

async fn signs_and_attests(test: &str, directory: &str, style: Style) {
    let Some(cosign) = Program::find(test, directory, "cosign") else { return };
    let mut keys = Vec::new();
    for name in ["a", "b", "stranger", "nobody"] {
        cosign.done(&["generate-key-pair", "--output-key-prefix", name]).await;
        keys.push(PublicKey::from_pem(&std::fs::read_to_string(cosign.at(&format!("{name}.pub"))).unwrap()).unwrap());
    }
    keys.truncate(2);
    if !style.tags {
        cosign.done(&["signing-config", "create", "--out", "config.json"]).await;
    }
    std::fs::write(cosign.at("predicate"), PREDICATE).unwrap();
    let attest = ["attest", "--type", "slsaprovenance1", "--predicate", "predicate"];
    let kinds: [(&[&str], &[&str], &[&str]); 2] =
        [(&["sign"], &["verify"], &[]), (&attest, &["verify-attestation", "--type", "slsaprovenance1"], &[SLSA])];
    for (sign, verify, predicates) in kinds {
        let predicates = predicates.iter().map(|&text| text.to_owned()).collect();
        let demand = Demand { keys: keys.clone(), predicates, threshold: 2 };
        let world = World::guarded(&[Gate { repositories: "shop/*".parse().unwrap(), demand, pull: false }]).await;
        let manifest = world.image("shop/web", "one").await;
        world.put("shop/web", "v1", &manifest).await.expect(201);
        let digest = manifest.digest().to_string();
        let reference = format!("{}/shop/web@{digest}", world.address);
        let call = |begin: &[&'static str], key: String, options: &[&'static str]| {
            let fixed = ["--key", &key, "--allow-http-registry"];
            let all: Vec<String> = [begin, options].concat().into_iter().chain(fixed).map(str::to_owned).collect();
            [all, vec![reference.clone()]].concat()
        };
        // The second signature goes beside the first one, whoever made that.
        for (at, signer) in ["stranger", "a", "a", "b"].into_iter().enumerate() {
            assert!(!is_open(&world, &digest).await, "{sign:?}: open after {at} signatures");
            let mut command = call(sign, format!("{signer}.key"), style.sign);
            command.insert(1, "-y".to_owned());
            cosign.done(&command.iter().map(String::as_str).collect::<Vec<_>>()).await;
        }
        assert!(is_open(&world, &digest).await, "{sign:?}");
        for signer in ["a", "b", "stranger"] {
            let command = call(verify, format!("{signer}.pub"), style.verify);
            cosign.done(&command.iter().map(String::as_str).collect::<Vec<_>>()).await;
        }
        let command = call(verify, "nobody.pub".to_owned(), style.verify);
        cosign.fails(&command.iter().map(String::as_str).collect::<Vec<_>>(), &["no matching"]).await;
        let tags = world.get("/v2/shop/web/tags/list").await.expect(200).json()["tags"].to_string();
        let referrers = world.get(&format!("/v2/shop/web/referrers/{digest}")).await.expect(200).json();
        let attached = referrers["manifests"].as_array().unwrap().len();
        assert_eq!((tags.contains(&digest.replace(':', "-")), attached > 1), (style.tags, !style.tags), "{tags}");
        // Another image is not signed by that.
        let other = world.image("shop/web", "two").await;
        world.put("shop/web", "v2", &other).await.expect(201);
        assert!(!is_open(&world, &other.digest().to_string()).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cosign_2_signs_in_tags() {
    signs_and_attests("cosign_2_signs_in_tags", "cosign-2", TAGS_2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cosign_3_signs_in_tags() {
    signs_and_attests("cosign_3_signs_in_tags", "cosign-3", TAGS_3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cosign_3_attaches_bundles() {
    signs_and_attests("cosign_3_attaches_bundles", "cosign-3", BUNDLES).await;
}

use std::sync::Arc;

use adamant_digest::Digest;
use adamant_fetch::{Fetcher, LockFetchError};
use adamant_recipe::{Recipe, lock_agrees};

use crate::repo::Repo;
use crate::server::{Answer, Server};
use crate::store::Memory;

fn recipe(toolchain: &str, more: &str) -> Recipe {
    let text = format!(
        "project = \"shop\"\n[web]\nkind = \"make\"\ntoolchain = {toolchain}\nfiles = {{ \"/a\" = \"a\" }}\n{more}"
    );
    Recipe::parse(&text, &|_| false).unwrap()
}

struct World {
    server: Server,
    repo: Repo,
    store: Memory,
}

impl World {
    async fn new() -> Self {
        let server = Server::start().await;
        let mut repo = Repo::new();
        repo.add(&server, "gcc", "2", "Depends: libc (>= 1)");
        repo.add(&server, "gcc", "1", "");
        repo.add(&server, "libc", "1", "");
        repo.add(&server, "base-files", "9", "Essential: yes");
        repo.publish(&server);
        Self { server, repo, store: Memory::default() }
    }

    fn fetcher(&self) -> Fetcher {
        let mut config = self.server.config();
        config.debian.keyrings = vec![self.repo.keyring()];
        Fetcher::new(config, Arc::new(self.store.clone())).unwrap()
    }

    async fn lock(&self, recipe: &Recipe) -> Result<adamant_fetch::Locked, LockFetchError> {
        self.fetcher().resolve_lock(recipe, &[], None, false, &|_| {}).await
    }

    async fn refusal(&self) -> String {
        self.lock(&recipe("[\"gcc\"]", "")).await.unwrap_err().to_string()
    }
}

#[tokio::test]
async fn locks_keeps_and_stays() {
    let mut world = World::new().await;
    world.server.put("/src.tar.gz", Answer::File(b"source".to_vec()));
    let more = format!(
        "runtime = [\"libc\"]\nsources = [\"src\"]\n[sources.src]\nurl = \"{}/src.tar.gz\"\n",
        world.server.base
    );
    let recipe = recipe("[\"gcc\"]", &more);
    let progress = std::sync::Mutex::new(Vec::new());
    let record = |step: adamant_fetch::Progress<'_>| progress.lock().unwrap().push((step.done, step.total));
    let locked = world.fetcher().resolve_lock(&recipe, &[], None, false, &record).await.unwrap();
    assert_eq!(locked.lock.sets["web.toolchain"].packages, ["base-files=9", "gcc=2", "libc=1"]);
    assert_eq!(locked.lock.sets["web.runtime"].packages, ["libc=1"]);
    assert_eq!(locked.lock.urls[0].digest, Digest::of(b"source"));
    assert_eq!((locked.report.kept, locked.report.new), (0, 4));
    assert_eq!(progress.into_inner().unwrap(), [(1, 3), (2, 3), (3, 3)]);
    assert_eq!(locked.suites[0].valid_until.as_deref(), Some("Sat, 17 Jun 2023 08:16:33 UTC"));
    assert_eq!(lock_agrees(&recipe, &locked.lock), Ok(()));
    for package in &locked.lock.packages {
        assert_eq!(
            world.store.bytes(package.digest),
            Some(format!("{} {}", package.name, package.version).into_bytes())
        );
    }

    // Everything is kept: an index that changed and a network that is gone do not matter.
    world.repo.add(&world.server, "gcc", "3", "");
    world.repo.publish(&world.server);
    let seen = world.server.seen().len();
    let again = world.fetcher().resolve_lock(&recipe, &[], Some(&locked.lock), false, &|_| {}).await.unwrap();
    assert_eq!(again.lock.to_string(), locked.lock.to_string());
    assert_eq!((again.report.kept, again.report.new, again.suites.len()), (4, 0, 0));
    assert_eq!(world.server.seen().len(), seen);

    let updated = world.fetcher().resolve_lock(&recipe, &[], Some(&locked.lock), true, &|_| {}).await.unwrap();
    assert_eq!(updated.lock.sets["web.toolchain"].packages, ["base-files=9", "gcc=3"]);
    let changes: Vec<String> =
        adamant_recipe::diff(&locked.lock, &updated.lock).iter().map(ToString::to_string).collect();
    assert_eq!(changes, ["~ package gcc:amd64 2 → 3"]);
}

#[tokio::test]
async fn pins_and_unknown_packages() {
    let world = World::new().await;
    let locked = world.lock(&recipe("[\"gcc=1\"]", "")).await.unwrap();
    assert_eq!(locked.lock.sets["web.toolchain"].packages, ["base-files=9", "gcc=1"]);
    let error = world.lock(&recipe("[\"gxx\"]", "")).await.unwrap_err();
    assert!(error.to_string().starts_with("`web.toolchain`: package `gxx` is not in stable"), "{error}");
}

#[tokio::test]
async fn an_unchanged_index_is_not_fetched_again() {
    let world = World::new().await;
    world.fetcher().debian_index().await.unwrap();
    let index = world.fetcher().debian_index().await.unwrap();
    assert_eq!(index.len(), 4);
    let packages = world.server.seen().iter().filter(|path| path.contains("binary-amd64")).count();
    assert_eq!(packages, 1);
}

#[tokio::test]
async fn signatures_decide() {
    let world = World::new().await;
    let release = "/debian/dists/stable/InRelease";
    let good = world.repo.sign(&world.repo.release("stable"));
    let with = |text: String| world.server.put(release, Answer::File(text.into_bytes()));

    with(good.replace("Origin: Test", "Origin: Evil"));
    assert!(world.refusal().await.contains("is not signed by a known key of the archive (signatures by "));
    with(Repo::new().sign(&world.repo.release("stable")));
    assert!(world.refusal().await.contains("not signed by a known key"));
    with(world.repo.release("stable"));
    assert!(world.refusal().await.contains("is not a signed text"));
    with(format!("SHA256:\n evil\n\n{good}"));
    assert!(world.refusal().await.contains("does not begin with"));
    with(format!("{good}\nmore"));
    assert!(world.refusal().await.contains("something follows"));
    with(world.repo.sign(&world.repo.release("testing")));
    assert!(world.refusal().await.contains("the mirror answers testing testing when asked for stable"));
    with(world.repo.sign(&world.repo.release("stable").replace("binary-amd64", "binary-arm64")));
    assert!(world.refusal().await.contains("stable has no main/binary-amd64/Packages.xz"));
    with(good);
    assert!(world.lock(&recipe("[\"gcc\"]", "")).await.is_ok());
}

#[tokio::test]
async fn damaged_index_and_packages() {
    let world = World::new().await;
    let packed = world.repo.packed();
    let mut damaged = packed.clone();
    damaged[40] ^= 1;
    let by_hash = format!("/debian/dists/stable/main/binary-amd64/by-hash/SHA256/{}", Digest::of(&packed).hex());
    world.server.put(&by_hash, Answer::File(damaged));
    assert!(world.refusal().await.contains("the package index of stable: "));
    world.server.state.lock().unwrap().answers.remove(&by_hash);
    // By its plain name it is right.
    let locked = world.lock(&recipe("[\"gcc\"]", "")).await.unwrap();

    let deb = "/debian/pool/main/gcc_2_amd64.deb";
    let fresh = World { store: Memory::default(), ..world };
    fresh.server.put(deb, Answer::File(b"gcc X".to_vec()));
    let error = fresh.fetcher().ensure(&locked.lock, &[], &|_| {}).await.unwrap_err().to_string();
    assert!(error.starts_with("gcc 2: http://127.0.0.1") && error.contains("the file moved under the lock"), "{error}");
    assert_eq!(fresh.store.bytes(Digest::of(b"gcc X")), None);
    fresh.server.put(deb, Answer::File(b"gcc 22".to_vec()));
    let error = fresh.fetcher().ensure(&locked.lock, &[], &|_| {}).await.unwrap_err().to_string();
    assert!(error.contains("has 6 bytes, the lock says 5"), "{error}");
}

#[tokio::test]
async fn a_vanished_version_is_said_and_a_snapshot_helps() {
    let world = World::new().await;
    let locked = world.lock(&recipe("[\"gcc\"]", "")).await.unwrap();
    let fresh = World { store: Memory::default(), ..world };
    fresh.server.state.lock().unwrap().answers.remove("/debian/pool/main/gcc_2_amd64.deb");
    let error = fresh.fetcher().ensure(&locked.lock, &[], &|_| {}).await.unwrap_err().to_string();
    let expect = format!(
        "gcc 2 is no longer on {}/debian: run `adamant lock --update` for the current version, or configure a snapshot mirror that still has it",
        fresh.server.base
    );
    assert_eq!(error, expect);
    fresh.server.put("/snapshot/pool/main/gcc_2_amd64.deb", Answer::File(b"gcc 2".to_vec()));
    let mut config = fresh.server.config();
    config.debian.snapshots = vec![format!("{}/snapshot", fresh.server.base)];
    let fetcher = Fetcher::new(config, Arc::new(fresh.store.clone())).unwrap();
    fetcher.ensure(&locked.lock, &[], &|_| {}).await.unwrap();
    assert_eq!(fresh.store.len(), 3);
}

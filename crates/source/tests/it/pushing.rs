//! What a developer does.

use std::process::Stdio;
use std::sync::Arc;

use adamant_source::{Limits, Oid, Pending, Repositories, Repository};
use tokio::sync::Notify;

use crate::world::{Act, Client, World, until};

/// Bytes that neither compress nor repeat.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let next = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    next.flatten().take(length).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_push_again_and_clone() {
    let world = World::new().await;
    let client = world.client();
    client.write("a.txt", "one\n");
    let first = client.commit("First");
    let text = client.push_ok(&["main"]);
    assert!(text.contains(&format!("remote: shop  {}", first.short())), "{text}");
    client.write("a.txt", "two\n");
    let second = client.commit("Second");
    client.push_ok(&["main"]);
    let pushes = world.pipeline.seen();
    assert_eq!(pushes.len(), 2);
    assert_eq!((pushes[0].old, pushes[0].new), (None, first));
    assert_eq!((pushes[1].old, pushes[1].new), (Some(first), second));
    assert_eq!((pushes[1].refname.as_str(), pushes[1].by.as_str()), ("refs/heads/main", "ann"));
    assert_eq!(world.main().await, Some(second));
    for version in ["0", "1", "2"] {
        let other = world.client();
        let protocol = format!("protocol.version={version}");
        other.ok(&["-c", &protocol, "clone", "-q", &world.url(), "copy"]);
        assert_eq!(std::fs::read(other.path().join("copy/a.txt")).unwrap(), b"two\n", "version {version}");
        let shown = other.ok(&["-c", &protocol, "ls-remote", &world.url()]);
        assert!(shown.contains("refs/heads/main") && !shown.contains("refs/adamant"), "{shown}");
    }
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_commit_is_kept_and_a_second_push_tries_again() {
    let world = World::new().await;
    let client = world.client();
    client.write("a", "1");
    let commit = client.commit("One");
    world.pipeline.then(Act::Refuse("web: the build failed\nsecond line"));
    let text = client.push_refused(&["main"], "web: the build failed");
    assert!(!text.contains("second line"), "{text}");
    assert_eq!(world.main().await, None);
    assert_eq!(world.shop().await.list_kept().await.unwrap(), [commit]);
    world.pipeline.then(Act::Panic);
    client.push_refused(&["main"], "internal error");
    client.push_ok(&["main"]);
    assert_eq!(world.pipeline.seen().len(), 3);
    assert_eq!(world.main().await, Some(commit));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_cancels_nothing() {
    let world = World::new().await;
    let client = world.client();
    client.write("a", "1");
    let commit = client.commit("One");
    let go = Arc::new(Notify::new());
    world.pipeline.then(Act::Wait(Arc::clone(&go)));
    let mut pushing = client.command(&["push", "adamant", "main"]);
    let mut pushing = pushing.stderr(Stdio::piped()).spawn().unwrap();
    until("the pipeline has it", async || !world.pipeline.seen().is_empty()).await;
    assert_eq!(world.main().await, None);
    pushing.kill().unwrap();
    pushing.wait().unwrap();
    // The same commit again: waits for its turn and finds the work done.
    let (again, refspec) = (world.client(), format!("{commit}:refs/heads/main"));
    again.ok(&["fetch", "-q", client.path().to_str().unwrap(), "main"]);
    let second = tokio::task::spawn_blocking(move || again.push(&[&refspec]));
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    go.notify_one();
    until("the branch moves", async || world.main().await == Some(commit)).await;
    let (ok, text) = second.await.unwrap();
    assert!(ok, "{text}");
    assert!(text.contains("remote: waiting for another push to main"), "{text}");
    assert_eq!(world.pipeline.seen().len(), 1);
    world.repositories.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn force_push_and_deletion_lose_nothing() {
    let world = World::new().await;
    let client = world.client();
    client.write("a", "1");
    let lost = client.commit("Lost");
    client.push_ok(&["main"]);
    client.write("a", "2");
    client.ok(&["add", "-A"]);
    client.ok(&["commit", "-q", "--amend", "-m", "Other"]);
    let other = client.head();
    let (ok, text) = client.push(&["main"]);
    assert!(!ok && text.contains("non-fast-forward"), "{text}");
    client.push_ok(&["--force", "main"]);
    assert_eq!(world.main().await, Some(other));
    client.push_ok(&["main:topic/x"]);
    client.push_ok(&["--delete", "topic/x"]);
    assert_eq!(world.shop().await.branches().await.unwrap().len(), 1);
    let pushes = world.pipeline.seen().len();
    assert_eq!(pushes, 3, "a deletion is not the pipeline's business");
    let mut kept = [lost, other];
    kept.sort();
    assert_eq!(world.shop().await.list_kept().await.unwrap(), kept);
    for version in ["0", "2"] {
        let reader = world.client();
        let protocol = format!("protocol.version={version}");
        reader.ok(&["-c", &protocol, "fetch", "-q", "adamant", &lost.to_string()]);
        assert_eq!(reader.ok(&["rev-parse", "FETCH_HEAD"]), lost.to_string());
    }
    client.push_ok(&["--delete", "main"]);
    assert!(world.shop().await.branches().await.unwrap().is_empty());
    assert_eq!(world.shop().await.list_kept().await.unwrap(), kept);
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_are_bound_for_good() {
    let world = World::new().await;
    let client = world.client();
    client.write("a", "1");
    let first = client.commit("One");
    client.ok(&["tag", "light"]);
    client.ok(&["tag", "-a", "-m", "Heavy", "heavy"]);
    client.push_ok(&["main", "light", "heavy"]);
    let pushes = world.pipeline.seen();
    assert!(pushes.iter().all(|push| push.new == first && push.old.is_none()), "{pushes:?}");
    client.write("a", "2");
    let second = client.commit("Two");
    client.ok(&["tag", "-f", "light"]);
    client.ok(&["tag", "-f", "-a", "-m", "Heavier", "heavy"]);
    client.push_refused(&["--force", "light"], &format!("bound to {first} for good"));
    client.push_refused(&["--force", "heavy"], "for good");
    client.push_refused(&["--delete", "light"], "cannot be deleted");
    let tags = world.shop().await.tags().await.unwrap();
    assert_eq!(tags.values().collect::<Vec<_>>(), [&first, &first]);
    // What came with a refused tag is kept all the same.
    assert!(world.shop().await.list_kept().await.unwrap().contains(&second));
    // The rest of a push does not suffer from one refused ref.
    let text = client.push_refused(&["--force", "main", "light"], "for good");
    assert!(text.contains("main -> main"), "{text}");
    assert_eq!(world.main().await, Some(second));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_many_pushes_to_one_branch_wins() {
    let world = World::new().await;
    let base = world.client();
    base.write("a", "0");
    base.commit("Base");
    base.push_ok(&["main"]);
    for round in 0..3 {
        let clients: Vec<_> = (0..4)
            .map(|n| {
                let client = world.client();
                client.ok(&["pull", "-q", "adamant", "main"]);
                client.write("a", format!("{round} {n}"));
                let commit = client.commit("Mine");
                (client, commit)
            })
            .collect();
        let tasks: Vec<_> = clients
            .into_iter()
            .map(|(client, commit)| tokio::task::spawn_blocking(move || (commit, client.push(&["main"]))))
            .collect();
        let mut winners = Vec::new();
        for task in tasks {
            let (commit, (ok, text)) = task.await.unwrap();
            if ok {
                winners.push(commit);
            } else {
                assert!(text.contains("moved: fetch") || text.contains("fetch first"), "{text}");
            }
        }
        assert_eq!(winners.len(), 1);
        assert_eq!(world.main().await, Some(winners[0]));
    }
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_pushes_come_in_chunks_and_small_changes_as_thin_packs() {
    let world = World::new().await;
    let client = world.client();
    let mut bytes = noise(7, 5 << 20);
    client.write("large", &bytes);
    client.commit("Large");
    client.push_ok(&["main"]);
    bytes[1000] ^= 1;
    client.write("large", &bytes);
    let commit = client.commit("Little");
    let packs = world.shop().await.path().join("objects/pack");
    client.push_ok(&["main"]);
    assert_eq!(world.shop().await.file(commit, "large", 8 << 20).await.unwrap(), bytes);
    assert_eq!(std::fs::read_dir(packs).unwrap().filter(|e| is_pack(e.as_ref().unwrap())).count(), 2);
    world.assert_clean().await;
    let reader = world.client();
    reader.ok(&["fetch", "-q", "adamant", "main"]);
    assert_eq!(reader.ok(&["rev-parse", "FETCH_HEAD"]), commit.to_string());
}

fn is_pack(entry: &std::fs::DirEntry) -> bool {
    entry.path().extension().is_some_and(|extension| extension == "pack")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refs_are_limited_in_number_and_place() {
    let world = World::new().await;
    let client = world.client();
    client.write("a", "1");
    let commit = client.commit("One");
    let nine: Vec<String> = (0..9).map(|n| format!("main:b{n}")).collect();
    let nine: Vec<&str> = nine.iter().map(String::as_str).collect();
    client.push_refused(&nine, "at most 8 refs");
    client.push_ok(&nine[..8]);
    assert_eq!(world.shop().await.branches().await.unwrap().len(), 8);
    client.push_refused(&["main:refs/notes/x"], "only branches and tags");
    client.push_refused(&[&format!("main:refs/adamant/commits/{commit}")], "only branches and tags");
    client.push_refused(&["--atomic", "main"], "atomic");
    let shallow = world.client();
    shallow.ok(&["pull", "-q", "adamant", "b1"]);
    shallow.write("a", "2");
    shallow.commit("Two");
    shallow.push_ok(&["main"]);
    let shallow = world.client();
    shallow.ok(&["clone", "-q", "--depth=1", "--branch=main", &world.url(), "copy"]);
    let copy = shallow.path().join("copy");
    let args = ["-C", copy.to_str().unwrap(), "push", "origin", "HEAD:refs/heads/from-shallow"];
    let output = shallow.run(&args);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("--unshallow"), "{text}");
    world.assert_clean().await;
}

/// What a crash in the pipeline of a push of `main` leaves, opened again.
async fn cut_off(world: &World, client: &Client, to: &str) -> Repository {
    let go = Arc::new(Notify::new());
    world.pipeline.then(Act::Wait(Arc::clone(&go)));
    let mut pushing = client.command(&["push", "adamant", "--force", "main"]);
    let mut pushing = pushing.stderr(Stdio::null()).spawn().unwrap();
    let shop = world.shop().await;
    until("the push is noted", async || !shop.pending().await.unwrap().is_empty()).await;
    let dir = world.dir.path().join(to);
    std::fs::create_dir(&dir).unwrap();
    let copied = std::process::Command::new("cp").arg("-a").arg(shop.path()).arg(&dir).status().unwrap();
    assert!(copied.success());
    go.notify_one();
    assert!(pushing.wait().unwrap().success());
    Repositories::open(dir, Limits::default()).await.unwrap().get("shop").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_was_cut_off_is_completed_or_forgotten() {
    let world = World::new().await;
    let client = world.client();
    client.write("a", "1");
    let first = client.commit("One");
    let main = async |shop: &Repository| shop.branches().await.unwrap().get("main").copied();
    let refname = "refs/heads/main".to_owned();

    let shop = cut_off(&world, &client, "created").await;
    let created = Pending { refname: refname.clone(), old: None, new: first };
    assert_eq!(main(&shop).await, None);
    assert_eq!(shop.pending().await.unwrap(), vec![created.clone()]);
    assert!(shop.complete(&created).await.unwrap());
    assert_eq!(main(&shop).await, Some(first));
    assert_eq!(shop.pending().await.unwrap(), []);
    // Completed once: who deletes it afterwards has the last word.
    shop.remove_branch("main", first).await.unwrap();
    assert!(!shop.complete(&created).await.unwrap());
    assert_eq!(main(&shop).await, None);

    client.write("a", "2");
    let second = client.commit("Two");
    let shop = cut_off(&world, &client, "forgotten").await;
    let moved = Pending { refname, old: Some(first), new: second };
    assert_eq!(shop.pending().await.unwrap(), vec![moved.clone()]);
    shop.forget(&created).await.unwrap();
    assert_eq!(shop.pending().await.unwrap(), vec![moved.clone()], "another push");
    shop.forget(&moved).await.unwrap();
    assert_eq!(shop.pending().await.unwrap(), []);
    assert_eq!(main(&shop).await, Some(first));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_branch_that_moved_since_is_not_moved_by_a_push_that_was_cut_off() {
    let world = World::new().await;
    let client = world.client();
    client.write("a", "1");
    let first = client.commit("One");
    client.push_ok(&["main"]);
    client.write("a", "2");
    let second = client.commit("Two");
    let shop = cut_off(&world, &client, "cut").await;
    let [push] = shop.pending().await.unwrap().try_into().unwrap();

    // Away and back again: it stands where the push found it, and is not where it was.
    shop.set_branch("main", Some(first), second).await.unwrap();
    shop.set_branch("main", Some(second), first).await.unwrap();
    assert_eq!(shop.pending().await.unwrap(), []);
    assert!(!shop.complete(&push).await.unwrap());
    assert_eq!(shop.branches().await.unwrap().get("main"), Some(&first));

    // A branch that somebody moved while the note was there.
    client.write("a", "3");
    let third = client.commit("Three");
    let shop = cut_off(&world, &client, "elsewhere").await;
    let [push] = shop.pending().await.unwrap().try_into().unwrap();
    assert_eq!((push.old, push.new), (Some(second), third));
    std::fs::write(shop.path().join("refs/heads/main"), format!("{first}\n")).unwrap();
    assert!(!shop.complete(&push).await.unwrap());
    assert_eq!(shop.branches().await.unwrap().get("main"), Some(&first));
    assert_eq!(shop.pending().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_ended_leaves_no_note() {
    let world = World::new().await;
    let client = world.client();
    let shop = world.shop().await;
    let pending = async || shop.pending().await.unwrap();
    client.write("a", "1");
    client.commit("One");
    client.push_ok(&["main", "main:topic"]);
    assert_eq!(pending().await, []);
    client.write("a", "2");
    client.commit("Two");
    world.pipeline.then(Act::Refuse("no"));
    client.push_refused(&["main"], "no");
    assert_eq!(pending().await, []);
    world.pipeline.then(Act::Panic);
    client.push_refused(&["main"], "internal error");
    assert_eq!(pending().await, []);
    client.ok(&["tag", "v1"]);
    client.push_ok(&["v1"]);
    client.push_ok(&["--delete", "topic"]);
    assert_eq!(pending().await, []);

    // A note that stayed, as after a start that could not complete it, and a deleted branch.
    let dir = shop.path().join("pending");
    let commit: Oid = client.head();
    let name = adamant_digest::Digest::of(b"refs/heads/topic").hex();
    std::fs::write(dir.join(&name), format!("{:040} {commit} refs/heads/topic\n", 0)).unwrap();
    std::fs::write(dir.join(".tmp-x"), "half a no").unwrap();
    assert_eq!(pending().await.len(), 1);
    client.push_ok(&["main:topic"]);
    assert_eq!(pending().await, []);
    let old = client.ok(&["rev-parse", "main~1"]);
    std::fs::write(dir.join(&name), format!("{commit} {old} refs/heads/topic\n")).unwrap();
    client.push_ok(&["--delete", "topic"]);
    assert_eq!(pending().await, []);
    std::fs::write(dir.join(&name), "damaged").unwrap();
    assert_eq!(pending().await, []);
    let again = Repositories::open(shop.path().parent().unwrap().to_owned(), Limits::default()).await.unwrap();
    again.get("shop").await.unwrap();
    assert!(!dir.join(".tmp-x").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_git_cannot_have_beside_each_other_never_reach_the_pipeline() {
    let world = World::new().await;
    let client = world.client();
    client.write("a", "1");
    client.commit("One");
    client.push_ok(&["main", "main:topic/x/y", "main:mainly", "main:refs/tags/v1"]);
    let seen = world.pipeline.seen().len();
    for (name, other) in [("main/sub", "main"), ("main/a/b", "main"), ("topic", "topic/x/y"), ("topic/x", "topic/x/y")]
    {
        let text = client.push_refused(&[&format!("main:refs/heads/{name}")], &format!("there is a branch `{other}`"));
        assert!(text.contains(&format!("`{name}`")) && text.contains(&format!("delete `{other}` first")), "{text}");
    }
    let text = client.push_refused(&["main:refs/tags/v1/sub"], "there is a tag `v1`");
    assert!(!text.contains("delete"), "{text}");
    assert_eq!(world.pipeline.seen().len(), seen);
    client.push_ok(&["main:topic/x/z", "main:topic/y", "main:mai", "main:refs/tags/main/v1"]);
    client.push_ok(&["--delete", "mainly"]);
    client.push_ok(&["main:mainly/sub"]);
    assert_eq!(world.shop().await.pending().await.unwrap(), []);

    // Two at once: the second waits, and is refused if the first came through.
    let seen = world.pipeline.seen().len();
    let go = Arc::new(Notify::new());
    world.pipeline.then(Act::Wait(Arc::clone(&go)));
    let mut first = client.command(&["push", "adamant", "main:new"]).stderr(Stdio::null()).spawn().unwrap();
    until("the first is at work", async || world.pipeline.seen().len() > seen).await;
    let mut second = client.command(&["push", "adamant", "main:new/sub"]);
    let mut second = second.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = std::io::BufReader::new(second.stderr.take().unwrap());
    let mut text = String::new();
    while !text.contains("remote: waiting for another push to new") {
        assert_ne!(std::io::BufRead::read_line(&mut said, &mut text).unwrap(), 0, "{text}");
    }
    go.notify_one();
    assert!(first.wait().unwrap().success());
    std::io::Read::read_to_string(&mut said, &mut text).unwrap();
    assert!(!second.wait().unwrap().success() && text.contains("there is a branch `new`"), "{text}");
    assert_eq!(world.pipeline.seen().len(), seen + 1);
    world.assert_clean().await;
}

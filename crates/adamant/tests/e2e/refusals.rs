//! Every no names the object, the cause and the fix, and ends with the exit code of its kind.

use std::path::Path;
use std::process::Command;

use crate::client::Ask;
use crate::process::{is_root, run, skipped, wait_for};
use crate::template::exe;
use crate::world::{Repo, Server, World, fresh};

#[track_caller]
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no `{word}` in:\n{text}");
    }
}

/// A push that must be refused; gives what the pusher reads.
#[track_caller]
fn refused(repo: &Repo) -> String {
    let head = repo.git(&["ls-remote", "adamant", "refs/heads/main"]).ok();
    let pushed = repo.push();
    assert_eq!(pushed.code, 1, "{}", pushed.err);
    assert!(pushed.err.contains("rejected"), "{}", pushed.err);
    assert_eq!(repo.git(&["ls-remote", "adamant", "refs/heads/main"]).ok(), head, "the branch moved");
    pushed.err
}

const RECIPE: &str = "[web]\nkind = \"make\"\nfiles = { \"/app/out\" = \"out\" }\n";

fn recipe(project: &str) -> String {
    format!("project = \"{project}\"\n\n{RECIPE}")
}

#[test]
fn pushes_that_cannot_become_a_release_say_why() {
    let Some(world) = World::new("pushes_that_cannot_become_a_release_say_why") else { return };

    // A mistake in the recipe: where it is and what to write.
    let bad = world.project("bad", &[("adamant.toml", &recipe("bad")), ("Makefile", "out:\n\techo > out\n")]);
    bad.write("adamant.toml", &recipe("bad").replace("files", "fils"));
    bad.commit("a mistake");
    says(&refused(&bad), &["adamant.toml:5:1", "fils", "files"]);
    says(&bad.adamant(&["lock"]).fails(2), &["adamant.toml:5:1", "fils"]);

    // No lock, and a lock that is for another recipe.
    bad.write("adamant.toml", &recipe("bad"));
    std::fs::remove_file(bad.dir.join("adamant.lock")).unwrap();
    bad.commit("no lock");
    says(&refused(&bad), &["adamant.lock", "adamant lock"]);
    says(&bad.adamant(&["lock", "--check"]).fails(1), &["adamant.lock", "adamant lock"]);
    let lock = world.shop.read("adamant.lock");
    bad.write("adamant.lock", &lock);
    bad.write("adamant.toml", &format!("{}toolchain = [\"gcc\", \"make\", \"bison\"]\n", recipe("bad")));
    bad.commit("more tools");
    says(&refused(&bad), &["adamant lock", "push again"]);
    bad.adamant(&["lock", "--check"]).fails(1);

    // A native lock that disagrees with its manifest.
    let toolchain = "toolchain = [\"gcc\", \"libc6-dev\", \"make\"]\n";
    let cargo = recipe("rusty").replace("kind = \"make\"\n", &format!("kind = \"cargo\"\n{toolchain}"));
    let manifest = "[package]\nname = \"rusty\"\nversion = \"0.1.0\"\n\n[dependencies]\nserde = \"1\"\n";
    let native = "version = 3\n\n[[package]]\nname = \"rusty\"\nversion = \"0.1.0\"\n";
    let files = [
        ("adamant.toml", &*cargo),
        ("Cargo.toml", manifest),
        ("Cargo.lock", native),
        ("src/main.rs", "fn main() {}\n"),
    ];
    let rusty = world.project("rusty", &files);
    rusty.commit("serde is not locked");
    says(&refused(&rusty), &["Cargo.lock", "disagrees", "serde"]);
    says(&rusty.adamant(&["lock", "--check"]).fails(1), &["Cargo.lock", "disagrees", "cargo generate-lockfile"]);
    says(&rusty.adamant(&["lock"]).fails(2), &["Cargo.lock", "disagrees", "cargo generate-lockfile"]);
    rusty.write("Cargo.toml", &manifest.replace("serde = \"1\"\n", ""));
    assert_eq!(
        rusty.adamant(&["lock", "--check", "--json"]).ok().split_whitespace().collect::<String>(),
        "{\"fits\":true}"
    );

    // A step that wants the network.
    let fetching = "out:\n\t@echo fetching http://downloads.example.org/tool.tar.gz\n\
                    \t@bash -c 'exec 3<>/dev/tcp/downloads.example.org/80'\n\techo > out\n";
    let online = world.project("online", &[("adamant.toml", &recipe("online")), ("Makefile", fetching)]);
    online.commit("fetches");
    says(&refused(&online), &["web was not built", "network", "downloads.example.org/tool.tar.gz"]);

    // An output that will be another tomorrow.
    let dated = "out:\n\techo first > out\n\tdate -u +'built on %Y-%m-%d' >> out\n";
    let dated = world.project("dated", &[("adamant.toml", &recipe("dated")), ("Makefile", dated)]);
    dated.commit("dated");
    says(&refused(&dated), &["web was not built", "/app/out", "line 2", "SOURCE_DATE_EPOCH"]);

    // A step that fails, and its output that is not there.
    let failing = world.project("failing", &[("adamant.toml", &recipe("failing")), ("Makefile", "out:\n\tfalse\n")]);
    failing.commit("fails");
    says(&refused(&failing), &["web was not built"]);
    // A program that is not in the toolchain; and git's own line says no more than it has.
    failing.write("Makefile", "out:\n\tbison --version > out\n");
    failing.commit("wants bison");
    let said = refused(&failing);
    says(&said, &["`bison` is missing", "`toolchain`"]);
    let line = said.lines().find(|line| line.contains("remote rejected")).unwrap_or_default();
    assert!(line.contains("exited with 2") && !line.contains("last lines"), "{line}");
    // A program that could not start where it is deployed.
    failing.write("adamant.toml", &format!("{}run = [\"/app/out\"]\n", recipe("failing")));
    failing.write("Makefile", "out: main.c\n\tgcc -o out main.c\n");
    failing.write("main.c", "int main(void) { return 0; }\n");
    failing.commit("dynamic, without the C library");
    says(&refused(&failing), &["/app/out", "/lib64/ld-linux-x86-64.so.2", "runtime = [\"libc6\"]"]);
    failing.write("adamant.toml", &recipe("failing"));
    failing.write("Makefile", "out:\n\ttrue\n");
    failing.commit("makes nothing");
    says(&refused(&failing), &["web was not built", "out"]);
    failing.write("Makefile", "out:\n\techo right > out\n");
    failing.commit("right");
    failing.push().ok();
    world.assert_sound("after all refusals");
}

#[test]
fn files_that_cannot_be_read_are_named_to_the_pusher() {
    let Some(world) = World::new("files_that_cannot_be_read_are_named_to_the_pusher") else { return };
    let odd = world.project("odd", &[("adamant.toml", &recipe("odd")), ("Makefile", "out:\n\techo > out\n")]);
    let data = world.data.display().to_string();
    let refused = |words: &[&str]| {
        let text = refused(&odd);
        says(&text, words);
        assert!(!text.contains(&data), "a path of the server in:\n{text}");
    };

    let lock = odd.read("adamant.lock");
    std::fs::rename(odd.dir.join("adamant.lock"), odd.dir.join("real.lock")).unwrap();
    std::os::unix::fs::symlink("real.lock", odd.dir.join("adamant.lock")).unwrap();
    odd.commit("the lock is a link");
    refused(&["`adamant.lock`", "is a symbolic link, not a file", "commit a file there"]);
    std::fs::remove_file(odd.dir.join("adamant.lock")).unwrap();
    odd.write("adamant.lock/part", &lock);
    odd.commit("the lock is a directory");
    refused(&["`adamant.lock`", "is a directory, not a file", "commit a file there"]);
    std::fs::remove_dir_all(odd.dir.join("adamant.lock")).unwrap();
    odd.write("adamant.lock", &lock);
    odd.write("real.toml", &odd.read("adamant.toml"));
    std::fs::remove_file(odd.dir.join("adamant.toml")).unwrap();
    std::os::unix::fs::symlink("real.toml", odd.dir.join("adamant.toml")).unwrap();
    odd.commit("the recipe is a link");
    refused(&["`adamant.toml`", "is a symbolic link, not a file"]);
    std::fs::remove_file(odd.dir.join("adamant.toml")).unwrap();
    std::fs::rename(odd.dir.join("real.toml"), odd.dir.join("adamant.toml")).unwrap();
    odd.commit("as it should be");

    // A name that git takes and no disk does.
    let blob = odd.git(&["rev-parse", "HEAD:Makefile"]).ok();
    let name = format!("src/{}", "n".repeat(300));
    odd.git(&["update-index", "--add", "--cacheinfo", &format!("100644,{},{name}", blob.trim())]).ok();
    odd.git(&["commit", "--quiet", "-m", "a long name"]).ok();
    refused(&["`src/nnnnnnnn", "too long a name", "limit of 255", "rename"]);
    let log = world.server.process.err.text();
    assert!(!log.contains("push failed"), "the server blames itself:\n{log}");
}

#[test]
fn a_program_that_does_not_run_says_why() {
    let Some(mut world) = World::new("a_program_that_does_not_run_says_why") else { return };
    let main = |body: &str| {
        format!("#include <stdio.h>\n#include <unistd.h>\nint main(void) {{ fflush(stdout); {body} return 7; }}\n")
    };
    let recipe =
        "project = \"weak\"\n\n[web]\nkind = \"make\"\nfiles = { \"/app/out\" = \"out\" }\nrun = [\"/app/out\"]\n";
    let weak = world.project(
        "weak",
        &[
            ("adamant.toml", recipe),
            ("Makefile", "out: main.c\n\tgcc -static -o out main.c\n"),
            ("main.c", &main("puts(\"told to fail\"); fflush(stdout);")),
        ],
    );
    weak.commit("fails at once");
    let pushed = weak.push();
    says(
        &pushed.err,
        &["did not become healthy in dev", "exited with 7", "nothing runs there yet", "adamant logs dev"],
    );
    assert!(!pushed.err.contains("runs on"), "{}", pushed.err);
    says(&weak.adamant(&["logs", "dev"]).ok(), &["told to fail", "exited with 7"]);

    weak.write("main.c", &main("puts(\"well\"); fflush(stdout); for (;;) pause();"));
    weak.commit("runs");
    says(&weak.push().err, &["healthy"]);
    let logs = weak.adamant(&["logs", "dev"]).ok();
    assert!(logs.contains("well") && !logs.contains("told to fail"), "{logs}");

    weak.write("main.c", &main("puts(\"failed again\"); fflush(stdout);"));
    weak.commit("fails again");
    says(&weak.push().err, &["exited with 7", "what ran before runs on"]);
    let logs = weak.adamant(&["logs", "dev"]).ok();
    let (runs, failed) = (logs.find(" well"), logs.find("failed again"));
    assert!(runs.is_some() && runs < failed, "{logs}");

    // Those of the example, too.
    world.server.stop();
    says(&weak.adamant(&["down"]).ok(), &["4 instances and 3 fronts stopped"]);
    wait_for("nothing runs", || weak.adamant(&["down"]).ok().contains("nothing ran").then_some(()));
}

#[test]
fn commands_that_cannot_be_done_say_why() {
    let Some(mut world) = World::new("commands_that_cannot_be_done_say_why") else { return };
    let shop = &world.shop;
    says(&shop.adamant(&["promote", "shop/2", "moon"]).fails(2), &["moon", "dev", "staging", "prod"]);
    says(&shop.adamant(&["rollback", "moon"]).fails(2), &["moon", "staging"]);
    says(&shop.adamant(&["config", "moon"]).fails(2), &["moon"]);
    for arguments in [&["promote", "shop/99", "staging"][..], &["diff", "shop/1", "shop/99"], &["logs", "shop/99"]] {
        let ended = shop.adamant(arguments);
        assert!([1, 2].contains(&ended.code), "{arguments:?}: {}", ended.code);
        says(&ended.err, &["shop/99", "hint"]);
    }
    says(&shop.adamant(&["status", "nothing-of-this-name"]).err, &["nothing-of-this-name", "hint"]);
    says(&shop.adamant(&["rollback", "prod", "--to", "shop/99"]).fails(1), &["shop/99"]);
    says(&shop.adamant(&["promote", "two", "staging"]).fails(2), &["two"]);
    shop.adamant(&["promote"]).fails(2);

    // A release that was not in the environment before.
    let commit = shop.change("too early");
    shop.push().ok();
    let release = shop.release_of(&commit);
    let early = shop.adamant(&["promote", &release, "prod"]);
    assert!([1, 3].contains(&early.code), "{}", early.code);
    says(&early.err, &["cannot promote", &release, "staging"]);

    // As JSON, for programs.
    let error = shop.adamant(&["promote", "shop/2", "moon", "--json"]);
    let error: serde_json::Value = serde_json::from_str(&error.err).unwrap();
    assert_eq!(error["class"], "usage", "{error}");

    world.server.stop();
    let off = world.shop.adamant(&["status"]).fails(3);
    says(&off, &["no server runs", "adamant up", &world.data.display().to_string()]);
    let pushed = world.shop.push();
    assert_ne!(pushed.code, 0);
    world.restart();

    // A second server on the same data.
    let mut second = Command::new(&world.exe);
    second.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(&world.data);
    let second = run(&mut second);
    assert!([2, 3].contains(&second.code), "{}", second.code);
    says(&second.err, &["error:", &world.data.display().to_string()]);
    world.shop.status();
    let nowhere = fresh("nowhere");
    says(&run(Command::new(exe()).args(["fsck", "--data"]).arg(&nowhere)).fails(2), &["holds no adamant data"]);
    std::fs::remove_dir_all(nowhere).unwrap();
}

#[test]
fn a_bound_tag_is_refused_with_all_that_is_known_of_it() {
    let Some(world) = World::new("a_bound_tag_is_refused_with_all_that_is_known_of_it") else { return };
    let token = world.token();
    let status = world.shop.status();
    let bound = status.releases.iter().find(|r| r.number == 2).unwrap().artifacts[0].digest;
    let other = status.releases.iter().find(|r| r.number == 1).unwrap().artifacts[0].digest;
    let get = format!("/v2/shop/web/manifests/{other}");
    let bytes = Ask::new("GET", &get).token(&token).send(&world.server.url).unwrap().body;
    let ask = Ask::new("PUT", "/v2/shop/web/manifests/2").token(&token);
    let answer = ask.body("application/vnd.oci.image.manifest.v1+json", &bytes).send(&world.server.url).unwrap();
    assert_eq!(answer.status, 409);
    let year = &status.releases[0].at[..4];
    let who = if is_root() { "root" } else { "" };
    says(&answer.text(), &[&bound.to_string(), &other.to_string(), year, who]);
    // And it is on record.
    let ledger = Ask::new("GET", "/api/v1/ledger").token(&token).send(&world.server.url).unwrap().text();
    says(&ledger, &["divergence"]);
    let now = Ask::new("HEAD", "/v2/shop/web/manifests/2").token(&token).send(&world.server.url).unwrap();
    assert_eq!(now.header("docker-content-digest"), bound.to_string());
}

/// A file system of its own, gone with its owner.
struct Mount<'a>(&'a Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(self.0));
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    let test = "a_full_disk_loses_nothing";
    if !is_root() {
        return skipped(test, "only root can mount a small file system");
    }
    let dir = fresh("full");
    let size = "size=700m,nr_inodes=200k";
    if run(Command::new("mount").args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(&dir)).code != 0 {
        return skipped(test, "this host does not allow to mount a tmpfs");
    }
    let mount = Mount(&dir);
    let Some(mut world) = World::at(test, Some(&dir), &[]) else { return };
    let before = world.shop.status();
    let commit = world.shop.change("no room");
    let fill = dir.join("fill");
    // All but a little: the request itself still fits.
    let free = || rustix::fs::statvfs(&dir).map(|stat| stat.f_bavail * stat.f_frsize).unwrap();
    for rest in [300_u64 << 10, 40 << 10, 0] {
        let _ = std::fs::remove_file(&fill);
        let count = (free().saturating_sub(rest) >> 10).to_string();
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/zero", "bs=1024", &format!("count={count}")]).arg(format!("of={}", fill.display()));
        run(&mut dd);
        let pushed = world.shop.push();
        assert_ne!(pushed.code, 0, "{rest} bytes were enough: {}", pushed.err);
        let text = pushed.err.to_lowercase();
        assert!(
            text.contains("disk is full") || text.contains("no space left") || text.contains("free some space"),
            "{rest}: {}",
            pushed.err
        );
        // What is there is served on.
        assert!(world.page("prod").contains("version second"));
        assert!(world.shop.status().log_size >= before.log_size);
    }
    std::fs::remove_file(&fill).unwrap();
    world.assert_sound("after the disk was full");
    world.shop.push().ok();
    let release = world.shop.release_of(&commit);
    world.shop.await_healthy("dev", &release);
    world.assert_sound("with room again");

    // A build command that fills the disk itself: not the commit's fault, and nothing of it stays.
    let filling = "out:\n\tdd if=/dev/zero of=big bs=1M count=2000\n\techo > out\n";
    let filling = world.project("filling", &[("adamant.toml", &recipe("filling")), ("Makefile", filling)]);
    filling.commit("fills the disk");
    let said = refused(&filling);
    says(&said, &["the disk is full", "could not be built", "while the disk was full", "free some space"]);
    assert!(free() > 1 << 20, "the work directory stayed");
    world.assert_sound("after a build filled the disk");

    // A kill while it is full, and a start with room.
    let count = (free() >> 10).to_string();
    run(Command::new("dd")
        .args(["if=/dev/zero", "bs=1024", &format!("count={count}")])
        .arg(format!("of={}", fill.display())));
    world.server.kill();
    std::fs::remove_file(&fill).unwrap();
    wait_for("a start", || {
        world.server = Server::start(&world.data, &world.exe, &[]);
        Some(())
    });
    world.assert_sound("at the end");
    drop(world);
    drop(mount);
    std::fs::remove_dir_all(&dir).unwrap();
}

//! The same tree gives the same artifact: elsewhere, for somebody else, and without a second build.

use std::path::Path;
use std::process::Command;

use adamant_digest::Digest;

use crate::process::{Background, is_root, processes, run, skipped};
use crate::template::{Template, template};
use crate::world::{Repo, Server, copy_data, fresh, up};

/// The artifact of the newest release.
fn newest(repo: &Repo, status: &str) -> Digest {
    let status: adamant_api::Status = serde_json::from_str(status).unwrap();
    let head = repo.git(&["rev-parse", "HEAD"]).ok();
    let release = status.releases.iter().find(|r| r.commit == head.trim()).unwrap();
    release.artifacts[0].digest
}

/// A command as the user `nobody` with a home of its own, or as it is.
fn by(nobody: bool, home: &Path, command: &Command) -> Command {
    let mut wrapped = Command::new(if nobody { "setpriv" } else { "env" });
    if nobody {
        wrapped.args(["--reuid=65534", "--regid=65534", "--clear-groups", "env"]);
    }
    wrapped.arg(format!("HOME={}", home.display())).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        wrapped.env(name, value.unwrap_or_default());
    }
    if let Some(dir) = command.get_current_dir() {
        wrapped.current_dir(dir);
    }
    wrapped
}

/// Builds the template's tree in a new data directory below `dir`, with an empty ledger.
fn build(template: &Template, dir: &Path, nobody: bool) -> Digest {
    let (data, work) = (dir.join("data"), dir.join("a/deeper/shop"));
    std::fs::create_dir_all(&data).unwrap();
    std::fs::create_dir_all(work.parent().unwrap()).unwrap();
    // The inputs; which output belongs to which key is in the ledger, which is not copied.
    crate::process::copy(&template.dir.join("data/blobs"), &data, false);
    crate::process::copy(&template.dir.join("shop"), &work, false);
    std::fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    if nobody {
        run(Command::new("chown").args(["-R", "65534:65534"]).arg(dir)).ok();
    }
    let exe = &template.exe;
    let mut server = Server::of(Background::spawn(&mut by(nobody, dir, &up(&data, exe, &[]))), &data, exe);
    let repo = Repo { dir: work, data: data.clone(), exe: exe.clone() };
    let own = |command: &Command| run(&mut by(nobody, dir, command));
    own(&repo.adamant_command(&["init"])).ok();
    let pushed = own(&repo.git_command(&["push", "adamant", "HEAD:main"]));
    assert!(pushed.err.contains("web     built"), "not built: {}", pushed.err);
    pushed.ok();
    let status = own(&repo.adamant_command(&["status", "--json"])).ok();
    if nobody {
        // It really ran as somebody else.
        let pids = processes(&["adamant up", &data.display().to_string()]);
        let owner =
            std::fs::metadata(data.join("adamant.db")).map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap();
        assert_eq!((pids.len(), owner), (1, 65534));
    }
    server.kill();
    own(Command::new(exe).args(["down", "--data"]).arg(&data)).ok();
    let head = Repo { exe: exe.clone(), ..repo };
    if nobody {
        run(Command::new("chown").args(["-R", "0:0"]).arg(&head.dir)).ok();
    }
    newest(&head, &status)
}

#[test]
fn other_paths_file_systems_and_users_give_the_same_bytes() {
    let test = "other_paths_file_systems_and_users_give_the_same_bytes";
    let template = match template() {
        Ok(template) => template,
        Err(reason) => return skipped(test, reason),
    };
    let elsewhere = fresh("elsewhere");
    let here = build(template, &elsewhere, false);
    std::fs::remove_dir_all(&elsewhere).unwrap();
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        return skipped(test, "there is no /dev/shm: one file system alone was tried");
    }
    let dir = memory.join(format!("adamant-e2e-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut nobody = is_root();
    if nobody {
        run(Command::new("chown").arg("65534:65534").arg(&dir)).ok();
        let doctor = run(&mut by(true, &dir, Command::new(&template.exe).arg("doctor")));
        if doctor.code != 0 {
            skipped(test, &format!("as another user: {}", doctor.out.trim().replace('\n', "; ")));
            nobody = false;
        }
    } else {
        skipped(test, "only root can be another user: one user alone was tried");
    }
    let there = build(template, &dir, nobody);
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(here, there);

    // And the template's own, made by another server with another history.
    let copy = fresh("template");
    copy_data(&template.dir.join("data"), &copy.join("data"));
    let mut server = Server::start(&copy.join("data"), &template.exe, &[]);
    let repo = Repo { dir: template.dir.join("shop"), data: copy.join("data"), exe: template.exe.clone() };
    let status = repo.adamant(&["status", "shop", "--json"]).ok();
    assert_eq!(newest(&repo, &status), here);
    server.stop();
    server.down();
    std::fs::remove_dir_all(copy).unwrap();
}

#[test]
fn equal_trees_are_bound_again_and_not_built_again() {
    let Some(world) = crate::world::World::new("equal_trees_are_bound_again_and_not_built_again") else { return };
    let before = newest(&world.shop, &world.shop.adamant(&["status", "--json"]).ok());
    let commit = world.shop.commit("another commit, the same tree");
    let pushed = world.shop.push();
    let said = pushed.err.clone();
    pushed.ok();
    assert!(said.contains("reused from shop/2") && !said.contains("web     built"), "{said}");
    assert_eq!(newest(&world.shop, &world.shop.adamant(&["status", "--json"]).ok()), before);
    // Back to the first tree by another way: the first release's bytes.
    world.shop.git(&["checkout", "--quiet", "HEAD~2", "--", "."]).ok();
    world.shop.commit("as it was");
    let pushed = world.shop.push();
    assert!(pushed.err.contains("reused from shop/1"), "{}", pushed.err);
    pushed.ok();
    assert_ne!(world.shop.release_of(&commit), "shop/2");
}

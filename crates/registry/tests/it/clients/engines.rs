//! Engines with daemons, each of a test's own: docker's and containerd's. They need root.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use adamant_oci::media;

use super::{bound, done, errors, is_missing, run, skipped, tar, write_image};
use crate::world::World;

/// Longest wait for a daemon.
const PATIENCE: Duration = Duration::from_mins(1);

/// A daemon that is stopped in order, so that it ends what it started.
struct Daemon {
    child: Child,
    log: std::path::PathBuf,
}

impl Daemon {
    fn start(command: &mut Command, log: &Path) -> Self {
        let file = std::fs::File::create(log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Self { child, log: log.to_owned() }
    }

    /// Asks until it answers; the last lines of its log if it does not.
    async fn answers(&mut self, program: &str, arguments: &[&str]) -> Result<(), String> {
        let begin = Instant::now();
        while !run(program, arguments).await.status.success() {
            if self.child.try_wait().unwrap().is_some() || begin.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(3).collect();
                return Err(last.join(" / "));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let begin = Instant::now();
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_pushes_and_pulls() {
    let test = "docker_pushes_and_pulls";
    if is_missing(test, "docker") || is_missing(test, "dockerd") {
        return;
    }
    if !is_root() {
        return skipped(test, "a Docker daemon needs root");
    }
    let world = World::new().await;
    let here = tempfile::tempdir().unwrap();
    let path = |name: &str| here.path().join(name).to_str().unwrap().to_owned();
    let socket = format!("unix://{}", path("socket"));
    let mut command = Command::new("dockerd");
    command.args(["--data-root", &path("data"), "--exec-root", &path("exec"), "-p", &path("pid"), "-H", &socket]);
    // Neither the person's settings nor the host's network.
    command.args(["--config-file", &path("none.json"), "--bridge=none", "--iptables=false", "--ip6tables=false"]);
    command.args(["--ip-forward=false", "--storage-driver=vfs"]);
    std::fs::write(path("none.json"), "{}").unwrap();
    let mut daemon = Daemon::start(&mut command, &here.path().join("log"));
    if let Err(reason) = daemon.answers("docker", &["-H", &socket, "info"]).await {
        return skipped(test, &format!("a Docker daemon does not start here: {reason}"));
    }
    let docker = async |arguments: &[&str]| done("docker", &[&["-H", &socket], arguments].concat()).await;
    let import = async |name: &str| {
        let file = path(name);
        std::fs::write(&file, tar("file", name.as_bytes())).unwrap();
        docker(&["import", &file]).await
    };
    let (one, two) = (import("one").await, import("two").await);
    let reference = format!("{}/shop/docker:v1", world.address);
    docker(&["tag", &one, &reference]).await;
    docker(&["push", &reference]).await;
    let written = world.ledger.size();
    docker(&["push", &reference]).await;
    assert_eq!(world.ledger.size(), written);
    let answer = world.get("/v2/shop/docker/manifests/v1").await.expect(200);
    assert_eq!(answer.header("content-type"), media::DOCKER_MANIFEST);
    let digest = bound(&world, "shop/docker", "v1").await;

    docker(&["tag", &two, &reference]).await;
    let refused = run("docker", &["-H", &socket, "push", &reference]).await;
    let message = errors(&refused);
    assert!(!refused.status.success());
    assert!(message.contains("tag invalid") && message.contains(&digest) && message.contains("new tag"), "{message}");

    docker(&["rmi", "-f", &one, &two]).await;
    let by_digest = format!("{}/shop/docker@{digest}", world.address);
    for reference in [&reference, &by_digest] {
        docker(&["pull", reference]).await;
        assert_eq!(docker(&["inspect", "--format", "{{.Id}}", reference]).await, one);
    }
    // To another repository: its layers are mounted.
    let copy = format!("{}/copy/docker:v1", world.address);
    docker(&["tag", &reference, &copy]).await;
    let said = docker(&["push", &copy]).await;
    assert!(said.contains("Mounted from shop/docker") || said.contains("Layer already exists"), "{said}");
    assert_eq!(bound(&world, "copy/docker", "v1").await, digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctr_pushes_and_pulls() {
    let test = "ctr_pushes_and_pulls";
    if is_missing(test, "ctr") || is_missing(test, "containerd") {
        return;
    }
    if !is_root() {
        return skipped(test, "containerd needs root");
    }
    let world = World::new().await;
    let here = tempfile::tempdir().unwrap();
    let path = |name: &str| here.path().join(name).to_str().unwrap().to_owned();
    let socket = path("socket");
    let settings = format!(
        "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
         \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = \"{socket}\"\n",
        path("data"),
        path("state")
    );
    std::fs::write(path("config.toml"), settings).unwrap();
    let mut command = Command::new("containerd");
    command.args(["-c", &path("config.toml")]);
    let mut daemon = Daemon::start(&mut command, &here.path().join("log"));
    if let Err(reason) = daemon.answers("ctr", &["-a", &socket, "version"]).await {
        return skipped(test, &format!("containerd does not start here: {reason}"));
    }
    let ctr = async |arguments: &[&str]| done("ctr", &[&["-a", &socket, "images"], arguments].concat()).await;
    // What is to be pushed comes from the registry, by another client's hand.
    let mut digests = Vec::new();
    for name in ["one", "two"] {
        let manifest = write_image(&here.path().join(name), name);
        for entry in std::fs::read_dir(here.path().join(name)).unwrap().flatten() {
            let bytes = std::fs::read(entry.path()).unwrap();
            if entry.file_name().len() == 64 {
                world.push_blob("seed/image", &bytes).await;
            }
        }
        world.put("seed/image", name, &manifest).await.expect(201);
        digests.push(manifest.digest().to_string());
        ctr(&["pull", "--plain-http", "--snapshotter=native", &format!("{}/seed/image:{name}", world.address)]).await;
    }
    let (one, two) = (format!("{}/seed/image:one", world.address), format!("{}/seed/image:two", world.address));
    // It mounts with `from=seed/image`.
    let reference = format!("{}/shop/ctr:v1", world.address);
    ctr(&["push", "--plain-http", &reference, &one]).await;
    let written = world.ledger.size();
    ctr(&["push", "--plain-http", &reference, &one]).await;
    assert_eq!(world.ledger.size(), written);
    assert_eq!(bound(&world, "shop/ctr", "v1").await, digests[0]);
    let by_digest = format!("{}/shop/ctr@{}", world.address, digests[0]);
    for reference in [&reference, &by_digest] {
        ctr(&["pull", "--plain-http", "--snapshotter=native", reference]).await;
        assert!(ctr(&["ls"]).await.contains(&digests[0]));
    }
    ctr(&["push", "--plain-http", &format!("{}/copy/ctr:v1", world.address), &reference]).await;
    assert_eq!(bound(&world, "copy/ctr", "v1").await, digests[0]);

    // containerd prints the status line of an answer and never its body.
    let refused = run("ctr", &["-a", &socket, "images", "push", "--plain-http", &reference, &two]).await;
    assert!(!refused.status.success());
    for part in ["409 Conflict: `shop/ctr:v1`", &digests[0], &digests[1], "by alice", "new tag"] {
        assert!(errors(&refused).contains(part), "{part} is not in: {}", errors(&refused));
    }
    assert_eq!(bound(&world, "shop/ctr", "v1").await, digests[0]);
}

//! A root made of the host's programs, and ways to run something in it.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use adamant_sandbox::{
    Access, Child, Exit, Fds, Kind, Limits, Mount, Outcome, Sandbox, SandboxError, Source, Spec, owner,
};
use tempfile::TempDir;

/// A directory that the sandbox's user can reach.
pub(crate) fn directory() -> TempDir {
    let dir = tempfile::Builder::new().prefix("sandbox-it-").tempdir().expect("temporary directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    dir
}

pub(crate) struct Root {
    dir: TempDir,
    pub(crate) sandbox: Sandbox,
}

impl Root {
    pub(crate) fn new() -> Self {
        let dir = directory();
        let tree = dir.path().join("root");
        for name in ["", "proc", "dev", "tmp", "sys", "usr", "work", "etc"] {
            fs::create_dir(tree.join(name)).expect("directory");
        }
        fs::write(tree.join("probe"), "").expect("file");
        for name in ["bin", "lib", "lib64"] {
            if Path::new("/").join(name).is_symlink() {
                symlink(format!("usr/{name}"), tree.join(name)).expect("link");
            } else {
                fs::create_dir(tree.join(name)).expect("directory");
            }
        }
        let work = dir.path().join("work");
        fs::create_dir(&work).expect("directory");
        let (uid, gid) = owner();
        std::os::unix::fs::chown(&work, Some(uid), Some(gid)).expect("owner");
        Self { dir, sandbox: Sandbox::new(exe()) }
    }

    pub(crate) fn tree(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub(crate) fn spec(&self, argv: &[&str]) -> Spec {
        let bind = |source: &Path, target: &str, access| Mount::Bind {
            source: Source::Path(source.to_path_buf()),
            target: target.to_owned(),
            access,
        };
        let mut mounts = vec![
            bind(Path::new("/usr"), "/usr", Access::ReadOnly),
            bind(&exe(), "/probe", Access::ReadOnly),
            bind(&self.work(), "/work", Access::Writable),
        ];
        for name in ["/bin", "/lib", "/lib64"] {
            let path = Path::new(name);
            if path.is_dir() && !path.is_symlink() {
                mounts.push(bind(path, name, Access::ReadOnly));
            }
        }
        Spec {
            root: self.tree(),
            mounts,
            argv: argv.iter().map(ToString::to_string).collect(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            cwd: "/work".into(),
            hostname: "quiet".into(),
            uid: 1234,
            gid: 5678,
            limits: Limits { wall_ms: Some(30_000), ..Limits::default() },
            cpus: None,
            port: None,
            aslr: false,
            kind: Kind::Build,
        }
    }

    pub(crate) fn shell(&self, script: &str) -> Spec {
        self.spec(&["/bin/sh", "-c", script])
    }

    /// Runs to the end: the outcome, standard output, standard error.
    pub(crate) fn run(&self, spec: &Spec) -> Result<(Outcome, String, String), SandboxError> {
        let (out, out_end) = pipe();
        let (err, err_end) = pipe();
        let fds = Fds { stdout: Some(out_end), stderr: Some(err_end), ..Fds::default() };
        let child = self.sandbox.spawn(spec, fds)?;
        let read = |mut file: fs::File| {
            std::thread::spawn(move || {
                let mut text = String::new();
                file.read_to_string(&mut text).expect("output");
                text
            })
        };
        let (out, err) = (read(out), read(err));
        let outcome = child.wait();
        let (out, err) = (out.join().expect("reader"), err.join().expect("reader"));
        outcome.map(|outcome| (outcome, out, err))
    }

    /// Runs something that must succeed, and gives its output.
    pub(crate) fn output(&self, spec: &Spec) -> String {
        let (outcome, out, err) = self.run(spec).expect("sandbox");
        assert_eq!(outcome.exit, Exit::Code(0), "stdout: {out}\nstderr: {err}");
        out
    }

    pub(crate) fn start(&self, spec: &Spec) -> Child {
        self.sandbox.spawn(spec, Fds::default()).expect("sandbox")
    }
}

pub(crate) fn exe() -> PathBuf {
    std::env::current_exe().expect("own path")
}

pub(crate) fn pipe() -> (fs::File, OwnedFd) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
    (read.into(), write)
}

/// An argument no other process of this machine has.
pub(crate) fn marker() -> String {
    let mut random = [0; 4];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).expect("random");
    format!("86{}", u32::from_le_bytes(random))
}

/// Processes of the host with the marker among their arguments, other than our own.
pub(crate) fn marked(marker: &str) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).expect("pid");
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(marker)
    };
    pids.filter(|pid| *pid != own).filter(has).collect()
}

pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not happen in 10 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a descriptor is readable within the time.
pub(crate) fn readable(fd: impl AsFd, wait: Duration) -> bool {
    let mut polls = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    let wait = wait.try_into().expect("time");
    rustix::event::poll(&mut polls, Some(&wait)).expect("poll") > 0
}

//! A server with a data directory of its own, and repositories that push to it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use adamant_api::{FsckReport, Status};
use rustix::process::Signal;

use crate::client;
use crate::process::{self, Background, Ended, Trap, run, wait_for};
use crate::template::{self, scratch};

/// Levels at which every point of a crash is in the log.
const LOG: &str = "info,adamant_server=debug,adamant_ledger=debug";

/// `adamant up` on a data directory.
pub(crate) struct Server {
    pub(crate) data: PathBuf,
    pub(crate) url: String,
    pub(crate) exe: PathBuf,
    pub(crate) process: Background,
}

/// The command that starts a server on any free port.
pub(crate) fn up(data: &Path, exe: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(exe);
    command.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(data).args(arguments).env("ADAMANT_LOG", LOG);
    command
}

impl Server {
    #[track_caller]
    pub(crate) fn start(data: &Path, exe: &Path, arguments: &[&str]) -> Self {
        Self::of(Background::spawn(&mut up(data, exe, arguments)), data, exe)
    }

    /// Takes over a process that is starting, and waits until it serves.
    #[track_caller]
    pub(crate) fn of(process: Background, data: &Path, exe: &Path) -> Self {
        Self::try_of(process, data, exe).unwrap_or_else(|log| panic!("the server does not start:\n{log}"))
    }

    /// As `of`, for a server that may die while it starts.
    pub(crate) fn try_of(process: Background, data: &Path, exe: &Path) -> Result<Self, String> {
        let line = process.out.wait(|line| line.contains(" on http://")).ok_or_else(|| process.err.text())?;
        let url = line.split_whitespace().find(|word| word.starts_with("http://")).unwrap();
        let url = url.trim_end_matches(',').to_owned();
        Ok(Self { data: data.to_owned(), url, exe: exe.to_owned(), process })
    }

    /// Ends the server as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait();
    }

    /// Ends the server in order.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.process.signal(Signal::TERM);
        let code = self.process.wait();
        assert_eq!(code, 0, "{}", self.process.err.text());
    }

    /// Ends everything the data directory runs.
    #[track_caller]
    pub(crate) fn down(&self) {
        down(&self.data, &self.exe);
    }
}

#[track_caller]
pub(crate) fn down(data: &Path, exe: &Path) {
    run(Command::new(exe).args(["down", "--data"]).arg(data)).ok();
}

/// A git repository whose remote is a server.
#[derive(Clone)]
pub(crate) struct Repo {
    pub(crate) dir: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) exe: PathBuf,
}

impl Repo {
    /// Makes a repository of a directory, which may hold files already.
    pub(crate) fn create(dir: &Path, data: &Path, exe: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let repo = Self { dir: dir.to_owned(), data: data.to_owned(), exe: exe.to_owned() };
        repo.git(&["init", "--quiet", "--initial-branch", "main"]).ok();
        repo
    }

    /// `git` in this repository, with nothing of the person's or the machine's configuration.
    pub(crate) fn git_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command
            .current_dir(&self.dir)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .args(["-c", "user.name=Test", "-c", "user.email=test@shop.example"])
            .args(arguments);
        command
    }

    pub(crate) fn git(&self, arguments: &[&str]) -> Ended {
        run(&mut self.git_command(arguments))
    }

    pub(crate) fn adamant_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.exe);
        command.current_dir(&self.dir).env("ADAMANT_DATA", &self.data).env("ADAMANT_LOG", "error").args(arguments);
        command
    }

    pub(crate) fn adamant(&self, arguments: &[&str]) -> Ended {
        run(&mut self.adamant_command(arguments))
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.dir.join(path)).unwrap()
    }

    /// What the example calls itself.
    pub(crate) fn set_version(&self, version: &str) {
        let text = self.read("src/version.h");
        let lines = text.lines().map(|line| {
            if line.starts_with("#define SHOP_VERSION ") {
                format!("#define SHOP_VERSION \"{version}\"\n")
            } else {
                format!("{line}\n")
            }
        });
        self.write("src/version.h", &lines.collect::<String>());
    }

    /// Commits everything; gives the commit.
    pub(crate) fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all"]).ok();
        self.git(&["commit", "--quiet", "--allow-empty", "-m", message]).ok();
        self.git(&["rev-parse", "HEAD"]).ok().trim().to_owned()
    }

    pub(crate) fn push(&self) -> Ended {
        self.git(&["push", "adamant", "HEAD:main"])
    }

    /// A commit with another version, not pushed.
    pub(crate) fn change(&self, version: &str) -> String {
        self.set_version(version);
        self.commit(version)
    }

    pub(crate) fn status(&self) -> Status {
        serde_json::from_str(&self.adamant(&["status", "--json"]).ok()).unwrap()
    }

    /// Number of the release of a commit.
    #[track_caller]
    pub(crate) fn release_of(&self, commit: &str) -> String {
        let status = self.status();
        let found = status.releases.iter().find(|release| release.commit == commit);
        found.map_or_else(|| panic!("no release of {commit}: {status:?}"), |release| release.name.clone())
    }

    /// Where an environment answers.
    #[track_caller]
    pub(crate) fn url(&self, environment: &str) -> String {
        let status = self.status();
        let found = status.environments.into_iter().find(|e| e.name == environment).and_then(|e| e.url);
        found.filter(|url| !url.is_empty()).unwrap_or_else(|| panic!("{environment} has no address"))
    }

    /// Waits until a release is healthy in an environment.
    #[track_caller]
    pub(crate) fn await_healthy(&self, environment: &str, release: &str) {
        wait_for(&format!("{release} in {environment}"), || {
            let status = self.status();
            let current = status.environments.into_iter().find(|e| e.name == environment)?.current?;
            (current.release == release && current.state == "healthy").then_some(())
        });
    }
}

/// A copy of the template, with its server up.
pub(crate) struct World {
    pub(crate) dir: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) exe: PathBuf,
    /// The example.
    pub(crate) shop: Repo,
    pub(crate) server: Server,
    lock: &'static str,
}

impl World {
    /// A world of one's own; `None` if the host cannot have one, which is said by name.
    pub(crate) fn new(test: &str) -> Option<Self> {
        Self::with(test, &[])
    }

    pub(crate) fn with(test: &str, arguments: &[&str]) -> Option<Self> {
        Self::at(test, None, arguments)
    }

    /// With the data directory below `place`.
    pub(crate) fn at(test: &str, place: Option<&Path>, arguments: &[&str]) -> Option<Self> {
        let template = match template::template() {
            Ok(template) => template,
            Err(reason) => {
                process::skipped(test, reason);
                return None;
            }
        };
        let dir = fresh(test);
        let (data, work) = (place.unwrap_or(&dir).join("data"), dir.join("shop"));
        copy_data(&template.dir.join("data"), &data);
        process::copy(&template.dir.join("shop"), &work, false);
        let server = Server::start(&data, &template.exe, arguments);
        let shop = Repo { dir: work, data: data.clone(), exe: template.exe.clone() };
        shop.adamant(&["init"]).ok();
        // What ran before runs again, at addresses of this world.
        for environment in ["dev", "staging", "prod"] {
            wait_for("the environments", || {
                let status = shop.status();
                let url = status.environments.into_iter().find(|e| e.name == environment)?.url?;
                client::get(&url).ok().filter(|answer| answer.status == 200)
            });
        }
        Some(Self { dir, data, exe: template.exe.clone(), shop, server, lock: &template.lock })
    }

    /// Starts the server again after its end.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.restart_with(&[]);
    }

    #[track_caller]
    pub(crate) fn restart_with(&mut self, arguments: &[&str]) {
        assert!(self.server.process.ended(), "the server still runs");
        self.server = Server::start(&self.data, &self.exe, arguments);
        // The port is another one now.
        self.shop.adamant(&["init"]).ok();
    }

    pub(crate) fn trap(&self, point: &'static str, nth: usize) {
        self.server.process.err.set_trap(Trap { point, nth });
    }

    /// A repository of another project with the example's toolchain, set up and not committed.
    pub(crate) fn project(&self, name: &str, files: &[(&str, &str)]) -> Repo {
        let repo = Repo::create(&self.dir.join(name), &self.data, &self.exe);
        for (path, text) in files {
            repo.write(path, text);
        }
        repo.write("adamant.lock", self.lock);
        repo.adamant(&["init"]).ok();
        repo
    }

    /// Looks at everything; gives what is wrong.
    pub(crate) fn fsck(&self) -> Vec<String> {
        let ended = self.shop.adamant(&["fsck", "--json"]);
        let report: FsckReport = serde_json::from_str(&ended.out).unwrap_or_else(|e| panic!("{e}: {}", ended.err));
        assert_eq!(ended.code, i32::from(!report.findings.is_empty()), "{}", ended.err);
        report.findings.iter().map(|finding| format!("{}: {}", finding.object, finding.problem)).collect()
    }

    #[track_caller]
    pub(crate) fn assert_sound(&self, when: &str) {
        assert_eq!(self.fsck(), Vec::<String>::new(), "{when}");
    }

    /// The front page of an environment.
    #[track_caller]
    pub(crate) fn page(&self, environment: &str) -> String {
        let answer = client::get(&self.shop.url(environment)).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    }

    /// A token of this server.
    pub(crate) fn token(&self) -> String {
        self.shop.adamant(&["token"]).ok().trim().to_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Nothing here may panic: a test may be failing already.
        self.server.process.signal(Signal::KILL);
        let _ = self.server.process.child.wait();
        let _ = Command::new(&self.exe).args(["down", "--data"]).arg(&self.data).output();
        if std::thread::panicking() {
            eprintln!("kept for a look: {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// A new directory.
pub(crate) fn fresh(name: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let dir = scratch().join(format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Copies a data directory nobody uses. What never changes is shared: a test that damages such a
/// file replaces it by one of its own first.
pub(crate) fn copy_data(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    std::fs::set_permissions(to, std::fs::metadata(from).unwrap().permissions()).unwrap();
    let device = |path: &Path| std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(path).unwrap());
    let linkable = device(from) == device(to);
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let shared = linkable && ["blobs", "cache"].iter().any(|name| entry.file_name() == *name);
        process::copy(&entry.path(), to, shared);
    }
}

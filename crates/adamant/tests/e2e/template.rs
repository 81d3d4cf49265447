//! What each test starts from: a project that was locked, released twice and brought to prod.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::process::{self, run};
use crate::world::{Repo, Server};

/// Data directory and work tree of a project whose server is stopped.
pub(crate) struct Template {
    pub(crate) dir: PathBuf,
    /// A copy of the binary, which nobody replaces while tests run.
    pub(crate) exe: PathBuf,
    /// `adamant.lock` of the example, good for any `make` project with an artifact `web`.
    pub(crate) lock: String,
}

/// Where this process keeps everything. What earlier processes left is removed.
pub(crate) fn scratch() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let base = std::env::temp_dir();
        let prefix = "adamant-e2e-";
        for entry in std::fs::read_dir(&base).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let gone = |pid: &str| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists();
            if name.strip_prefix(prefix).is_some_and(gone) {
                // What an aborted run deployed runs on; it is ours to end.
                let below = format!("{}/", entry.path().display());
                for pid in process::processes(&[&below]) {
                    process::kill(pid, rustix::process::Signal::KILL);
                }
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        let dir = base.join(format!("{prefix}{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        dir
    })
}

/// The binary under test.
pub(crate) fn exe() -> &'static Path {
    static EXE: OnceLock<PathBuf> = OnceLock::new();
    EXE.get_or_init(|| {
        let exe = scratch().join("adamant");
        std::fs::copy(env!("CARGO_BIN_EXE_adamant"), &exe).unwrap();
        exe
    })
}

/// The template, made at the first call; `Err` says what the host does not give.
pub(crate) fn template() -> Result<&'static Template, &'static str> {
    static TEMPLATE: OnceLock<Result<Template, String>> = OnceLock::new();
    TEMPLATE.get_or_init(make).as_ref().map_err(String::as_str)
}

/// The example's files with another name for the project, if wanted.
pub(crate) fn example(to: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/shop");
    process::copy(&from, to, false);
}

fn make() -> Result<Template, String> {
    if !process::installed("git") {
        return Err("git is not installed".to_owned());
    }
    let doctor = run(Command::new(exe()).arg("doctor"));
    if doctor.code != 0 {
        return Err(format!("this host forbids what the sandbox needs: {}", doctor.out.trim().replace('\n', "; ")));
    }
    let dir = scratch().join("template");
    std::fs::create_dir_all(&dir).unwrap();
    let (data, work) = (dir.join("data"), dir.join("shop"));
    example(&work);
    let mut server = Server::start(&data, exe(), &[]);
    let repo = Repo::create(&work, &data, exe());
    repo.adamant(&["init"]).ok();
    let locked = repo.adamant(&["lock"]);
    if locked.code == 3 {
        return Err(format!("the package mirror is not reachable: {}", locked.err.trim().replace('\n', "; ")));
    }
    locked.ok();
    for (number, version) in ["first", "second"].iter().enumerate() {
        repo.set_version(version);
        repo.commit(version);
        repo.push().ok();
        let release = format!("shop/{}", number + 1);
        repo.adamant(&["promote", &release, "staging", "--wait"]).ok();
        repo.adamant(&["config", "prod", &format!("GREETING=I am {version}")]).ok();
        repo.adamant(&["promote", &release, "prod"]).ok();
    }
    server.stop();
    server.down();
    // Each copy gets ports of its own.
    for environment in ["dev", "staging", "prod"] {
        std::fs::remove_file(data.join("local").join(environment).join("front.json")).unwrap();
    }
    let lock = std::fs::read_to_string(work.join("adamant.lock")).unwrap();
    Ok(Template { dir, exe: exe().to_owned(), lock })
}

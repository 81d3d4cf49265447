//! Other people's servers, started by the test that needs them and stopped when dropped: an S3 store
//! in memory and a PostgreSQL. `./test` installs both; where one is missing, a test says so by name.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for a server that starts or ends.
const PATIENCE: Duration = Duration::from_mins(1);

/// Says by name what is not tested, and why.
fn skipped(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    listener.local_addr().expect("it has an address").port()
}

fn wait_for(what: &str, child: &mut Child, mut ready: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !ready() {
        if let Some(status) = child.try_wait().expect("a child can be asked") {
            panic!("{what} ended early: {status}");
        }
        assert!(begin.elapsed() < PATIENCE, "{what} is not ready within {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn output(dir: &Path, name: &str) -> [Stdio; 2] {
    let log = File::create(dir.join(name)).expect("a log");
    [log.try_clone().expect("a log").into(), log.into()]
}

/// An S3 server that keeps everything in memory. It takes any access key.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Moto {
    /// Starts one, or says that `test` is skipped.
    pub fn start(test: &str) -> Option<Self> {
        let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/services/moto/bin/moto_server");
        if !venv.is_file() {
            skipped(test, "moto is not installed (./test --packages)");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let port = free_port();
        let [out, err] = output(dir.path(), "log");
        let mut child = Command::new(venv)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .expect("moto starts");
        wait_for("moto", &mut child, || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        Some(Self { child, port, _dir: dir })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Makes a bucket.
    pub fn bucket(&self, name: &str) {
        use std::io::{Read as _, Write as _};
        let mut stream = TcpStream::connect(self.address()).expect("moto takes connections");
        let host = self.address();
        write!(stream, "PUT /{name} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .expect("moto reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("moto answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A PostgreSQL server with a cluster of its own, durable as by default.
#[derive(Debug)]
pub struct Postgres {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Postgres {
    /// Starts one, or says that `test` is skipped.
    pub fn start(test: &str) -> Option<Self> {
        let Some(programs) = programs() else {
            skipped(test, "postgresql is not installed (./test --packages)");
            return None;
        };
        let dir = tempfile::Builder::new().prefix("pg-").tempdir_in("/tmp").expect("a directory");
        let data = dir.path().join("data");
        std::fs::create_dir(&data).expect("a directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700)).expect("chmod");
        if rustix::process::geteuid().is_root() {
            let chown = Command::new("chown").arg("-R").arg("postgres").args([&data]).status();
            assert!(chown.expect("chown runs").success(), "there is a user postgres");
        }
        let [out, err] = output(dir.path(), "initdb.log");
        let made = ours(&programs.join("initdb"))
            .arg("-D")
            .arg(&data)
            .args(["-U", "adamant", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums"])
            .stdout(out)
            .stderr(err)
            .status()
            .expect("initdb runs");
        assert!(
            made.success(),
            "initdb: {}",
            std::fs::read_to_string(dir.path().join("initdb.log")).unwrap_or_default()
        );
        let port = free_port();
        let child = Self::spawn(&programs, dir.path(), port);
        let mut server = Self { child, port, dir };
        server.wait_until_ready();
        Some(server)
    }

    fn spawn(programs: &Path, dir: &Path, port: u16) -> Child {
        let [out, err] = output(dir, "server.log");
        ours(&programs.join("postgres"))
            .arg("-D")
            .arg(dir.join("data"))
            .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=60", "-k"])
            .arg(dir.join("data"))
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .expect("postgres starts")
    }

    fn wait_until_ready(&mut self) {
        let programs = programs().expect("it was there before");
        let port = self.port.to_string();
        wait_for("postgres", &mut self.child, || {
            let asked = Command::new(programs.join("pg_isready")).args(["-q", "-h", "127.0.0.1", "-p", &port]).status();
            asked.is_ok_and(|status| status.success())
        });
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// URL of a new, empty database.
    pub fn database(&self, name: &str) -> String {
        let programs = programs().expect("it was there before");
        let port = self.port.to_string();
        let made = Command::new(programs.join("createdb"))
            .args(["-h", "127.0.0.1", "-p", &port, "-U", "adamant", name])
            .status()
            .expect("createdb runs");
        assert!(made.success(), "createdb {name}");
        format!("postgres://adamant@{}/{name}", self.address())
    }

    /// Ends every connection and starts the server again, as an administrator would.
    pub fn restart(&mut self) {
        self.stop();
        self.child = Self::spawn(&programs().expect("it was there before"), self.dir.path(), self.port);
        self.wait_until_ready();
    }

    /// Fast shutdown. The child may be a wrapper that changed the user; the number of the server itself
    /// stands in its directory.
    fn stop(&mut self) {
        let text = std::fs::read_to_string(self.dir.path().join("data/postmaster.pid")).unwrap_or_default();
        if let Some(pid) = text.lines().next().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::INT);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where the newest version's programs are.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let dirs = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    dirs.filter(|dir| dir.join("postgres").is_file()).max()
}

/// The server refuses to run as root.
fn ours(program: &Path) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/");
    command
}

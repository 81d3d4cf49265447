//! Other people's servers, started by the test that needs them and stopped when dropped: an S3 store
//! in memory and a PostgreSQL. `./test` installs both; where one is missing, a test says so by name.
//! Any other S3 is named by `ADAMANT_TEST_S3`; `ceph-rgw` beside this crate starts one.

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

/// An S3 store for servers that are started as a user would: the one that `ADAMANT_TEST_S3` names, with
/// the access key of the usual variables, or [`Moto`].
#[derive(Debug)]
pub struct S3 {
    endpoint: String,
    key: [(&'static str, String); 2],
    _moto: Option<Moto>,
}

impl S3 {
    /// Finds or starts one, or says that `test` is skipped.
    pub fn start(test: &str) -> Option<Self> {
        let named = std::env::var("ADAMANT_TEST_S3").ok();
        let moto = if named.is_none() { Some(Moto::start(test)?) } else { None };
        let endpoint = named.or_else(|| Some(moto.as_ref()?.endpoint()))?;
        let of = |name: &'static str| (name, std::env::var(name).unwrap_or_else(|_| "test".to_owned()));
        Some(Self { endpoint, key: [of("AWS_ACCESS_KEY_ID"), of("AWS_SECRET_ACCESS_KEY")], _moto: moto })
    }

    /// Its URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The access key as variables for a server.
    pub fn key(&self) -> &[(&'static str, String); 2] {
        &self.key
    }

    /// Makes a bucket if there is none by this name.
    pub fn bucket(&self, name: &str) {
        let made = self.curl("PUT", name).args(["-w", "%{http_code}", "-o", "/dev/null"]).output().expect("curl runs");
        let status = String::from_utf8_lossy(&made.stdout);
        assert!(matches!(&*status, "200" | "409"), "bucket {name}: {status}{}", String::from_utf8_lossy(&made.stderr));
    }

    /// What an object, `bucket/key`, holds.
    pub fn object(&self, path: &str) -> Vec<u8> {
        let got = self.curl("GET", path).arg("-f").output().expect("curl runs");
        assert!(got.status.success(), "{path}: {}", String::from_utf8_lossy(&got.stderr));
        got.stdout
    }

    /// Puts an object, behind the back of whoever keeps it there.
    pub fn overwrite(&self, path: &str, bytes: &[u8]) {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        std::io::Write::write_all(&mut file, bytes).expect("a file is written");
        let body = format!("@{}", file.path().display());
        let put = self.curl("PUT", path).args(["-f", "--data-binary", &body]).output().expect("curl runs");
        assert!(put.status.success(), "{path}: {}", String::from_utf8_lossy(&put.stderr));
    }

    fn curl(&self, method: &str, path: &str) -> Command {
        let region = std::env::var("AWS_DEFAULT_REGION").unwrap_or_else(|_| "us-east-1".to_owned());
        let mut command = Command::new("curl");
        command
            .args(["-sS", "-X", method, "--noproxy", "127.0.0.1"])
            .args(["--user", &format!("{}:{}", self.key[0].1, self.key[1].1)])
            .args(["--aws-sigv4", &format!("aws:amz:{region}:s3")])
            // A store that checks signatures needs it, and curl does not say it by itself.
            .args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"])
            .arg(format!("{}/{path}", self.endpoint.trim_end_matches('/')));
        command
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
        Self::start_by(test, None)
    }

    /// Starts one that takes TLS connections alone, with this certificate and key, both PEM.
    pub fn start_with_tls(test: &str, certificate: &str, key: &str) -> Option<Self> {
        Self::start_by(test, Some((certificate, key)))
    }

    fn start_by(test: &str, tls: Option<(&str, &str)>) -> Option<Self> {
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
        if let Some((certificate, key)) = tls {
            Self::take_tls_alone(&data, certificate, key);
        }
        let port = free_port();
        let child = Self::spawn(&programs, dir.path(), port);
        let mut server = Self { child, port, dir };
        server.wait_until_ready();
        Some(server)
    }

    /// Its own tools come by the socket.
    fn take_tls_alone(data: &Path, certificate: &str, key: &str) {
        let write = |name: &str, text: &str| std::fs::write(data.join(name), text).expect("a file is written");
        write("server.crt", certificate);
        write("server.key", key);
        std::fs::set_permissions(data.join("server.key"), std::fs::Permissions::from_mode(0o600)).expect("chmod");
        write("pg_hba.conf", "local all all trust\nhostssl all all all trust\n");
        write("postgresql.auto.conf", "ssl = on\n");
        if rustix::process::geteuid().is_root() {
            let chown = Command::new("chown").arg("-R").arg("postgres").args([data]).status();
            assert!(chown.expect("chown runs").success(), "there is a user postgres");
        }
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
            .arg("-h")
            .arg(self.dir.path().join("data"))
            .args(["-p", &port, "-U", "adamant", name])
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

/// An authority that certifies servers, made by `openssl`; all in PEM.
#[derive(Debug)]
pub struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    /// A new one, or says that `test` is skipped.
    pub fn new(test: &str) -> Option<Self> {
        if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
            skipped(test, "openssl is not installed (./test --packages)");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let this = Self { dir };
        let subject = ["-subj", "/CN=an authority", "-addext", "keyUsage=critical,keyCertSign"];
        this.openssl(&[&["req", "-x509", "-days", "2", "-out", "ca.crt", "-keyout", "ca.key"], KEY, &subject].concat());
        Some(this)
    }

    /// The file with its certificate.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// Certificate and key of a server with `name`, as OpenSSL writes it: `DNS:localhost`.
    pub fn certify(&self, name: &str) -> (String, String) {
        let subject = ["-subj", "/CN=a server", "-addext", &format!("subjectAltName={name}")];
        self.openssl(&[&["req", "-new", "-out", "csr", "-keyout", "key"], KEY, &subject].concat());
        let by = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-copy_extensions", "copy"];
        self.openssl(&[&["x509", "-req", "-days", "2", "-in", "csr", "-out", "crt"], &by[..]].concat());
        let read = |name: &str| std::fs::read_to_string(self.dir.path().join(name)).expect("a PEM file");
        (read("crt"), read("key"))
    }

    fn openssl(&self, arguments: &[&str]) {
        let done = Command::new("openssl").args(arguments).current_dir(self.dir.path()).output().expect("openssl runs");
        assert!(done.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// How `openssl req` makes a key.
const KEY: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

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

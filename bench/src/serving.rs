//! Registries under measurement, each a process with a directory of its own.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::http::{Client, OCTETS};
use crate::process::run;

/// Longest wait for a server that starts.
const START: Duration = Duration::from_secs(30);

/// A registry that ends with this.
pub(crate) struct Registry {
    child: Child,
    out: Option<BufReader<ChildStdout>>,
    pub(crate) address: SocketAddr,
    /// For pushes.
    pub(crate) token: Option<String>,
}

impl Registry {
    /// `adamant up`, open for pulls.
    pub(crate) fn ours(exe: &Path, data: &Path) -> Result<Self> {
        let mut command = Command::new(exe);
        command.args(["up", "--anonymous-registry", "--listen", "127.0.0.1:0", "--data"]).arg(data);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let out = child.stdout.take();
        // From here on it ends with this.
        let mut registry = Self { child, out: None, address: SocketAddr::from(([127, 0, 0, 1], 0)), token: None };
        let mut line = String::new();
        // Kept open: what it prints later must find a reader.
        let out = registry.out.insert(BufReader::new(out.context("the server has no output")?));
        out.read_line(&mut line)?;
        let url = line.split_whitespace().find_map(|word| word.strip_prefix("http://"));
        registry.address =
            url.with_context(|| format!("the server did not start: {line}"))?.trim_end_matches(',').parse()?;
        let token = run(Command::new(exe).args(["token", "--data"]).arg(data), START)?;
        registry.token = Some(token.out.trim().to_owned());
        Ok(registry)
    }

    /// Debian's `docker-registry` over files, with the cache that its package sets.
    pub(crate) fn peer(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let settings = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{cache: {{blobdescriptor: \
             inmemory}}, filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n",
            dir.join("data").display()
        );
        let path = dir.join("config.yml");
        std::fs::write(&path, settings)?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let registry = Self { child, out: None, address, token: None };
        let begin = Instant::now();
        while Client::open(address, None).and_then(|mut client| client.send("GET", "/v2/", OCTETS, b"")).is_err() {
            ensure!(begin.elapsed() < START, "docker-registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(registry)
    }

    pub(crate) fn client(&self) -> Result<Client> {
        Client::open(self.address, self.token.as_deref())
    }

    /// Processor time so far, in seconds, of all its threads.
    pub(crate) fn cpu_s(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name in brackets may hold anything; what follows are fields 3 and on.
        let (_, fields) = stat.rsplit_once(") ").context("no /proc/PID/stat")?;
        let field = |n: usize| fields.split(' ').nth(n - 3).and_then(|text| text.parse::<u32>().ok());
        let ticks = field(14).zip(field(15)).context("no times in /proc/PID/stat")?;
        let rate = u32::try_from(rustix::param::clock_ticks_per_second())?;
        Ok(f64::from(ticks.0 + ticks.1) / f64::from(rate))
    }

    /// `VmRSS` or `VmHWM`.
    pub(crate) fn memory_mb(&self, field: &str) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kb: f64 = line.and_then(|line| line.split_whitespace().next()).context("no memory in /proc")?.parse()?;
        Ok(kb / 1000.0)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // One that ended already is as good.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

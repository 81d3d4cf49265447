//! The product as a person meets it: the tour, pushes, rollbacks, proofs, a server at rest and
//! under registry load. All on the data the tour made, with the release binary and git.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::process::{Ran, ms, run};
use crate::report::{Goal, Report, median};
use crate::{capsule, registry};

/// The tour's project and artifact.
const PROJECT: &str = "shop";
const ARTIFACT: &str = "web";
/// Pushes of each kind.
const PUSHES: usize = 5;
/// Rollbacks.
const ROLLBACKS: usize = 6;
/// Most time for one command.
const ONE: Duration = Duration::from_mins(1);
/// Most time for the tour, which fetches a toolchain.
const TOUR: Duration = Duration::from_secs(150);
/// How long a server is left alone before its memory counts as idle.
const REST: Duration = Duration::from_secs(3);
/// Half of what `nix-build` took for the same where it was measured, milliseconds.
const NO_OP_GOAL_MS: f64 = 17.5;
const COLD_GOAL_MS: f64 = 42.5;

pub(crate) fn measure(exe: &Path, place: &Path, deadline: Instant, report: &mut Report) -> Result<()> {
    let bench = Bench { exe: exe.to_owned(), data: place.join("data"), deadline };
    let result = bench.all(report);
    // Nothing that was deployed stays, whatever happened.
    let down = bench.adamant(&["down"]);
    result?;
    down.map(drop)
}

struct Bench {
    exe: PathBuf,
    data: PathBuf,
    deadline: Instant,
}

impl Bench {
    fn all(&self, report: &mut Report) -> Result<()> {
        self.tour(report).context("the tour")?;
        let remote = run(Command::new("git").args(["remote", "get-url", "adamant"]).current_dir(self.work()), ONE)?;
        let address = remote.out.trim().trim_start_matches("http://");
        let address = address.split('/').next().context("the remote has no address")?.to_owned();
        let server = Server::start(&self.exe, &self.data, &address)?;
        let base = format!("http://{address}");

        std::thread::sleep(REST);
        report.row("server memory, idle", server.memory_mb("VmRSS")?, "MB").goal(Goal::AtMost(40.0));

        self.pushes(report).context("pushes")?;
        self.rollbacks(report).context("rollbacks")?;
        self.proof(report).context("the proof")?;

        let status = self.status()?;
        let artifact = &status["releases"][0]["artifacts"][0];
        let digest = artifact["digest"].as_str().context("the newest release has no artifact")?;
        let number = status["releases"][0]["number"].as_u64().context("the newest release has no number")?;
        let name = format!("{PROJECT}/{ARTIFACT}");
        registry::measure(&base, &name, digest, "digest", report)?;
        registry::measure(&base, &name, &number.to_string(), "tag", report)?;
        report
            .row("server memory, at most, all of this included", server.memory_mb("VmHWM")?, "MB")
            .goal(Goal::AtMost(150.0));
        Ok(())
    }

    /// `adamant demo --once`, with the times it prints.
    fn tour(&self, report: &mut Report) -> Result<()> {
        let mut command = self.command(&["demo", "--once", "--listen", "127.0.0.1:0"]);
        let ran = run(&mut command, self.left(TOUR))?;
        report.row("tour, all of it", ran.took.as_secs_f64(), "s");
        for (_, line) in &ran.lines {
            if let Some((seconds, what)) = step(line) {
                report.row(format!("tour: {}", shortened(what)), seconds, "s");
            }
        }
        // The first line of its kind is the first build: toolchain unpacked, nothing cached.
        let (inputs, built) = (ran.when("remote: inputs "), ran.when(&format!("remote: {ARTIFACT} ")));
        if let (Some(inputs), Some(built)) = (inputs, built) {
            report
                .row("cold build of a small C program, toolchain unpacked too", ms(built.saturating_sub(inputs)), "ms")
                .note("inputs kept before; a first build on this server");
        }
        Ok(())
    }

    fn pushes(&self, report: &mut Report) -> Result<()> {
        let url = self.environment("dev")?;
        let (mut same, mut no_op) = (Vec::new(), Vec::new());
        let mut trivial = Phases::default();
        for n in 0..PUSHES {
            // The rebuild of the push before is work of its own.
            self.rebuilt()?;
            self.git(&["commit", "--quiet", "--allow-empty", "-m", "nothing"])?;
            let ran = self.push()?;
            same.push(ms(ran.took));
            no_op.extend(between(&ran, "remote: inputs ", &format!("remote: {ARTIFACT} ")));

            self.rebuilt()?;
            let version = format!("bench {n}");
            self.set_version(&version)?;
            self.git(&["commit", "--quiet", "--all", "-m", &version])?;
            let begin = Instant::now();
            let ran = self.push()?;
            await_answer(&url, &version, ONE)?;
            trivial.take(begin.elapsed(), &ran);
        }
        report
            .row("push to running, a changed line (median)", median(&mut trivial.running) / 1e3, "s")
            .goal(Goal::AtMost(3.0));
        for (what, times) in [
            ("  of it, until the commit is recorded", &mut trivial.recorded),
            ("  of it, build (cold: nothing but the toolchain is reused)", &mut trivial.build),
            ("  of it, deployed until healthy", &mut trivial.deploy),
            ("  of it, until git ends", &mut trivial.rest),
        ] {
            let value = median(times);
            let row = report.row(what, value, "ms");
            if what.contains("build") {
                row.goal(Goal::AtMost(COLD_GOAL_MS))
                    .note("0.5 × nix-build of a trivial derivation, elsewhere; ours runs gcc on 3 files");
            }
        }
        report.row("push to running, an equal tree (median)", median(&mut same) / 1e3, "s").goal(Goal::AtMost(3.0));
        report
            .row("no-op build, in such a push (median)", median(&mut no_op), "ms")
            .goal(Goal::AtMost(NO_OP_GOAL_MS))
            .note("0.5 × nix-build, elsewhere");
        Ok(())
    }

    /// Between the two newest releases, both unpacked on the host before.
    fn rollbacks(&self, report: &mut Report) -> Result<()> {
        let status = self.status()?;
        let names: Vec<&str> = (1..=2).filter_map(|n| status["releases"][n]["name"].as_str()).collect();
        let [one, other] = names[..] else { bail!("there are not enough releases") };
        let (mut command, mut healthy) = (Vec::new(), Vec::new());
        for n in 0..ROLLBACKS {
            let to = if n % 2 == 0 { one } else { other };
            let ran = self.adamant(&["rollback", "dev", "--project", PROJECT, "--to", to, "--json"])?;
            command.push(ran.took.as_secs_f64());
            let done: Value = serde_json::from_str(&ran.out).context("the answer of rollback")?;
            healthy.extend(seconds_of(done["detail"].as_str().unwrap_or_default()));
        }
        report.row("rollback, warm, the whole command (median)", median(&mut command), "s").goal(Goal::AtMost(1.0));
        report.row("  of it, the host until healthy (median)", median(&mut healthy), "s");
        Ok(())
    }

    fn proof(&self, report: &mut Report) -> Result<()> {
        let file = self.data.join("bench.capsule");
        let trust = self.data.join("trust.json");
        let (file_text, trust_text) = (file.display().to_string(), trust.display().to_string());
        let proved = self.adamant(&["prove", "dev", "--project", PROJECT, "-o", &file_text])?;
        report.row("`adamant prove`, one deployment", ms(proved.took), "ms");
        let mut times = Vec::new();
        for _ in 0..10 {
            times.push(ms(self.adamant(&["verify", &file_text, "--trust", &trust_text])?.took));
        }
        capsule::measure(&file, &trust, median(&mut times), report)
    }

    fn work(&self) -> PathBuf {
        self.data.join("demo").join(PROJECT)
    }

    fn left(&self, most: Duration) -> Duration {
        most.min(self.deadline.saturating_duration_since(Instant::now()))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.exe);
        command.args(arguments).env("ADAMANT_DATA", &self.data);
        command
    }

    fn adamant(&self, arguments: &[&str]) -> Result<Ran> {
        // Tidying up is allowed after the deadline.
        let limit = if arguments == ["down"] { ONE } else { self.left(ONE) };
        run(&mut self.command(arguments), limit)
    }

    fn git(&self, arguments: &[&str]) -> Result<Ran> {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=Bench", "-c", "user.email=bench@shop.example", "-c", "commit.gpgsign=false"]);
        run(command.args(arguments).current_dir(self.work()), self.left(ONE))
    }

    fn push(&self) -> Result<Ran> {
        let ran = self.git(&["push", "adamant", "HEAD:main"])?;
        let line = ran.lines.iter().find(|(_, line)| line.contains("remote: dev ")).map(|(_, line)| line.as_str());
        let line = line.context("the push deployed nothing")?;
        ensure!(line.contains("healthy"), "{line}");
        Ok(ran)
    }

    fn status(&self) -> Result<Value> {
        let ran = self.adamant(&["status", PROJECT, "--json"])?;
        serde_json::from_str(&ran.out).context("the answer of status")
    }

    fn environment(&self, name: &str) -> Result<String> {
        let status = self.status()?;
        let environments = status["environments"].as_array().context("no environments")?;
        let found = environments.iter().find(|e| e["name"] == name).and_then(|e| e["url"].as_str());
        Ok(found.with_context(|| format!("{name} has no address"))?.to_owned())
    }

    /// Waits until nothing is left to rebuild.
    fn rebuilt(&self) -> Result<()> {
        let give_up = Instant::now() + self.left(ONE);
        while self.status()?["releases"][0]["grade"] != "rebuilt" {
            ensure!(Instant::now() < give_up, "the newest release is not rebuilt in time");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn set_version(&self, version: &str) -> Result<()> {
        let path = self.work().join("src/version.h");
        let text = std::fs::read_to_string(&path)?;
        let line = |line: &str| {
            if line.starts_with("#define SHOP_VERSION ") {
                format!("#define SHOP_VERSION \"{version}\"\n")
            } else {
                format!("{line}\n")
            }
        };
        Ok(std::fs::write(&path, text.lines().map(line).collect::<String>())?)
    }
}

/// Where the time of a push goes, milliseconds.
#[derive(Default)]
struct Phases {
    running: Vec<f64>,
    recorded: Vec<f64>,
    build: Vec<f64>,
    deploy: Vec<f64>,
    rest: Vec<f64>,
}

impl Phases {
    fn take(&mut self, running: Duration, ran: &Ran) {
        let artifact = format!("remote: {ARTIFACT} ");
        self.running.push(ms(running));
        self.recorded.extend(ran.when(&format!("remote: {PROJECT}/")).map(ms));
        self.build.extend(between(ran, "remote: inputs ", &artifact));
        self.deploy.extend(between(ran, &artifact, "remote: dev "));
        self.rest.extend(ran.when("remote: dev ").map(|at| ms(ran.took.saturating_sub(at))));
    }
}

fn between(ran: &Ran, from: &str, to: &str) -> Option<f64> {
    Some(ms(ran.when(to)?.saturating_sub(ran.when(from)?)))
}

/// A line of the tour: ` 7     1.3 s  git push adamant HEAD:main`.
fn step(line: &str) -> Option<(f64, &str)> {
    let (number, rest) = line.trim_start().split_once(' ')?;
    number.parse::<usize>().ok()?;
    let (seconds, what) = rest.trim_start().split_once(" s  ")?;
    Some((seconds.parse().ok()?, what))
}

fn shortened(what: &str) -> String {
    // Paths of the temporary directory say nothing.
    let words = what.split(' ').map(|word| if word.starts_with('/') { "…" } else { word });
    words.collect::<Vec<_>>().join(" ").chars().take(60).collect()
}

/// `healthy 0.3 s; …` → 0.3
fn seconds_of(detail: &str) -> Option<f64> {
    detail.strip_prefix("healthy ")?.split(' ').next()?.parse().ok()
}

/// A server that ends with this.
struct Server(Child);

impl Server {
    fn start(exe: &Path, data: &Path, address: &str) -> Result<Self> {
        let mut child = Command::new(exe)
            .args(["up", "--anonymous-registry", "--listen", address, "--data"])
            .arg(data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let out = child.stdout.take();
        let server = Self(child);
        let mut line = String::new();
        BufReader::new(out.context("the server has no output")?).read_line(&mut line)?;
        ensure!(line.contains(" on http://"), "the server did not start: {line}");
        Ok(server)
    }

    fn memory_mb(&self, field: &str) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kb: f64 = line.and_then(|line| line.split_whitespace().next()).context("no memory in /proc")?.parse()?;
        Ok(kb / 1000.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // One that ended already is as good.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// Asks until the front page says `text`.
fn await_answer(url: &str, text: &str, limit: Duration) -> Result<()> {
    let authority = url.trim_start_matches("http://").trim_end_matches('/');
    let port: u16 = authority.rsplit(':').next().context("no port")?.parse()?;
    let give_up = Instant::now() + limit;
    loop {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.take(1 << 20).read_to_end(&mut answer)?;
        if String::from_utf8_lossy(&answer).contains(text) {
            return Ok(());
        }
        ensure!(Instant::now() < give_up, "{url} does not say `{text}`");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_product_are_understood() {
        assert_eq!(step(" 7     1.3 s  git push adamant HEAD:main"), Some((1.3, "git push adamant HEAD:main")));
        assert_eq!(step("12    20.1 s  curl x"), Some((20.1, "curl x")));
        assert_eq!(step("remote: web     built 1.2 s  sha256:1"), None);
        assert_eq!(seconds_of("healthy 0.3 s; repaired web"), Some(0.3));
        assert_eq!(shortened("adamant verify /tmp/x --trust /tmp/y"), "adamant verify … --trust …");
    }
}

//! The tour: the commands a person would type, run for real, with their times.

mod attack;
mod example;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::commands::server;
use crate::output::{Failure, say};

pub(crate) use attack::attack;

/// Where the example repository lives below the data directory.
const WORK_TREE: &str = "demo/shop";
/// The project's name, as the example's recipe says.
const PROJECT: &str = "shop";

/// Runs numbered steps in the example's repository.
struct Tour {
    exe: PathBuf,
    data: PathBuf,
    work: PathBuf,
    step: usize,
    started: Instant,
}

/// From nothing to built, deployed, promoted, rolled back and proven.
pub(crate) async fn tour(data: &Path, listen: SocketAddr, once: bool) -> Result<ExitCode, Failure> {
    if data.join("adamant.db").exists() && !data.join(WORK_TREE).exists() {
        return Err(not_ours(data));
    }
    std::fs::create_dir_all(data)?;
    let mut tour = Tour {
        exe: std::env::current_exe()?,
        data: data.to_owned(),
        work: data.join(WORK_TREE),
        step: 0,
        started: Instant::now(),
    };
    say(format!("Adamant's tour. Everything it makes is below {}\n", data.display()));
    let begin = Instant::now();
    // A tour before this one may have left its server up: use it.
    let running = match adamant_client::connect(data).await {
        Ok(_) => None,
        Err(_) => Some(server::start(server::config(data.to_owned(), listen)?).await?),
    };
    let url = adamant_client::connect(data).await?.url;
    let how = if running.is_some() { "server on" } else { "the server that is up already, on" };
    tour.note(&format!("{how} {url}"), begin);

    let result = tour.run().await;
    if let Err(failure) = result {
        if let Some(running) = running {
            running.stop().await;
        }
        return Err(failure);
    }
    let total = tour.started.elapsed();
    say(format!("\nThe tour took {:.1} s.", total.as_secs_f64()));
    match running {
        Some(running) if once => {
            running.stop().await;
            adamant_server::down(data, &tour.exe).await?;
            say("Everything is stopped; the data stays.");
        }
        Some(running) => {
            tour.what_next().await?;
            say(
                "The server stays up until Ctrl-C; what it deployed runs on even then (`adamant down` stops that too).",
            );
            running.until_signal().await;
        }
        None => {
            tour.what_next().await?;
            say("The server was up before and stays up.");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The tour makes a project and `--break` edits what it finds: neither is for data that somebody needs.
fn not_ours(data: &Path) -> Failure {
    Failure::usage(format!("{} holds data that no tour has made", data.display()))
        .hint("the tour wants a directory of its own: leave `--data` and ADAMANT_DATA out, or name an empty one")
}

impl Tour {
    async fn run(&mut self) -> Result<(), Failure> {
        let fresh = example::write(&self.work)?;
        let round = self.round()?;
        if fresh {
            self.git(&["init", "--quiet", "--initial-branch", "main"])?;
        }
        headline("A service in C with a Makefile, as any repository");
        example::set_version(&self.work, &format!("{round}.0"))?;
        self.adamant(&["init"])?;
        headline("Pin every input; the server keeps every byte before the lock names it");
        self.adamant(&["lock"])?;
        self.commit(&format!("Shop {round}.0"))?;
        headline("Push: build in a sandbox without network, deploy to dev, rebuild in the background");
        self.git(&["push", "adamant", "HEAD:main"])?;
        let first = self.release()?;
        self.look("dev", &format!("version {round}.0")).await?;

        headline("Promote the same bytes; each step needs the environment before it and the rebuild");
        self.adamant(&["promote", &first, "staging", "--wait"])?;
        self.adamant(&["config", "prod", "--project", PROJECT, &format!("GREETING=Good day {round}")])?;
        self.adamant(&["promote", &first, "prod", "--reason", "the tour"])?;
        self.look("prod", &format!("version {round}.0")).await?;

        headline("A second commit and another configuration go the same way");
        example::set_version(&self.work, &format!("{round}.1"))?;
        self.commit(&format!("Shop {round}.1"))?;
        self.git(&["push", "adamant", "HEAD:main"])?;
        let second = self.release()?;
        self.adamant(&["promote", &second, "staging", "--wait"])?;
        self.adamant(&["config", "prod", "--project", PROJECT, &format!("GREETING=Hello {round}")])?;
        self.adamant(&["promote", &second, "prod"])?;
        self.look("prod", &format!("version {round}.1")).await?;
        self.adamant(&["diff", &first, &second])?;

        headline("Roll prod back: artifact and configuration as they were");
        self.adamant(&["rollback", "prod", "--project", PROJECT, "--reason", "the tour goes back"])?;
        self.look("prod", &format!("Good day {round}")).await?;

        headline("Prove it: one file, checked offline with nothing but the trust file");
        let capsule = self.data.join("demo/prod.capsule");
        let trust = self.data.join("trust.json");
        self.adamant(&["prove", "prod", "--project", PROJECT, "-o", &text(&capsule)])?;
        self.adamant(&["verify", &text(&capsule), "--trust", &text(&trust)])?;
        self.adamant(&["fsck"])?;
        self.adamant(&["status", PROJECT])
    }

    fn note(&mut self, what: &str, since: Instant) {
        self.step += 1;
        say(format!("{:>2}  {:>6.2} s  {what}", self.step, since.elapsed().as_secs_f64()));
    }

    /// Shows and runs a command; its output goes where ours goes.
    fn command(&mut self, shown: &str, command: &mut Command) -> Result<(), Failure> {
        say(format!("$ {shown}"));
        let begin = Instant::now();
        let status = command
            .current_dir(&self.work)
            .env("ADAMANT_DATA", &self.data)
            .stdin(Stdio::null())
            .stdout(std::io::stderr())
            .status()
            .map_err(|error| Failure::usage(format!("cannot run `{shown}`")).cause(error))?;
        if !status.success() {
            return Err(Failure::no(format!("`{shown}` ended with {status}"))
                .hint(format!("the repository of the tour is {}", self.work.display())));
        }
        self.note(shown, begin);
        Ok(())
    }

    fn adamant(&mut self, arguments: &[&str]) -> Result<(), Failure> {
        let mut command = Command::new(&self.exe);
        command.args(arguments);
        self.command(&shown("adamant", arguments), &mut command)
    }

    fn git(&mut self, arguments: &[&str]) -> Result<(), Failure> {
        let mut command = Command::new("git");
        command.args(GIT_IDENTITY).args(arguments);
        self.command(&shown("git", arguments), &mut command)
    }

    /// Commits what is there; the same content again is fine.
    fn commit(&mut self, message: &str) -> Result<(), Failure> {
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--allow-empty", "-m", message])
    }

    /// Which round of the tour this is, from the commits made by rounds before it.
    fn round(&self) -> Result<usize, Failure> {
        let output = Command::new("git").arg("-C").arg(&self.work).args(["rev-list", "--count", "HEAD"]).output()?;
        let commits: usize = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(0);
        Ok(commits / 2 + 1)
    }

    /// The release the last push made.
    fn release(&self) -> Result<String, Failure> {
        let output = Command::new(&self.exe)
            .args(["status", PROJECT, "--json"])
            .env("ADAMANT_DATA", &self.data)
            .stderr(Stdio::inherit())
            .output()?;
        let status: adamant_api::Status = serde_json::from_slice(&output.stdout)
            .map_err(|e| Failure::bug(format!("status is not understood: {e}")))?;
        status.releases.first().map(|r| r.name.clone()).ok_or_else(|| Failure::bug("the push made no release"))
    }

    /// Asks a deployed service for its front page, over its own host name.
    async fn look(&mut self, environment: &str, expected: &str) -> Result<(), Failure> {
        let server = adamant_client::connect(&self.data).await?;
        let status: adamant_api::Status = server.get(&format!("/projects/{PROJECT}")).await?;
        let url = status
            .environments
            .iter()
            .find(|e| e.name == environment)
            .and_then(|e| e.url.clone())
            .ok_or_else(|| Failure::bug(format!("{environment} has no address")))?;
        let begin = Instant::now();
        let answer = fetch(&url).await?;
        let line = answer.lines().find(|line| line.contains(expected)).ok_or_else(|| {
            Failure::no(format!("{url} does not say `{expected}`")).cause(answer.trim().replace('\n', " / "))
        })?;
        say(format!("$ curl {url}\n{line}"));
        self.note(&format!("curl {url}"), begin);
        Ok(())
    }

    async fn what_next(&self) -> Result<(), Failure> {
        let link = adamant_client::login_link(&self.data).await?;
        let exe = self.exe.display();
        let data = self.data.display();
        say(format!(
            "\nTry next:\n  \
             the page           {link}\n  \
             attack all this    {exe} demo --break --data {data}\n  \
             look around        cd {} && {exe} status\n  \
             your own project   cd your-repository && {exe} init --data {data}\n",
            self.work.display()
        ));
        Ok(())
    }
}

/// The tour's commits must not depend on what git knows of the person.
const GIT_IDENTITY: [&str; 6] =
    ["-c", "user.name=Tour", "-c", "user.email=tour@shop.example", "-c", "commit.gpgsign=false"];

fn headline(words: &str) {
    say(format!("\n── {words}"));
}

fn shown(program: &str, arguments: &[&str]) -> String {
    let quoted = |word: &&str| if word.contains(' ') { format!("'{word}'") } else { (*word).to_owned() };
    format!("{program} {}", arguments.iter().map(quoted).collect::<Vec<_>>().join(" "))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// `GET url` of a service under `*.localhost`, which is always this machine (RFC 6761 §6.3).
pub(crate) async fn fetch(url: &str) -> Result<String, Failure> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let bad = |problem: String| {
        Failure::new(adamant_api::Class::Unavailable, format!("{url} does not answer")).cause(problem)
    };
    let authority = url.trim_start_matches("http://").trim_end_matches('/');
    let port = authority.rsplit(':').next().and_then(|p| p.parse::<u16>().ok()).unwrap_or(80);
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        stream
            .write_all(format!("GET / HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut answer = Vec::new();
        stream.take(1 << 20).read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), exchange)
        .await
        .map_err(|_| bad("no answer in 10 s".to_owned()))?
        .map_err(|e| bad(e.to_string()))?;
    if answer.starts_with("HTTP/1.1 200") {
        Ok(answer)
    } else {
        Err(bad(answer.lines().next().unwrap_or_default().to_owned()))
    }
}
